"""Polling: the cursor behind `matrix.receive`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.subscriptions import TAKE_LIMIT, Subscriptions
from armorclaw.store import Database

Make = Callable[..., Any]


def everything(event: Event) -> bool:
    return True


class Poller:
    def __init__(self, db: Database, new_event: Make) -> None:
        self.db = db
        self.new_event = new_event
        self.journal = Journal(db)
        self.subscriptions = Subscriptions(db, self.journal, Surroundings())

    async def publish(self, count: int = 1, room: str = "!a:x") -> None:
        await self.journal.record([self.new_event(room) for _ in range(count)])

    async def take(self, limit: int = 10, wait: float = 0, allowed: Any = everything) -> list[int]:
        return [event.seq for event in await self.subscriptions.take("echo", limit, allowed=allowed, wait=wait)]


@pytest.fixture
async def poller(db: Database, new_event: Make) -> Poller:
    poller = Poller(db, new_event)
    await poller.subscriptions.ensure("echo", "main")
    return poller


async def test_each_batch_settles_the_one_before(poller: Poller) -> None:
    assert await poller.take() == []
    await poller.publish(5)
    assert await poller.take(2) == [1, 2]
    assert await poller.take(2) == [3, 4]
    assert await poller.take(2) == [5]
    assert await poller.take(2) == []


async def test_a_batch_lost_on_its_way_comes_again(poller: Poller) -> None:
    await poller.publish(3)
    assert await poller.take(2) == [1, 2]
    poller.subscriptions.forget_batch("echo")
    assert await poller.take(2) == [1, 2]
    assert await poller.take(2) == [3]
    poller.subscriptions.forget_batch("nobody")


async def test_a_batch_not_followed_by_another_call_comes_again_after_a_restart(poller: Poller) -> None:
    await poller.publish(3)
    assert await poller.take(1) == [1]
    assert await poller.take(1) == [2]
    again = Poller(poller.db, poller.new_event)
    assert await again.take() == [2, 3]


async def test_policy_filter_and_acknowledgements_apply(poller: Poller) -> None:
    await poller.subscriptions.ensure("echo", "main", filter=EventFilter(rooms=("!a:*", "!b:*")))
    await poller.publish(1, "!a:x")
    await poller.publish(1, "!b:x")
    await poller.publish(1, "!c:x")
    await poller.publish(1, "!a:x")
    assert await poller.take(allowed=lambda event: event.room_id != "!b:x") == [1, 4]
    assert await poller.take() == []
    await poller.publish(1, "!a:x")
    assert await poller.take() == [5]


async def test_rare_events_are_found_over_many_pages(poller: Poller) -> None:
    await poller.publish(50, "!b:x")
    await poller.publish(1, "!a:x")
    await poller.publish(50, "!b:x")
    await poller.publish(1, "!a:x")
    assert await poller.take(2, allowed=lambda event: event.room_id == "!a:x") == [51, 102]


async def test_a_batch_has_a_limit(poller: Poller) -> None:
    await poller.publish(TAKE_LIMIT + 1)
    assert len(await poller.take(10**9)) == TAKE_LIMIT
    assert await poller.take(0) == [TAKE_LIMIT + 1]


async def test_waiting_for_the_first(poller: Poller, autojump_clock: trio.testing.MockClock) -> None:
    started = trio.current_time()
    assert await poller.take(wait=4) == []
    assert trio.current_time() - started == 4

    async def later() -> None:
        await trio.sleep(1)
        await poller.publish(1, "!b:x")
        await trio.sleep(1)
        await poller.publish(2)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(later)
        assert await poller.take(wait=4, allowed=lambda event: event.room_id == "!a:x") == [2, 3]
    assert trio.current_time() - started == 6


async def test_two_pollers_at_once_share_and_do_not_repeat(poller: Poller) -> None:
    await poller.publish(4)
    taken: list[int] = []

    async def one() -> None:
        taken.extend(await poller.take(2))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one)
        nursery.start_soon(one)
    assert sorted(taken) == [1, 2, 3, 4]


async def test_events_that_are_pushed_cannot_be_polled(
    poller: Poller, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    await poller.publish(1)
    assert await poller.take() == [1]
    async with trio.open_nursery() as nursery:
        sink = new_sink()
        subscription = poller.subscriptions.open("echo", "main", None, "now", everything, sink)
        await nursery.start(subscription.run)
        with pytest.raises(ArmorclawError) as caught:
            await poller.take()
        assert caught.value.name == "conflict"
        await poller.publish(1)
        assert sink.seqs == [1, 2]  # the batch was not settled, so it is pushed
        subscription.close("done")
    assert await poller.take() == [1, 2]


async def test_a_push_subscription_starts_while_a_poll_waits(
    poller: Poller, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    async with trio.open_nursery() as nursery:

        async def poll() -> None:
            with pytest.raises(ArmorclawError, match="polled"):
                await poller.take(wait=4)

        nursery.start_soon(poll)
        await trio.testing.wait_all_tasks_blocked()
        subscription = poller.subscriptions.open("echo", "main", None, "now", everything, new_sink())
        with trio.fail_after(1):
            await nursery.start(subscription.run)
        await poller.publish(1)
        await trio.testing.wait_all_tasks_blocked()
        subscription.close("done")


async def test_a_poll_that_is_cancelled_gives_nothing_away(
    poller: Poller, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(1):
        await poller.take(wait=10)
    await poller.publish(1)
    assert await poller.take() == [1]
