"""From the commit to those who follow: events cross into another nursery in batches, through a bounded channel.

Whoever commits, or publishes, only puts the batch into a channel for each nursery in which somebody follows. There
one task takes it out and gives it to all followers of that nursery, each in turn and without waiting. So what one
nursery does with events never runs in the tasks of another, and a hundred followers cost one task, not a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import trio

from armorclaw.errors import trace
from armorclaw.events.event import Event
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.log import get_logger

log = get_logger(__name__)

RELAY_BATCHES = 64
"""Batches that wait for a relay; one is what one transaction brought. Past it, they are read from the journal."""

RELAY_BYTES = 4 * 1024 * 1024
"""Bytes of content in them; one batch may be larger than what is left, so that any can pass."""

TOGETHER = 64 * 1024
"""Bytes of content from which on no more is added to what followers get in one piece: it may go beyond their room."""

_Batch = tuple[Sequence[Event], int]  # events, and their bytes of content
_TURN = 0.002  # seconds of giving events out, before other tasks get a turn
_LOOK = 32  # followers between two looks at the time


class Relay:
    """One channel, and the one task that empties it (`run`).

    A batch for which the channel has no room is not lost: its events are in the journal, and all followers read them
    from there. Of events that are not in the journal, the followers are told how many they have missed.
    """

    def __init__(self, relays: dict[Relay, None]) -> None:
        self.overflows = 0
        """How often the channel was full."""
        self._relays = relays  # it is there itself while somebody follows
        self._followers: dict[Subscription, None] = {}  # in the order they came
        self._send, self._receive = trio.open_memory_channel[_Batch](RELAY_BATCHES)
        self._waiting = 0  # bytes
        self._behind = False  # some batch had no room
        self._missed = 0  # events in such batches that are nowhere else

    def __len__(self) -> int:
        return len(self._followers)

    @property
    def followers(self) -> tuple[Subscription, ...]:
        return tuple(self._followers)

    def add(self, follower: Subscription) -> None:
        """From now on it is offered what is told."""
        self._followers[follower] = None
        self._relays[self] = None

    def discard(self, follower: Subscription) -> None:
        self._followers.pop(follower, None)
        if not self._followers:
            self._relays.pop(self, None)

    def tell(self, events: Sequence[Event], size: int) -> None:
        """Hand a batch over, with so many bytes of content; for any task, and never waits.

        All of a batch is in the journal, or nothing.
        """
        try:
            if self._waiting and self._waiting + size > RELAY_BYTES:
                raise trio.WouldBlock
            self._send.send_nowait((events, size))
            self._waiting += size
        except trio.WouldBlock:
            self.overflows += 1
            if events[0].seq:
                self._behind = True
            else:
                self._missed += len(events)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Give out what is told, until cancelled; lives in the nursery of those who follow."""
        task_status.started()
        batch = None
        while True:
            events, size = batch or await self._receive.receive()
            self._waiting -= size
            batch = None
            if not events[0].seq:
                events, batch = self._together(events, size)
            self._catch_up()
            await self._give(events)

    def _together(self, events: Sequence[Event], size: int) -> tuple[Sequence[Event], _Batch | None]:
        """What is kept nowhere, with more of the kind that waits already, so that each follower gets it in one piece;
        and the batch that is of the other kind, if there is one."""
        together = events
        try:
            while size < TOGETHER:
                more, extra = batch = self._receive.receive_nowait()
                if more[0].seq:
                    return together, batch
                self._waiting -= extra
                size += extra
                together = [*together, *more]
        except trio.WouldBlock:
            pass
        return together, None

    def _catch_up(self) -> None:
        """Tell of batches that had no room. They are younger than all that waits, so it is to be read as well."""
        if self._behind:
            self._behind = False
            for follower in self.followers:
                follower.fall_behind()  # it skips what still waits here, as it will have read it
        if self._missed:
            missed, self._missed = self._missed, 0
            for follower in self.followers:
                if not follower.owner:  # of events that others may not hear, they may not hear the number either
                    follower.missed_ephemeral(missed)

    async def _give(self, events: Sequence[Event]) -> None:
        followers, kept = self.followers, bool(events[0].seq)
        began = perf_counter()
        for start in range(0, len(followers), _LOOK):
            some: Sequence[Subscription] = followers[start : start + _LOOK]
            if start and perf_counter() - began > _TURN:
                await trio.lowlevel.checkpoint()
                began = perf_counter()
                some = [follower for follower in some if follower in self._followers]
            for follower in some:
                try:
                    if kept:
                        follower.offer(events)
                    else:
                        follower.offer_ephemeral(events)
                except Exception as error:  # noqa: BLE001 - its sink is broken: the others must not notice
                    log.error("cannot push to a subscriber", subscription=follower.id, trace=trace(error))
                    follower.close("its sink is broken")
