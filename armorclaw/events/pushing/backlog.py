"""What of the journal was read for one subscriber and not looked at yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.pushing import gap
from armorclaw.events.pushing.window import WINDOW_EVENTS


class Backlog:
    """At most a window of events, the first first. Where events were deleted, one stands for them (`gap`)."""

    def __init__(self, id: str, journal: Journal, clock: Clock) -> None:  # noqa: A002 - the word of the wire
        self.gap: Event | None = None
        """The last that stands for deleted ones."""
        self.scanned = 0
        """How far the journal was read for what is here."""
        self._id = id
        self._journal = journal
        self._clock = clock
        self._events: deque[Event] = deque()

    def __bool__(self) -> bool:
        return bool(self._events)

    def __iter__(self) -> Iterator[Event]:
        return iter(self._events)

    @property
    def first(self) -> Event:
        """The next to be looked at, if there is one."""
        return self._events[0]

    def pop(self) -> None:
        """The first was looked at."""
        self._events.popleft()

    def clear(self) -> None:
        """Nobody will look any more."""
        self._events.clear()

    async def read(self, position: int, matching: EventFilter | None, allowed: Callable[[Event], bool]) -> None:
        """Reads what comes behind `position`. Raises what the store raises."""
        page = await self._journal.after(position, WINDOW_EVENTS, matching, allowed)
        if page.trimmed > position:
            self.gap = gap.deleted(self._id, position + 1, page.trimmed, self._clock.now_ms())
            self._events.append(self.gap)
        self._events.extend(page.events)
        self.scanned = page.position

    async def find(self, seqs: list[int]) -> dict[int, Event]:
        """The events of these numbers that are there, also those that stand for deleted ones."""
        found = {event.seq: event for event in await self._journal.find(seqs)}
        if self.gap is not None:
            found[self.gap.seq] = self.gap
        return found
