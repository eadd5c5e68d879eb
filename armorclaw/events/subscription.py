"""One connection following the journal: pushed to at once while it keeps up, read for from the journal when not."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.events.cursor import ACKED_LIMIT, Cursor, Start
from armorclaw.events.event import Event, ascii_json, frame, frame_head
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.window import WINDOW_EVENTS, Window
from armorclaw.log import get_logger

log = get_logger(__name__)

NACK_LIMIT_MS = 3_600_000
"""The longest that an event may be put off, in milliseconds."""

FLOOR_LAG = 4096
"""Events not meant for a subscriber after which its floor is moved over them, so that its next connection need not
look at them again."""

RETRY_FIRST, RETRY_LAST = 0.1, 5.0
"""Seconds between attempts while the store does not answer."""


class Sink(Protocol):
    """Where frames go: a connection, or an agent in this process."""

    def push(self, frame: bytes) -> None:
        """Takes one whole JSON-RPC notification, newline included. Never blocks, never refuses."""

    def room(self) -> int:
        """Bytes it can take now without growing past its soft limit."""
        ...

    async def wait_room(self) -> None:
        """Returns when `room()` is above 0."""


class Subscription:
    """Events for one sink, in order, until its connection goes.

    Every event is in the journal, so a slow reader costs nothing: while it is caught up, new events are pushed from
    the commit straight into the sink, with no task in between; when sink or window is full it falls behind, and the
    pump (`run`) reads the journal as room appears. With a cursor, what is not acknowledged counts towards a window
    and is pushed again on the next connection; without one, nothing is kept and nothing acknowledged.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - the word of the wire
        journal: Journal,
        sink: Sink,
        *,
        matching: EventFilter | None,
        allowed: Callable[[Event], bool],
        cursor: Cursor | None,
        start: Start,
        followers: set[Subscription],
    ) -> None:
        self.id = id
        self.closed_because: str | None = None
        self._journal = journal
        self._sink = sink
        self._matching = matching
        self._allowed = allowed
        self._cursor = cursor
        self._start = start
        self._followers = followers
        self._window = Window()
        self._position = 0  # everything up to here was pushed, or is not for us
        self._ahead: deque[Event] = deque()  # read from the journal and not yet looked at: at most a window of them
        self._scanned = 0  # how far the journal was read for them
        self._live = False
        self._held = False
        self._wakeup = trio.Event()
        self._scope = trio.CancelScope()
        self._first_head = frame_head(id, 0)

    def __repr__(self) -> str:
        return f"<Subscription {self.id} at {self._position} {'live' if self._live else 'behind'}>"

    @property
    def position(self) -> int:
        """The number of the last event that was pushed, or passed over as not meant for this subscriber."""
        return self._position

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serves the sink until cancelled or closed; reports itself started once no event can be missed any more.

        Lives in the nursery of the connection. Raises what the store raises until it has started; later it waits for
        the store to come back.
        """
        with self._scope:
            await self._begin()
            try:
                task_status.started()
                await self._pump()
            finally:
                self._end()

    def hold(self) -> None:
        """Pushes nothing until `release`: so the answer to whoever subscribed can go first."""
        self._held = True

    def release(self) -> None:
        """Pushes what is there, and what comes."""
        self._held = False
        self._wakeup.set()

    def close(self, reason: str, *, tell: bool = False) -> None:
        """Ends `run`; with `tell` the subscriber hears why, in an `events.closed` notification."""
        if self.closed_because is None:
            self.closed_because = reason
            self._live = False
            self._scope.cancel(reason=f"subscription closed: {reason}")
            if tell:
                params = {"subscription": self.id, "reason": reason}
                self._sink.push(ascii_json({"jsonrpc": "2.0", "method": "events.closed", "params": params}) + b"\n")

    async def ack(self, seq: int, *, cumulative: bool = False) -> None:
        """The subscriber is done with an event, or with `cumulative` with all up to it; see `Cursor.ack`."""
        await self._named("acknowledge").ack(seq, cumulative=cumulative)

    async def nack(self, seq: int, delay_ms: int) -> None:
        """The subscriber could not handle an event and wants it again after `delay_ms`, on this connection.

        A new connection gets it at once. Raises `not_found` for an event that is not in its hands, `invalid_params`
        for a delay out of range.
        """
        self._named("put off")
        if not 0 <= delay_ms <= NACK_LIMIT_MS:
            why = f"0 to {NACK_LIMIT_MS} is allowed"
            raise ArmorclawError("invalid_params", f"nack_ms {delay_ms}", why=why, fields=["nack_ms"])
        await trio.lowlevel.checkpoint()
        if seq not in self._window:
            why = "it is acknowledged, or was not pushed on this connection"
            raise ArmorclawError("not_found", f"event {seq} of subscription {self.id}", why=why)
        self._window.postpone(seq, trio.current_time() + delay_ms / 1000)
        self._fill()
        self._wakeup.set()

    def offer(self, events: Sequence[Event]) -> None:
        """Events just committed: pushed now if the subscriber has kept up, else left for the pump."""
        if not self._live:
            return
        for event in events:
            if event.seq > self._position and not self._consider(event):
                self._live = False
                self._wakeup.set()
                return
        if self._floor_lags():
            self._wakeup.set()

    # --- the cursor's view of its holder ---

    def settled_floor(self, without: int, *, cumulative: bool) -> int:
        """See `Holder`."""
        lowest = self._window.lowest(without, cumulative=cumulative)
        return self._position if lowest is None else lowest - 1

    def knows(self, seq: int) -> bool:
        """See `Holder`."""
        return seq <= self._position

    def gave(self, seq: int) -> bool:
        """See `Holder`."""
        return seq in self._window

    def held(self) -> tuple[int, float | None]:
        """See `Holder`."""
        return self._window.held

    def give_way(self, sink: object, reason: str) -> None:
        """See `Holder`: the connection that did it needs no telling."""
        self.close(reason, tell=sink is not self._sink)

    def settled(self, floor: int, seq: int | None) -> None:
        """See `Holder`: the window has room again, so what waits for it goes out now."""
        self._window.settle_to(floor)
        if seq is not None:
            self._window.settle(seq)
        self._position = max(self._position, floor)
        if not self._live:
            self._fill()
            self._wakeup.set()
        elif not self._window.empty:
            self._wakeup.set()  # an event to be given again may have waited for room

    # --- beginning and end ---

    async def _begin(self) -> None:
        cursor = self._cursor
        if cursor is None:
            head = await self._journal.head()
            self._position = head if self._start == "now" else min(max(self._start, 0), head)
        else:
            await cursor.load(self._matching, self._start)
            if cursor.holder is not None:
                cursor.holder.give_way(self._sink, "another connection took over")
            cursor.holder = self
            cursor.given = None  # a batch given to a poller is pushed again
            self._matching = cursor.filter
            self._position = cursor.floor
        self._live = not self._held and self._at_head()
        self._followers.add(self)

    def _end(self) -> None:
        self._live = False
        self._ahead.clear()
        self._followers.discard(self)
        if self._cursor is not None and self._cursor.holder is self:
            self._cursor.holder = None

    def _named(self, doing: str) -> Cursor:
        if self._cursor is None:
            why = "it has no name, so nothing is kept for it"
            hint = "give the subscription a name to have its events kept until acknowledged"
            what = f"cannot {doing} events of subscription {self.id}"
            raise ArmorclawError("invalid_params", what, why=why, hint=hint, fields=["subscription"])
        return self._cursor

    # --- pushing ---

    def _consider(self, event: Event) -> bool:
        """Pushes an event or passes over it; False if it must wait for room."""
        if self._wants(event):
            if self._crowded() or self._blocked():
                return False
            self._push(event)
        self._position = event.seq
        return True

    def _wants(self, event: Event) -> bool:
        if self._cursor is not None and self._cursor.done(event.seq):
            return False
        # `allowed` first: it is cheap, and how long a filter takes must not tell of events of others
        return self._allowed(event) and (self._matching is None or self._matching.matches(event))

    def _crowded(self) -> bool:
        return self._cursor is not None and (self._window.crowded or len(self._cursor.acked) >= ACKED_LIMIT)

    def _blocked(self) -> bool:
        return self._held or self.closed_because is not None or self._sink.room() <= 0

    def _push(self, event: Event) -> None:
        cursor = self._cursor
        times = 0 if cursor is None else cursor.pushes.get(event.seq, 0)
        whole = frame(self._first_head if times == 0 else frame_head(self.id, times), event)
        self._sink.push(whole)
        if cursor is not None:
            cursor.pushes[event.seq] = times + 1
            self._window.give(event.seq, len(whole), trio.current_time())

    def _fill(self) -> None:
        """Pushes from what was read ahead, as far as there is room."""
        while self._ahead and (self._ahead[0].seq <= self._position or self._consider(self._ahead[0])):
            self._ahead.popleft()
        if not self._ahead:
            self._position = max(self._position, self._scanned)

    # --- the pump ---

    async def _pump(self) -> None:
        delay = RETRY_FIRST
        while self.closed_because is None:
            self._wakeup = trio.Event()
            try:
                await self._step()
                delay = RETRY_FIRST
            except ArmorclawError as error:
                if self._scope.cancel_called:
                    return  # closed: its cursor may be gone
                if not error.kind.retryable:
                    raise
                log.warning("events wait for the store", subscription=self.id, why=str(error))
                await trio.sleep(delay)
                delay = min(2 * delay, RETRY_LAST)

    async def _step(self) -> None:
        """Does the one thing that is to be done next, or waits until there is one."""
        due = [] if self._window.full else self._window.due(trio.current_time(), WINDOW_EVENTS)
        behind = not self._live and not self._crowded()
        if self._held:
            await self._wakeup.wait()
        elif (due or behind) and self._sink.room() <= 0:
            await self._sink.wait_room()
        elif due:
            await self._give_again(due)
        elif behind:
            await self._catch_up()
        elif self._cursor is not None and self._floor_lags():
            await self._cursor.advance(self._position)
        else:
            with trio.move_on_at(float("inf") if self._window.full else self._window.next_due):
                await self._wakeup.wait()

    async def _catch_up(self) -> None:
        if not self._ahead and not self._at_head():
            page = await self._journal.after(self._position, WINDOW_EVENTS, self._matching, self._allowed)
            self._ahead.extend(page.events)
            self._scanned = page.position
        self._fill()
        self._live = not self._ahead and self._at_head()

    def _at_head(self) -> bool:
        """Whether everything there is was looked at; what comes next will be offered."""
        known = self._journal.known
        return known is not None and known <= self._position

    async def _give_again(self, due: Sequence[int]) -> None:
        found = {event.seq: event for event in await self._journal.find(due)}
        for seq in due:
            if seq not in self._window:
                continue  # acknowledged while we read
            event = found.get(seq)
            if event is None or not self._wants(event):
                self._window.settle(seq)  # gone from the journal, or not allowed any more
            elif self._window.full or self._blocked():
                return
            else:
                self._push(event)

    def _floor_lags(self) -> bool:
        cursor = self._cursor
        return cursor is not None and self._window.empty and self._position - cursor.floor >= FLOOR_LAG
