"""rest_for_one: children that depend on those before them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from armorclaw.clock import Surroundings
from armorclaw.supervision import (
    Backoff,
    ChildChange,
    ChildSpec,
    ChildState,
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
STOPPED, FINISHED, STUCK = ChildState.STOPPED, ChildState.FINISHED, ChildState.STUCK
REST = Strategy.REST_FOR_ONE


async def start(nursery: trio.Nursery, around: Surroundings, children: list[Puppet], **first: object) -> Supervisor:
    """A supervisor of these; `first` are options of the first of them."""
    supervisor = Supervisor("s", strategy=REST, around=around)
    specs = [children[0].spec(**first), *[child.spec() for child in children[1:]]]
    await nursery.start(supervisor.run, specs)
    children[0].log.clear()
    return supervisor


async def test_those_after_stop_in_reverse_and_start_in_order(
    around: Surroundings, nursery: trio.Nursery, puppet: Make
) -> None:
    children = [puppet(name) for name in "abcd"]
    await start(nursery, around, children)
    children[1].crash()
    await wait_all_tasks_blocked()
    assert children[0].log == ["-b", "-d", "-c", "+b", "+c", "+d"]


async def test_those_after_are_down_during_the_back_off_of_the_one_before(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    children = [puppet(name) for name in "abc"]
    supervisor = await start(nursery, around, children, backoff=Backoff(first=30.0))
    children[0].crash()
    await trio.sleep(29.0)
    assert states(supervisor) == dict.fromkeys("abc", BACKING_OFF)
    assert children[0].log == ["-a", "-c", "-b"]
    await trio.sleep(2.0)
    assert states(supervisor) == dict.fromkeys("abc", RUNNING)


async def test_those_after_wait_until_the_one_before_is_ready_again(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = await start(nursery, around, [a, b])
    a.at_start = "hang"
    a.crash()
    await trio.sleep(10.0)
    assert states(supervisor) == {"a": STARTING, "b": BACKING_OFF}
    a.at_start = "ready"
    await trio.sleep(30.0)  # the start timeout, and another start
    assert states(supervisor) == {"a": RUNNING, "b": RUNNING}
    assert (a.starts, b.starts) == (3, 2)


async def test_crash_before_while_one_after_backs_off_keeps_its_back_off(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a, b, c = (puppet(name) for name in "abc")
    supervisor = Supervisor("s", strategy=REST, around=around)
    await nursery.start(supervisor.run, [a.spec(), b.spec(backoff=Backoff(first=30.0)), c.spec()])
    b.crash()
    await trio.sleep(10.0)
    a.crash()
    await trio.sleep(10.0)
    assert states(supervisor) == {"a": RUNNING, "b": BACKING_OFF, "c": BACKING_OFF}
    await trio.sleep(11.0)
    assert states(supervisor) == dict.fromkeys("abc", RUNNING)
    assert (a.starts, b.starts, c.starts) == (2, 2, 2)


async def test_two_crashes_in_one_tick(around: Surroundings, nursery: trio.Nursery, puppet: Make) -> None:
    children = [puppet(name) for name in "abcd"]
    await start(nursery, around, children)
    children[2].crash()
    children[0].crash()
    await wait_all_tasks_blocked()
    assert [child.starts for child in children] == [2, 2, 2, 2]
    assert children[0].log[-4:] == ["+a", "+b", "+c", "+d"]


async def test_stuck_child_holds_the_restart_of_the_one_before(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States, autojump_clock: MockClock
) -> None:
    a, b = puppet("a"), puppet("b", when_cancelled="ignore")
    supervisor = await start(nursery, around, [a, b])
    a.crash()
    await trio.sleep(60.0)
    assert states(supervisor) == {"a": BACKING_OFF, "b": STUCK}
    b.release()
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": RUNNING, "b": RUNNING}


async def test_children_at_rest_neither_start_nor_hold_up_others(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a, done, off, once, z = (puppet(name) for name in ("a", "done", "off", "once", "z"))
    supervisor = Supervisor("s", strategy=REST, around=around)
    specs = [
        a.spec(),
        done.spec(restart=Restart.TRANSIENT),
        off.spec(),
        once.spec(restart=Restart.TEMPORARY),
        z.spec(),
    ]
    await nursery.start(supervisor.run, specs)
    done.finish()
    await supervisor.stop("off")
    assert z.starts == 1, "a stop by hand concerns that child alone"
    a.crash()
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": RUNNING, "done": FINISHED, "off": STOPPED, "z": RUNNING}
    assert [child.starts for child in (a, done, off, once, z)] == [2, 1, 1, 1, 2]
    assert await supervisor.restart("off") is RUNNING
    await wait_all_tasks_blocked()
    assert (off.starts, z.starts) == (2, 3), "those after a restarted child hold on to its former life"


async def test_added_child_comes_last(around: Surroundings, nursery: trio.Nursery, puppet: Make) -> None:
    a, b = puppet("a"), puppet("b")
    supervisor = await start(nursery, around, [a])
    await supervisor.add(b.spec())
    a.crash()
    await wait_all_tasks_blocked()
    assert a.log == ["+b", "-a", "-b", "+a", "+b"]


async def test_crash_of_one_before_during_the_first_start_of_one_after(
    around: Surroundings, nursery: trio.Nursery, puppet: Make, states: States
) -> None:
    a, b = puppet("a"), puppet("b", at_start="hang")
    supervisor = Supervisor("s", strategy=REST, around=around)
    nursery.start_soon(supervisor.run, [a.spec(), b.spec()])
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": RUNNING, "b": STARTING}
    b.at_start = "ready"
    a.crash()
    await wait_all_tasks_blocked()
    assert states(supervisor) == {"a": RUNNING, "b": RUNNING}
    assert a.log == ["+a", "+b", "-a", "-b", "+a", "+b"]


async def test_crash_loop_gives_up_and_stops_the_rest(around: Surroundings, begin: Begin, puppet: Make) -> None:
    changes: list[ChildChange] = []
    a, b = puppet("a"), puppet("b")
    supervisor = Supervisor("s", strategy=REST, intensity=3, around=around, on_change=changes.append)
    run = await begin(supervisor, [a.spec(), b.spec()])
    for _ in range(4):
        a.crash()
        await wait_all_tasks_blocked()
    assert isinstance(run.raised, RestartLimitExceeded)
    assert (a.starts, b.starts) == (4, 4)
    assert [change.reason for change in changes if change.child == "b" and change.state is BACKING_OFF] == [
        "'a', before it, starts again"
    ] * 3
