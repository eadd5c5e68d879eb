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
    """Keeps numbers and sizes, not events: those are in the journal."""

    def __init__(self) -> None:
        self._out: dict[int, tuple[int, float]] = {}  # seq → bytes, and when it was given; the oldest first
        self._bytes = 0
        self._later: dict[int, float] = {}  # seq → when to give it again

    @property
    def empty(self) -> bool:
        """Nothing is unacknowledged."""
        return not self._out and not self._later

    @property
    def full(self) -> bool:
        """Nothing may be given out, not even again."""
        return len(self._out) >= WINDOW_EVENTS or self._bytes >= WINDOW_BYTES

    @property
    def crowded(self) -> bool:
        """Nothing new may be given out."""
        return self.full or len(self._later) >= NACKED_LIMIT

    @property
    def next_due(self) -> float:
        """When the next event is to be given again (Trio's clock); infinity for never."""
        return min(self._later.values(), default=math.inf)

    def __contains__(self, seq: int) -> bool:
        return seq in self._out or seq in self._later

    @property
    def held(self) -> tuple[int, float | None]:
        """How many events are out, those put off left aside, and since when the oldest is (Trio's clock)."""
        return len(self._out), next((given for _, given in self._out.values()), None)

    def give(self, seq: int, size: int, now: float) -> None:
        """`seq` goes out at `now`, in a frame of `size` bytes."""
        self._later.pop(seq, None)
        self._out[seq] = size, now
        self._bytes += size

    def postpone(self, seq: int, until: float) -> None:
        """`seq` came back and is to be given again at `until`."""
        self._take_back(seq)
        self._later[seq] = until

    def settle(self, seq: int) -> None:
        """`seq` is done with."""
        self._take_back(seq)
        self._later.pop(seq, None)

    def settle_to(self, floor: int) -> None:
        """Everything up to `floor` is done with."""
        for seq in [seq for held in (self._out, self._later) for seq in held if seq <= floor]:
            self.settle(seq)

    def due(self, now: float, limit: int) -> list[int]:
        """What is to be given again by now, in order of the journal."""
        return sorted(seq for seq, until in self._later.items() if until <= now)[:limit]

    def lowest(self, without: int, *, cumulative: bool) -> int | None:
        """The lowest unacknowledged number once `without` (`cumulative`: and all below) is; None if there is none."""
        left = (seq for held in (self._out, self._later) for seq in held)
        return min((seq for seq in left if (seq > without if cumulative else seq != without)), default=None)

    def _take_back(self, seq: int) -> None:
        size, _ = self._out.pop(seq, (0, 0.0))
        self._bytes -= size
