"""The journal: every event once, numbered in the order of its commit, and told to the hub in that order."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.errors import trace
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

Listener = Callable[[Sequence[Event]], None]

PAGE_BYTES = 256 * 1024
"""Content in one page; reached by few large events, so that catching up never holds much in memory."""

SCAN_LIMIT = 4096
"""Rows looked at for one page; a filter that fits rarely must not hold the reading thread for long."""

# ruff: noqa: S608 - the statements below are put together from constants
_WRITTEN = (
    "type, content, at_ms, id, account, agent, room_id, sender, event_id, severity, erased, addressed, stored_ms"
)
_INSERT = f"INSERT INTO journal ({_WRITTEN}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
_COLUMNS = (  # of an Event
    "type, content, at_ms, id, account, agent, room_id, sender, event_id, seq, severity, erased, addressed"
)
_AFTER = f"SELECT {_COLUMNS} FROM journal WHERE seq > ? ORDER BY seq LIMIT {SCAN_LIMIT}"
_ONE = f"SELECT {_COLUMNS} FROM journal WHERE seq = ?"
_OF_MATRIX = f"SELECT {_COLUMNS} FROM journal WHERE account = ? AND event_id = ?"
_HEAD = "SELECT seq FROM sqlite_sequence WHERE name = 'journal'"  # also right when old rows are gone
_TRIMMED = "SELECT seq FROM trimmed"
_STORED = "SELECT seq, stored_ms FROM journal WHERE seq >= ? AND seq < ? ORDER BY seq LIMIT 1"


@attrs.frozen
class Page:
    """A stretch of the journal: what matched in it, and how far it goes."""

    events: tuple[Event, ...]
    position: int
    """Everything up to here was looked at."""
    complete: bool
    """Nothing more was there when it was read."""
    trimmed: int
    """Events up to here are deleted (`trimmed_to`): whoever asked from below has missed them."""


class Journal:
    """Events go in within a transaction, and out to listeners after its commit.

    Both halves are here so that they cannot be told apart: what a listener hears is on record, in the same order.
    """

    def __init__(self, db: Database, clock: Clock | None = None) -> None:
        self._db = db
        self._clock = clock or Clock()
        self._listeners: dict[int, Listener] = {}
        self._added = 0
        self._known: int | None = None
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def known(self) -> int | None:
        """The highest number known to be committed; any event above it will still be published.

        So whoever has looked at everything up to here, and listens, misses nothing. None until the journal was read
        to its end, or written to, for the first time since the start.
        """
        return self._known

    def append(self, conn: Connection, events: Sequence[Event]) -> list[Event]:
        """Writes events within the caller's transaction and returns those that are new, with their numbers.

        An event whose `id`, or whose Matrix event id on the same account, is there already is left out. The caller
        passes the result to `publish` as, or in, the `then` of its write: nowhere else is the order certain.
        """
        new = []
        now = self._clock.now_ms()
        for event in events:
            row = (event.type, event.content, event.at_ms, event.id, event.account, event.agent)
            whose = (event.room_id, event.sender, event.event_id, event.severity, event.erased)
            cursor = conn.execute(_INSERT, (*row, *whose, event.addressed_text, now))
            if cursor.rowcount == 1 and cursor.lastrowid is not None:
                new.append(attrs.evolve(event, seq=cursor.lastrowid))
        return new

    async def record(
        self,
        events: Sequence[Event],
        *,
        also: Callable[[Connection], object] | None = None,
        durable: bool = False,
        grows: bool = True,
    ) -> list[Event]:
        """Appends events and does `also` in one transaction, then publishes; returns the new events.

        Survives kill -9, and with `durable` a power cut. Not needed where the same transaction holds the token from
        which the source would send the events again. While the disk is full it is refused, except without `grows`:
        for the few that somebody must hear of then. Raises what the store raises.
        """

        def work(conn: Connection) -> list[Event]:
            new = self.append(conn, events)
            if also is not None:
                also(conn)
            return new

        return await self._db.write(work, durable=durable, grows=grows, then=self.publish)

    def publish(self, events: Sequence[Event]) -> None:
        """Tells every listener about events just committed; for the `then` of a write, which keeps the order."""
        if not events:
            return
        self._raise_known(events[-1].seq)
        self._waiting.unpark_all()
        for listener in tuple(self._listeners.values()):
            try:
                listener(events)
            except Exception as error:  # noqa: BLE001 - one listener's bug must not cost the others their events
                log.error("a listener to the journal failed", first_seq=events[0].seq, trace=trace(error))

    def subscribe_hub(self, listener: Listener) -> Callable[[], None]:
        """Calls `listener` with each batch of new events on the Trio thread, in order; returns what ends that.

        A listener is plain and quick: it runs between a commit and whoever waits for it.
        """
        self._added += 1
        number = self._added
        self._listeners[number] = listener

        def remove() -> None:
            self._listeners.pop(number, None)

        return remove

    async def after(
        self,
        seq: int,
        limit: int,
        matching: EventFilter | None = None,
        allowed: Callable[[Event], bool] | None = None,
    ) -> Page:
        """The next events behind `seq`, at most `limit`, that are `allowed` and fit the filter.

        Both are asked on the reading thread, and the filter is not tried on what is not allowed: how long that takes
        would tell its owner of events that are none of its business.
        """

        def work(conn: Connection) -> Page:
            return _page(conn, seq, limit, matching, allowed)

        page = await self._db.read(work)
        if page.complete:
            self._raise_known(page.position)
        return page

    async def find(self, seqs: Sequence[int]) -> list[Event]:
        """The events of these numbers that are there."""

        def work(conn: Connection) -> list[Event]:
            rows = (conn.execute(_ONE, (seq,)).fetchone() for seq in seqs)
            return [Event(*row) for row in rows if row is not None]

        return await self._db.read(work)

    async def of_matrix(self, account: str, event_id: str) -> Event | None:
        """The event that Matrix gave this id, as that account has seen it; None if it is not there, or no more."""

        def work(conn: Connection) -> Event | None:
            row = conn.execute(_OF_MATRIX, (account, event_id)).fetchone()
            return None if row is None else Event(*row)

        return await self._db.read(work)

    async def head(self) -> int:
        """The highest number given out so far; 0 for an empty journal."""
        if self._known is None:
            self._raise_known(await self._db.read(head))
        return self._known or 0

    @staticmethod
    def trimmed(conn: Connection) -> int:
        """The highest number that retention has deleted; 0 if it has deleted nothing. All up to there are gone.

        It is kept: the first row left cannot tell, as an event that came twice has used up a number too.
        """
        return int(conn.execute(_TRIMMED).fetchone()[0])

    async def trimmed_to(self) -> int:
        """As `trimmed`, in a transaction of its own."""
        return await self._db.read(self.trimmed)

    async def seq_at(self, time_ms: int) -> int:
        """The number behind which a replay from a time begins: what was stored at `time_ms` or later is behind it.

        That is by the wall clock of the bridge, as it was then, in milliseconds since the epoch. For a time before
        all that is left it is 0, so that a subscriber hears of what is deleted.
        """
        return await self._db.read(lambda conn: _seq_at(conn, time_ms))

    async def beyond(self, seq: int) -> None:
        """Returns once there is an event behind `seq`, as far as is known here."""
        while self._known is None or self._known <= seq:
            await self._waiting.park()

    def _raise_known(self, seq: int) -> None:
        self._known = seq if self._known is None else max(self._known, seq)


def head(conn: Connection) -> int:
    """As `Journal.head`, within a transaction of the caller."""
    row = conn.execute(_HEAD).fetchone()
    return 0 if row is None else int(row[0])


def _seq_at(conn: Connection, time_ms: int) -> int:
    """Halves what is left, as numbers rise with time: each event would pay for an index that is so rarely asked."""
    low, high = 0, head(conn) + 1
    while high - low > 1:
        middle = (low + high) // 2
        row = conn.execute(_STORED, (middle, high)).fetchone()
        if row is not None and row[1] < time_ms:
            low = int(row[0])
        else:
            high = middle
    return low


def _page(
    conn: Connection,
    seq: int,
    limit: int,
    matching: EventFilter | None,
    allowed: Callable[[Event], bool] | None,
) -> Page:
    events: list[Event] = []
    position, size, looked_at, gone = seq, 0, 0, Journal.trimmed(conn)
    for row in conn.execute(_AFTER, (seq,)):
        if len(events) == limit or (events and size + len(row[1]) > PAGE_BYTES):
            return Page(tuple(events), position, False, gone)
        event = Event(*row)
        looked_at += 1
        position = event.seq
        if (allowed is None or allowed(event)) and (matching is None or matching.matches(event)):
            events.append(event)
            size += len(event.content)
    if looked_at == SCAN_LIMIT:
        return Page(tuple(events), position, False, gone)
    return Page(tuple(events), max(position, head(conn)), True, gone)  # the last rows may be gone
