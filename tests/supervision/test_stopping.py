"""Ends we asked for: order, grace, stuck children, cancellation at every moment, and errors that come along."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.supervision import (
    Backoff,
    ChildChange,
    ChildSpec,
    ChildState,
    RestartLimitExceeded,
    Strategy,
    Supervisor,
)

if TYPE_CHECKING:
    from tests.supervision.conftest import Puppet, Run

    Make = Callable[..., Puppet]
    States = Callable[[Supervisor], dict[str, ChildState]]
    Begin = Callable[[Supervisor, Sequence[ChildSpec]], Awaitable[Run]]

pytestmark = pytest.mark.mission("P0.3")

STARTING, RUNNING, BACKING_OFF = ChildState.STARTING, ChildState.RUNNING, ChildState.BACKING_OFF
STOPPING, STOPPED, STUCK = ChildState.STOPPING, ChildState.STOPPED, ChildState.STUCK


async def test_stops_in_reverse_order_each_after_the_one_after_it_has_ended(
    around: Surroundings, puppet: Make, autojump_clock: MockClock
) -> None:
    ended: dict[str, float] = {}

    def slow(name: str, seconds: float) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                with trio.move_on_after(100) as closing:
                    closing.shield = True
                    await trio.sleep(seconds)
                ended[name] = trio.current_time()

        return ChildSpec(name, run)

    async with trio.open_nursery() as nursery:
        await nursery.start(Supervisor("s", around=around).run, [slow("a", 1), slow("b", 2), slow("c", 3)])
        start = trio.current_time()
        nursery.cancel_scope.cancel(reason="test")
    assert ended == {"c": start + 3, "b": start + 5, "a": start + 6}


async def test_dynamic_supervisor_stops_all_at_once(
    around: Surroundings, puppet: Make, autojump_clock: MockClock
) -> None:
    deaf = [puppet(str(n)) for n in range(50)]
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor("s", dynamic=True, around=around)
        await nursery.start(supervisor.run, [child.spec(ask_stop=child.ask, grace=7.0) for child in deaf])
        start = trio.current_time()
        nursery.cancel_scope.cancel(reason="test")
    assert trio.current_time() == start + 7.0
    assert all(child.asked == 1 for child in deaf)


async def test_cancellation_from_outside_passes_through_and_is_never_counted(
    around: Surroundings, puppet: Make
) -> None:
    changes: list[ChildChange] = []
    children = [puppet(name) for name in "abc"]
    supervisor = Supervisor("s", intensity=0, around=around, on_change=changes.append)
    seen: BaseException | None = None
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.run, [child.spec() for child in children])
            await wait_all_tasks_blocked()
            scope.cancel(reason="from outside")
            try:
                await trio.sleep_forever()
            except trio.Cancelled as cancelled:
                seen = cancelled
                raise
    assert scope.cancelled_caught
    assert seen is not None
    assert children[0].log == ["+a", "+b", "+c", "-c", "-b", "-a"]
    assert {change.state for change in changes} == {STARTING, RUNNING, STOPPING, STOPPED}
    assert all(child.restarts == 0 for child in supervisor.snapshot().children)
    assert repr(supervisor) == "<Supervisor 's' closing, 3 children>"


async def test_may_run_again_after_its_end(around: Surroundings, puppet: Make, states: States) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = Supervisor("s", around=around)
    for starts in (1, 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(supervisor.run, [a.spec()])
            await supervisor.add(b.spec())
            nursery.cancel_scope.cancel(reason="test")
        assert (a.starts, states(supervisor)) == (starts, {"a": STOPPED, "b": STOPPED})


# -- grace ---------------------------------------------------------------------------------------------------------


async def test_asked_then_cancelled_then_stuck_and_still_awaited(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    a = puppet("a", when_cancelled="ignore")
    changes: list[ChildChange] = []
    supervisor = Supervisor("s", around=around, on_change=changes.append)
    await nursery.start(supervisor.run, [a.spec(ask_stop=a.ask, grace=5.0)])
    start, done = trio.current_time(), trio.Event()

    async def stop() -> None:
        await supervisor.stop("a")
        done.set()

    nursery.start_soon(stop)
    await trio.sleep(100.0)
    assert not done.is_set()
    a.release()
    await done.wait()
    assert a.asked == 1
    assert [(change.state, change.at - start, change.reason) for change in changes[2:]] == [
        (STOPPING, 0.0, "stopped by hand"),
        (STOPPING, 5.0, "did not end within 5 s of being asked"),
        (STUCK, 10.0, "goes on 5 s after it was cancelled"),
        (STOPPED, 100.0, "stopped by hand"),
    ]


async def test_a_child_that_ends_when_asked_is_not_cancelled(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    a = puppet("a", obeys_ask=True, when_cancelled="crash")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(ask_stop=a.ask)])
    await supervisor.stop("a")
    (child,) = supervisor.snapshot().children
    assert (child.state, child.last_error) == (STOPPED, None)


async def test_a_child_that_cannot_be_asked_is_cancelled_at_once(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    def broken() -> None:
        raise OSError("nobody there")

    a, hanging = puppet("a"), puppet("hanging", at_start="hang")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(ask_stop=broken)])
    await supervisor.add(hanging.spec(ask_stop=hanging.ask), wait=False)
    await wait_all_tasks_blocked()
    start = trio.current_time()
    await supervisor.stop("a")
    await supervisor.stop("hanging")
    assert trio.current_time() == start
    assert hanging.asked == 0, "it is not ready: it may not even know how to be asked"
    assert supervisor.snapshot().children[0].last_error == "OSError: nobody there"


async def test_infinite_grace_is_never_stuck(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a", when_cancelled="ignore")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(grace=math.inf)])
    nursery.start_soon(supervisor.stop, "a")
    await trio.sleep(80_000.0)
    assert states(supervisor) == {"a": STOPPING}
    a.release()


async def test_stuck_after_a_start_timeout_then_restarted_when_it_ends(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a", at_start="hang", when_cancelled="ignore")
    supervisor = Supervisor("s", dynamic=True, around=around)
    await nursery.start(supervisor.run)
    await supervisor.add(a.spec(start_timeout=3.0, grace=2.0), wait=False)
    await trio.sleep(4.0)
    assert states(supervisor) == {"a": STOPPING}
    await trio.sleep(2.0)
    assert states(supervisor) == {"a": STUCK}
    a.at_start = "ready"
    a.release()
    await wait_all_tasks_blocked()
    assert (a.starts, states(supervisor)) == (2, {"a": RUNNING})


async def test_readiness_that_comes_too_late_changes_nothing(
    around: Surroundings, nursery: trio.Nursery, states: States, autojump_clock: MockClock
) -> None:
    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        try:
            await trio.sleep_forever()
        finally:
            task_status.started()

    seen: list[ChildState] = []
    supervisor = Supervisor("s", dynamic=True, around=around, on_change=lambda change: seen.append(change.state))
    await nursery.start(supervisor.run)
    spec = ChildSpec("a", run, start_timeout=1.0, backoff=Backoff(first=60.0))
    await supervisor.add(spec, wait=False)
    await trio.sleep(2.0)
    assert seen == [STARTING, STOPPING, BACKING_OFF]


async def test_stop_after_a_start_timeout_allows_no_second_grace(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a", at_start="hang", when_cancelled="ignore")
    supervisor = Supervisor("s", dynamic=True, around=around)
    await nursery.start(supervisor.run)
    await supervisor.add(a.spec(start_timeout=3.0, grace=2.0), wait=False)
    await trio.sleep(4.0)
    nursery.start_soon(supervisor.stop, "a")
    await trio.sleep(1.5)
    assert states(supervisor) == {"a": STUCK}
    a.release()
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": STOPPED}


# -- cancellation at every moment ----------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["starting", "running", "backing off", "stopping"])
@pytest.mark.parametrize("how", ["stop", "remove", "cancel the supervisor"])
@pytest.mark.parametrize("strategy", list(Strategy))
async def test_end_at_every_moment(
    moment: str,
    how: str,
    strategy: Strategy,
    around: Surroundings,
    puppet: Make,
    states: States,
    autojump_clock: MockClock,
) -> None:
    a, other = puppet("a"), puppet("other")
    supervisor = Supervisor("s", strategy=strategy, around=around)
    spec = a.spec(backoff=Backoff(first=60.0), ask_stop=a.ask, grace=5.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [other.spec(), spec])
        match moment:
            case "starting":
                a.at_start = "hang"
                nursery.start_soon(supervisor.restart, "a")
                await trio.sleep(6.0)
                assert states(supervisor)["a"] is STARTING
            case "backing off":
                a.crash()
                await trio.sleep(30.0)
                assert states(supervisor)["a"] is BACKING_OFF
            case "stopping":
                nursery.start_soon(supervisor.stop, "a")
                await trio.sleep(1.0)
                assert states(supervisor)["a"] is STOPPING
        starts = a.starts
        with trio.fail_after(6.0):
            match how:
                case "stop":
                    await supervisor.stop("a")
                    assert states(supervisor) == {"other": RUNNING, "a": STOPPED}
                case "remove":
                    await supervisor.remove("a")
                    assert states(supervisor) == {"other": RUNNING}
        if how != "cancel the supervisor":
            await trio.sleep(1000.0)
        nursery.cancel_scope.cancel(reason="test")
    assert a.starts == starts
    assert set(states(supervisor).values()) == {STOPPED}
    assert a.log.count("+a") == a.log.count("-a")


async def test_cancelled_add_withdraws_the_child(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a", at_start="hang")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run)
    with trio.move_on_after(1.0) as scope:
        await supervisor.add(a.spec())
    assert scope.cancelled_caught
    await wait_all_tasks_blocked()
    assert (a.log, states(supervisor)) == (["+a", "-a"], {})


async def test_cancelling_the_wait_does_not_take_a_stop_back(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(ask_stop=a.ask), b.spec(ask_stop=b.ask)])
    with trio.move_on_after(1.0):
        await supervisor.stop("a")
    with trio.move_on_after(1.0):
        await supervisor.remove("b")
    with pytest.raises(ArmorclawError) as refused:  # it is on its way out
        await supervisor.restart("b")
    assert refused.value.name == "not_found"
    await trio.sleep(10.0)
    assert states(supervisor) == {"a": STOPPED}


async def test_supervisor_that_ends_answers_a_waiting_add(
    around: Surroundings, nursery: trio.Nursery, puppet: Make
) -> None:
    a = puppet("a", at_start="hang")
    supervisor = Supervisor("s", around=around)
    refused: list[ArmorclawError] = []

    async def add() -> None:
        try:
            await supervisor.add(a.spec())
        except ArmorclawError as error:
            refused.append(error)

    async with trio.open_nursery() as inner:
        await inner.start(supervisor.run)
        nursery.start_soon(add)
        await wait_all_tasks_blocked()
        inner.cancel_scope.cancel(reason="test")
    await wait_all_tasks_blocked()
    assert [error.name for error in refused] == ["unavailable"]


async def test_a_child_may_stop_itself(around: Surroundings, nursery: trio.Nursery, states: States) -> None:
    supervisor = Supervisor("s", around=around)

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await supervisor.stop("a")

    await nursery.start(supervisor.run, [ChildSpec("a", run)])
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": STOPPED}


# -- errors on the way out -----------------------------------------------------------------------------------------


async def test_crash_in_clean_up_is_told_but_not_counted(around: Surroundings, puppet: Make, states: States) -> None:
    a, b = puppet("a", when_cancelled="crash"), puppet("b", when_cancelled="crash")
    changes: list[ChildChange] = []
    supervisor = Supervisor("s", intensity=0, around=around, on_change=changes.append)
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [a.spec(), b.spec()])
        await supervisor.stop("a")
        assert changes[-1].reason == "stopped by hand; crashed while ending: Boom: in clean-up"
        assert type(changes[-1].error).__name__ == "Boom"
        nursery.cancel_scope.cancel(reason="test")  # the same with b: it does not get out
    assert states(supervisor) == {"a": STOPPED, "b": STOPPED}
    assert [child.last_error for child in supervisor.snapshot().children] == ["Boom: in clean-up"] * 2


async def test_group_of_errors_is_one_crash(around: Surroundings, nursery: trio.Nursery, puppet: Make) -> None:
    a = puppet("a")
    supervisor = Supervisor("s", intensity=1, around=around)
    await nursery.start(supervisor.run, [a.spec()])
    a.crash(ExceptionGroup("both", [ValueError("x"), ExceptionGroup("inner", [KeyError("y")])]))
    await wait_all_tasks_blocked()
    (child,) = supervisor.snapshot().children
    assert (a.starts, child.restarts, child.last_error) == (2, 1, "ValueError: x; KeyError: 'y'")


async def test_group_of_our_cancellation_and_an_error_is_the_error(
    around: Surroundings, nursery: trio.Nursery, states: States
) -> None:
    """A child with tasks of its own, one of which crashes when cancelled."""

    async def broken() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in clean-up")

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as within:
            within.start_soon(trio.sleep_forever)
            within.start_soon(broken)
            task_status.started()

    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [ChildSpec("a", run)])
    await supervisor.stop("a")
    (child,) = supervisor.snapshot().children
    assert (child.state, child.last_error) == (STOPPED, "ValueError: in clean-up")


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(3),
        BaseExceptionGroup("mixed", [ValueError("x"), KeyboardInterrupt()]),
    ],
)
async def test_interrupts_stop_everything_in_order_and_come_out_as_they_are(
    error: BaseException, around: Surroundings, begin: Begin, puppet: Make, states: States
) -> None:
    children = [puppet(name) for name in "abc"]
    supervisor = Supervisor("s", around=around)
    run = await begin(supervisor, [child.spec() for child in children])
    children[1].crash(error)
    await wait_all_tasks_blocked()
    assert run.raised is error
    assert children[0].log == ["+a", "+b", "+c", "-b", "-c", "-a"]
    assert states(supervisor) == {"a": STOPPED, "b": ChildState.FAILED, "c": STOPPED}


async def test_interrupt_of_the_task_that_supervises_stops_everything_in_order(
    around: Surroundings, begin: Begin, puppet: Make
) -> None:
    a, b = puppet("a"), puppet("b")
    run = await begin(Supervisor("s", around=around), [a.spec(), b.spec()])
    run.interrupt()
    await wait_all_tasks_blocked()
    assert isinstance(run.raised, KeyboardInterrupt)
    assert a.log == ["+a", "+b", "-b", "-a"]


async def test_second_interrupt_leaves_no_child_behind(around: Surroundings, begin: Begin, puppet: Make) -> None:
    a, deaf = puppet("a"), puppet("deaf")
    supervisor = Supervisor("s", around=around)
    run = await begin(supervisor, [a.spec(), deaf.spec(ask_stop=deaf.ask, grace=1000.0)])
    run.interrupt()
    await wait_all_tasks_blocked()
    assert (run.raised, a.log) == (None, ["+a", "+deaf"])
    run.interrupt()
    await wait_all_tasks_blocked()
    assert isinstance(run.raised, BaseExceptionGroup)
    assert isinstance(run.raised.exceptions[0], KeyboardInterrupt)
    assert sorted(a.log[2:]) == ["-a", "-deaf"]


async def test_error_while_escalating_does_not_hide_the_reason(
    around: Surroundings, begin: Begin, puppet: Make
) -> None:
    a, b = puppet("a"), puppet("b", when_cancelled="crash")
    run = await begin(Supervisor("s", intensity=0, around=around), [a.spec(), b.spec()])
    a.crash()
    await wait_all_tasks_blocked()
    assert isinstance(run.raised, RestartLimitExceeded)
    assert run.raised.child == "a"


async def test_interrupt_while_escalating_comes_out(around: Surroundings, begin: Begin, puppet: Make) -> None:
    a, b, c = puppet("a"), puppet("b", when_cancelled="interrupt"), puppet("c", when_cancelled="interrupt")
    run = await begin(Supervisor("s", intensity=0, around=around), [a.spec(), b.spec(), c.spec()])
    a.crash()
    await wait_all_tasks_blocked()
    assert isinstance(run.raised, KeyboardInterrupt)
    assert a.log[-1] == "-b"


async def test_deadline_of_a_child_that_was_interrupted_is_dropped(
    around: Surroundings, begin: Begin, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    slow, a = puppet("slow"), puppet("a")
    supervisor = Supervisor("s", dynamic=True, around=around)
    run = await begin(supervisor, [slow.spec(ask_stop=slow.ask, grace=60.0)])
    a.at_start = "hang"
    await supervisor.add(a.spec(start_timeout=5.0), wait=False)
    await wait_all_tasks_blocked()
    a.crash(KeyboardInterrupt())
    await trio.sleep(30.0)
    assert states(supervisor) == {"slow": STOPPING, "a": ChildState.FAILED}
    await trio.sleep(31.0)
    assert isinstance(run.raised, KeyboardInterrupt)
