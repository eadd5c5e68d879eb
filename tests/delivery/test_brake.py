"""A homeserver that is away is not asked by each room alone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.config import DeliverySection
from armorclaw.delivery import brake
from armorclaw.delivery.brake import BURST, PERIOD
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.sender import BACKOFF_LAST, PUTS_AT_ONCE, TOLD_LEAST_LAST
from armorclaw.delivery.transport import Delayed

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

AWAY = Delayed(None, "cannot connect", sure=True, whole=True)


@pytest.fixture
async def serving(world: World) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


async def fill(world: World, out: Out, rooms: int, trouble: Delayed = AWAY) -> list[str]:
    """A message in each of so many rooms, each of which is in trouble from now on."""
    ids = []
    for number in range(rooms):
        world.server.trouble[f"!{number}:x"] += [trouble] * 10_000
        ids.append((await world.outbox.enqueue(out(str(number), f"!{number}:x"))).delivery_id)
    return ids


async def attempts_within(world: World, seconds: float) -> int:
    before = len(world.server.attempts)
    await trio.sleep(seconds)
    return len(world.server.attempts) - before


@pytest.mark.mission("P3.3")
@pytest.mark.parametrize("rooms", [10, 1_000])
@pytest.mark.parametrize(
    "trouble",
    [AWAY, Delayed(None, "502", whole=True), Delayed(0.0, "503, come again", whole=True)],
    ids=["refused", "502", "503 at once"],
)
async def test_while_it_is_away_all_rooms_together_ask_once_a_second(
    serving: World, out: Out, rooms: int, trouble: Delayed, autojump_clock: trio.testing.MockClock
) -> None:
    def fuse(name: str) -> None:
        assert len(serving.server.attempts) <= 3 * rooms + 1_000, "far too many"

    serving.server.point = fuse
    await fill(serving, out, rooms, trouble)
    await trio.testing.wait_all_tasks_blocked()
    assert len(serving.server.attempts) >= rooms, "first attempts are not braked"
    await trio.sleep(60)
    asked = await attempts_within(serving, 300)
    assert 0.8 * 300 / PERIOD <= asked <= 300 / PERIOD + BURST
    last = {room for _, room, _, _ in serving.server.attempts[-min(asked, 4 * rooms) :]}
    assert len(last) == min(rooms, asked), "each gets its turn"
    serving.server.trouble.clear()
    await trio.sleep(PERIOD + BACKOFF_LAST + 1)
    assert len(serving.server.visible) == rooms, "the first success lifts it for all"


async def test_a_success_of_any_room_lifts_it_and_a_stuck_room_stops_none_that_works(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    await fill(serving, out, 100)
    await trio.sleep(30)
    for number in range(20):
        began = trio.current_time()
        fine = await serving.outbox.enqueue(out(str(number), "!fine:x"))
        assert (await serving.outbox.settled(fine.delivery_id, 5)).state == "sent"
        assert trio.current_time() == began
        await trio.sleep(0.5)
    await trio.sleep(30)
    serving.server.trouble["!shaky:x"] += [AWAY, AWAY]
    began = trio.current_time()
    shaky = await serving.outbox.enqueue(out("x", "!shaky:x"))
    assert (await serving.outbox.settled(shaky.delivery_id, 60)).state == "sent"
    assert trio.current_time() - began < 4, "those that fail again and again let it pass"


async def test_waits_that_are_told_are_not_braked(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    await fill(serving, out, 50, Delayed(1.0, "429", sure=True))
    assert await attempts_within(serving, 100) >= 50 * 100 / TOLD_LEAST_LAST - 50


async def test_news_of_the_homeserver_lifts_it_for_one_attempt_and_not_for_a_storm(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    await fill(serving, out, 200)
    await trio.sleep(60)
    serving.server.latency = 0.001
    before = len(serving.server.attempts)
    serving.outbox.hurry("main")
    await trio.sleep(0.5)
    assert 1 < len(serving.server.attempts) - before <= 2 * PUTS_AT_ONCE + BURST
    serving.server.trouble.clear()
    serving.outbox.hurry("main")
    await trio.sleep(0.5)
    assert len(serving.server.visible) == 200


async def test_what_came_back_holds_up_nothing_behind_it(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    await fill(serving, out, 100)
    await trio.sleep(20)
    serving.server.trouble["!a:x"] += ["lose", Delayed(None, "reset", whole=True)]
    await serving.outbox.enqueue(out("1"))
    second = await serving.outbox.enqueue(out("2"))
    await trio.sleep(5)
    assert serving.server.bodies("!a:x") == ["1"]
    assert (await serving.outbox.status(second.delivery_id)).attempts == 0
    await serving.sync()
    assert (await serving.outbox.settled(second.delivery_id, 0.1)).state == "sent"


async def test_it_is_no_longer_held_than_it_may_be(
    world: World, out: Out, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    monkeypatch.setattr(brake, "PERIOD", 10_000.0)
    world.section = DeliverySection(expire_after_h=1)
    world.reopen()
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        ids = await fill(world, out, 10)
        await trio.sleep(3601)
        assert {(await world.outbox.status(each)).state for each in ids} == {"failed"}
        nursery.cancel_scope.cancel(reason="the test is over")
