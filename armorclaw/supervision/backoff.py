"""When a child that ended is started again, and when that has been tried often enough. Decisions only, no waiting."""

from __future__ import annotations

import random
from collections import deque

import attrs

HOUR = 3600.0  # seconds


def _positive(_: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise ValueError(f"{attribute.name} must be over 0, not {value!r}")


@attrs.frozen
class Backoff:
    """Exponential back-off with full jitter, for a child whose failures are worth waiting out.

    The first restart comes after exactly `first` seconds. The n-th after it comes after a time drawn evenly from
    0 to ``min(maximum, base * factor ** (n - 1))`` seconds: full jitter, which spreads children that failed together
    (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).

    Only a generation that stayed ready for `stable_seconds` starts the series anew; becoming ready does not, or a
    child that dies a second after it is ready would never be slowed down.
    """

    first: float = attrs.field(default=0.0, validator=attrs.validators.ge(0.0))
    """Seconds before the first restart after a stable generation."""
    base: float = attrs.field(default=1.0, validator=_positive)
    """Longest wait, in seconds, before the second restart."""
    factor: float = attrs.field(default=2.0, validator=attrs.validators.ge(1.0))
    """How much longer the longest wait gets from one restart to the next."""
    maximum: float = attrs.field(default=60.0, validator=_positive)
    """Seconds that no wait exceeds, whatever the series says."""
    stable_seconds: float = attrs.field(default=600.0, validator=_positive)
    """A generation that was ready for so long counts as a success."""
    max_in_row: int | None = attrs.field(default=6)
    """The child has failed when so many generations in a row ended before they were stable. None: no such limit."""
    max_per_hour: int | None = attrs.field(default=20)
    """The child has failed when so many generations, stable or not, ended within an hour. None: no such limit."""

    @max_in_row.validator
    @max_per_hour.validator
    def _count(self, attribute: attrs.Attribute[int | None], value: int | None) -> None:
        if value is not None and value < 1:
            raise ValueError(f"{attribute.name} must be at least 1 or None, not {value!r}")

    def ceiling(self, restarts: int) -> float:
        """The longest wait, in seconds, before the next restart, after `restarts` since the last stable time."""
        if restarts == 0:
            return self.first
        try:
            return min(self.maximum, self.base * self.factor ** (restarts - 1))
        except OverflowError:  # a child that has failed for weeks
            return self.maximum


class BackoffRecord:
    """What a `Backoff` needs to remember about one child."""

    __slots__ = ("_ends", "_policy", "_restarts", "_unstable")

    def __init__(self, policy: Backoff) -> None:
        self._policy = policy
        self._restarts = 0
        self._unstable = 0
        self._ends: deque[float] = deque(maxlen=policy.max_per_hour or 0)

    def ended(self, now: float, ready_for: float, chance: random.Random) -> float | None:
        """Notes the end of a generation; answers the seconds to wait before the next, or None if it was the last.

        `now` is monotonic, `ready_for` how many seconds the generation was ready.
        """
        policy = self._policy
        if ready_for >= policy.stable_seconds:
            self._restarts = self._unstable = 0
        else:
            self._unstable += 1
        self._ends.append(now)
        if policy.max_in_row is not None and self._unstable >= policy.max_in_row:
            return None
        if policy.max_per_hour is not None:
            full = len(self._ends) == policy.max_per_hour
            if full and now - self._ends[0] < HOUR:
                return None
        ceiling = policy.ceiling(self._restarts)
        waits = chance.uniform(0.0, ceiling) if self._restarts else ceiling
        self._restarts += 1
        return waits


class Intensity:
    """OTP's restart intensity: more than `limit` restarts within `period` seconds are too many."""

    __slots__ = ("_limit", "_period", "_restarts")

    def __init__(self, limit: int, period: float) -> None:
        self._limit = limit
        self._period = period
        self._restarts: deque[float] = deque()

    def allows(self, now: float) -> bool:
        """Notes one more restart at the monotonic time `now`; false if it is one too many."""
        restarts = self._restarts
        while restarts and now - restarts[0] >= self._period:
            restarts.popleft()
        if len(restarts) >= self._limit:
            return False
        restarts.append(now)
        return True
