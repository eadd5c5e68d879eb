"""What one connection was given and has not acknowledged: how much that may be, and what is to be given again."""

from __future__ import annotations

import math

WINDOW_EVENTS = 64
"""Events given out and not yet answered. Enough to keep an agent busy over one round trip and a commit."""

WINDOW_BYTES = 256 * 1024
"""Bytes of them. One event may be larger than what is left, so that any event can pass."""

NACKED_LIMIT = 1000
"""Events waiting to be given again. They take no room in the window, so a few bad ones hold up nobody; with this
many, the trouble is not the events, and nothing new is given out."""


class Window:
    """Keeps numbers and sizes, not events: those are in the journal.

    `deadline`: seconds after which somebody who has not answered for an event will not any more.
    """

    def __init__(self, deadline: float = math.inf) -> None:
        self._deadline = deadline
        self._out: dict[int, tuple[int, float]] = {}  # seq → bytes, and since when; the oldest first
        self._bytes = 0
        self._later: dict[int, float] = {}  # seq → when to give it again
        self._apart: set[int] = set()  # of both, those that are settled as far as the floor is concerned
        self._alone: int | None = None  # one of those out, beside which nothing is given
        self._waiting: int | None = None  # one to be given alone, as soon as nothing is out

    @property
    def empty(self) -> bool:
        """Nothing that holds the floor is unacknowledged."""
        return len(self._out) + len(self._later) == len(self._apart)

    @property
    def none_out(self) -> bool:
        """Nothing is in anybody's hands."""
        return not self._out

    @property
    def full(self) -> bool:
        """Nothing may be given out, not even again."""
        if not self._out:
            return False
        alone = self._alone is not None or self._waiting is not None
        return alone or len(self._out) >= WINDOW_EVENTS or self._bytes >= WINDOW_BYTES

    @property
    def crowded(self) -> bool:
        """Nothing new may be given out."""
        return self.full or self._waiting is not None or len(self._later) >= NACKED_LIMIT

    @property
    def next_due(self) -> float:
        """When the next event is to be given again (Trio's clock); infinity for never."""
        return min(self._later.values(), default=math.inf)

    @property
    def next_expiry(self) -> float:
        """When the next event is out for too long (Trio's clock); infinity if nothing is out."""
        return next((since for _, since in self._out.values()), math.inf) + self._deadline

    @property
    def waiting(self) -> bool:
        """Something is to be given again, some time."""
        return bool(self._later)

    @property
    def out(self) -> list[int]:
        """What was given out and has found no answer, those put off left aside."""
        return list(self._out)

    def __contains__(self, seq: int) -> bool:
        return seq in self._out or seq in self._later

    @property
    def held(self) -> tuple[int, float | None]:
        """How many events are out, those put off left aside, and since when the oldest is (Trio's clock).

        An event counts from when somebody last said that they are at it.
        """
        return len(self._out), next((since for _, since in self._out.values()), None)

    def give(self, seq: int, size: int, now: float, *, alone: bool = False) -> None:
        """`seq` goes out at `now`, in a frame of `size` bytes; `alone`: nothing else until it is back."""
        self._not_later(seq)
        self._out[seq] = size, now
        self._bytes += size
        if alone:
            self._alone = seq

    def touch(self, seq: int, now: float) -> bool:
        """Somebody is still at `seq`, so its time begins anew; False if it is not out."""
        found = self._out.pop(seq, None)
        if found is None:
            return False
        self._out[seq] = found[0], now
        return True

    def expire(self, now: float) -> list[int]:
        """Takes back what is out for too long, to be given again at once."""
        late = []
        for seq, (_, since) in self._out.items():
            if since + self._deadline > now:
                break
            late.append(seq)
        for seq in late:
            self.postpone(seq, now)
        return late

    def postpone(self, seq: int, until: float) -> None:
        """`seq` came back and is to be given again at `until`."""
        self._take_back(seq)
        self._not_later(seq)
        self._later[seq] = until

    def owe(self, seq: int, now: float) -> None:
        """`seq` is to be given as soon as may be, though it is settled."""
        self._apart.add(seq)
        self.postpone(seq, now)

    def wait_alone(self, seq: int) -> None:
        """`seq` is to be given again, and alone: until it is, nothing else goes out."""
        self._waiting = seq

    def settle(self, seq: int) -> None:
        """`seq` is done with."""
        self._take_back(seq)
        self._not_later(seq)
        self._apart.discard(seq)

    def settle_to(self, floor: int) -> None:
        """Everything up to `floor` is done with."""
        for seq in [seq for held in (self._out, self._later) for seq in held if seq <= floor]:
            if seq not in self._apart:
                self.settle(seq)

    def due(self, now: float, limit: int) -> list[int]:
        """What is to be given again by now, in order of the journal."""
        return sorted(seq for seq, until in self._later.items() if until <= now)[:limit]

    def is_due(self, seq: int, now: float) -> bool:
        """Whether `seq` is to be given again by now."""
        return self._later.get(seq, math.inf) <= now

    def lowest(self, without: int, *, cumulative: bool) -> int | None:
        """The lowest unacknowledged number once `without` (`cumulative`: and all below) is; None if there is none."""
        left = (seq for held in (self._out, self._later) for seq in held if seq not in self._apart)
        return min((seq for seq in left if (seq > without if cumulative else seq != without)), default=None)

    def _take_back(self, seq: int) -> None:
        size, _ = self._out.pop(seq, (0, 0.0))
        self._bytes -= size
        if seq == self._alone:
            self._alone = None

    def _not_later(self, seq: int) -> None:
        self._later.pop(seq, None)
        if seq == self._waiting:
            self._waiting = None
