"""How long the event loop stands still: measured each turn, told when it is too long.

While a step of one task runs, nothing else of the bridge does: no agent is heard, no deadline kept. A step that takes
longer than some 20 ms is a fault, or a sign of a machine that has too much to do. What is said of it is why, as far
as the kernel tells:

busy     a step computed all the while
blocked  a step waited for something, such as a disk, without letting others run; or the process was stopped meanwhile
starved  it could have run, but the machine had other things to do
away     the loop was asked to wait and came back too late: the process was stopped (SIGSTOP) or the machine slept

Trio's instruments are those of one run of Trio: a program that embeds the bridge has its own slow steps told as well.
"""

from __future__ import annotations

import math
import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import closing, suppress
from time import perf_counter, thread_time

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

BUCKETS = (0.001, 0.005, 0.02, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Seconds a turn of the loop took, at most, for each count but the last."""

QUIET = 1.0
"""Seconds from one report to the next: what comes in between is one report."""

NAMING = 10.0
"""Seconds after an alarm in which steps are timed one by one, so that the next alarm can name the task."""

_LOOK = 1.0  # seconds a note of how long we waited for a processor may be old

Tell = Callable[[Mapping[str, object]], Awaitable[object]]


@attrs.frozen
class Standstill:
    """One turn, or one wait, that took too long; `task` is whose step took the most of it, if that was looked at."""

    seconds: float
    cause: str
    task: str | None


class LoopLag:
    """Watches the loop it is run in. A turn over `alarm` seconds (0: none is) is logged and given to `tell`, at most
    one a second, as {ms, count, cause, task}: the longest of `count`."""

    def __init__(self, alarm: float, tell: Tell) -> None:
        self.turns = Turns(alarm or math.inf, self._late)
        self.alarms: Counter[str] = Counter()
        """How many there were, by cause."""
        self._tell = tell
        self._untold: list[Standstill] = []  # the longest, and
        self._count = 0  # of how many
        self._alarmed = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled.

        Resource handling: however it ends, nothing is left in the loop.
        """
        turns = self.turns
        self._token = trio.lowlevel.current_trio_token()
        with closing(_Delay()) as delay:
            turns.begin(delay)
            trio.lowlevel.add_instrument(turns)
            try:
                task_status.started()
                while True:
                    await self._alarmed.wait()
                    await self._follow_up()
            finally:
                with suppress(KeyError):  # Trio removes one that raised
                    trio.lowlevel.remove_instrument(turns)
                self._token = None

    def _late(self, seconds: float, cause: str, task: str | None) -> None:
        """Called in the loop, between two turns: what can wait is done in a turn of its own."""
        found = Standstill(seconds, cause, task)
        self.alarms[cause] += 1
        self._count += 1
        if not self._untold or seconds >= self._untold[0].seconds:
            self._untold = [found]
        if self._token is not None:
            self._token.run_sync_soon(self._wake, idempotent=True)  # of the loop, too, which may be about to wait

    def _wake(self) -> None:
        if self._untold:  # else they have been told meanwhile
            self._alarmed.set()

    async def _follow_up(self) -> None:
        """Tell, and time single steps until it has been quiet for a while."""
        steps = Steps()
        trio.lowlevel.add_instrument(steps)
        self.turns.steps = steps
        try:
            is_quiet = False
            while not is_quiet:
                await self._report()
                is_quiet = True
                with trio.move_on_after(NAMING):
                    await self._alarmed.wait()
                    is_quiet = False
        finally:
            self.turns.steps = None
            with suppress(KeyError):
                trio.lowlevel.remove_instrument(steps)

    async def _report(self) -> None:
        self._alarmed = trio.Event()
        (longest,), count = self._untold, self._count
        self._untold, self._count = [], 0
        facts = {
            "ms": round(longest.seconds * 1000, 1),
            "count": count,
            "cause": longest.cause,
            "task": longest.task,
        }
        log.warning("the event loop stood still", **facts)
        try:
            await self._tell(facts)
        except ArmorclawError as error:
            log.error("a standstill reached the log only", why=str(error))
        await trio.sleep(QUIET)


class Turns(trio.abc.Instrument):
    """Times turns of the loop: what runs between two waits for input. One costs some two microseconds."""

    def __init__(self, alarm: float, late: Callable[[float, str, str | None], None]) -> None:
        self.count = 0
        self.seconds = 0.0
        """Of all of them together."""
        self.longest = 0.0
        self.over = [0] * (len(BUCKETS) + 1)
        """Turns that took longer than the first bucket, by the bucket that holds them."""
        self.steps: Steps | None = None
        self._alarm = alarm
        self._late = late
        self._delay: _Delay | None = None
        self._began = self._cpu = 0.0
        self._look_at = self._back_at = math.inf

    def begin(self, delay: _Delay) -> None:
        self._delay = delay
        self._began = self._look_at = perf_counter()
        self._cpu = thread_time()
        self._back_at = math.inf

    def before_io_wait(self, timeout: float) -> None:
        now = perf_counter()
        took = now - self._began
        self.count += 1
        self.seconds += took
        if took > BUCKETS[0]:
            self._long(took)
        if now >= self._look_at and self._delay is not None:
            self._look_at = now + _LOOK
            self._delay.look()
        self._back_at = now + timeout

    def after_io_wait(self, timeout: float) -> None:
        self._began = now = perf_counter()
        if now - self._back_at > self._alarm:
            overslept = now - self._back_at
            self._late(overslept, "starved" if self._is_starved(overslept) else "away", None)
        self._cpu = thread_time()
        if self.steps is not None:
            self.steps.longest, self.steps.name = 0.0, None

    def _long(self, took: float) -> None:
        self.over[bisect_left(BUCKETS, took)] += 1
        self.longest = max(self.longest, took)
        if took <= self._alarm:
            return
        if thread_time() - self._cpu >= took / 2:
            cause = "busy"
        else:
            cause = "starved" if self._is_starved(took) else "blocked"
        self._late(took, cause, None if self.steps is None else self.steps.name)

    def _is_starved(self, seconds: float) -> bool:
        return self._delay is not None and self._delay.look() >= seconds / 2


class Steps(trio.abc.Instrument):
    """Times the steps of single tasks: costs twice as much, at each step, and is there only after an alarm."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Seconds, of the longest in this turn."""
        self.name: str | None = None
        """Of its task."""
        self._began = math.inf

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = perf_counter()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = perf_counter() - self._began
        if took > self.longest:
            self.longest, self.name = took, task.name[:200]


class _Delay:
    """How long this thread could have run but did not, as Linux counts it (schedstat; see proc(5)); elsewhere 0."""

    def __init__(self) -> None:
        try:
            self._fd = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._fd = -1
        self._before = 0
        self.look()

    def look(self) -> float:
        """Seconds since the last look."""
        try:
            delay = int(os.pread(self._fd, 80, 0).split()[1])
        except (OSError, ValueError, IndexError):
            return 0.0
        since, self._before = delay - self._before, delay
        return since / 1e9

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
