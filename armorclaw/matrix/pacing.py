"""How long to wait before asking a homeserver again: after a failure, and when its answers never end."""

from __future__ import annotations

import random

import attrs


@attrs.define
class Pacing:
    """Growing pauses with jitter: `first` seconds, doubled each time, up to `cap`; each is cut to 50-100 % by chance.

    The cap is low on purpose: a homeserver that comes back is seen within two seconds, and one that answers with
    an error at once is still asked less than once a second.
    """

    random: random.Random
    first: float = 0.25
    cap: float = 2.0
    _next: float = 0.0

    def next(self, told: float | None = None) -> float:
        """Seconds to wait now: what the server told, if it did, but never less than the pause that is due."""
        base = max(self._next, self.first)
        self._next = min(base * 2, self.cap)
        pause = min(base, self.cap) * self.random.uniform(0.5, 1.0)
        return pause if told is None else max(told, pause)

    def reset(self) -> None:
        """Things work again."""
        self._next = 0.0


@attrs.define
class Surge:
    """Lets a surge through and holds back what never ends: `burst` in a row, and then `rate` a second."""

    rate: float
    burst: int
    _due: float = 0.0

    def next(self, now: float) -> float:
        """One more, at `now` seconds of a clock that never goes back: how many to wait before the next."""
        self._due = max(self._due, now) + 1 / self.rate
        return max(self._due - now - self.burst / self.rate, 0.0)
