"""Bodies go when everybody has been done with them for a while; events when they are old, or too many."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import structlog
import trio
import trio.testing

from armorclaw.clock import Clock, Surroundings
from armorclaw.config.sections import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.keeping import pruning, retention
from armorclaw.events.keeping.pruning import DAY_MS, DELETE_ROWS, ERASE_ROWS, ROW_BYTES
from armorclaw.events.keeping.retention import HOUR_MS, Forgotten, Retention
from armorclaw.store import Connection, Database
from tests.events.inline_store import InlineDatabase

BODY = "a secret that is long enough to be looked for"


class World:
    """A store and a wall clock that a test sets, in milliseconds."""

    def __init__(self, db: Database, section: EventsSection | None = None) -> None:
        self.now = 10**12
        self.around = Surroundings(clock=Clock(wall=lambda: self.now / 1000))
        self.db = db
        self.journal = Journal(db, self.around.clock)
        self.heard: list[Event] = []
        self.journal.subscribe_hub(self.heard.extend)
        self.idle_settled = 0
        self.retention = self.again(section)

    def again(self, section: EventsSection | None = None) -> Retention:
        """As in the next life of the bridge."""

        async def settle_idle() -> None:
            self.idle_settled += 1

        self.retention = Retention(self.db, self.around, section or EventsSection(), settle_idle, self.journal)
        return self.retention

    async def record(self, count: int = 1, *, room: str | None = "!r:h", body: str = BODY) -> list[Event]:
        made = [Event.make("x", {"body": body}, at_ms=self.now, room_id=room) for _ in range(count)]
        return await self.journal.record(made)

    async def subscribe(self, owner: str, floor: int) -> None:
        sql = "INSERT INTO subscriptions (owner, name, filter, floor) VALUES (?, 'main', '{}', ?)"
        await self.db.write(lambda conn: conn.execute(sql, (owner, floor)))

    async def settle(self, owner: str, floor: int) -> None:
        sql = "UPDATE subscriptions SET floor = ? WHERE owner = ?"
        await self.db.write(lambda conn: conn.execute(sql, (floor, owner)))

    async def look(self, after_h: float = 0.0) -> Forgotten:
        self.now += round(after_h * HOUR_MS)
        return await self.retention.prune()

    async def bodies(self) -> list[int]:
        """The events that still have theirs."""
        sql = "SELECT seq FROM journal WHERE NOT erased AND content != x'7B7D' ORDER BY seq"
        return await self.db.read(lambda conn: [seq for (seq,) in conn.execute(sql)])

    async def left(self, table: str = "journal") -> int:
        (count,) = await self.db.read(lambda conn: conn.execute(f"SELECT count(*) FROM {table}").fetchone())
        return int(count)


@pytest.fixture
def world(db: Database) -> World:
    return World(db)


# --- bodies


async def test_bodies_go_a_day_after_the_last_acknowledgement(world: World) -> None:
    await world.subscribe("quick", 0)
    await world.subscribe("slow", 0)
    await world.record(3)
    await world.settle("quick", 3)
    assert (await world.look()).erased == 0
    assert (await world.look(48)).erased == 0, "one is not done"
    await world.settle("slow", 2)
    assert (await world.look(1)).erased == 0, "that was seen only now"
    assert (await world.look(23.9)).erased == 0
    assert (await world.look(0.2)).erased == 2
    assert await world.bodies() == [3]
    assert await world.left() == 3, "the events stay, to be known when they come again"


async def test_without_subscribers_it_is_a_day_after_they_came(world: World) -> None:
    await world.record()
    await world.look()
    await world.record()
    assert await world.look(25) == Forgotten(1, 0, 0)
    assert await world.bodies() == [2]


async def test_what_is_erased_is_known_when_it_comes_again(world: World) -> None:
    (event,) = await world.record()
    await world.look()
    assert (await world.look(25)).erased == 1
    assert await world.journal.record([event]) == []
    (seen,) = (await world.journal.after(0, 9)).events
    assert (seen.erased, seen.content, seen.id, seen.room_id) == (True, b"{}", event.id, event.room_id)


async def test_only_messages_have_bodies(world: World) -> None:
    await world.record(room=None)
    await world.look()
    assert await world.look(25) == Forgotten(0, 0, 0)
    assert await world.bodies() == [1]


async def test_a_dead_letter_keeps_its_body_until_it_is_none(world: World) -> None:
    await world.subscribe("a", 0)
    await world.record(2)
    await world.settle("a", 2)
    dead = "INSERT INTO dead_letters VALUES ('a', 'main', 1, 0, 5, 5, 'lost', 0)"
    await world.db.write(lambda conn: conn.execute(dead))
    await world.look()
    assert (await world.look(25)).erased == 1
    assert await world.bodies() == [1]
    world.again()
    await world.db.write(lambda conn: conn.execute("DELETE FROM dead_letters"))
    assert (await world.look()).erased == 1


async def test_who_begins_further_back_may_read_what_is_there(world: World) -> None:
    await world.record(4)
    await world.look()
    await world.look(12)
    await world.subscribe("late", 1)
    await world.look(1)
    assert (await world.look(12)).erased == 1, "the first, which it did not ask for"
    assert await world.bodies() == [2, 3, 4]
    await world.settle("late", 4)
    await world.look(1)
    assert (await world.look(25)).erased == 3


async def test_who_begins_further_back_while_bodies_go_may_read_what_is_left(
    world: World, inline_db: InlineDatabase
) -> None:
    await world.record(2 * ERASE_ROWS)
    await world.look()

    def begins(moment: str) -> None:
        (gone,) = inline_db.conn.execute("SELECT count(*) FROM journal WHERE erased").fetchone()
        if gone and moment == "after commit":
            inline_db.point = lambda moment: None
            sql = "INSERT INTO subscriptions (owner, name, filter, floor) VALUES ('late', 'main', '{}', 0)"
            inline_db.conn.execute(sql)

    inline_db.point = begins
    assert (await world.look(25)).erased == ERASE_ROWS
    assert len(await world.bodies()) == ERASE_ROWS


async def test_marks_survive_the_bridge_and_do_not_pile_up(world: World) -> None:
    await world.subscribe("a", 0)
    for number in range(1, 100):
        await world.record()
        await world.settle("a", number)
        await world.look(1)
        world.again()
    assert await world.left("marks") <= 26
    assert await world.bodies() == list(range(76, 100))


async def test_erase_at_once(db: Database) -> None:
    world = World(db, EventsSection(erase_after_h=0))
    await world.record(2)
    assert (await world.look()).erased == 2


async def test_a_bridge_where_nothing_happens_writes_nothing(world: World) -> None:
    await world.record()
    await world.look()
    (changes,) = await world.db.read(lambda conn: conn.execute("SELECT total_changes()").fetchone())
    await world.look(1)
    assert await world.db.read(lambda conn: conn.execute("SELECT total_changes()").fetchone()) == (changes,)


async def test_a_clock_that_was_set_back_delays_and_does_not_hurry(world: World) -> None:
    await world.record()
    await world.look()
    world.now -= 365 * DAY_MS
    assert await world.look() == Forgotten(0, 0, 0)
    assert await world.look(23) == Forgotten(0, 0, 0)
    assert (await world.look(2)).erased == 1


# --- events


async def test_old_events_go_whoever_wants_them_and_that_is_told(world: World) -> None:
    await world.subscribe("away", 1)
    await world.record(3)
    await world.look(24 * 30 + 1)
    await world.record(1)
    assert await world.journal.trimmed_to() == 3
    told = [event for event in world.heard if event.type == "events.trimmed"]
    assert [(one.severity, one.plain()["content"]) for one in told] == [
        ("warning", {"from": 1, "to": 3, "unacknowledged": 2})
    ]
    assert (await world.journal.after(0, 9)).trimmed == 3


async def test_what_everybody_had_is_deleted_without_a_word(world: World) -> None:
    await world.subscribe("a", 0)
    await world.record(2)
    await world.settle("a", 2)
    with structlog.testing.capture_logs() as logs:
        assert (await world.look(24 * 30 + 1)).events == 2
    assert not [event for event in world.heard if event.type == "events.trimmed"]
    assert [one["log_level"] for one in logs] == ["info"]


async def test_more_than_one_transaction_takes(world: World) -> None:
    await world.subscribe("away", 0)
    await world.record(2 * DELETE_ROWS + 10)
    await world.look()
    assert (await world.look(24 * 31)).events == 2 * DELETE_ROWS + 10
    (told,) = [event for event in world.heard if event.type == "events.trimmed"]
    assert told.plain()["content"] == {"from": 1, "to": 90, "unacknowledged": 90}


async def test_numbers_are_not_given_twice(world: World) -> None:
    await world.record(5)
    await world.look(24 * 31)
    (event,) = await world.record()
    assert event.seq == 6


async def test_what_was_deleted_is_told_though_the_store_fails_half_way(
    world: World, inline_db: InlineDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    await world.subscribe("away", 0)
    await world.record(2 * DELETE_ROWS)
    trim, calls = pruning.trim, 0

    def fails_later(conn: Connection, **bounds: int) -> pruning.Batch:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise ArmorclawError("storage_failed", "no")
        return trim(conn, **bounds)

    monkeypatch.setattr(pruning, "trim", fails_later)
    with pytest.raises(ArmorclawError):
        await world.look(24 * 31)
    (told,) = [event for event in world.heard if event.type == "events.trimmed"]
    assert told.plain()["content"] == {"from": 1, "to": DELETE_ROWS, "unacknowledged": DELETE_ROWS}


async def test_what_the_store_did_not_take_is_told_at_the_next_look(world: World, inline_db: InlineDatabase) -> None:
    await world.subscribe("away", 0)
    await world.record(DELETE_ROWS + 1)

    def goes_away(moment: str) -> None:
        (left,) = inline_db.conn.execute("SELECT count(*) FROM journal").fetchone()
        inline_db.down = left == 1 and moment == "after commit"

    inline_db.point = goes_away
    with pytest.raises(ArmorclawError):
        await world.look(24 * 31)
    inline_db.down, inline_db.point = False, lambda moment: None
    assert [event for event in world.heard if event.type == "events.trimmed"] == []
    for _ in range(2):
        await world.look()
        (told,) = [event for event in world.heard if event.type == "events.trimmed"]
        assert told.plain()["content"] == {"from": 1, "to": DELETE_ROWS + 1, "unacknowledged": DELETE_ROWS + 1}


async def test_what_was_deleted_is_told_and_counted_though_it_is_stopped_in_the_pause_behind(
    inline_db: InlineDatabase, always_counts: None
) -> None:
    world = World(cast(Database, inline_db))
    await world.subscribe("away", 0)
    await world.record(2 * DELETE_ROWS)
    with trio.CancelScope() as scope:

        def at(moment: str) -> None:
            (left,) = inline_db.conn.execute("SELECT count(*) FROM journal").fetchone()
            if left == DELETE_ROWS and moment == "after commit":
                scope.cancel()

        inline_db.point = at
        await world.look(24 * 31)
    assert scope.cancelled_caught
    (told,) = [event for event in world.heard if event.type == "events.trimmed"]
    assert told.plain()["content"] == {"from": 1, "to": DELETE_ROWS, "unacknowledged": DELETE_ROWS}
    assert world.retention._tally.total == DELETE_ROWS * (len(b'{"body":""}') + len(BODY) + ROW_BYTES)


async def test_what_was_deleted_is_told_though_it_is_stopped_in_the_write_itself(
    real_db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(real_db)
    await world.subscribe("away", 0)
    await world.record(2 * DELETE_ROWS)
    trim = pruning.trim

    with trio.CancelScope() as scope:

        def stopped_meanwhile(conn: Connection, **bounds: int) -> pruning.Batch:
            trio.from_thread.run_sync(scope.cancel)
            return trim(conn, **bounds)

        monkeypatch.setattr(pruning, "trim", stopped_meanwhile)
        await world.look(24 * 31)
    assert scope.cancelled_caught
    (told,) = [event for event in world.heard if event.type == "events.trimmed"]
    assert told.plain()["content"] == {"from": 1, "to": DELETE_ROWS, "unacknowledged": DELETE_ROWS}


@pytest.fixture
def always_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a database that is larger than the journal may be."""
    monkeypatch.setattr(retention, "_bytes_used", lambda conn: 2**62)


async def test_the_oldest_go_when_there_is_too_much(db: Database, always_counts: None) -> None:
    one = len(b'{"body":""}') + len(BODY) + ROW_BYTES
    world = World(db, EventsSection(keep_mb=10.5 * one / 1024**2))
    await world.record(10, room=None)
    assert (await world.look()).events == 0
    await world.record(7, room=None)
    assert (await world.look()).events == 7
    assert await world.journal.trimmed_to() == 7
    assert world.retention._tally.counted == 17
    assert len(world.retention._tally._ends) == 10, "it forgets what is deleted"
    world.again(EventsSection(keep_mb=10.5 * one / 1024**2))
    assert (await world.look()).events == 0
    await world.record(1, room=None)
    assert (await world.look()).events == 1, "counted anew by the next life of the bridge"


async def test_erasing_makes_room(db: Database, always_counts: None) -> None:
    one = len(b"{}") + ROW_BYTES
    section = EventsSection(keep_mb=(10 * one + 10 * 1400) / 1024**2, erase_after_h=1)
    world = World(db, section)
    await world.record(10, body="x" * 950)
    assert await world.look() == Forgotten(0, 0, 0)
    await world.record(10, body="x" * 950)
    assert await world.look(2) == Forgotten(10, 0, 0), "the ten that came before have given their bytes back"


async def test_a_small_database_is_not_counted(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def counts(conn: Connection, behind: int) -> list[tuple[int, int]]:
        raise AssertionError("counted")

    monkeypatch.setattr(pruning, "sizes", counts)
    await world.record()
    assert await world.look() == Forgotten(0, 0, 0)


# --- messages


async def test_settled_messages_go_and_queued_ones_stay(world: World) -> None:
    sql = (
        "INSERT INTO outbox"
        " (delivery_id, txn_id, account, agent, room_id, type, content, state, created_ms, settled_ms)"
        " VALUES (hex(randomblob(8)), hex(randomblob(8)), 'main', 'a', '!r:h', 'x', '{}', ?, ?, ?)"
    )
    rows = [("queued", world.now, None), *[("read", world.now, world.now)] * (DELETE_ROWS + 3)]
    await world.db.write(lambda conn: conn.executemany(sql, rows).rowcount)
    assert (await world.look()).messages == 0
    assert (await world.look(24 * 30 + 1)).messages == DELETE_ROWS + 3
    assert await world.left("outbox") == 1


# --- when


@pytest.mark.parametrize("erase_after_h, period", [(24, 3600), (4, 3600), (1, 900), (0.01, 9), (0, 1), (1e-6, 1)])
def test_how_often_it_looks(db: Database, erase_after_h: float, period: float) -> None:
    world = World(db, EventsSection(erase_after_h=erase_after_h))
    assert world.retention.period == pytest.approx(period)


async def test_it_looks_at_once_and_each_period_and_outlives_a_store_that_is_away(
    inline_db: InlineDatabase, autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    world = World(cast(Database, inline_db))
    await nursery.start(world.retention.run)
    await trio.sleep(1)
    assert world.idle_settled == 1
    inline_db.down = True
    with structlog.testing.capture_logs() as logs:
        await trio.sleep(3600)
    assert [one["log_level"] for one in logs] == ["warning"]
    inline_db.down = False
    await world.record()
    world.now += 31 * DAY_MS
    await trio.sleep(3600)
    assert world.idle_settled == 3
    assert await world.left() == 0


async def test_between_two_batches_others_have_the_store(
    db: Database, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(db)
    await world.record(3 * DELETE_ROWS)
    write: Callable[..., object] = db.write

    async def slow(work: Callable[[Connection], object], **how: object) -> object:
        await trio.sleep(0.02)
        return await write(work, **how)  # type: ignore[misc]

    monkeypatch.setattr(db, "write", slow)
    began = trio.current_time()
    assert (await world.look(24 * 31)).events == 3 * DELETE_ROWS
    batches = 4 + 1 + 1  # of events (the last finds none), of bodies, of messages
    assert trio.current_time() - began == pytest.approx((2 + 2 * batches) * 0.02)  # two writes more are no batches
