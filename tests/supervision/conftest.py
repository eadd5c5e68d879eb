"""Children whose every step the test decides, and supervisors on a clock that the test owns."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NoReturn

import attrs
import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.supervision import ChildSpec, ChildState, Supervisor


class Boom(Exception):  # noqa: N818
    """What a puppet crashes with unless told otherwise."""


class Longest(random.Random):
    """Chance that always draws the longest wait, so that times can be computed."""

    def uniform(self, a: float, b: float) -> float:
        return b


@attrs.define(eq=False)
class Puppet:
    """A child. `log`, shared by the puppets of a test, gets "+name" at each start and "-name" at each end."""

    name: str
    log: list[str] = attrs.field(factory=list)
    at_start: Literal["ready", "hang", "crash", "return"] = "ready"
    when_cancelled: Literal["obey", "ignore", "crash", "interrupt"] = "obey"
    starts: int = 0
    asked: int = 0
    obeys_ask: bool = False
    _order: trio.Event = attrs.field(factory=trio.Event)
    _released: trio.Event = attrs.field(factory=trio.Event)
    _error: BaseException | None = None

    async def run(self, *, task_status: trio.TaskStatus[object]) -> None:
        self.starts += 1
        self.log.append(f"+{self.name}")
        self._order, self._error = trio.Event(), None
        try:
            if self.at_start == "crash":
                raise Boom("at start")
            if self.at_start == "return":
                return
            if self.at_start == "ready":
                task_status.started()
            await self._order.wait()
            if self._error is not None:
                raise self._error
        except trio.Cancelled:
            if self.when_cancelled == "crash":
                raise Boom("in clean-up") from None
            if self.when_cancelled == "interrupt":
                raise KeyboardInterrupt from None
            if self.when_cancelled == "ignore":
                with trio.CancelScope(shield=True):
                    await self._released.wait()
            raise
        finally:
            self.log.append(f"-{self.name}")

    def crash(self, error: BaseException | None = None) -> None:
        self._error = error or Boom("told to")
        self._order.set()

    def finish(self) -> None:
        self._order.set()

    def release(self) -> None:
        """Ends a puppet that ignores cancellation."""
        self._released.set()

    def ask(self) -> None:
        """For `ask_stop`."""
        self.asked += 1
        if self.obeys_ask:
            self.finish()

    def spec(self, **options: Any) -> ChildSpec:
        return ChildSpec(self.name, self.run, **options)


@attrs.define
class Run:
    """A supervisor that runs in a task of its own, and what came out of it."""

    task: trio.lowlevel.Task | None = None
    raised: BaseException | None = None
    begun: trio.Event = attrs.field(factory=trio.Event)

    async def __call__(self, supervisor: Supervisor, specs: Sequence[ChildSpec]) -> None:
        self.task = trio.lowlevel.current_task()
        try:
            await supervisor.run(specs, task_status=self)
        except trio.Cancelled:
            raise
        except BaseException as error:  # noqa: BLE001 - it is what the tests look at
            self.raised = error
        finally:
            self.begun.set()

    def started(self, value: object = None) -> None:
        self.begun.set()

    def interrupt(self) -> None:
        """What Trio does on Ctrl-C to its main task, done to the one that supervises."""

        def raise_cancel() -> NoReturn:
            raise KeyboardInterrupt

        assert self.task is not None
        self.task._attempt_abort(raise_cancel)


def states_of(supervisor: Supervisor) -> dict[str, ChildState]:
    return {child.name: child.state for child in supervisor.snapshot().children}


@pytest.fixture
def around() -> Surroundings:
    """Jitter that always draws the longest wait."""
    return Surroundings(random=Longest())


@pytest.fixture
def puppet() -> Callable[..., Puppet]:
    """Makes puppets that share one log."""
    log: list[str] = []

    def make(name: str, **options: Any) -> Puppet:
        return Puppet(name, log, **options)

    return make


@pytest.fixture
def states() -> Callable[[Supervisor], dict[str, ChildState]]:
    return states_of


@pytest.fixture
def begin(nursery: trio.Nursery) -> Callable[[Supervisor, Sequence[ChildSpec]], Awaitable[Run]]:
    """Runs a supervisor that is going to fail; returns when it has started, or failed to."""

    async def begin(supervisor: Supervisor, specs: Sequence[ChildSpec]) -> Run:
        run = Run()
        nursery.start_soon(run, supervisor, specs)
        await run.begun.wait()
        return run

    return begin


@pytest.fixture(scope="session")
def make_puppet() -> type[Puppet]:
    """For tests that make a world of their own for each example."""
    return Puppet
