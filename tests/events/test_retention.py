"""Old events go when everybody has acknowledged them, or when they are too old for anybody."""

from __future__ import annotations

from pathlib import Path

import pytest

from armorclaw.clock import Clock, Surroundings
from armorclaw.delivery.outbox import Outbox, Outgoing
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.retention import ACKNOWLEDGED_MS, BATCH, SETTLED_MS, UNACKNOWLEDGED_MS, Retention
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Database

HOUR_MS = 3600 * 1000


class World:
    """A store and a wall clock that a test sets, in milliseconds."""

    def __init__(self, db: Database) -> None:
        self.now = 10**12
        self.around = Surroundings(clock=Clock(wall=lambda: self.now / 1000))
        self.db = db
        self.journal = Journal(db, self.around.clock)
        self.retention = Retention(db, self.around)

    async def record(self, count: int = 1) -> None:
        await self.journal.record([Event.make("x", {}, at_ms=self.now) for _ in range(count)])

    async def left(self, table: str = "journal") -> int:
        (count,) = await self.db.read(lambda db: db.execute(f"SELECT count(*) FROM {table}").fetchone())
        return int(count)


async def test_without_subscribers_a_day_is_kept(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "a.db", b"k" * 32) as db:
        world = World(db)
        await world.record()
        world.now += ACKNOWLEDGED_MS - HOUR_MS
        await world.record()
        world.now += 2 * HOUR_MS
        assert await world.retention.prune() == (1, 0)
        assert await world.left() == 1


async def test_what_somebody_has_not_acknowledged_stays(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "a.db", b"k" * 32) as db:
        world = World(db)
        subscriptions = Subscriptions(db, world.journal, world.around)
        await world.record(2)
        await subscriptions.ensure("slow", "main")
        await world.record(3)
        await subscriptions.ensure("quick", "main")
        world.now += 2 * ACKNOWLEDGED_MS
        assert await world.retention.prune() == (2, 0)
        assert await world.left() == 3
        world.now += UNACKNOWLEDGED_MS
        assert await world.retention.prune() == (3, 0)


async def test_numbers_are_not_given_twice(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "a.db", b"k" * 32) as db:
        world = World(db)
        await world.record(5)
        world.now += 2 * ACKNOWLEDGED_MS
        await world.retention.prune()
        (event,) = await world.journal.record([Event.make("x", {}, at_ms=world.now)])
        assert event.seq == 6


async def test_more_than_one_transaction_takes(tmp_path: Path) -> None:
    async with Database.open(tmp_path / "a.db", b"k" * 32) as db:
        world = World(db)
        await world.record(BATCH + 10)
        world.now += 2 * ACKNOWLEDGED_MS
        assert await world.retention.prune() == (BATCH + 10, 0)


@pytest.mark.parametrize("state, kept", [("queued", 1), ("sent", 0), ("failed", 0)])
async def test_settled_messages_go_and_queued_ones_stay(tmp_path: Path, state: str, kept: int) -> None:
    async with Database.open(tmp_path / "a.db", b"k" * 32) as db:
        world = World(db)
        outbox = Outbox(db, AuditLog(world.around), world.around)
        await outbox.enqueue(Outgoing("main", "a", "!r:h", b"{}"))

        def settle(conn: object) -> None:
            db_row = (state, None if state == "queued" else world.now)
            conn.execute("UPDATE outbox SET state = ?, settled_ms = ?", db_row)  # type: ignore[attr-defined]

        await db.write(settle)
        world.now += SETTLED_MS + HOUR_MS
        assert await world.retention.prune() == (0, 1 - kept)
        assert await world.left("outbox") == kept
