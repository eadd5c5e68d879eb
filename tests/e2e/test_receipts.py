"""The whole life of a message, as its sender, its reader and the operator see it; on a real homeserver."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.testing.handles import AgentFactory, AgentHandle, BridgeProcess, new_person, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from armorclaw.testing.plugin import missing
from tests.house import House

TELLER = """
import json
import time
from armorclaw.agent import Agent

agent = Agent()
told = []

@agent.on_delivery
def hear(receipt):
    told.append([receipt.event_id, receipt.state])

@agent.on_message
def answer(message):
    if message.body == "think":
        agent.status("thinking")
        time.sleep(message.content["seconds"])
        agent.status("")
    message.reply(json.dumps(told) if message.body == "what were you told?" else "echo: " + message.body)

agent.run()
"""

sandbox = pytest.mark.parametrize("house_runtime", ["sandbox"], indirect=True)


@attrs.define
class Watch:
    """What the person's client shows of who has read what, from now on."""

    person: Person
    since: str = ""
    seen: set[tuple[str, str]] = attrs.field(factory=set)

    def look(self) -> set[tuple[str, str]]:
        """Readers and events so far."""
        parameters = {"timeout": "0"} | ({"since": self.since} if self.since else {})
        answer = self.person._call("GET", "sync", parameters=parameters)
        self.since = answer["next_batch"]
        for room in answer.get("rooms", {}).get("join", {}).values():
            for raw in room["ephemeral"]["events"]:
                if raw["type"] == "m.receipt":
                    events = raw["content"].items()
                    self.seen |= {(reader, event) for event, kinds in events for reader in kinds.get("m.read", {})}
        return self.seen


def start_teller(house: House, folder: Path) -> AgentHandle:
    code = folder / "teller.py"
    code.write_text(TELLER)
    return house.factory(code, rooms=[house.room], name="teller", runtime=house.runtime)


def read(house: House, event_id: str) -> None:
    house.person._call("POST", f"rooms/{house.room}/receipt/m.read/{event_id}", {})


def deliveries(house: House) -> dict[str, dict[str, Any]]:
    """What the operator sees, by event id or, without one, by delivery id."""
    rows = house.bridge.call("delivery.list", limit=100)
    return {row["event_id"] or row["delivery_id"]: row for row in rows}


def state_of(house: House, event_id: str) -> str | None:
    """None as long as the bridge does not know that event: a person may see it before the answer to its request."""
    row = deliveries(house).get(event_id)
    return None if row is None else str(row["state"])


def heard_of(house: House, event_id: str) -> list[str]:
    """What the agent was told of one of its messages.

    Without `sent`, which may go unsaid: a message can be back before the homeserver has answered for it.
    """
    told: list[list[str]] = json.loads(house.ask("what were you told?"))
    states = [state for told_of, state in told if told_of == event_id]
    return states[1:] if states[:1] == ["sent"] else states


@pytest.mark.mission("P1.1", "P1.3", "P1.6", "P3.3", "M.send", "M.sync")
@sandbox
def test_the_life_of_a_message(house: House, armorclaw_folder: Path) -> None:
    """Queued while the homeserver is away; sent, delivered, read; each told to the agent that sent it."""
    start_teller(house, armorclaw_folder)
    question = house.person.send(house.room, "hello")
    answer = house.person.wait_for(lambda seen: seen.body == "echo: hello").event_id
    wait_until(lambda: state_of(house, answer) == "delivered", 20, "the answer came back to the bridge")
    watch = Watch(house.person)
    wait_until(lambda: (house.bridge.user_id, question) in watch.look(), 20, "the person sees that the agent has it")
    wait_until(lambda: heard_of(house, answer) == ["delivered"], 20, "the agent is told so")
    read(house, answer)
    wait_until(lambda: state_of(house, answer) == "read", 20, "the bridge knows that it was read")
    wait_until(lambda: heard_of(house, answer) == ["delivered", "read"], 20, "and the agent is told so")


def test_queued_while_the_homeserver_is_away(armorclaw_folder: Path, tmp_path: Path) -> None:
    """And nobody is told that the agent is done with a message before it is."""
    with Homeserver(tmp_path / "synapse") as homeserver, new_person(homeserver, "alice") as person:
        bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
        room = person.create_room("a room", invite=[bridge.user_id])
        house = House(bridge, person, room, "sandbox", None, AgentFactory(bridge, missing))
        with bridge:
            person.catch_up()
            agent = start_teller(house, armorclaw_folder)
            watch = Watch(person)
            question = person.send(room, "think", seconds=3)
            wait_until(lambda: agent.standing["status"] == "thinking", 20, "the agent has the message")
            assert (bridge.user_id, question) not in watch.look()
            homeserver.kill()
            waiting = wait_until(lambda: _waiting(house), 20, "the answer waits")
            assert waiting["event_id"] is None
            homeserver.start()
            answer = person.wait_for(lambda seen: seen.body == "echo: think", timeout=30)
            assert deliveries(house)[answer.event_id]["delivery_id"] == waiting["delivery_id"]
            wait_until(lambda: (bridge.user_id, question) in watch.look(), 20, "the agent's receipt")
            wait_until(lambda: state_of(house, answer.event_id) == "delivered", 20, "it came back")
            assert person.seen(quiet=1.0) == []  # it is there once


def _waiting(house: House) -> dict[str, Any] | None:
    return next((row for row in deliveries(house).values() if row["state"] in ("queued", "unknown")), None)


@sandbox
def test_an_agent_is_told_after_its_restart(house: House, armorclaw_folder: Path) -> None:
    """Of what was read while it was stopped, and the bridge with it."""
    agent = start_teller(house, armorclaw_folder)
    house.person.send(house.room, "hello")
    answer = house.person.wait_for(lambda seen: seen.body == "echo: hello").event_id
    wait_until(lambda: state_of(house, answer) == "delivered", 20, "the answer came back to the bridge")
    wait_until(lambda: heard_of(house, answer)[-1:] == ["delivered"], 20, "the agent was told of that")
    agent.stop()
    read(house, answer)
    wait_until(lambda: state_of(house, answer) == "read", 20, "the bridge knows that it was read")
    house.bridge.stop()
    house.bridge.start()
    start_teller(house, armorclaw_folder)
    assert heard_of(house, answer) == ["read"]
