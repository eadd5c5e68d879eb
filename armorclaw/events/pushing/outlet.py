"""The way out of a subscription: whether something may be pushed now, and how it looks to the subscriber."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import trio

from armorclaw.clock import Clock
from armorclaw.events.event import Event, ascii_json, frame, frame_head
from armorclaw.events.pushing import gap
from armorclaw.events.pushing.hand import Hand
from armorclaw.events.pushing.totals import Totals
from armorclaw.log import get_logger

log = get_logger(__name__)

SLOW_SECONDS = 10.0
"""How long a sink may have no room at all while there is something for it. Then the subscriber is cut: it can go on
from where it was, and what its queue holds is free again. As long as `rpc.outgoing` waits for a reader that takes
nothing."""


class Sink(Protocol):
    """Where frames go: a connection, or an agent in this process."""

    def push(self, frame: bytes) -> None:
        """Takes one whole JSON-RPC notification, newline included. Never blocks, never refuses."""

    def push_all(self, frames: Sequence[bytes]) -> None:
        """Takes some, in one step."""

    def room(self) -> int:
        """Bytes it can take now without growing past its soft limit."""
        ...

    async def wait_room(self) -> None:
        """Returns when `room()` is above 0."""


class Outlet:
    """A sink, the switches that close it, and what found no room there."""

    def __init__(self, id: str, sink: Sink, hand: Hand | None, clock: Clock, totals: Totals) -> None:  # noqa: A002
        self.sink = sink
        self.held = False
        """Nothing has begun yet."""
        self.paused = False
        """Nothing new is given for now."""
        self.closed_because: str | None = None
        self.redelivered = 0
        """Events pushed that had been given before."""
        self.missed = 0
        """Events kept nowhere that found no room."""
        self.untold = 0
        """Of those, how many the subscriber was not told of yet."""
        self._id = id
        self._hand = hand
        self._clock = clock
        self._totals = totals
        self._first_head = frame_head(id, 0)

    @property
    def full(self) -> bool:
        """The sink has no room."""
        return self.sink.room() <= 0

    @property
    def blocked(self) -> bool:
        """Nothing may be pushed now."""
        return self.held or self.paused or self.closed_because is not None or self.sink.room() <= 0

    def push(self, event: Event) -> None:
        """Pushes an event of the journal; ask `blocked` first."""
        hand = self._hand
        if hand is None:
            if self.untold:
                self.tell_missed(event.seq - 1)
            self.sink.push(frame(self._first_head, event))
            return
        times = hand.redelivered(event.seq)
        whole = frame(self._first_head if times == 0 else frame_head(self._id, times), event)
        self.sink.push(whole)
        hand.give(event, len(whole), trio.current_time())
        self.redelivered += times > 0

    def push_ephemeral(self, events: Sequence[Event], position: int) -> bool:
        """Pushes some small events that are kept nowhere, together; False if they cannot be."""
        sink = self.sink
        if self.held or self.paused or self.closed_because is not None or sink.room() <= 0:
            return False
        if self.untold:
            self.tell_missed(position)
        head = self._first_head
        if len(events) == 1:
            sink.push(frame(head, events[0]))
        else:
            sink.push_all([frame(head, event) for event in events])
        return True

    def miss(self, count: int) -> None:
        """So many events that are kept nowhere did not come this far."""
        self.missed += count
        self.untold += count
        self._totals.missed += count

    def tell_missed(self, position: int) -> None:
        """Pushes an event that tells of them, to a subscriber who has seen the journal up to `position`."""
        count, self.untold = self.untold, 0
        event = gap.missed(self._id, count, self.missed, position, self._clock.now_ms())
        self.sink.push(frame(self._first_head, event))

    def tell_closed(self, position: int) -> None:
        """Pushes why there will be no more, and where the subscriber was."""
        params = {"subscription": self._id, "reason": self.closed_because, "cursor": position}
        self.sink.push(ascii_json({"jsonrpc": "2.0", "method": "events.closed", "params": params}) + b"\n")

    async def wait_room(self) -> str:
        """Waits until the sink has room; returns why the subscriber is to be cut, if it has none for too long."""
        with trio.move_on_after(SLOW_SECONDS):
            await self.sink.wait_room()
        if not self.full:
            return ""
        self._totals.slow += 1
        log.warning("a subscriber is too slow", subscription=self._id, seconds=SLOW_SECONDS)
        return f"too slow: for {SLOW_SECONDS:.0f} seconds it had no room"
