"""Events for programs that embed the bridge: taken from the journal one after the other, by whoever wants the next.

Nothing runs in between: a stream that nobody reads costs nothing, and may be left at any point.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Generic, Self, TypeVar
from weakref import WeakKeyDictionary, ref

import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.attempts import Attempts
from armorclaw.events.durable.cursor import Cursor, Start
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.gap import deleted
from armorclaw.events.pushing.subscription import RETRY_FIRST, RETRY_LAST
from armorclaw.log import get_logger

log = get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

PAGE = 64
"""Events read at a time."""


class Readers:
    """Who reads by which name: the newest, and no other."""

    def __init__(self) -> None:
        self._newest: WeakKeyDictionary[Cursor, ref[object]] = WeakKeyDictionary()

    def enter(self, cursor: Cursor, reader: object) -> None:
        self._newest[cursor] = ref(reader)

    def has(self, cursor: Cursor, reader: object) -> bool:
        newest = self._newest.get(cursor)
        return newest is not None and newest() is reader


class EventStream(Generic[T]):
    """`async for event in stream`, for one task; as a block, it begins where the block does.

    With a name (`cursor`) it goes on where its owner got to: taking the next event acknowledges the one before, and
    what was not acknowledged comes again with the next stream of that name, `redelivered`; only of a bridge that has
    ended since it is not known that it was given. Dead letters that are given once more come to connections, not
    here. `make` is told of each event how often it was given before. Where events were deleted before they
    were taken there is an event of type `gap`. A store that is away is waited for. Raises conflict when the name
    is taken over meanwhile by another stream or by a connection, conflict or not_found when it is forgotten, and what
    is wrong with `start`.
    """

    def __init__(
        self,
        journal: Journal,
        *,
        matching: EventFilter,
        start: Callable[[], Awaitable[Start]],
        cursor: Cursor | None,
        readers: Readers,
        clock: Clock,
        make: Callable[[Event, int], T],
    ) -> None:
        self._journal = journal
        self._matching = matching
        self._start = start
        self._cursor = cursor
        self._attempts: Attempts | None = None  # the name has others once it is forgotten
        self._readers = readers
        self._clock = clock
        self._make = make
        self._now = journal.known  # so that nothing is missed between here and the first that is asked for
        self._begun = False
        self._position = 0  # everything up to here was looked at
        self._complete = False  # and there was nothing more
        self._ahead: deque[Event] = deque()
        self._taken: int | None = None  # and not acknowledged

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Keeps what was read ahead: whoever iterates, or acknowledges, after the block goes on from there."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        await trio.lowlevel.checkpoint()
        await self._begin()
        await self.ack()
        while True:
            while not self._ahead:
                if self._complete:
                    await self._journal.beyond(self._position)
                await self._patiently(self._read)
            self._check()  # before it is taken out: refused, it must not be passed over later
            event = self._ahead.popleft()
            if self._cursor is None or not self._cursor.done(event.seq):
                self._taken = event.seq
                return self._make(event, self._given(event.seq))

    async def ack(self) -> None:
        """Acknowledge what was taken last, as taking the next does; for whoever stops there. Without a name, nothing.

        Raises conflict or not_found, as taking the next would.
        """
        taken, cursor = self._taken, self._cursor
        if taken is not None and cursor is not None:
            floor = taken if self._ahead else max(taken, self._position)

            async def advance() -> None:
                self._check()  # each time: while it waits for the store, somebody may take over
                await cursor.advance(floor)

            await self._patiently(advance)
        self._taken = None  # not before: to say it twice does no harm

    def _given(self, seq: int) -> int:
        """How often an event that is being given now was given before."""
        if self._cursor is None:
            return 0
        attempts = self._cursor.attempts
        before = attempts.given(seq)
        attempts.gave(seq)
        return before

    async def _begin(self) -> None:
        if self._begun:
            return
        given = await self._patiently(self._start)
        now = await self._patiently(self._journal.head) if self._now is None else self._now
        start = now if given == "now" else min(max(given, 0), now)
        cursor = self._cursor
        if cursor is None:
            self._position = start
        else:
            await self._patiently(lambda: cursor.load(self._matching, start))
            self._readers.enter(cursor, self)
            self._attempts = cursor.attempts
            cursor.given = None  # a batch given to a poller is given again
            self._position = cursor.floor
        self._check()
        self._begun = True

    def _check(self) -> None:
        cursor = self._cursor
        if cursor is None:
            return
        why = ""
        if cursor.holder is not None:
            why = "its events are being pushed to a connection"
        elif not self._readers.has(cursor, self):
            why = "another stream took over"
        elif cursor.attempts is not self._attempts:  # what was read of the old one says nothing of the new one
            why = "its name was forgotten"
        if why:
            raise ArmorclawError("conflict", f"subscription {cursor.name!r} cannot be read", why=why)

    async def _read(self) -> None:
        page = await self._journal.after(self._position, PAGE, self._matching)
        if page.trimmed > self._position:
            whose = "" if self._cursor is None else self._cursor.name
            self._ahead.append(deleted(whose, self._position + 1, page.trimmed, self._clock.now_ms()))
        self._ahead.extend(page.events)
        self._position, self._complete = page.position, page.complete

    async def _patiently(self, step: Callable[[], Awaitable[R]]) -> R:
        delay = RETRY_FIRST
        while True:
            try:
                return await step()
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("a stream of events waits for the store", why=str(error))
            await trio.sleep(delay)
            delay = min(2 * delay, RETRY_LAST)
