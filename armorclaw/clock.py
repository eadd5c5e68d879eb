"""Time and chance, passed in rather than looked up, so that tests own both."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

import attrs
import trio


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@attrs.frozen
class Clock:
    """Three clocks: `wall` for what people and records read, `monotonic` for how long things take, `boottime` for how
    long ago something was, which goes on while the machine sleeps.

    All answer in seconds. `monotonic` is Trio's, so a MockClock moves it.
    """

    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = trio.current_time
    boottime: Callable[[], float] = _boottime

    def now_ms(self) -> int:
        """Milliseconds since the epoch, as Matrix and the store write them."""
        return int(self.wall() * 1000)


@attrs.frozen
class Surroundings:
    """What the composition root hands to everyone: a clock and a source of chance (jitter only)."""

    clock: Clock = attrs.field(factory=Clock)
    random: random.Random = attrs.field(factory=random.Random, repr=False)
