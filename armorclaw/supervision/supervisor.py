"""A supervisor keeps its children alive: OTP's semantics, in Trio's structured concurrency.

Theory of operation
-------------------
Each child has one task (`_keep`) that lives its generations one after the other, each under a cancel scope of its
own, and decides what follows at the end of each (`_ended`) without an await, so that two crashes in one tick are two
decisions, one after the other. A restart costs a scope, an exception and a loop; there is no nursery per child.

The task that called `run()` starts the first children in order, then sleeps, then stops all in reverse order. While
it waits it is also the one that watches the clock for everybody (`Watch`): a start that takes too long, a child that
does not end when asked, a child that ignores cancellation.

What the end of a generation means is in `verdict`. What is no `Exception` (KeyboardInterrupt, SystemExit) stops all
children and is then raised by `run()`.

A restart is counted: by the child's `Backoff`, or, without one, in the supervisor's intensity. Over the limit the
child is FAILED; a dynamic supervisor goes on without it, any other stops all and raises `RestartLimitExceeded`.

rest_for_one: a generation begins only when all after the child are down and all before it are up (`_turn`). That one
rule, applied by each child's own task, gives the reverse stop and the ordered start of those after a crash.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NoReturn

import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.supervision.backoff import Intensity
from armorclaw.supervision.changes import Announcer, Changes
from armorclaw.supervision.child import ALIVE, Child, Generation
from armorclaw.supervision.failures import ChildStartFailed, End, NotAgain, RestartLimitExceeded, in_words
from armorclaw.supervision.spec import (
    ChildChange,
    ChildSpec,
    ChildState,
    Restart,
    Strategy,
    SupervisorSnapshot,
)
from armorclaw.supervision.verdict import verdict
from armorclaw.supervision.watch import Watch

HISTORY = 20  # ends that RestartLimitExceeded reports; enough to see a pattern, few enough to log


class Supervisor:
    """Runs children and starts them again when they end.

    Parameters:
      intensity, period: more than `intensity` restarts within `period` seconds, of children without a `Backoff`, are
        too many.
      dynamic: children come and go, and none is worth the others: one over its limits becomes FAILED, and that is
        all. Intensity is then counted for each child by itself, and all are stopped at once instead of in reverse
        order, so that the end takes one grace and not the sum of them (OTP's simple_one_for_one).
      on_change: called with every `ChildChange`, synchronously, so it must not block. What it raises is logged.
    """

    def __init__(
        self,
        name: str,
        *,
        strategy: Strategy = Strategy.ONE_FOR_ONE,
        intensity: int = 5,
        period: float = 10.0,
        dynamic: bool = False,
        around: Surroundings,
        on_change: Callable[[ChildChange], None] | None = None,
    ) -> None:
        if dynamic and strategy is not Strategy.ONE_FOR_ONE:
            raise ValueError("children of a dynamic supervisor do not depend on each other: one_for_one only")
        if intensity < 0 or not period > 0:
            raise ValueError("intensity must be 0 or more, period over 0")
        self.name = name
        self.strategy = strategy
        self.dynamic = dynamic
        self._limits = (intensity, period)
        self._now = around.clock.monotonic
        self._chance = around.random
        self._announcer = Announcer(name, self._now)
        if on_change is not None:
            self._announcer.listen(on_change)
        self._in_turn = strategy is Strategy.REST_FOR_ONE
        self._nursery: trio.Nursery | None = None  # None: not running
        self._reset()

    def _reset(self) -> None:
        self._children: dict[str, Child] = {}  # in order of start
        self._intensity = Intensity(*self._limits)
        self._history: deque[End] = deque(maxlen=HISTORY)
        self._failure: BaseException | None = None
        self._closing = False
        self._watch = Watch(self._now, self._overdue)
        self._eyed: Child | None = None  # the child whose changes the task of run() waits for

    def __repr__(self) -> str:
        state = "closing" if self._closing else "idle" if self._nursery is None else "running"
        return f"<Supervisor {self.name!r} {state}, {len(self._children)} children>"

    @property
    def is_closing(self) -> bool:
        """Whether it stops all its children for good, or has; a child that is only restarted can tell by this."""
        return self._closing

    # -- what others may ask -----------------------------------------------------------------------------------

    async def run(
        self,
        children: Sequence[ChildSpec] = (),
        *,
        task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED,
    ) -> NoReturn:
        """Starts the children in order, each after the one before is ready, and keeps them until cancelled.

        Calls ``task_status.started(self)`` once all are ready. A dynamic supervisor starts them side by side and does
        so once each first start has come to something. May be run again after it ended, then with `children` only.

        Resource handling: however it ends, all children are stopped first, the last one first, each with its grace. A
        child that ignores cancellation holds up the end: it is reported STUCK and waited for.

        Error handling: cancellation stops the children and goes on. Raises `ChildStartFailed` if one of `children`
        fails its first start (not if dynamic), `RestartLimitExceeded` if one ends too often, and what is no
        `Exception` (KeyboardInterrupt, SystemExit) as the child raised it.
        """
        if self._nursery is not None:
            raise RuntimeError(f"supervisor {self.name!r} is already running")
        self._reset()
        leaving: BaseException | None = None
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await self._start_in_order(children)
                if not self._closing:
                    task_status.started(self)
                await self._watch.until(lambda: self._closing)
            except BaseException as error:  # noqa: BLE001 - mostly Cancelled; raised again when all are stopped
                leaving = error
            try:
                # Shielded for closing; what bounds it is the grace of each child. Only a STUCK child can hold it up.
                with trio.CancelScope(shield=True):
                    await self._stop_all()
            except BaseException:  # a second Ctrl-C: no more patience, but no child may be left out either
                self._press_all("interrupted while stopping")
                raise
            finally:
                self._nursery = None
        failure = leaving if self._failure is None else self._failure
        assert failure is not None
        self._failure = None
        try:
            raise failure
        finally:
            del failure, leaving  # they refer to this frame: a cycle

    async def add(self, spec: ChildSpec, *, wait: bool = True) -> None:
        """Adds a child after the others and starts it.

        With `wait`, returns when it is ready (or has finished). If its first start fails, or the wait is cancelled,
        the child is gone again; the former raises `ChildStartFailed`. Without `wait`, returns at once, and a failed
        first start is treated like any other crash.

        Raises ArmorclawError: `conflict` if there is a child of that name, `unavailable` if not running.
        """
        self._check_running()
        child = self._enrol(spec, on_trial=wait)
        if not wait:
            return
        try:
            while not child.settled:
                await self._announcer.change_of(child)
        except BaseException:
            self._withdraw(child, "the wait for its start was cancelled")
            raise
        if child.start_error is not None:
            error, child.start_error = child.start_error, None
            self._forget(child)
            raise ChildStartFailed(self.name, spec.name, in_words(error)) from error
        if child.on_trial and child.state is not ChildState.FINISHED:
            raise ArmorclawError("unavailable", f"child {spec.name!r} was stopped before it was ready")

    async def stop(self, name: str) -> None:
        """Stops a child, waiting or alive, and returns when it has ended. It stays stopped until `restart`.

        Those after it are left alone, whatever the strategy. Cancelling the wait does not take the stop back.
        Raises ArmorclawError: `not_found`, `unavailable` if not running.
        """
        child = self._child(name)
        self._stop_by_hand(child, "stopped by hand")
        await self._end_of(child)

    async def remove(self, name: str) -> None:
        """Stops a child like `stop` and forgets it. The name is free when this returns."""
        child = self._child(name)
        self._withdraw(child, "removed")
        await self._end_of(child)

    async def restart(self, name: str) -> ChildState:
        """Starts a child again, from any state, its limits cleared: alive, it is stopped first.

        Returns the state that this came to: RUNNING, or what followed a failed start. With rest_for_one, those after
        it are restarted as well. Raises ArmorclawError: `not_found`, `unavailable` if not running.
        """
        child = self._child(name)
        child.clear_limits()
        child.wanted = True
        old = child.generation
        if old is None:
            child.due = 0.0
            self._set(child, ChildState.BACKING_OFF, "restarted by hand")
            self._launch(child)
        else:
            old.again = True
            self._ask(old, "restarted by hand")
            while child.generation is old:
                await self._announcer.change_of(child)
        new = child.generation
        while new is not None and child.generation is new and new.ready_at is None:
            await self._announcer.change_of(child)
        return child.state

    def hurry(self, name: str) -> None:
        """Ends the pause of a child that backs off: it starts now, as if the pause were over. Of others nothing."""
        child = self._children.get(name)
        if child is not None and child.state is ChildState.BACKING_OFF:
            child.due = 0.0
            child.pause.cancel(reason="it starts before its time")

    def has(self, name: str) -> bool:
        """Whether there is a child of that name, in whatever state."""
        return name in self._children

    def snapshot(self) -> SupervisorSnapshot:
        """The children in order of start, and below those that are supervisors, theirs."""
        return SupervisorSnapshot(
            self.name, self.strategy, tuple(child.snapshot() for child in self._children.values())
        )

    def changes(self, buffer: int = 256) -> AbstractContextManager[Changes]:
        """A stream of every change from now on, at most `buffer` of them waiting to be taken.

        256 is what 60 children do when all restart at once. May be opened before `run()` and outlives it.
        """
        return self._announcer.feed(buffer)

    # -- the task of run(): order, and the clock ---------------------------------------------------------------

    async def _start_in_order(self, specs: Sequence[ChildSpec]) -> None:
        children: Iterable[Child] = (self._enrol(spec, on_trial=not self.dynamic) for spec in specs)
        if self.dynamic:
            children = list(children)  # all at once; otherwise each is made when its turn has come
        for child in children:
            self._eyed = child
            await self._watch.until(partial(self._is_settled, child))
            if child.start_error is not None:
                error, child.start_error = child.start_error, None
                self._fail(ChildStartFailed(self.name, child.spec.name, in_words(error)), error)
            if self._closing:
                break
        self._eyed = None

    def _is_settled(self, child: Child) -> bool:
        return child.settled or self._closing

    async def _stop_all(self) -> None:
        self._closing = True
        if self.dynamic:
            for child in list(self._children.values()):
                if child.generation is not None:
                    self._ask(child.generation, "the supervisor stops")
        for child in reversed(list(self._children.values())):
            generation = child.generation
            if generation is not None:
                self._ask(generation, "the supervisor stops")
                self._eyed = child
                await self._watch.until(partial(_is_at_rest, child))

    def _overdue(self, generation: Generation) -> None:
        child, spec = generation.child, generation.child.spec
        if generation.pressed:
            self._set(child, ChildState.STUCK, f"goes on {spec.grace:g} s after it was cancelled")
        elif child.state is ChildState.STARTING:
            generation.late = True
            self._press(generation, f"not ready within {spec.start_timeout:g} s")
        else:
            self._press(generation, f"did not end within {spec.grace:g} s of being asked")

    # -- the task of each child --------------------------------------------------------------------------------

    async def _keep(self, child: Child) -> None:
        """Lives the generations of a child until it is at rest."""
        run = child.spec.run
        again = True
        while again:
            generation = child.generation
            assert generation is not None
            try:
                with generation.scope:
                    if self._in_turn or child.due:
                        await self._turn(child)
                    else:  # even a child that crashes without ever waiting leaves the others their time
                        await trio.lowlevel.checkpoint()
                    self._set(child, ChildState.STARTING, "")
                    self._watch.allow(generation, child.since + child.spec.start_timeout)
                    await run(task_status=generation)
            except Exception as error:  # noqa: BLE001 - telling ends apart is what we are for
                again = self._ended(generation, error)
            except BaseException as error:  # noqa: BLE001 - raised by run() when all are stopped
                self._watch.drop(generation)
                self._fail(error)
                again = self._rest(child, ChildState.FAILED, in_words(error), error)
            else:
                again = self._ended(generation, None)

    async def _turn(self, child: Child) -> None:
        """Waits until `child` may start: back-off over and, in rest_for_one, those after it down, before it up."""
        while True:
            children = list(self._children.values()) if self._in_turn else [child]
            place = children.index(child)
            last = next((other for other in reversed(children[place + 1 :]) if other.state in ALIVE), None)
            if last is not None:
                assert last.generation is not None
                self._ask(last.generation, f"{child.spec.name!r}, before it, starts again")
                await self._announcer.change_of(last)
            elif (wait := child.due - self._now()) > 0:
                with trio.move_on_after(wait) as child.pause:
                    await trio.sleep_forever()
            else:
                before = next((other for other in children[:place] if not _is_up(other)), None)
                if before is None:
                    await trio.lowlevel.checkpoint()
                    return
                await self._announcer.change_of(before)

    def _ready(self, generation: Generation, value: object) -> None:
        child = generation.child
        if isinstance(value, Supervisor):
            child.subtree = value
        if child.state is not ChildState.STARTING:
            return  # it is being stopped: too late to be ready
        child.on_trial = False
        child.settled = True
        self._watch.drop(generation)
        self._set(child, ChildState.RUNNING, "ready")
        generation.ready_at = child.since

    def _ended(self, generation: Generation, error: Exception | None) -> bool:
        """Decides what follows the end of a generation: true, another one. Nothing can come between: no await."""
        child = generation.child
        self._watch.drop(generation)
        state, counted, reason, error, said = verdict(generation, error, closing=self._closing)
        if said is not None:
            child.last_error = said
        if state is not ChildState.BACKING_OFF:
            if state is ChildState.FAILED and child.on_trial:
                child.start_error = error
            return self._rest(child, state, reason, error)
        now = self._now()
        delay = self._counted(generation, now, reason, error) if counted else 0.0
        if delay is None:
            if not self.dynamic:
                self._fail(RestartLimitExceeded(self.name, child.spec.name, tuple(self._history)), error)
            why = reason if isinstance(error, NotAgain) else f"too many restarts: {reason}"
            return self._rest(child, ChildState.FAILED, why, error)
        child.restarts += counted
        child.due = now + delay if delay else 0.0
        child.generation = Generation(child, self._ready)
        self._set(child, ChildState.BACKING_OFF, reason, error)
        return True

    def _counted(self, generation: Generation, now: float, reason: str, error: Exception | None) -> float | None:
        """Counts the end of a generation: seconds until the next, or None if too many have ended."""
        child = generation.child
        child.settled = True
        self._history.append(End(now, child.spec.name, reason))
        if isinstance(error, NotAgain):
            return None
        ready_for = 0.0 if generation.ready_at is None else now - generation.ready_at
        return child.delay(now, ready_for, self._limits_of(child), self._chance)

    def _limits_of(self, child: Child) -> Intensity:
        if not self.dynamic:
            return self._intensity
        if child.intensity is None:
            child.intensity = Intensity(*self._limits)
        return child.intensity

    def _rest(self, child: Child, state: ChildState, reason: str, error: BaseException | None = None) -> bool:
        child.generation = None
        child.settled = True
        if child.forget or child.spec.restart is Restart.TEMPORARY:
            self._forget(child)
        self._set(child, state, reason, error)
        return False

    # -- small steps -------------------------------------------------------------------------------------------

    def _enrol(self, spec: ChildSpec, *, on_trial: bool) -> Child:
        if spec.name in self._children:
            raise ArmorclawError("conflict", f"supervisor {self.name!r} already has a child {spec.name!r}")
        child = self._children[spec.name] = Child(spec, self._now(), on_trial=on_trial)
        child.subtree = _supervisor_behind(spec.run)
        self._launch(child)
        return child

    def _forget(self, child: Child) -> None:
        if self._children.get(child.spec.name) is child:
            del self._children[child.spec.name]

    def _launch(self, child: Child) -> None:
        assert self._nursery is not None
        child.generation = Generation(child, self._ready)
        self._nursery.start_soon(self._keep, child, name=f"{self.name}/{child.spec.name}")

    def _stop_by_hand(self, child: Child, reason: str) -> None:
        child.wanted = False
        if child.generation is not None:
            self._ask(child.generation, reason)
        else:
            self._set(child, ChildState.STOPPED, reason)

    def _withdraw(self, child: Child, reason: str) -> None:
        """Stops a child and forgets it as soon as it is at rest."""
        child.forget = True
        self._stop_by_hand(child, reason)
        if child.generation is None:
            self._forget(child)

    def _ask(self, generation: Generation, reason: str) -> None:
        """Has a generation end: asks it if it can be asked, else cancels it. Asking twice changes nothing."""
        if generation.asked is not None:
            generation.asked = reason
            return
        generation.asked = reason
        child, spec = generation.child, generation.child.spec
        if spec.ask_stop is not None and child.state is ChildState.RUNNING:
            self._set(child, ChildState.STOPPING, reason)
            try:
                spec.ask_stop()
            except Exception as error:  # noqa: BLE001 - it cannot be asked: cancelled instead, and the error told
                child.last_error = in_words(error)
                self._press(generation, f"{reason}; asking it failed: {child.last_error}")
            else:
                self._watch.allow(generation, child.since + spec.grace)
        elif not generation.pressed:
            self._press(generation, reason)

    def _press(self, generation: Generation, reason: str) -> None:
        generation.pressed = True
        child = generation.child
        self._set(child, ChildState.STOPPING, reason)
        self._watch.allow(generation, child.since + child.spec.grace)
        generation.scope.cancel(reason=reason)

    def _press_all(self, reason: str) -> None:
        for child in self._children.values():
            if child.generation is not None:
                child.generation.scope.cancel(reason=reason)

    def _fail(self, failure: BaseException, cause: BaseException | None = None) -> None:
        """Ends the supervisor. The first failure is the one that is raised, unless an interrupt follows."""
        interrupt = not isinstance(failure, Exception) and isinstance(self._failure, Exception)
        if self._failure is None or interrupt:
            self._failure = failure
            if cause is not None:
                failure.__cause__ = cause
        self._closing = True
        self._watch.ring()

    def _set(self, child: Child, state: ChildState, reason: str, error: BaseException | None = None) -> None:
        self._announcer.announce(child, state, reason, error)
        if child is self._eyed:
            self._watch.ring()

    async def _end_of(self, child: Child) -> None:
        generation = child.generation
        while generation is not None and child.generation is generation:
            await self._announcer.change_of(child)

    def _child(self, name: str) -> Child:
        self._check_running()
        child = self._children.get(name)
        if child is None or child.forget:
            raise ArmorclawError("not_found", f"supervisor {self.name!r} has no child {name!r}")
        return child

    def _check_running(self) -> None:
        if self._nursery is None or self._closing:
            raise ArmorclawError("unavailable", f"supervisor {self.name!r} is not running")


def _is_at_rest(child: Child) -> bool:
    return child.generation is None


def _is_up(child: Child) -> bool:
    return child.state is ChildState.RUNNING or child.generation is None


def _supervisor_behind(run: Callable[..., Any]) -> Supervisor | None:
    """The supervisor whose run() this is, also through `functools.partial`."""
    while isinstance(run, partial):
        run = run.func
    owner = getattr(run, "__self__", None)
    return owner if isinstance(owner, Supervisor) else None
