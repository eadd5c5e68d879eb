"""What is no longer needed is forgotten: bodies of messages soon, events and messages when they are old.

So a bridge that runs for years needs the disk of a month, and a stolen disk tells of a day. The audit trail is never
deleted: it is there to be complete.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.config.sections import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.keeping import pruning
from armorclaw.events.keeping.pruning import DAY_MS, Batch
from armorclaw.events.keeping.tally import Tally
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

HOUR_MS = 3600 * 1000

LONGEST_PERIOD, SHORTEST_PERIOD = 3600.0, 1.0
"""Seconds between two looks; within these, a quarter of the time after which bodies are erased."""

LONGEST_PAUSE = 1.0
"""Seconds at most between two batches. A batch is followed by a pause as long as itself: with much to delete, the
store still is others' half of the time."""

T = TypeVar("T")


@attrs.frozen
class Forgotten:
    """What one look did: how many bodies were erased, how many events and messages deleted."""

    erased: int
    events: int
    messages: int


@attrs.define
class _Untold:
    """Events that were deleted, and nobody was told of: from, to, and how many of them somebody still wanted."""

    first: int = 0
    last: int = 0
    unacknowledged: int = 0

    def add(self, batch: Batch) -> None:
        self.first = self.first or batch.freed[0][0]
        self.last = batch.freed[-1][0]
        self.unacknowledged += batch.unacknowledged


class Retention:
    """Erases and deletes what is due, at most an hour late.

    A body is erased once every named subscription has acknowledged its event for `section.erase_after_h` hours,
    unless the event is a dead letter: it may have to be given again. What is older than `section.keep_days`, or
    beyond `section.keep_mb`, is deleted whoever wants it still: they are told of the gap, and everybody of an event
    `events.trimmed`. `settle_idle` is awaited first, so that nobody holds up events that are not meant for them.
    """

    def __init__(
        self,
        db: Database,
        around: Surroundings,
        section: EventsSection,
        settle_idle: Callable[[], Awaitable[object]],
        journal: Journal,
    ) -> None:
        self._db = db
        self._clock = around.clock
        self._settle_idle = settle_idle
        self._journal = journal
        self._erase_after_ms = round(section.erase_after_h * HOUR_MS)
        self._keep_ms = round(section.keep_days * DAY_MS)
        self._keep_bytes = round(section.keep_mb * 1024 * 1024)
        self._tally = Tally(self._keep_bytes)
        self._untold = _Untold()

    @property
    def period(self) -> float:
        """Seconds between two looks."""
        return min(LONGEST_PERIOD, max(SHORTEST_PERIOD, self._erase_after_ms / 4000))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. A store that is away or full is tried again at the next look."""
        task_status.started()
        while True:
            try:
                await self.prune()
            except ArmorclawError as error:
                log.warning("what is old could not be deleted", why=str(error))
            await trio.sleep(self.period)

    async def prune(self) -> Forgotten:
        """One look: erase and delete all that is due. Raises what the store raises; what is done by then is done."""
        await self._settle_idle()
        now = self._clock.now_ms()
        await self._db.write(lambda conn: pruning.mark(conn, now))
        erased = await self._erase(now)
        events = await self._trim(now)
        messages = await self._sweep(now)
        done = Forgotten(erased, events, messages)
        if done != Forgotten(0, 0, 0):
            log.info("forgot what is old", erased=erased, events=events, messages=messages)
        return done

    async def _erase(self, now: int) -> int:
        floor = await self._db.write(lambda conn: pruning.settled_since(conn, now - self._erase_after_ms))
        total = 0

        def count(batch: Batch) -> None:
            nonlocal total
            total += len(batch.freed)
            self._tally.free(batch.freed)

        while (await self._batch(lambda conn: pruning.erase(conn, floor), count)).freed:
            pass
        return total

    async def _trim(self, now: int) -> int:
        upto = await self._beyond_size()

        def work(conn: Connection) -> Batch:
            return pruning.trim(conn, before_ms=now - self._keep_ms, now_ms=now, upto=upto)

        total = 0

        def count(batch: Batch) -> None:
            nonlocal total
            if batch.freed:
                total += len(batch.freed)
                self._tally.free(batch.freed)
                self._tally.forget(batch.freed[-1][0])
                self._untold.add(batch)

        try:
            while (await self._batch(work, count)).freed:
                pass
        finally:
            with trio.CancelScope(shield=True):  # one write: what was deleted is told, also when we stop half-way
                await self._tell()
        return total

    async def _tell(self) -> None:
        untold = self._untold
        if untold.unacknowledged:
            content = {"from": untold.first, "to": untold.last, "unacknowledged": untold.unacknowledged}
            log.warning("deleted events that somebody has not acknowledged", **content)
            now = self._clock.now_ms()
            event = Event.make("events.trimmed", content, at_ms=now, severity="warning")
            await self._journal.record([event], grows=False)
        self._untold = _Untold()  # not before: what the store does not take now is told at the next look

    async def _beyond_size(self) -> int:
        """The number up to which events must go for the journal to be within its bound; 0 for none."""
        if await self._db.read(_bytes_used) <= self._keep_bytes:
            return 0  # not even all there is, with everything else, is too much
        while rows := await self._paced(self._db.read(lambda conn: pruning.sizes(conn, self._tally.counted))):
            self._tally.count(rows)
        return self._tally.cut()

    async def _sweep(self, now: int) -> int:
        total = 0
        while count := await self._batch(lambda conn: pruning.sweep(conn, now - self._keep_ms)):
            total += count
        return total

    async def _batch(self, work: Callable[[Connection], T], count: Callable[[T], object] = lambda done: None) -> T:
        """One transaction, and a pause. `count` gets what it has done, also when this is cancelled."""

        async def write() -> T:
            with trio.CancelScope(shield=True):  # given up, it would be done all the same, and never counted;
                # without a deadline, as the end of the store waits for the same thread
                result = await self._db.write(work)
            count(result)
            return result

        return await self._paced(write())

    async def _paced(self, work: Awaitable[T]) -> T:
        began = trio.current_time()
        result = await work
        await trio.sleep(min(trio.current_time() - began, LONGEST_PAUSE))
        return result


def _bytes_used(conn: Connection) -> int:
    pages, free, size = (
        int(conn.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size
