"""The end of the bridge: what is under way comes to its end, and nothing else begins."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.transport import Delayed

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py


@pytest.fixture
async def serving(world: World) -> AsyncIterator[World]:
    world.server.latency = 2
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_idle_is_when_what_is_under_way_is_written_down(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    await serving.outbox.idle()
    ids = [(await serving.outbox.enqueue(out(str(number), f"!{number % 2}:x"))).delivery_id for number in range(4)]
    await trio.sleep(1)
    assert (serving.outbox.in_flight(), serving.outbox.in_flight("main"), serving.outbox.in_flight("b")) == (2, 2, 0)
    serving.outbox.hold()
    serving.outbox.hold()
    await serving.outbox.idle()
    assert trio.current_time() - started == 2
    assert serving.outbox.in_flight() == 0
    states = [(await serving.outbox.status(each)).state for each in ids]
    assert states == ["sent", "sent", "queued", "queued"]
    await trio.sleep(60)
    assert len(serving.server.attempts) == 2
    await serving.outbox.enqueue(out("4"))  # what is accepted is parked
    await trio.sleep(60)
    assert len(serving.server.attempts) == 2
    serving.outbox.release()
    serving.outbox.release()
    await trio.sleep(10)
    assert sorted(body for _, body in serving.server.visible) == ["0", "1", "2", "3", "4"]
    assert serving.outbox.in_flight() == 0


async def test_whoever_waits_for_a_parked_message_goes_on(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    """A call that waits for its event id must not hold up the end of the bridge."""
    first = await serving.outbox.enqueue(out("1"))
    second = await serving.outbox.enqueue(out("2"))
    found: dict[str, tuple[str, float]] = {}
    started = trio.current_time()

    async def wait(delivery_id: str) -> None:
        delivery = await serving.outbox.settled(delivery_id, 60)
        found[delivery_id] = delivery.state, trio.current_time() - started

    async with trio.open_nursery() as nursery:
        for each in (first, second):
            nursery.start_soon(wait, each.delivery_id)
        await trio.sleep(1)
        serving.outbox.hold()
    assert found == {first.delivery_id: ("sent", 2.0), second.delivery_id: ("queued", 1.0)}


async def test_an_attempt_that_fails_while_it_is_held_is_not_repeated(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    started = trio.current_time()
    serving.server.trouble["!a:x"] += [Delayed(None, "502")] * 3
    delivery = await serving.outbox.enqueue(out("1"))
    await trio.sleep(1)
    serving.outbox.hold()
    assert (await serving.outbox.settled(delivery.delivery_id, 60)).state == "unknown"
    await serving.outbox.idle()
    assert trio.current_time() - started == 2
    await trio.sleep(60)
    assert len(serving.server.attempts) == 1


async def test_a_parked_message_can_be_taken_back(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.outbox.hold()
    delivery = await serving.outbox.enqueue(out("1"))
    await trio.sleep(1)
    await serving.outbox.cancel(delivery.delivery_id, by="uid 0")
    serving.outbox.release()
    await trio.sleep(10)
    assert serving.server.attempts == []


async def test_a_session_that_ends_is_in_flight_no_more(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    world.server.trouble["!a:x"].append("hang")
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await world.outbox.enqueue(out("1"))
        await trio.testing.wait_all_tasks_blocked()
        assert world.outbox.in_flight() == 1
        nursery.cancel_scope.cancel(reason="the session ends")
    await world.outbox.idle()
