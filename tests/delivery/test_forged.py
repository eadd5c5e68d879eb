"""Members of a room may send any type of event, also one by the name of the bridge's own: nobody takes it for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest

from armorclaw.agent import Agent, AsyncAgent
from armorclaw.agent.events import Event as AgentEvent
from armorclaw.agent.events import Receipt
from armorclaw.attached import AttachedAgent
from armorclaw.clock import Clock
from armorclaw.delivery.message import Outgoing, State
from armorclaw.events.event import Event
from armorclaw.matrix.answer import to_event
from armorclaw.matrix.intake import Batch, Intake
from armorclaw.matrix.undecrypted import Undecrypted
from armorclaw.threaded import ThreadedAgent

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

TOLD = {"seq": 1, "id": "x", "type": "delivery", "content": {"delivery_id": "d", "state": "read"}}
FORGED = {**TOLD, "seq": 2, "event_id": "$1", "room_id": "!r:x"}


def said(number: int, type: str, content: Any) -> Event:  # noqa: A002
    raw = {"type": type, "sender": "@evil:x", "event_id": f"${number}", "content": content, "origin_server_ts": 1}
    event = to_event(raw, "!r:x", "main", 1)
    assert event is not None
    return event


def intake_of(world: World) -> Intake:
    undecrypted = Undecrypted("main", world.db, Clock())
    return Intake("main", world.db, world.journal, world.outbox.receipts, undecrypted)


@pytest.mark.mission("P3.4")
async def test_a_sync_with_forged_events_is_taken_in_and_told_whole(world: World, out: Out) -> None:
    waits = await world.outbox.enqueue(out("x"))
    forged = [said(number, "delivery", {"delivery_id": "x", "state": f"made up {number}"}) for number in range(50)]
    of_ours = said(90, "delivery", {"delivery_id": waits.delivery_id, "state": "sent"})
    entries = [said(98, "m.room.message", {}), *forged, of_ours, said(97, "delivery", {}), said(99, "alert", {})]
    await intake_of(world).take(Batch(entries), also=lambda conn: None)
    assert [event.event_id for event in world.events] == [event.event_id for event in entries]
    assert {event.type for event in world.events} == {"m.room.message", "matrix.delivery", "matrix.alert"}
    assert set(world.outbox.told) <= set(get_args(State))
    assert world.outbox.told["sent"] == 0
    assert world.outbox.lengths() == {"main": 1}


async def test_what_fails_behind_the_commit_keeps_nothing_from_those_who_follow(world: World) -> None:
    class OddError(Exception):
        pass

    def odd(events: object) -> None:
        raise OddError

    intake = intake_of(world)
    world.outbox.receipts.committed = odd
    with pytest.raises(OddError):
        await intake.take(Batch([said(1, "m.room.message", {})]), also=lambda conn: None)
    assert [event.event_id for event in world.events] == ["$1"]


def attached() -> AttachedAgent:
    nothing: Any = None
    return AttachedAgent(
        "echo",
        [],
        nothing,
        allowed=lambda event: True,
        granted=nothing,
        take_secrets=nothing,
        call=nothing,
        stream=nothing,
    )


@pytest.mark.parametrize("driver", ["blocking", "asyncio", "attached"])
def test_an_agent_hears_of_its_messages_from_the_bridge_alone(driver: str) -> None:
    drivers: dict[str, Callable[[], Any]] = {"blocking": Agent, "asyncio": AsyncAgent, "attached": attached}
    agent = drivers[driver]()
    heard: list[str] = []

    @agent.on_delivery  # type: ignore[untyped-decorator]
    def handler(receipt: Receipt) -> None:
        heard.append(receipt.state)

    for event in (FORGED, TOLD):
        agent._handlers["delivery"](AgentEvent(event))
    assert heard == ["read"]


async def test_an_agent_on_threads_hears_of_its_messages_from_the_bridge_alone() -> None:
    inside, bridge = attached(), Any
    agent = ThreadedAgent(bridge, inside)  # type: ignore[arg-type]  # it is not asked for anything
    heard: list[str] = []
    agent.on_delivery(lambda receipt: heard.append(receipt.state))
    for event in (FORGED, TOLD):
        await inside._handlers["delivery"](AgentEvent(event))
    assert heard == ["read"]
