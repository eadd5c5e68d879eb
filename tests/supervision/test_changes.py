from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from armorclaw.clock import Surroundings
from armorclaw.supervision import ChildChange, ChildState, Supervisor, log_crash

if TYPE_CHECKING:
    from tests.supervision.conftest import Puppet

pytestmark = pytest.mark.mission("P0.3")


async def test_every_change_reaches_callback_and_stream_in_order(
    nursery: trio.Nursery, around: Surroundings, puppet: Callable[..., Puppet], autojump_clock: MockClock
) -> None:
    called: list[ChildChange] = []
    supervisor = Supervisor("s", around=around, on_change=called.append)
    a = puppet("a")
    with supervisor.changes() as changes:  # before run(): nothing is missed
        await nursery.start(supervisor.run, [a.spec()])
        await trio.sleep(3.0)
        a.crash()
        await wait_all_tasks_blocked()
        await supervisor.stop("a")
        streamed = [await changes.receive() for _ in called]
    assert streamed == called
    assert [(change.state.value, change.reason) for change in called] == [
        ("starting", ""),
        ("running", "ready"),
        ("backing_off", "Boom: told to"),
        ("starting", ""),
        ("running", "ready"),
        ("stopping", "stopped by hand"),
        ("stopped", "stopped by hand"),
    ]
    assert {(change.supervisor, change.child) for change in called} == {("s", "a")}
    assert [change.at - called[0].at for change in called] == [0, 0, 3, 3, 3, 3, 3]
    assert type(called[2].error).__name__ == "Boom"


async def test_slow_watcher_misses_and_counts_and_nobody_waits(
    nursery: trio.Nursery, around: Surroundings, puppet: Callable[..., Puppet]
) -> None:
    supervisor = Supervisor("s", around=around)
    a = puppet("a")
    with supervisor.changes(buffer=3) as changes:
        await nursery.start(supervisor.run, [a.spec()])
        for _ in range(3):
            a.crash()
            await wait_all_tasks_blocked()
        assert a.starts == 4
        assert changes.missed == 2 + 3 * 3 - 3
        assert (await changes.receive()).state is ChildState.STARTING
        await supervisor.stop("a")
        assert changes.missed == 2 + 3 * 3 - 3 + 1


async def test_stream_ends_when_closed(nursery: trio.Nursery, around: Surroundings) -> None:
    supervisor = Supervisor("s", around=around)
    ended = trio.Event()

    async def follow() -> None:
        async for _ in changes:
            pass
        ended.set()

    with supervisor.changes() as changes:
        nursery.start_soon(follow)
        await wait_all_tasks_blocked()
    await ended.wait()


async def test_listener_that_raises_is_logged_and_supervision_goes_on(
    nursery: trio.Nursery, around: Surroundings, puppet: Callable[..., Puppet]
) -> None:
    def broken(change: ChildChange) -> None:
        raise ValueError("broken listener")

    supervisor = Supervisor("s", around=around, on_change=broken)
    a = puppet("a")
    with capture_logs() as logs:
        await nursery.start(supervisor.run, [a.spec()])
        a.crash()
        await wait_all_tasks_blocked()
    assert a.starts == 2
    assert {entry["event"] for entry in logs} == {"listener failed"}


@pytest.mark.parametrize(
    ("error", "logged"),
    [
        (RuntimeError("a bug"), ["child crashed"]),
        (KeyboardInterrupt(), []),
        (BaseExceptionGroup("", [KeyboardInterrupt()]), []),
    ],
)
def test_ctrl_c_is_no_crash(error: BaseException, logged: list[str]) -> None:
    with capture_logs() as lines:
        log_crash(ChildChange("s", "a", ChildState.FAILED, 0.0, "it ended", error))
    assert [line["event"] for line in lines] == logged
