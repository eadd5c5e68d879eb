"""Days of supervision in seconds: many children that die at random, on a clock that jumps."""

from __future__ import annotations

import random

import pytest
import trio
from trio.testing import MockClock

from armorclaw.clock import Surroundings
from armorclaw.supervision import Backoff, ChildChange, ChildSpec, ChildState, Supervisor

pytestmark = pytest.mark.mission("P0.3")

DAY = 86_400.0  # seconds
CHILDREN = 100
MEAN_LIFE = 600.0  # seconds
POLICY = Backoff(maximum=60.0, stable_seconds=600.0, max_in_row=None, max_per_hour=None)


class Longest:
    """The longest time that each child was not running, from the changes of its state."""

    def __init__(self) -> None:
        self.down_since: dict[str, float] = {}
        self.longest = 0.0
        self.down = 0.0

    def __call__(self, change: ChildChange) -> None:
        if change.state is ChildState.RUNNING:
            down = change.at - self.down_since.pop(change.child, change.at)
            self.longest = max(self.longest, down)
            self.down += down
        elif change.state is ChildState.BACKING_OFF:
            self.down_since[change.child] = change.at


async def live_through(days: float) -> None:
    chance = random.Random(2026)
    seen = Longest()
    supervisor = Supervisor("s", dynamic=True, around=Surroundings(random=chance), on_change=seen)
    lives = 0
    alive: set[int] = set()

    def mortal(number: int) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None]) -> None:
            nonlocal lives
            assert number not in alive, "two lives of one child at once"
            alive.add(number)
            try:
                task_status.started()
                lives += 1
                await trio.sleep(chance.expovariate(1 / MEAN_LIFE))
                raise OSError("the end")
            finally:
                alive.remove(number)

        return ChildSpec(str(number), run, backoff=POLICY)

    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [mortal(number) for number in range(CHILDREN)])
        await trio.sleep(days * DAY)
        snapshot = supervisor.snapshot()
        nursery.cancel_scope.cancel(reason="the days are over")

    assert not alive
    assert all(child.state in (ChildState.RUNNING, ChildState.BACKING_OFF) for child in snapshot.children)
    assert lives == CHILDREN + sum(child.restarts for child in snapshot.children) - sum(
        child.state is ChildState.BACKING_OFF for child in snapshot.children
    )
    assert seen.longest <= POLICY.maximum
    # A cycle is a life and the wait after it. Most waits are short, none is over a minute: about 600 to 605 s.
    expected = CHILDREN * days * DAY / (MEAN_LIFE + seen.down / lives)
    assert expected * 0.98 < lives < expected * 1.02
    assert seen.down / (CHILDREN * days * DAY) < 0.02, "in a back-off for less than a fiftieth of the time"


def test_three_days_of_a_hundred_mortal_children() -> None:
    trio.run(live_through, 3.0, clock=MockClock(autojump_threshold=0.0))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_thirty_days_of_a_hundred_mortal_children() -> None:
    trio.run(live_through, 30.0, clock=MockClock(autojump_threshold=0.0))
