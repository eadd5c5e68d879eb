"""The table of what the end of a generation means, cell by cell."""

from __future__ import annotations

import pytest
import trio

from armorclaw.supervision.child import Child, Generation
from armorclaw.supervision.spec import ChildSpec, ChildState, Restart
from armorclaw.supervision.verdict import verdict

pytestmark = pytest.mark.mission("P0.3")

AGAIN, STOPPED, FINISHED, FAILED = (
    ChildState.BACKING_OFF,
    ChildState.STOPPED,
    ChildState.FINISHED,
    ChildState.FAILED,
)
PERMANENT, TRANSIENT, TEMPORARY = Restart.PERMANENT, Restart.TRANSIENT, Restart.TEMPORARY


async def run(*, task_status: trio.TaskStatus[None]) -> None: ...


def generation(restart: Restart) -> Generation:
    one = Generation(Child(ChildSpec("a", run, restart), 0.0, on_trial=False), lambda *_: None)
    one.ready_at = 1.0
    return one


@pytest.mark.parametrize(
    ("outcome", "permanent", "transient", "temporary", "counted"),
    [
        ("returns", AGAIN, FINISHED, FINISHED, True),
        ("raises", AGAIN, AGAIN, FAILED, True),
        ("late", AGAIN, AGAIN, FAILED, True),
        ("stop", STOPPED, STOPPED, STOPPED, False),
        ("stop, raises", STOPPED, STOPPED, STOPPED, False),
        ("closing", STOPPED, STOPPED, STOPPED, False),
        ("restart", AGAIN, AGAIN, AGAIN, False),
        ("restart, raises", AGAIN, AGAIN, AGAIN, False),
        ("sibling", AGAIN, AGAIN, STOPPED, False),
        ("sibling, raises", AGAIN, AGAIN, STOPPED, False),
    ],
)
def test_table(
    outcome: str, permanent: ChildState, transient: ChildState, temporary: ChildState, counted: bool
) -> None:
    for restart, expected in ((PERMANENT, permanent), (TRANSIENT, transient), (TEMPORARY, temporary)):
        one = generation(restart)
        error = ValueError("x") if "raises" in outcome else None
        match outcome.split(",")[0]:
            case "late":
                one.late, one.ready_at = True, None
            case "stop":
                one.asked, one.child.wanted = "stopped by hand", False
            case "restart":
                one.asked, one.again = "restarted by hand", True
            case "sibling":
                one.asked = "'b', before it, starts again"
        answer = verdict(one, error, closing=outcome == "closing")
        assert answer.state is expected
        assert answer.counted == (counted and expected is AGAIN)
        assert (answer.error is error) or outcome == "late"


@pytest.mark.parametrize("restart", list(Restart))
def test_crash_before_a_first_start_that_somebody_waits_for(restart: Restart) -> None:
    one = generation(restart)
    one.ready_at, one.child.on_trial = None, True
    assert verdict(one, ValueError("x"), closing=False).state is FAILED


def test_permanent_child_that_returns_unready_has_crashed() -> None:
    one = generation(PERMANENT)
    one.ready_at = None
    answer = verdict(one, None, closing=False)
    assert answer.state is AGAIN
    assert str(answer.error) == "returned before it was ready"


def test_late_child_keeps_what_it_raised_on_the_way_out() -> None:
    one = generation(PERMANENT)
    one.late, error = True, ValueError("x")
    answer = verdict(one, error, closing=False)
    assert isinstance(answer.error, trio.TooSlowError)
    assert answer.error.__cause__ is error
    assert answer.reason == "TooSlowError: not ready within 30 s"


def test_crash_while_ending_is_told() -> None:
    one = generation(PERMANENT)
    one.asked, one.child.wanted = "stopped by hand", False
    answer = verdict(one, ValueError("x"), closing=False)
    assert answer.reason == "stopped by hand; crashed while ending: ValueError: x"
    assert answer.said == "ValueError: x"
