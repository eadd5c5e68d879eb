"""One connection following the journal: pushed to at once while it keeps up, read for from the journal when not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.cursor import Cursor, Start
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.backlog import Backlog
from armorclaw.events.pushing.hand import Hand
from armorclaw.events.pushing.outlet import Outlet, Sink
from armorclaw.events.pushing.totals import Totals
from armorclaw.log import get_logger

log = get_logger(__name__)

NACK_LIMIT_MS = 3_600_000
"""The longest that an event may be put off, in milliseconds."""

FLOOR_LAG = 4096
"""Events not meant for a subscriber after which its floor is moved over them, so that its next connection need not
look at them again."""

END_SECONDS = 1.0
"""What the end of a connection may take, to write down what it was given."""

RETRY_FIRST, RETRY_LAST = 0.1, 5.0
"""Seconds between attempts while the store does not answer."""


class Followers(Protocol):
    """Those who are told of each commit by one task: a relay."""

    def add(self, follower: Subscription, /) -> None: ...
    def discard(self, follower: Subscription, /) -> None: ...


class Subscription:
    """Events for one sink, in order, until its connection goes.

    Every event is in the journal, so a slow reader costs nothing: while it is caught up, what its relay offers is
    pushed straight into the sink, with no task of its own in between; when sink or window is full it falls behind,
    and the pump (`run`) reads the journal as room appears. With a cursor, what is not acknowledged counts towards a
    window and is pushed again, after a while or on the next connection; without one, nothing is kept, nothing written
    and nothing acknowledged. Events that are kept nowhere are pushed if there is room, or counted.
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
        followers: Followers,
        owner: str = "",
        clock: Clock | None = None,
        totals: Totals | None = None,
    ) -> None:
        self.id = id
        self.owner = owner
        self._journal = journal
        self._matching = matching
        self._allowed = allowed
        self._cursor = cursor
        self._start = start
        self._followers = followers
        clock, self._totals = clock or Clock(), totals or Totals()
        self._hand = None if cursor is None else Hand(cursor, self._totals)
        self._outlet = Outlet(id, sink, self._hand, clock, self._totals)
        self._backlog = Backlog(id, journal, clock)
        self._position = 0  # everything up to here was pushed, or is not for us
        self._live = False
        self._wakeup = trio.Event()
        self._scope = trio.CancelScope()

    def __repr__(self) -> str:
        return f"<Subscription {self.id} at {self._position} {'live' if self._live else 'behind'}>"

    @property
    def position(self) -> int:
        """The number of the last event that was pushed, or passed over as not meant for this subscriber."""
        return self._position

    @property
    def closed_because(self) -> str | None:
        """Why it was closed; None if it was not."""
        return self._outlet.closed_because

    @property
    def redelivered(self) -> int:
        """Events pushed that had been given before."""
        return self._outlet.redelivered

    @property
    def missed(self) -> int:
        """Events kept nowhere for which there was no room."""
        return self._outlet.missed

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
                await self._end()

    def hold(self) -> None:
        """Pushes nothing until `release`: so the answer to whoever subscribed can go first."""
        self._outlet.held = True

    def release(self) -> None:
        """Pushes what is there, and what comes."""
        self._outlet.held = False
        self._wakeup.set()

    def pause(self) -> None:
        """Pushes nothing until `resume`. What was pushed may still be answered; if its connection ends instead, that
        is nobody's fault."""
        self._outlet.paused = True
        self.excuse()

    def resume(self) -> None:
        """Takes `pause` back."""
        self._outlet.paused = False
        if self._hand is not None:
            self._hand.excused = False
        self._wakeup.set()

    def excuse(self) -> None:
        """The bridge stops: that the connection ends with events unanswered is not counted against those."""
        if self._hand is not None:
            self._hand.excused = True

    def close(self, reason: str, *, tell: bool = False, orderly: bool = False) -> None:
        """Ends `run`; with `tell` the subscriber hears why, and where it was, in an `events.closed` notification.

        `orderly`: what it leaves unanswered is not counted as lost.
        """
        if self.closed_because is None:
            self._outlet.closed_because = reason
            self._live = False
            if self._hand is not None:
                self._hand.excused |= orderly
                self._hand.leave()  # now: the connection that takes over looks at the counts
            self._scope.cancel(reason=f"subscription closed: {reason}")
            if tell:
                self._outlet.tell_closed(self._position)

    async def ack(self, seq: int, *, cumulative: bool = False) -> None:
        """The subscriber is done with an event, or with `cumulative` with all up to it; see `Cursor.ack`."""
        await self._named("acknowledge").cursor.ack(seq, cumulative=cumulative)

    async def working(self, seq: int) -> None:
        """The subscriber is still at an event: its time to answer begins anew.

        Raises `not_found` for an event that is not in its hands.
        """
        hand = self._named("keep")
        await trio.lowlevel.checkpoint()
        if not hand.window.touch(seq, trio.current_time()):
            raise self._not_in_hand(seq)

    async def nack(self, seq: int, delay_ms: int) -> None:
        """The subscriber could not handle an event and wants it again after `delay_ms`, on this connection.

        A new connection gets it at once. Raises `not_found` for an event that is not in its hands, `invalid_params`
        for a delay out of range.
        """
        hand = self._named("put off")
        if not 0 <= delay_ms <= NACK_LIMIT_MS:
            why = f"0 to {NACK_LIMIT_MS} is allowed"
            raise ArmorclawError("invalid_params", f"nack_ms {delay_ms}", why=why, fields=["nack_ms"])
        await trio.lowlevel.checkpoint()
        if seq not in hand.window:
            raise self._not_in_hand(seq)
        hand.window.postpone(seq, trio.current_time() + delay_ms / 1000)
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

    def fall_behind(self) -> None:
        """Events were not offered: the pump reads them from the journal."""
        if self._live:
            self._live = False
            self._wakeup.set()

    def offer_ephemeral(self, events: Sequence[Event]) -> None:
        """Events that are kept nowhere: pushed now, or missed for want of room. Not for those with a name."""
        if self._hand is not None:
            return
        allowed, matching = self._allowed, self._matching
        wanted = [event for event in events if allowed(event) and (matching is None or matching.matches(event))]
        if wanted and not self._outlet.push_ephemeral(wanted, self._position):
            self.missed_ephemeral(len(wanted))

    def missed_ephemeral(self, count: int) -> None:
        """So many such events did not come this far; the subscriber is told as soon as there is room."""
        if self._hand is None and not self._outlet.held:  # held, it has not begun
            self._outlet.miss(count)
            self._wakeup.set()

    # --- the cursor's view of its holder ---

    def settled_floor(self, without: int, *, cumulative: bool) -> int:
        """See `Holder`."""
        lowest = None if self._hand is None else self._hand.window.lowest(without, cumulative=cumulative)
        return self._position if lowest is None else lowest - 1

    def knows(self, seq: int) -> bool:
        """See `Holder`."""
        return seq <= self._position

    def gave(self, seq: int) -> bool:
        """See `Holder`."""
        return self._hand is not None and seq in self._hand.window

    def held(self) -> tuple[int, float | None]:
        """See `Holder`."""
        return (0, None) if self._hand is None else self._hand.window.held

    def owe(self, seq: int) -> None:
        """See `Holder`."""
        if self._hand is not None:
            self._hand.window.owe(seq, trio.current_time())
            self._wakeup.set()

    def give_way(self, sink: object, reason: str) -> None:
        """See `Holder`: the connection that did it needs no telling."""
        self.close(reason, tell=sink is not self._outlet.sink)

    def settled(self, floor: int, seq: int | None) -> None:
        """See `Holder`: the window has room again, so what waits for it goes out now."""
        if self._hand is None:
            return
        window = self._hand.window
        window.settle_to(floor)
        if seq is not None:
            window.settle(seq)
        self._position = max(self._position, floor)
        if not self._live:
            self._fill()
            self._wakeup.set()
        elif window.waiting:
            self._wakeup.set()  # an event to be given again may have waited for room

    # --- beginning and end ---

    async def _begin(self) -> None:
        cursor, hand = self._cursor, self._hand
        if cursor is None or hand is None:
            head = await self._journal.head()
            self._position = head if self._start == "now" else min(max(self._start, 0), head)
        else:
            attempts = None
            while cursor.attempts is not attempts:  # once more if the name was forgotten meanwhile
                await cursor.load(self._matching, self._start)
                attempts = cursor.attempts
                await attempts.prepare((), max(cursor.floor, self._journal.known or 0))
            if cursor.holder is not None:
                cursor.holder.give_way(self._outlet.sink, "another connection took over")
            cursor.holder = self
            cursor.given = None  # a batch given to a poller is pushed again
            self._matching = cursor.filter
            self._position = cursor.floor
            hand.owe_all(trio.current_time())
        self._live = not self._outlet.held and self._at_head()
        self._followers.add(self)

    async def _end(self) -> None:
        self._live = False
        self._backlog.clear()
        self._followers.discard(self)
        if self._cursor is None or self._hand is None:
            return
        self._hand.leave()
        if self._cursor.holder is self:
            self._cursor.holder = None
            with trio.move_on_after(END_SECONDS, shield=True):
                try:
                    await self._cursor.attempts.close()
                except ArmorclawError as error:  # some events may be marked as given that were not
                    log.info("what was given is not on record", subscription=self.id, why=str(error))

    def _named(self, doing: str) -> Hand:
        if self._hand is None:
            why = "it has no name, so nothing is kept for it"
            hint = "give the subscription a name to have its events kept until acknowledged"
            what = f"cannot {doing} events of subscription {self.id}"
            raise ArmorclawError("invalid_params", what, why=why, hint=hint, fields=["subscription"])
        return self._hand

    def _not_in_hand(self, seq: int) -> ArmorclawError:
        why = "it is acknowledged, or was not pushed on this connection"
        return ArmorclawError("not_found", f"event {seq} of subscription {self.id}", why=why)

    # --- pushing ---

    def _consider(self, event: Event) -> bool:
        """Pushes an event or passes over it; False if it must wait."""
        if self._wants(event):
            if self._outlet.blocked or (self._hand is not None and not self._hand.accepts(event)):
                return False
            self._push(event)
        self._position = event.seq
        return True

    def _wants(self, event: Event) -> bool:
        if event is self._backlog.gap:
            return self._cursor is None or event.seq > self._cursor.floor
        if self._cursor is not None and self._cursor.done(event.seq):
            return False
        # `allowed` first: it is cheap, and how long a filter takes must not tell of events of others
        return self._allowed(event) and (self._matching is None or self._matching.matches(event))

    def _stuck(self) -> bool:
        """Whether nothing new can go out before something is answered."""
        hand = self._hand
        return hand is not None and (hand.crowded or bool(self._backlog and hand.blocks(self._backlog.first)))

    def _push(self, event: Event) -> None:
        self._outlet.push(event)
        self._totals.gaps += event is self._backlog.gap

    def _fill(self) -> None:
        """Pushes from what was read ahead, as far as there is room."""
        backlog = self._backlog
        while backlog and (backlog.first.seq <= self._position or self._consider(backlog.first)):
            backlog.pop()
        if not backlog:
            self._position = max(self._position, backlog.scanned)

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
        if self._outlet.held or self._outlet.paused:
            await self._wakeup.wait()
            return
        hand, now = self._hand, trio.current_time()
        due = [] if hand is None else hand.due(now)
        behind = not self._live and not self._stuck()
        if (due or behind or self._outlet.untold) and self._outlet.full:
            too_slow = await self._outlet.wait_room()
            if too_slow:
                self.close(too_slow, tell=True)
        elif self._outlet.untold:
            self._outlet.tell_missed(self._position)
        elif due and hand is not None:
            await self._give_again(hand, due)
        elif behind:
            await self._catch_up()
        elif self._cursor is not None and self._floor_lags():
            await self._cursor.advance(self._position)
        else:
            with trio.move_on_at(math.inf if hand is None else hand.next_time(now)):
                await self._wakeup.wait()

    async def _catch_up(self) -> None:
        backlog, hand = self._backlog, self._hand
        if not backlog and not self._at_head():
            await backlog.read(self._position, self._matching, self._allowed)
            if hand is not None and backlog and backlog.first is backlog.gap:
                hand.cursor.attempts.replaced(backlog.first.seq)
        if hand is not None:
            wanted = [event for event in backlog if event.seq > self._position and self._wants(event)]
            await hand.prepare(wanted)
        self._fill()
        self._live = not backlog and self._at_head()

    def _at_head(self) -> bool:
        """Whether everything there is was looked at; what comes next will be offered."""
        known = self._journal.known
        return known is not None and known <= self._position

    async def _give_again(self, hand: Hand, due: list[int]) -> None:
        found = await self._backlog.find(due)
        events = []
        for seq in due:
            event = found.get(seq)
            if event is not None and (self._wants(event) or (hand.owes(seq) and self._allowed(event))):
                events.append(event)
            elif seq in hand.window:
                hand.window.settle(seq)  # gone from the journal, acknowledged meanwhile, or not allowed any more
        await hand.prepare(events)
        for event in events:
            if not hand.window.is_due(event.seq, trio.current_time()):
                continue  # acknowledged, or put off once more, while the store was asked
            if self._outlet.blocked or not hand.accepts_again(event):
                return
            self._push(event)

    def _floor_lags(self) -> bool:
        hand = self._hand
        return hand is not None and hand.window.empty and self._position - hand.cursor.floor >= FLOOR_LAG
