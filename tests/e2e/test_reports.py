"""What an agent in a container says of itself, and what becomes of one that says too much."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armorclaw.testing.handles import BridgeProcess, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from tests.house import House

WILD = """
import time
from armorclaw.agent import Agent, AgentError

agent = Agent()

@agent.on_message
def flood(msg):
    while True:
        try:
            agent.event("again")
        except AgentError as error:
            time.sleep(0.5)

agent.run()
"""


@pytest.mark.mission("P1.4", "P1.5", "P1.6")
@pytest.mark.parametrize("house_runtime", ["sandbox"], indirect=True)
def test_operators_see_what_an_agent_says_of_itself(house: House) -> None:
    def tell(message: Any) -> None:
        agent.status("reading " + message.body)
        agent.event("read", {"body": message.body})
        agent.progress(1, 2, "half")
        if message.body == "fail":
            raise ValueError("cannot read")
        message.reply("done")

    agent = house.start(tell, name="reader")
    assert house.ask("this") == "done"
    (standing,) = house.bridge.call("containers.list")
    assert standing["status"] == "reading this"
    house.person.send(house.room, "fail")

    def failure() -> list[str]:
        log = house.bridge.log.read_text()
        return [line for line in log.splitlines() if "agent reports an error" in line and "cannot read" in line]

    assert wait_until(failure, 20, "the failure is reported")


@pytest.mark.mission("P0.3", "S.6")
def test_one_that_publishes_without_end_is_stopped_for_good(
    homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person]
) -> None:
    bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    person = matrix_user("admin")
    room, ops = (person.create_room(name, invite=[bridge.user_id]) for name in ("talk", "alerts"))
    code = armorclaw_folder / "wild.py"
    code.write_text(WILD)
    quota = {"events": 50, "on_exceeded": "stop"}
    wild = {"runtime": "sandbox", "code": code, "rooms": [room], "quota": quota}
    bridge.config |= {"agents": {"wild": wild}, "alerts": {"room": ops}}
    with bridge:
        wait_until(lambda: bridge.user_id in person.members(room), 20, "the bridge is in the room")
        person.send(room, "go")
        told = person.wait_for(lambda seen: "quota" in seen.body, timeout=30)
        assert told.body.startswith("error: agent wild has used up its quota of 50 events a minute: ")
        given_up = person.wait_for(lambda seen: "given up" in seen.body, timeout=30)
        assert "it went on for 10 s after it had used up its quota of 50 events a minute" in given_up.body
        (standing,) = bridge.call("containers.list")
        assert standing["state"] == "failed"
        assert "quota" in standing["last_end"]
