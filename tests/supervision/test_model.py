"""A supervisor beside a model of it, through any sequence of events that Hypothesis can think of.

The model is plain: no tasks, no waiting, everything takes no time but what the clock says. After each event, state,
starts and counted restarts of every child must be equal, and so must be whether the supervisor gave up.
"""

from __future__ import annotations

import math
import random
from functools import partial
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import event, given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from armorclaw.clock import Surroundings
from armorclaw.supervision import (
    Backoff,
    ChildSpec,
    ChildState,
    Restart,
    RestartLimitExceeded,
    Strategy,
    Supervisor,
)
from armorclaw.supervision.backoff import HOUR

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.supervision.conftest import Puppet

    Make = Callable[..., Puppet]

STARTING, RUNNING, BACKING_OFF = ChildState.STARTING, ChildState.RUNNING, ChildState.BACKING_OFF
STOPPED, FINISHED, FAILED = ChildState.STOPPED, ChildState.FINISHED, ChildState.FAILED
ALIVE, AT_REST = {STARTING, RUNNING}, {STOPPED, FINISHED, FAILED}

# Powers of two throughout, so that times add up exactly.
POLICY = Backoff(first=0.5, base=1.0, factor=2.0, maximum=4.0, stable_seconds=16.0, max_in_row=4, max_per_hour=7)
INTENSITY, PERIOD = 3, 8.0
START_TIMEOUT = 32.0


@attrs.define
class Model:
    """One child."""

    name: str
    restart: Restart
    policy: Backoff | None
    at_start: str = "ready"
    state: ChildState = BACKING_OFF
    starts: int = 0
    restarts: int = 0
    since: float = 0.0
    due: float = 0.0
    in_row: int = 0
    attempts: int = 0
    ends: list[float] = attrs.field(factory=list)


class Longest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class GaveUp(Exception):  # noqa: N818
    pass


@attrs.define
class World:
    rest_for_one: bool
    dynamic: bool
    now: float = 0.0
    children: list[Model] = attrs.field(factory=list)
    recent: dict[str, list[float]] = attrs.field(factory=dict)

    def next_time(self) -> float:
        """When something will happen by itself."""
        times = [child.due for child in self.children if child.state is BACKING_OFF]
        times += [child.since + START_TIMEOUT for child in self.children if child.state is STARTING]
        return min((time for time in times if time > self.now), default=math.inf)

    def pass_time(self, now: float) -> None:
        self.now = now
        for child in list(self.children):
            if child.state is STARTING and now >= child.since + START_TIMEOUT:
                self.end(child, crashed=True)
        self.settle()

    def settle(self) -> None:
        """Starts what may start, first things first."""
        while True:
            for place, child in enumerate(self.children):
                before = self.children[:place] if self.rest_for_one else []
                if any(other.state is not RUNNING and other.state not in AT_REST for other in before):
                    continue
                if child.state is BACKING_OFF and child.due <= self.now:
                    self.start(child)
                    break
            else:
                return

    def start(self, child: Model) -> None:
        child.starts += 1
        child.since = self.now
        child.state = STARTING
        if child.at_start == "ready":
            child.state = RUNNING
        elif child.at_start == "crash":
            self.end(child, crashed=True)

    def end(self, child: Model, *, crashed: bool) -> None:
        unready = child.state is STARTING
        crashed = crashed or (unready and child.restart is Restart.PERMANENT)
        if child.restart is Restart.TEMPORARY:
            self.children.remove(child)
        elif child.restart is Restart.TRANSIENT and not crashed:
            child.state = FINISHED
        elif (delay := self.count(child, 0.0 if unready else self.now - child.since)) is None:
            child.state = FAILED
            if not self.dynamic:
                raise GaveUp
        else:
            child.restarts += 1
            self.back_off(child, delay)

    def count(self, child: Model, ready_for: float) -> float | None:
        policy = child.policy
        if policy is None:
            recent = self.recent.setdefault(child.name if self.dynamic else "", [])
            recent[:] = [time for time in recent if self.now - time < PERIOD]
            if len(recent) >= INTENSITY:
                return None
            recent.append(self.now)
            return 0.0
        if ready_for >= policy.stable_seconds:
            child.in_row = child.attempts = 0
        else:
            child.in_row += 1
        child.ends.append(self.now)
        assert policy.max_in_row is not None
        assert policy.max_per_hour is not None
        if child.in_row >= policy.max_in_row or sum(self.now - t < HOUR for t in child.ends) >= policy.max_per_hour:
            return None
        delay = policy.first if child.attempts == 0 else min(policy.maximum, 2.0 ** (child.attempts - 1))
        child.attempts += 1
        return delay

    def back_off(self, child: Model, delay: float) -> None:
        child.state, child.due = BACKING_OFF, self.now + delay
        if self.rest_for_one:
            for other in self.children[self.children.index(child) + 1 :]:
                if other.state in ALIVE and other.restart is Restart.TEMPORARY:
                    self.children.remove(other)
                elif other.state in ALIVE:
                    other.state, other.due = BACKING_OFF, self.now

    # what can be done to a child, in the words of the test below

    def crash(self, child: Model) -> None:
        self.end(child, crashed=True)

    def finish(self, child: Model) -> None:
        self.end(child, crashed=False)

    def stop(self, child: Model) -> None:
        child.state = STOPPED
        if child.restart is Restart.TEMPORARY:
            self.children.remove(child)

    def remove(self, child: Model) -> None:
        self.children.remove(child)

    def again(self, child: Model) -> None:
        child.in_row = child.attempts = 0
        child.ends.clear()
        if self.dynamic:
            self.recent.pop(child.name, None)
        self.back_off(child, 0.0)


class Drive:
    """Does the same to the supervisor and to the model, and compares."""

    def __init__(self, data: st.DataObject, make: Make, around: Surroundings) -> None:
        self.data = data
        self.make = make
        kind = data.draw(st.sampled_from(["plain", "dynamic", "rest_for_one"]), label="kind")
        self.world = World(rest_for_one=kind == "rest_for_one", dynamic=kind == "dynamic")
        self.supervisor = Supervisor(
            "s",
            strategy=Strategy.REST_FOR_ONE if self.world.rest_for_one else Strategy.ONE_FOR_ONE,
            intensity=INTENSITY,
            period=PERIOD,
            dynamic=self.world.dynamic,
            around=around,
        )
        self.puppets: dict[str, Puppet] = {}
        self.made = 0
        self.raised: Exception | None = None

    async def run(self, clock: MockClock) -> None:
        self.clock = clock
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            nursery.start_soon(self.supervise)
            await wait_all_tasks_blocked()
            self.epoch = trio.current_time()
            try:
                for _ in range(self.data.draw(st.integers(1, 40), label="events")):
                    await self.step()
                    await wait_all_tasks_blocked()
                    self.compare()
            except GaveUp:
                event("gave up")
                await wait_all_tasks_blocked()
                assert isinstance(self.raised, RestartLimitExceeded)
                assert all(child.state in AT_REST for child in self.supervisor.snapshot().children)
            nursery.cancel_scope.cancel(reason="test over")
        assert all(puppet.log.count(f"+{name}") == puppet.starts for name, puppet in self.puppets.items())
        assert all(puppet.log.count(f"-{name}") == puppet.starts for name, puppet in self.puppets.items())

    async def supervise(self) -> None:
        try:
            await self.supervisor.run()
        except RestartLimitExceeded as error:
            self.raised = error

    async def step(self) -> None:
        choices = ["add", "wait"] if len(self.world.children) < 4 else ["wait"]
        if self.world.children:
            choices += ["mood", "stop", "again", "remove"]
        alive = [child for child in self.world.children if child.state in ALIVE]
        if alive:
            choices += ["crash", "crash", "crash", "finish"]
        match self.data.draw(st.sampled_from(choices), label="event"):
            case "add":
                await self.add()
            case "wait":
                await self.wait(self.data.draw(st.sampled_from([0.5, 1.0, 3.0, 8.0, 40.0, HOUR]), label="seconds"))
            case "mood":
                child = self.data.draw(st.sampled_from(self.world.children))
                child.at_start = self.data.draw(st.sampled_from(["ready", "crash", "hang"]))
                self.puppets[child.name].at_start = child.at_start  # type: ignore[assignment]
            case "crash" | "finish" as what:
                child = self.data.draw(st.sampled_from(alive))
                getattr(self.puppets[child.name], what)()
                self.tell(what, child)
            case what:
                child = self.data.draw(st.sampled_from(self.world.children))
                ask = getattr(self.supervisor, "restart" if what == "again" else what)
                self.nursery.start_soon(ask, child.name)
                self.tell(what, child)

    def tell(self, what: str, child: Model) -> None:
        event(f"{what} when {child.state.value}")
        getattr(self.world, what)(child)
        self.world.settle()

    async def add(self) -> None:
        self.made += 1
        model = Model(
            f"child {self.made}",
            self.data.draw(st.sampled_from([Restart.PERMANENT, Restart.PERMANENT, *Restart]), label="restart"),
            self.data.draw(st.sampled_from([None, POLICY]), label="back-off"),
            self.data.draw(st.sampled_from(["ready", "ready", "crash", "hang"]), label="at start"),
        )
        puppet = self.puppets[model.name] = self.make(model.name, at_start=model.at_start)
        spec = ChildSpec(
            model.name, puppet.run, restart=model.restart, backoff=model.policy, start_timeout=START_TIMEOUT
        )
        await self.supervisor.add(spec, wait=False)
        model.due = self.world.now
        self.world.children.append(model)
        self.world.settle()

    async def wait(self, seconds: float) -> None:
        """From one thing that happens by itself to the next."""
        end = self.world.now + seconds
        while self.world.now < end:
            time = min(end, self.world.next_time())
            self.clock.jump(time - self.world.now)
            await wait_all_tasks_blocked()
            self.world.pass_time(time)

    def compare(self) -> None:
        assert self.raised is None
        assert trio.current_time() - self.epoch == self.world.now
        real = [
            (child.name, child.state, child.restarts, self.puppets[child.name].starts)
            for child in self.supervisor.snapshot().children
        ]
        assert real == [(child.name, child.state, child.restarts, child.starts) for child in self.world.children]


@pytest.mark.mission("P0.3")
@settings(max_examples=200)
@given(data=st.data())
def test_supervisor_agrees_with_its_model(make_puppet: type[Puppet], data: st.DataObject) -> None:
    log: list[str] = []
    drive = Drive(data, partial(make_puppet, log=log), Surroundings(random=Longest()))
    clock = MockClock()
    trio.run(drive.run, clock, clock=clock)
