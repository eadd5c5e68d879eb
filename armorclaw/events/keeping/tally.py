"""How large the journal is, counted once and kept up to date, so that nobody reads all of it each hour."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable

BLOCKS = 256
"""About so many sums are kept; the bound on the journal is kept to one part in so many."""


class Tally:
    """Sums of bytes over stretches of the journal, and where to cut so that `limit` bytes are left."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._grain = max(-(-limit // BLOCKS), 1)
        self._ends: list[int] = []  # the last number of each stretch
        self._sums: list[int] = []
        self.counted = 0
        """Everything up to this number is in."""
        self.total = 0
        """Bytes of all that is in."""

    def count(self, rows: Iterable[tuple[int, int]]) -> None:
        """Adds events: their numbers, above `counted` and rising, and the bytes that each takes."""
        for seq, size in rows:
            if not self._sums or self._sums[-1] >= self._grain:
                self._ends.append(seq)
                self._sums.append(0)
            self._ends[-1] = self.counted = seq
            self._sums[-1] += size
            self.total += size

    def free(self, rows: Iterable[tuple[int, int]]) -> None:
        """Takes bytes off events; those that were never counted are left aside."""
        for seq, size in rows:
            if seq <= self.counted:
                self._sums[bisect_left(self._ends, seq)] -= size
                self.total -= size

    def forget(self, upto: int) -> None:
        """Events up to here are deleted, and their bytes are freed."""
        gone = bisect_right(self._ends, upto)
        del self._ends[:gone], self._sums[:gone]
        self.counted = max(self.counted, upto)

    def cut(self) -> int:
        """The number up to which events must go for `limit` to hold; 0 if none must."""
        over = self.total - self._limit
        if over <= 0:
            return 0
        for end, size in zip(self._ends, self._sums, strict=True):
            over -= size
            if over <= 0:
                return end
        return self.counted
