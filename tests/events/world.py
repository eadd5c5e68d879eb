"""A journal with its subscribers, for tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.config import EventsSection
from armorclaw.events.durable.dead_letters import DeadLetters
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions

Make = Callable[..., Any]
settle = trio.testing.wait_all_tasks_blocked


class World:
    """A journal, its subscribers, and the nursery of their connections."""

    def __init__(
        self, db: Any, new_event: Make, new_sink: Make, nursery: trio.Nursery, section: EventsSection | None = None
    ) -> None:
        self.db = db
        self.new_event = new_event
        self.new_sink = new_sink
        self.nursery = nursery
        self.journal = Journal(db)
        self.dead = DeadLetters(db, self.journal)
        self.subscriptions = Subscriptions(db, self.journal, Surroundings(), section, self.dead)
        self.deaths: list[tuple[str, str, int, int, int, str]] = []
        self.subscriptions.on_dead = self._died

    def _died(self, owner: str, name: str, event: Event, given: int, lost: int, reason: str) -> None:
        self.deaths.append((owner, name, event.seq, given, lost, reason))

    async def publish(self, count: int = 1, room: str = "!a:x", **more: Any) -> list[int]:
        recorded = await self.journal.record([self.new_event(room, **more) for _ in range(count)])
        await settle()  # on its way through a relay
        return [event.seq for event in recorded]

    async def connect(
        self,
        name: str | None = "main",
        *,
        owner: str = "echo",
        filter: EventFilter | None = None,  # noqa: A002
        start: Any = "now",
        allowed: Callable[[Event], bool] = lambda event: True,
        sink: Any = None,
    ) -> tuple[Subscription, Any]:
        sink = sink or self.new_sink()
        subscription = self.subscriptions.open(owner, name, filter, start, allowed, sink)
        await self.nursery.start(subscription.run)
        await settle()
        return subscription, sink

    async def disconnect(self, subscription: Subscription) -> None:
        subscription.close("the connection went")
        await settle()

    def restart(self, section: EventsSection | None = None) -> World:
        """The same store under a new bridge; the old one is dead, whatever it was about."""
        return World(self.db, self.new_event, self.new_sink, self.nursery, section)

    async def crash(self, subscription: Subscription) -> None:
        """The reader ends, with what it has in hand."""
        await self.disconnect(subscription)

    def count(self, table: str) -> int:
        """Rows of a table."""
        (count,) = self.db.conn.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(count)

    def trim(self, upto: int) -> None:
        """As retention does."""
        self.db.conn.execute("DELETE FROM journal WHERE seq <= ?", (upto,))
        self.db.conn.execute("UPDATE trimmed SET seq = ?", (upto,))

    def rows(self) -> tuple[int, list[int]]:
        """Floor and acknowledgements of echo's main subscription, as stored."""
        key = ("echo", "main")
        (floor,) = self.db.conn.execute(
            "SELECT floor FROM subscriptions WHERE owner = ? AND name = ?", key
        ).fetchone()
        acks = self.db.conn.execute("SELECT seq FROM acks WHERE owner = ? AND name = ? ORDER BY seq", key)
        return floor, [seq for (seq,) in acks]
