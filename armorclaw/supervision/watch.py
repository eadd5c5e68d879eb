"""One task that sleeps for everybody: it wakes when told to look again, and when somebody's time is up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")


class Watch(Generic[T]):
    """Deadlines of many things, watched by the one task that is in `until`. No task and no timer per thing.

    `expired` is called in that task, once for each thing whose deadline has passed; it may set another.
    """

    def __init__(self, now: Callable[[], float], expired: Callable[[T], None]) -> None:
        self._now = now
        self._expired = expired
        self._deadlines: dict[T, float] = {}
        self._bell = trio.Event()
        self._alarm: trio.CancelScope | None = None  # of the sleep under way

    async def until(self, done: Callable[[], bool]) -> None:
        """Watches until `done()`, which is asked at first and after each `ring`. One task at a time."""
        while not done():
            self._bell = trio.Event()
            with trio.CancelScope(deadline=min(self._deadlines.values(), default=math.inf)) as self._alarm:
                await self._bell.wait()
            self._alarm = None
            now = self._now()
            for thing in [thing for thing, deadline in self._deadlines.items() if deadline <= now]:
                if self._deadlines.pop(thing, None) is not None:  # not dropped on account of the one before
                    self._expired(thing)

    def ring(self) -> None:
        """What `until` waits for may have come true."""
        self._bell.set()

    def allow(self, thing: T, when: float) -> None:
        """Gives it until `when` (monotonic seconds, may be infinite), instead of what it had before."""
        self._deadlines[thing] = when
        if self._alarm is not None and when < self._alarm.deadline:
            self._alarm.deadline = when

    def drop(self, thing: T) -> None:
        """It came about in time."""
        self._deadlines.pop(thing, None)
