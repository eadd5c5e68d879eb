"""What one connection has in hand of a named subscription, and what it may be given next."""

from __future__ import annotations

from collections.abc import Sequence

from armorclaw.events.durable.cursor import ACKED_LIMIT, Cursor
from armorclaw.events.event import Event
from armorclaw.events.pushing import gap
from armorclaw.events.pushing.totals import Totals
from armorclaw.events.pushing.window import WINDOW_EVENTS, Window


class Hand:
    """A window, and the rules by which events are given from a cursor.

    An event that its readers did not survive, or left unanswered, is given alone; in the end it is given up.
    """

    def __init__(self, cursor: Cursor, totals: Totals) -> None:
        self.cursor = cursor
        self.window = Window(cursor.deadline)
        self._totals = totals
        self.excused = False
        """When this connection ends, what it leaves unanswered is nobody's fault."""
        self._left = False

    @property
    def crowded(self) -> bool:
        """Nothing new may be given."""
        return self.window.crowded or len(self.cursor.acked) >= ACKED_LIMIT

    def blocks(self, event: Event) -> bool:
        """Whether `event` is to be given alone, and something is out."""
        return self.cursor.attempts.suspect(event.seq) and not self.window.none_out

    def accepts(self, event: Event) -> bool:
        """Whether `event` may be given for the first time on this connection, now."""
        return not self.crowded and not self.blocks(event) and self.cursor.attempts.ready(event.seq)

    def accepts_again(self, event: Event) -> bool:
        """Whether `event`, which came back, may be given again now. If it waits for others, nothing else is given."""
        if self.window.full:
            return False
        if self.blocks(event):
            self.window.wait_alone(event.seq)
            return False
        return self.cursor.attempts.ready(event.seq)

    def owes(self, seq: int) -> bool:
        """Whether it is a dead letter that somebody wants given again, whatever the filter says by now."""
        return seq in self.cursor.attempts.owed

    def redelivered(self, seq: int) -> int:
        """How often it was given before."""
        return self.cursor.attempts.given(seq)

    def give(self, event: Event, size: int, now: float) -> None:
        """`event` goes out in a frame of `size` bytes."""
        cursor, seq = self.cursor, event.seq
        if cursor.attempts.given(seq):
            self._totals.given_again += 1
        cursor.attempts.gave(seq)
        self.window.give(seq, size, now, alone=cursor.attempts.suspect(seq))
        if cursor.on_settled is not None:
            cursor.reading.give(event)

    async def prepare(self, events: Sequence[Event]) -> None:
        """Does what must be done before the first of `events`, which are to be given in this order, can be given now.

        That is done for those behind it as well, as far as they go out with it. The first may be given up instead.
        Raises what the store raises.
        """
        attempts = self.cursor.attempts
        if not events or attempts.ready(events[0].seq) or self.blocks(events[0]):
            return
        reason = attempts.spent(events[0].seq)
        if reason:
            await self.cursor.bury(events[0], reason, cumulative=gap.is_gap(events[0]))
            self._totals.dead += 1
            return
        together: list[int] = []
        for event in events[:WINDOW_EVENTS]:
            alone = attempts.suspect(event.seq)
            if together and (alone or attempts.spent(event.seq)):
                break
            together.append(event.seq)
            if alone:
                break
        await attempts.prepare(together)

    def due(self, now: float) -> list[int]:
        """What is to be given again by now, as far as there is room. What is out for too long comes back for that."""
        late = self.window.expire(now)
        if late:
            self.cursor.attempts.lose(late)
            self._totals.expired += len(late)
        return [] if self.window.full else self.window.due(now, WINDOW_EVENTS)

    def next_time(self, now: float) -> float:
        """When there will be something to do though nobody says anything (Trio's clock)."""
        # what is given from now on by somebody else than who waits until then is not out for too long before that
        expiry = min(self.window.next_expiry, now + self.cursor.deadline)
        return expiry if self.window.full else min(self.window.next_due, expiry)

    def owe_all(self, now: float) -> None:
        """Dead letters that somebody wants again are to be given, on this connection too."""
        for seq in self.cursor.attempts.owed:
            self.window.owe(seq, now)

    def leave(self) -> None:
        """The connection has ended, and nobody will answer for what it has in hand. Again is harmless."""
        if not self._left:
            self._left = True
            if not self.excused:
                self.cursor.attempts.lose(self.window.out)
