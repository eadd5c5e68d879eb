"""Start, restart, limits and escalation, hands-on changes, snapshots."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
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
    ChildStartFailed,
    ChildState,
    NotAgain,
    Restart,
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
STOPPED, FINISHED, FAILED = ChildState.STOPPED, ChildState.FINISHED, ChildState.FAILED
LASTING = Backoff(max_in_row=None, max_per_hour=None)


async def test_starts_in_order_each_after_the_one_before_is_ready(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    ready_at: dict[str, float] = {}

    def slow(name: str, seconds: float) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            await trio.sleep(seconds)
            ready_at[name] = trio.current_time()
            task_status.started()
            await trio.sleep_forever()

        return ChildSpec(name, run)

    start = trio.current_time()
    supervisor = Supervisor("s", around=around)
    value = await nursery.start(supervisor.run, [slow("a", 3), slow("b", 2), slow("c", 1)])
    assert value is supervisor
    assert ready_at == {"a": start + 3, "b": start + 5, "c": start + 6}


@pytest.mark.parametrize("strategy", list(Strategy))
@pytest.mark.parametrize(
    ("restart", "outcome", "a_starts", "a_state"),
    [
        (Restart.PERMANENT, "returns", 2, RUNNING),
        (Restart.PERMANENT, "crashes", 2, RUNNING),
        (Restart.TRANSIENT, "returns", 1, FINISHED),
        (Restart.TRANSIENT, "crashes", 2, RUNNING),
        (Restart.TEMPORARY, "returns", 1, None),
        (Restart.TEMPORARY, "crashes", 1, None),
    ],
)
async def test_strategy_restart_outcome(
    strategy: Strategy,
    restart: Restart,
    outcome: str,
    a_starts: int,
    a_state: ChildState | None,
    around: Surroundings,
    nursery: trio.Nursery,
    puppet: Make,
    states: States,
) -> None:
    """The middle one of three ends."""
    before, a, after = puppet("before"), puppet("a"), puppet("after")
    last: dict[str, ChildChange] = {}
    supervisor = Supervisor(
        "s", strategy=strategy, around=around, on_change=lambda change: last.update({change.child: change})
    )
    await nursery.start(supervisor.run, [before.spec(), a.spec(restart=restart), after.spec()])
    if outcome == "returns":
        a.finish()
    else:
        a.crash()
    await wait_all_tasks_blocked()
    taken_along = a_starts == 2 and strategy is Strategy.REST_FOR_ONE
    assert (before.starts, a.starts, after.starts) == (1, a_starts, 2 if taken_along else 1)
    expected = {"before": RUNNING, "a": a_state, "after": RUNNING}
    assert states(supervisor) == {name: state for name, state in expected.items() if state is not None}
    if restart is Restart.TEMPORARY:
        assert last["a"].state is (FINISHED if outcome == "returns" else FAILED)
    if taken_along:
        assert a.log[3:] == ["-a", "-after", "+a", "+after"]
    restarts = {child.name: child.restarts for child in supervisor.snapshot().children}
    assert restarts.get("a", 0) == a_starts - 1
    assert restarts["after"] == 0, "taken along is not its own fault"


async def test_a_crash_leaves_siblings_alone(around: Surroundings, nursery: trio.Nursery, puppet: Make) -> None:
    children = [puppet(str(n)) for n in range(20)]
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [child.spec() for child in children])
    children[7].crash()
    await wait_all_tasks_blocked()
    assert [child.starts for child in children] == [2 if n == 7 else 1 for n in range(20)]


async def test_first_start_that_fails_stops_the_earlier_ones_in_reverse_and_names_the_child(
    around: Surroundings, puppet: Make
) -> None:
    a, b, c, d = puppet("a"), puppet("b"), puppet("c", at_start="crash"), puppet("d")
    supervisor = Supervisor("s", around=around)
    with pytest.raises(
        ChildStartFailed, match=r"child 'c' of supervisor 's' did not start: Boom: at start"
    ) as failure:
        await supervisor.run([child.spec() for child in (a, b, c, d)])
    assert type(failure.value.root).__name__ == "Boom"
    assert a.log == ["+a", "+b", "+c", "-c", "-b", "-a"]


async def test_start_timeout_is_a_crash(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    hanging = puppet("a", at_start="hang")
    with pytest.raises(ChildStartFailed, match="not ready within 3 s") as failure:
        await Supervisor("s", around=around).run([hanging.spec(start_timeout=3.0)])
    assert isinstance(failure.value.root, trio.TooSlowError)

    a = puppet("a")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(start_timeout=3.0)])
    await trio.sleep(100.0)  # readiness ends the timeout
    a.at_start = "hang"
    a.crash()
    await trio.sleep(1.0)
    assert states(supervisor) == {"a": STARTING}
    await trio.sleep(2.5)
    assert (a.starts, states(supervisor)) == (3, {"a": STARTING})
    assert supervisor.snapshot().children[0].last_error == "TooSlowError: not ready within 3 s"


async def test_intensity_counts_all_children_and_escalates_once(
    around: Surroundings, begin: Begin, puppet: Make, autojump_clock: MockClock
) -> None:
    a, b, c = puppet("a"), puppet("b"), puppet("c")
    changes: list[ChildChange] = []
    supervisor = Supervisor("s", intensity=2, period=10.0, around=around, on_change=changes.append)
    run = await begin(supervisor, [a.spec(), b.spec(), c.spec(backoff=LASTING)])
    for _ in range(10):  # with a back-off of its own: not counted
        c.crash()
        await trio.sleep(61.0)
    for victim in (a, b):
        victim.crash()
        await wait_all_tasks_blocked()
    await trio.sleep(10.0)  # the window has passed
    for victim in (a, b, a):
        assert run.raised is None
        victim.crash()
        await wait_all_tasks_blocked()
    assert isinstance(run.raised, RestartLimitExceeded)
    assert run.raised.child == "a"
    assert [end.child for end in run.raised.history[-5:]] == ["a", "b", "a", "b", "a"]
    assert type(run.raised.root).__name__ == "Boom"
    assert (a.starts, b.starts, c.starts) == (3, 3, 11)
    assert [change.child for change in changes if change.state is FAILED] == ["a"]
    assert a.log[-2:] == ["-c", "-b"]


async def test_two_crashes_in_one_tick_are_two(around: Surroundings, nursery: trio.Nursery, puppet: Make) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = Supervisor("s", intensity=2, around=around)
    await nursery.start(supervisor.run, [a.spec(), b.spec()])
    a.crash()
    b.crash()
    await wait_all_tasks_blocked()
    assert (a.starts, b.starts) == (2, 2)


async def test_two_crashes_in_one_tick_escalate_once(around: Surroundings, begin: Begin, puppet: Make) -> None:
    a, b = puppet("a"), puppet("b")
    changes: list[ChildChange] = []
    supervisor = Supervisor("s", intensity=0, around=around, on_change=changes.append)
    run = await begin(supervisor, [a.spec(), b.spec()])
    a.crash()
    b.crash()
    await wait_all_tasks_blocked()
    assert isinstance(run.raised, RestartLimitExceeded)
    assert sorted(change.state.value for change in changes[4:]) == ["failed", "stopped"]
    assert (a.starts, b.starts) == (1, 1)


async def test_back_off_grows_until_the_child_fails_and_takes_a_static_supervisor_along(
    around: Surroundings, puppet: Make, autojump_clock: MockClock
) -> None:
    a = puppet("a")
    starts: list[float] = []

    def note(change: ChildChange) -> None:
        if change.state is RUNNING:
            starts.append(change.at)
            a.crash()

    supervisor = Supervisor("s", around=around, on_change=note)
    with pytest.raises(RestartLimitExceeded, match="child 'a' of supervisor 's' kept ending: Boom: told to"):
        await supervisor.run([a.spec(backoff=Backoff())])
    assert [round(start - starts[0]) for start in starts] == [0, 0, 1, 3, 7, 15]


async def test_back_off_starts_anew_after_a_stable_time_and_not_by_becoming_ready(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    a = puppet("a")
    starts: list[float] = []

    def note(change: ChildChange) -> None:
        if change.state is RUNNING:
            starts.append(change.at)

    supervisor = Supervisor("s", around=around, on_change=note)
    await nursery.start(supervisor.run, [a.spec(backoff=Backoff())])
    waits = []
    for life in (100.0, 100.0, 100.0, 599.0, 600.0, 100.0):
        await trio.sleep_until(starts[-1] + life)
        a.crash()
        await trio.sleep(10.0)  # longer than any of the waits
        waits.append(starts[-1] - (starts[-2] + life))
    assert waits == [0.0, 1.0, 2.0, 4.0, 0.0, 1.0]


async def test_dynamic_supervisor_fails_one_child_and_goes_on(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    slow, quick, well = puppet("slow", at_start="crash"), puppet("quick", at_start="crash"), puppet("well")
    supervisor = Supervisor("s", dynamic=True, intensity=3, around=around)
    await nursery.start(supervisor.run)
    await supervisor.add(slow.spec(backoff=Backoff()), wait=False)
    await supervisor.add(quick.spec(), wait=False)
    await supervisor.add(well.spec())
    for _ in range(3):  # intensity is counted for each child by itself
        well.crash()
        await wait_all_tasks_blocked()
    await trio.sleep(1000.0)
    assert states(supervisor) == {"slow": FAILED, "quick": FAILED, "well": RUNNING}
    assert (slow.starts, quick.starts, well.starts) == (6, 4, 4)


async def test_a_child_that_says_so_is_not_started_again(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    changes: list[ChildChange] = []
    child, well = puppet("a"), puppet("well")
    supervisor = Supervisor("s", dynamic=True, around=around, on_change=changes.append)
    await nursery.start(supervisor.run)
    await supervisor.add(child.spec(backoff=Backoff()))
    await supervisor.add(well.spec())
    child.crash(NotAgain("no use"))
    await trio.sleep(1000.0)
    assert states(supervisor) == {"a": FAILED, "well": RUNNING}
    assert changes[-1].reason == "NotAgain: no use"
    assert await supervisor.restart("a") is RUNNING


async def test_a_child_that_says_so_takes_a_static_supervisor_along(
    around: Surroundings, puppet: Make, autojump_clock: MockClock
) -> None:
    child = puppet("a")

    def note(change: ChildChange) -> None:
        if change.state is RUNNING:
            child.crash(NotAgain("no use"))

    with pytest.raises(RestartLimitExceeded, match="NotAgain: no use"):
        await Supervisor("s", around=around, on_change=note).run([child.spec()])
    assert child.starts == 1


async def test_dynamic_supervisor_starts_its_first_children_side_by_side(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    hanging, crashing, well = puppet("a", at_start="hang"), puppet("b", at_start="crash"), puppet("c")
    supervisor = Supervisor("s", dynamic=True, around=around)
    specs = [hanging.spec(start_timeout=10.0), crashing.spec(backoff=Backoff(first=60.0)), well.spec()]
    start = trio.current_time()
    await nursery.start(supervisor.run, specs)
    assert trio.current_time() == start + 10.0, "started once each first start has come to something"
    assert supervisor.snapshot().children[2].since == start, "without waiting for the one before"
    assert states(supervisor) == {"a": STARTING, "b": BACKING_OFF, "c": RUNNING}


async def test_a_child_that_never_waits_leaves_the_others_their_time(
    around: Surroundings, nursery: trio.Nursery, puppet: Make
) -> None:
    a = puppet("a", at_start="crash")
    supervisor = Supervisor("s", dynamic=True, intensity=10**9, around=around)
    await nursery.start(supervisor.run)
    await supervisor.add(a.spec(), wait=False)
    for _ in range(100):
        await trio.lowlevel.checkpoint()
    assert 10 < a.starts < 110
    await supervisor.stop("a")


# -- hands-on changes --------------------------------------------------------------------------------------------


async def test_manual_stop_stays_stopped_until_restart(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(), b.spec()])
    await supervisor.stop("a")
    await trio.sleep(10_000.0)
    assert (a.starts, states(supervisor)) == (1, {"a": STOPPED, "b": RUNNING})
    await supervisor.stop("a")  # again: no harm
    assert await supervisor.restart("a") is RUNNING
    assert (a.starts, b.starts) == (2, 1)
    assert supervisor.snapshot().children[0].restarts == 0


async def test_restart_of_a_live_child_is_not_counted(
    around: Surroundings, nursery: trio.Nursery, puppet: Make
) -> None:
    a = puppet("a")
    supervisor = Supervisor("s", intensity=0, around=around)
    await nursery.start(supervisor.run, [a.spec()])
    for _ in range(5):
        assert await supervisor.restart("a") is RUNNING
    assert a.starts == 6


async def test_restart_clears_the_limits_of_a_failed_child(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a", at_start="crash")
    supervisor = Supervisor("s", dynamic=True, around=around)
    await nursery.start(supervisor.run, [a.spec(backoff=Backoff(first=1.0, max_in_row=2))])
    await trio.sleep(10.0)
    assert (a.starts, states(supervisor)) == (2, {"a": FAILED})
    assert await supervisor.restart("a") is BACKING_OFF
    await trio.sleep(10.0)
    assert (a.starts, states(supervisor)) == (4, {"a": FAILED})
    a.at_start = "ready"
    assert await supervisor.restart("a") is RUNNING


async def test_hurry_ends_a_pause_and_nothing_else(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a = puppet("a")
    supervisor = Supervisor("s", dynamic=True, around=around)
    await nursery.start(supervisor.run, [a.spec(backoff=Backoff(first=50.0, max_in_row=3))])
    supervisor.hurry("a")
    supervisor.hurry("nobody")
    await trio.sleep(1.0)
    assert (a.starts, states(supervisor)) == (1, {"a": RUNNING})
    for starts in (2, 3):  # each counts all the same
        a.crash()
        await trio.sleep(1.0)
        assert states(supervisor) == {"a": BACKING_OFF}
        supervisor.hurry("a")
        await wait_all_tasks_blocked()
        assert (a.starts, states(supervisor)) == (starts, {"a": RUNNING})
    a.crash()
    await trio.sleep(1.0)
    supervisor.hurry("a")
    await wait_all_tasks_blocked()
    assert (a.starts, states(supervisor)) == (3, {"a": FAILED})
    assert (supervisor.has("a"), supervisor.has("nobody")) == (True, False)


async def test_restart_overtakes_a_stop_under_way(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a = puppet("a", when_cancelled="ignore")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec()])
    nursery.start_soon(supervisor.stop, "a")
    await wait_all_tasks_blocked()
    nursery.start_soon(supervisor.restart, "a")
    await wait_all_tasks_blocked()
    a.release()
    await wait_all_tasks_blocked()
    assert (a.starts, states(supervisor)) == (2, {"a": RUNNING})


async def test_a_temporary_child_can_be_restarted_by_hand_while_it_lives(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a = puppet("a")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec(restart=Restart.TEMPORARY)])
    assert await supervisor.restart("a") is RUNNING
    await supervisor.stop("a")
    assert (a.starts, states(supervisor)) == (2, {})


async def test_add_waits_until_ready_and_takes_a_failure_back(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a, bad = puppet("a"), puppet("bad", at_start="crash")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run)
    await supervisor.add(a.spec())
    assert states(supervisor) == {"a": RUNNING}
    with pytest.raises(ChildStartFailed, match="Boom: at start"):
        await supervisor.add(bad.spec())
    assert (bad.starts, states(supervisor)) == (1, {"a": RUNNING})
    one_shot = puppet("one shot", at_start="return")
    await supervisor.add(one_shot.spec(restart=Restart.TRANSIENT))
    assert states(supervisor)["one shot"] is FINISHED


async def test_remove_stops_and_frees_the_name(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a = puppet("a")
    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [a.spec()])
    with pytest.raises(ArmorclawError) as refused:
        await supervisor.add(a.spec())
    assert refused.value.name == "conflict"
    await supervisor.remove("a")
    assert (a.log, states(supervisor)) == (["+a", "-a"], {})
    await supervisor.add(a.spec())
    await supervisor.stop("a")
    await supervisor.remove("a")  # from rest
    assert states(supervisor) == {}


async def test_unknown_names_and_supervisors_that_do_not_run(around: Surroundings, puppet: Make) -> None:
    supervisor = Supervisor("s", around=around)
    for ask in (supervisor.stop, supervisor.remove, supervisor.restart):
        with pytest.raises(ArmorclawError) as refused:
            await ask("a")
        assert refused.value.name == "unavailable"
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run)
        for ask in (supervisor.stop, supervisor.remove, supervisor.restart):
            with pytest.raises(ArmorclawError) as refused:
                await ask("a")
            assert refused.value.name == "not_found"
        with pytest.raises(RuntimeError, match="already running"):
            await supervisor.run()
        nursery.cancel_scope.cancel(reason="test over")
    with pytest.raises(ArmorclawError, match="not running"):
        await supervisor.add(puppet("a").spec())


async def test_children_with_the_same_name_are_refused(around: Surroundings, puppet: Make) -> None:
    a = puppet("a")
    with pytest.raises(ArmorclawError, match="already has a child 'a'"):
        await Supervisor("s", around=around).run([a.spec(), a.spec()])
    assert a.log == ["+a", "-a"]


# -- snapshots ---------------------------------------------------------------------------------------------------


async def test_snapshot_shows_the_tree(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, autojump_clock: MockClock
) -> None:
    inner = Supervisor("inner", strategy=Strategy.REST_FOR_ONE, around=around)
    wrapped = Supervisor("wrapped", around=around)
    outer = Supervisor("outer", around=around)
    a, b = puppet("a"), puppet("b")

    async def feature(*, task_status: trio.TaskStatus[Supervisor]) -> None:
        """A child that is more than its supervisor passes it on."""
        async with trio.open_nursery() as within:
            task_status.started(await within.start(wrapped.run, [b.spec()]))

    specs = [
        ChildSpec("inner", partial(inner.run, [a.spec()]), grace=math.inf),
        ChildSpec("feature", feature, grace=math.inf),
    ]
    await nursery.start(outer.run, specs)
    await trio.sleep(5.0)
    a.crash()
    await wait_all_tasks_blocked()
    tree = outer.snapshot()
    assert (tree.name, tree.strategy) == ("outer", Strategy.ONE_FOR_ONE)
    below, beside = tree.children
    assert below.children is not None
    assert below.children.strategy is Strategy.REST_FOR_ONE
    (leaf,) = below.children.children
    assert (leaf.name, leaf.state, leaf.restarts, leaf.last_error) == ("a", RUNNING, 1, "Boom: told to")
    assert leaf.since == trio.current_time()
    assert leaf.children is None
    assert beside.children is not None
    assert [child.name for child in beside.children.children] == ["b"]


async def test_a_nested_supervisor_that_gives_up_is_restarted_by_its_parent(
    around: Surroundings, begin: Begin, puppet: Make
) -> None:
    inner = Supervisor("inner", intensity=1, around=around)
    outer = Supervisor("outer", intensity=1, around=around)
    a = puppet("a")
    run = await begin(outer, [ChildSpec("inner", partial(inner.run, [a.spec()]), grace=math.inf)])
    for starts in (1, 2, 3, 4):
        assert (a.starts, run.raised) == (starts, None)
        a.crash()
        await wait_all_tasks_blocked()
    assert isinstance(run.raised, RestartLimitExceeded)
    assert (run.raised.supervisor, run.raised.child) == ("outer", "inner")
    assert isinstance(run.raised.__cause__, RestartLimitExceeded)
    assert type(run.raised.root).__name__ == "Boom"
    assert a.log == ["+a", "-a"] * 4


def test_arguments_that_make_no_sense_are_refused(around: Surroundings, puppet: Make) -> None:
    with pytest.raises(ValueError, match="one_for_one only"):
        Supervisor("s", dynamic=True, strategy=Strategy.REST_FOR_ONE, around=around)
    with pytest.raises(ValueError, match="intensity"):
        Supervisor("s", intensity=-1, around=around)
    for wrong in ({"grace": 0.0}, {"start_timeout": 0.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            puppet("a").spec(**wrong)
    with pytest.raises(ValueError, match="name"):
        puppet("").spec()


async def test_started_twice_or_after_the_end_is_an_error(
    around: Surroundings, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    kept: list[trio.TaskStatus[None]] = []

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        kept.append(task_status)
        task_status.started()
        if len(kept) == 1:
            task_status.started()
        await trio.sleep_forever()

    supervisor = Supervisor("s", around=around)
    await nursery.start(supervisor.run, [ChildSpec("a", run)])
    await wait_all_tasks_blocked()
    (child,) = supervisor.snapshot().children
    assert (child.state, child.last_error) == (RUNNING, "RuntimeError: child 'a' called started() twice")
    with pytest.raises(RuntimeError, match="after its end"):
        kept[0].started()
    assert repr(supervisor) == "<Supervisor 's' running, 1 children>"
