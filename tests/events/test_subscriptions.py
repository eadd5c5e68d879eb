"""All subscriptions together: polling (the cursors behind `matrix.receive`), the end of the bridge, idle floors."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.events import journal
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.keeping import pruning
from armorclaw.events.keeping.idle import PAGES
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import TAKE_LIMIT, Subscriptions
from armorclaw.store import Database

Make = Callable[..., Any]
settle = trio.testing.wait_all_tasks_blocked


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
        await trio.testing.wait_all_tasks_blocked()
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


async def test_a_poll_that_waits_settles_nothing_for_the_connection_that_begins_meanwhile(
    poller: Poller, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    def narrow(event: Event) -> bool:
        return event.room_id == "!a:x"

    await poller.publish(2, "!b:x")
    async with trio.open_nursery() as nursery:

        async def poll() -> None:
            for _ in range(2):
                with pytest.raises(ArmorclawError, match="polled"):
                    await poller.take(wait=4, allowed=narrow)

        nursery.start_soon(poll)
        await settle()
        sink = new_sink()
        subscription = poller.subscriptions.open("echo", "main", None, "now", everything, sink)
        await nursery.start(subscription.run)
        await trio.sleep(10)
        assert sink.seqs == [1, 2]
        assert await floors(poller.db) == {"echo/main": 0}
        subscription.close("done")


@pytest.mark.parametrize("comes", [False, True])
async def test_a_poll_that_waits_for_a_name_that_is_forgotten_begins_nothing_anew(
    poller: Poller, autojump_clock: trio.testing.MockClock, comes: bool
) -> None:
    """Nor is it given all there ever was, or what it has looked at settled for whoever uses the name then."""
    await poller.publish(3)
    await poller.take()
    await poller.take()
    async with trio.open_nursery() as nursery:

        async def poll() -> None:
            with pytest.raises(ArmorclawError, match="polled") as caught:
                await poller.take(wait=4)
            assert caught.value.why == "its name was forgotten"

        nursery.start_soon(poll)
        await settle()
        await poller.subscriptions.forget("echo", "main", None)
        if comes:
            await poller.publish(1)
    await poller.subscriptions.ensure("echo", "main", at=0)
    assert await poller.take() == list(range(1, 5 if comes else 4))


async def test_a_poll_that_is_cancelled_gives_nothing_away(
    poller: Poller, autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(1):
        await poller.take(wait=10)
    await poller.publish(1)
    assert await poller.take() == [1]


# --- several consumers, and what is owed


async def test_each_name_has_a_cursor_of_its_own(poller: Poller) -> None:
    subscriptions = poller.subscriptions
    for name in ("receive.one", "receive.two"):
        await subscriptions.ensure("", name)
    await poller.publish(3)
    taken = {}
    for name, limit in (("receive.one", 2), ("receive.two", 9)):
        taken[name] = [event.seq for event in await subscriptions.take("", limit, name=name, allowed=everything)]
    assert taken == {"receive.one": [1, 2], "receive.two": [1, 2, 3]}
    subscriptions.forget_batch("", "receive.two")
    assert len(await subscriptions.take("", 9, name="receive.two", allowed=everything)) == 3
    assert [event.seq for event in await subscriptions.take("", 9, name="receive.one", allowed=everything)] == [3]


async def test_what_a_poller_has_read_is_told(poller: Poller) -> None:
    read: list[Any] = []
    poller.subscriptions = Subscriptions(poller.db, poller.journal, Surroundings())
    poller.subscriptions.on_read = read.append
    await poller.publish(2)
    assert await poller.take() == [1, 2]
    assert read == []
    await poller.take()
    assert [(seen.room_id, seen.seq) for seen in read] == [("!a:x", 2)]


async def test_what_was_deleted_before_it_was_polled_is_counted(poller: Poller, db: Database) -> None:
    await poller.publish(5)
    await db.write(lambda conn: pruning.trim(conn, before_ms=0, now_ms=2**62, upto=3))
    with capture_logs() as logs:
        assert await poller.take() == [4, 5]
        assert await poller.take() == []
    assert [line["event"] for line in logs] == ["events were deleted before they were polled"]
    assert poller.subscriptions.totals.gaps == 1


# --- before the end


class Connected:
    """Subscriptions of several owners, each with a sink."""

    def __init__(self, poller: Poller, new_sink: Make, nursery: trio.Nursery) -> None:
        self._subscriptions = poller.subscriptions
        self._new_sink = new_sink
        self._nursery = nursery

    async def open(self, owner: str, name: str | None = "main") -> tuple[Subscription, Any]:
        sink = self._new_sink()
        subscription = self._subscriptions.open(owner, name, None, "now", everything, sink)
        await self._nursery.start(subscription.run)
        return subscription, sink


@pytest.fixture
async def connected(poller: Poller, new_sink: Make) -> AsyncIterator[Connected]:
    async with trio.open_nursery() as nursery:
        yield Connected(poller, new_sink, nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_agents_are_given_nothing_new_while_the_bridge_ends(
    poller: Poller, connected: Connected, autojump_clock: trio.testing.MockClock
) -> None:
    subscriptions = poller.subscriptions
    pushed, mine = await connected.open("echo")
    _, operators = await connected.open("", None)
    _, bridges = await connected.open("@bridge", "alerts")
    await poller.publish(2)
    await settle()
    assert subscriptions.in_hand() == 2
    subscriptions.hold_all()
    _, lates = await connected.open("late")
    await poller.publish(1)
    await trio.sleep(60)
    assert (mine.seqs, lates.seqs) == ([1, 2], [])
    assert operators.seqs == bridges.seqs == [1, 2, 3]
    await pushed.ack(1)
    await pushed.nack(2, 0)
    await trio.sleep(1)
    assert subscriptions.in_hand() == 0  # what is put off comes in the next life
    began = trio.current_time()
    assert await subscriptions.take("poller", 9, allowed=everything, wait=3) == []
    assert trio.current_time() - began == 3
    subscriptions.release_all()
    await settle()
    assert mine.seqs == [1, 2, 2, 3]
    assert lates.seqs == [3]


async def test_who_has_not_begun_when_the_bridge_begins_to_end_is_given_nothing(
    poller: Poller, connected: Connected, new_sink: Make
) -> None:
    subscriptions = poller.subscriptions
    await poller.publish(2)
    sink = new_sink()
    subscription = subscriptions.open("echo", "main", None, "now", everything, sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscription.run)
        subscriptions.hold_all()
        await settle()
        assert sink.seqs == []
        subscriptions.release_all()
        await settle()
        assert sink.seqs == [1, 2]
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_poll_that_waits_when_the_bridge_begins_to_end_is_given_nothing(
    poller: Poller, autojump_clock: trio.testing.MockClock
) -> None:
    taken: list[int] = []

    async def poll() -> None:
        taken.extend(await poller.take(wait=5))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        await settle()
        poller.subscriptions.hold_all()
        await poller.publish(1)
    assert taken == []
    poller.subscriptions.release_all()
    assert await poller.take() == [1]


# --- floors that nobody moves


async def floors(db: Database) -> dict[str, int]:
    rows = await db.read(lambda conn: conn.execute("SELECT owner, name, floor FROM subscriptions").fetchall())
    return {f"{owner}/{name}": floor for owner, name, floor in rows}


async def test_floors_move_over_what_is_for_nobody_and_no_further(
    poller: Poller, db: Database, connected: Connected, autojump_clock: trio.testing.MockClock
) -> None:
    subscriptions = poller.subscriptions
    grants: dict[str, Any] = {
        "echo": lambda event: event.room_id == "!a:x",
        "busy": lambda event: event.room_id == "!a:x",
        "": everything,
    }
    subscriptions.policy = grants.get
    for owner, name in (("echo", "main"), ("busy", "main"), ("unknown", "main"), ("", "all")):
        await subscriptions.ensure(owner, name)
    await subscriptions.ensure("", "none", filter=EventFilter(types=("never",)))
    holder, _ = await connected.open("busy")
    await poller.publish(3, "!b:x")
    await poller.publish(3, "!a:x")  # 4 to 6
    await poller.publish(2, "!b:x")
    await settle()
    await holder.ack(5)
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 3, "busy/main": 3, "unknown/main": 0, "/all": 0, "/none": 8}
    await holder.ack(4)
    await holder.ack(6)
    await subscriptions.settle_idle()
    assert (await floors(db))["busy/main"] == 8
    assert await poller.take(allowed=grants["echo"]) == [4, 5, 6]  # nothing that is owed was passed over
    await subscriptions.settle_idle()
    assert (await floors(db))["echo/main"] == 3  # it has not answered for its batch


async def test_a_name_that_is_forgotten_meanwhile_stays_forgotten(
    poller: Poller, db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscriptions = poller.subscriptions
    subscriptions.policy = lambda owner: everything
    await subscriptions.ensure("", "none", filter=EventFilter(types=("never",)))
    await poller.publish(3)
    after = poller.journal.after

    async def forgets(*args: Any) -> Any:
        page = await after(*args)
        if "/none" in await floors(db):
            await subscriptions.forget("", "none", None)
        return page

    monkeypatch.setattr(poller.journal, "after", forgets)
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 0}


@pytest.mark.parametrize("forgotten", [False, True])
async def test_a_name_that_wants_something_else_meanwhile_is_not_moved_over_it(
    poller: Poller, db: Database, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    subscriptions = poller.subscriptions
    subscriptions.policy = lambda owner: everything
    never = EventFilter(types=("never",))
    await subscriptions.ensure("", "none", filter=never)
    await poller.publish(2)
    await subscriptions.settle_idle()
    await poller.publish(3)
    after = poller.journal.after

    async def changes(*args: Any) -> Any:
        page = await after(*args)
        if args[2] == never:
            if forgotten:
                await subscriptions.forget("", "none", None)
            await subscriptions.ensure("", "none", filter=never if forgotten else EventFilter(), at=0)
        return page

    monkeypatch.setattr(poller.journal, "after", changes)
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 0, "/none": 0 if forgotten else 2}


async def test_who_is_to_hear_of_a_gap_is_not_passed_over_it(poller: Poller, db: Database) -> None:
    subscriptions = poller.subscriptions
    subscriptions.policy = lambda owner: lambda event: False
    await poller.publish(5)
    await db.write(lambda conn: pruning.trim(conn, before_ms=0, now_ms=2**62, upto=3))
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 0}


async def test_a_long_way_takes_several_looks(poller: Poller, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armorclaw.events.journal.SCAN_LIMIT", 10)
    monkeypatch.setattr("armorclaw.events.journal._AFTER", journal._AFTER.replace("LIMIT 4096", "LIMIT 10"))
    subscriptions = poller.subscriptions
    subscriptions.policy = lambda owner: lambda event: event.room_id == "!a:x"
    await poller.publish(15 * PAGES, "!b:x")
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 10 * PAGES}
    await subscriptions.settle_idle()
    assert await floors(db) == {"echo/main": 15 * PAGES}
