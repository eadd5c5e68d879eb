"""An agent that fails is told of in a room of people, once, with a receipt; and that room stays theirs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.agent import AgentError
from armorclaw.bridge import open_bridge
from armorclaw.config import AlertsSection
from armorclaw.delivery.message import Delivery
from armorclaw.testing.handles import BridgeProcess, config_for, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person, Seen

DOOMED = {"runtime": "process", "command": ["false"], "restart": {"in_row": 2, "longest_pause": 0.2}}


@pytest.fixture
def bridge(homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person]) -> Iterator[Any]:
    bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder, agents={"doomed": DOOMED})
    person = matrix_user("admin")
    room = person.create_room("alerts", invite=[bridge.user_id])
    bridge.config["alerts"] = {"room": room}
    with bridge:
        yield bridge, person, room


@pytest.mark.mission("P0.3")
def test_an_agent_that_was_given_up_is_told_of_once(bridge: Any) -> None:
    running, person, room = bridge
    told = person.wait_for(lambda seen: "doomed" in seen.body, timeout=30)
    first, *_, last = told.body.splitlines()
    assert first.startswith("error: agent doomed was given up: ")
    assert last == "next: armorclaw containers inspect doomed"
    (delivery,) = wait_until(
        lambda: running.call("delivery.list", room_id=room, state="delivered"), 30, "the message is known to be there"
    )
    assert delivery["event_id"]
    assert delivery["agent"] is None
    running.call("stop", name="doomed")
    running.stop()
    running.start()
    assert person.seen(quiet=2.0) == []
    assert len(running.call("delivery.list", room_id=room)) == 1


async def test_the_room_of_alerts_is_no_agents(
    homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person]
) -> None:
    person = matrix_user("admin")
    config = config_for(homeserver, armorclaw_folder)
    user = config.accounts["main"].user
    ops, room = (person.create_room(name, invite=[user]) for name in ("alerts", "talk"))
    config = attrs.evolve(config, alerts=AlertsSection(room=ops, severity="warning"))
    heard: list[str] = []
    spoken = trio.Event()
    async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
        agent = bridge.attach("ada", rooms=[room])

        @agent.on_message
        async def hear(message: Any) -> None:
            heard.append(message.body)
            if message.body == "and here?":
                spoken.set()

        await nursery.start(agent.run)
        with trio.fail_after(30):
            await bridge.until_joined([ops, room])
        person.send(ops, "do you hear me?")
        person.send(room, "and here?")
        with trio.fail_after(30):
            await spoken.wait()
        assert heard == ["and here?"]
        with pytest.raises(AgentError) as caught:
            await agent.send(ops, "hello")
        assert caught.value.name == "room_denied"
        await agent.error("no feed", severity="warning")
        told = await trio.to_thread.run_sync(lambda: person.wait_for(_is_alert, timeout=30))
        assert told.body == "warning: agent ada reports: no feed\nnext: armorclaw containers inspect ada"
        journalled = (await bridge.journal.after(0, 100)).events
        assert ops not in {event.room_id for event in journalled}
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_without_encryption_an_encrypted_room_is_refused_once_and_no_loop(
    homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person]
) -> None:
    """With it an alert arrives encrypted: `tests/interop/test_alerts.py`."""
    person = matrix_user("admin")
    config = config_for(homeserver, armorclaw_folder)
    ops = person.create_room("alerts", invite=[config.accounts["main"].user], encrypted=True)
    account = attrs.evolve(config.accounts["main"], encryption=False)
    config = attrs.evolve(config, accounts={"main": account}, alerts=AlertsSection(room=ops))
    async with open_bridge(config) as bridge:
        with trio.fail_after(30):
            await bridge.until_joined([ops])
        await bridge.alerts.raise_alert("test", "error", "something is wrong")
        found: list[Delivery] = []
        with trio.fail_after(30):
            while not found:
                await trio.sleep(0.05)
                found = await bridge.outbox.latest(5, state="failed")
        await trio.sleep(1)
        assert found == await bridge.outbox.latest(5)
        assert found[0].reason is not None
        assert found[0].reason.startswith("room_encrypted")


def _is_alert(seen: Seen) -> bool:
    return "reports" in seen.body
