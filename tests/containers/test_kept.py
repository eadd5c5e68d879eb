"""Watchers that fail are begun again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.engine_watch import EngineWatch
from armorclaw.containers.kept import PAUSES, WELL_AFTER, kept
from armorclaw.containers.lifetime import Lifetimes
from armorclaw.containers.resources.watch import Resources
from armorclaw.containers.survivors import Survivors
from tests.containers.fakes import FakeHouse, declared
from tests.containers.test_fleet import house  # noqa: F401 - a fixture

pytestmark = pytest.mark.mission("P0.1")


class Watcher:
    """Lasts for so many seconds each time, and fails; then it returns."""

    def __init__(self, *lasts: float) -> None:
        self.lasts = list(lasts)
        self.begun: list[float] = []

    async def run(self) -> None:
        self.begun.append(trio.current_time())
        if not self.lasts:
            await trio.lowlevel.checkpoint()
            return
        await trio.sleep(self.lasts.pop(0))
        raise ValueError("strange figures")


async def test_pauses_grow_and_a_series_is_told_once(autojump_clock: MockClock) -> None:
    watcher, told = Watcher(*[0.0] * 9), list[str]()
    await kept("what looks", watcher.run, told.append)
    gaps = [later - before for before, later in zip(watcher.begun, watcher.begun[1:], strict=False)]
    assert gaps == pytest.approx([1, 2, 4, 8, 16, 32, 60, 60, 60])
    assert told == ["what looks failed, is begun again and may miss something: ValueError: strange figures"]


async def test_after_a_good_while_it_is_another_series(autojump_clock: MockClock) -> None:
    watcher, told = Watcher(0.0, 0.0, WELL_AFTER, 0.0), list[str]()
    await kept("what looks", watcher.run, told.append)
    assert len(told) == 2
    assert watcher.begun[3] - watcher.begun[2] == pytest.approx(WELL_AFTER + PAUSES[0])


@pytest.mark.parametrize("when", ["it runs", "it pauses"])
async def test_cancellation_passes(autojump_clock: MockClock, when: str) -> None:
    watcher = Watcher(10.0 if when == "it runs" else 0.0)
    with trio.move_on_after(0.5) as scope:
        await kept("what looks", watcher.run, lambda text: None)
    assert scope.cancelled_caught
    assert len(watcher.begun) == 1


async def test_a_failure_beside_cancellation_is_not_that_of_who_cancels(autojump_clock: MockClock) -> None:
    async def fails_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            raise ValueError("in clean-up")

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fails_when_cancelled)
            nursery.start_soon(trio.sleep_forever)

    with trio.move_on_after(0.5) as scope:
        await kept("what looks", run, lambda text: None)
    assert scope.cancelled_caught


WATCHERS = [
    (Resources, "run"),
    (Lifetimes, "end_the_old"),
    (Lifetimes, "end_the_idle"),
    (Survivors, "look_at"),
    (EngineWatch, "run"),
]


@pytest.mark.parametrize("fault", [RuntimeError, ValueError])
@pytest.mark.parametrize(("owner", "method"), WATCHERS, ids=lambda each: getattr(each, "__name__", each))
async def test_agents_live_on_whatever_watcher_fails(
    house: FakeHouse,  # noqa: F811
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    owner: type,
    method: str,
    fault: type[Exception],
) -> None:
    real, begun = getattr(owner, method), list[float]()

    async def fails_twice(*args: object, **more: object) -> None:
        begun.append(trio.current_time())
        if len(begun) <= 2:
            await trio.sleep(1)
            raise fault("nobody foresaw it")
        await real(*args, **more)

    monkeypatch.setattr(owner, method, fails_twice)
    await house.up(declared(), declared("bob", image="i", runtime="docker"))
    await trio.sleep(60)
    assert [(each.state, each.generation) for each in house.fleet.standings()] == [("running", 1)] * 2
    assert len(begun) == 3
    assert [name for _, name, _ in house.alerts] == ["watcher_failed"]
    assert "nobody foresaw it" in house.alerts[0][2]
