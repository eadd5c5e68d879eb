"""Whatever hangs behind them, start, stop and restart are answered in the time that clients in the field wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.spec import Found
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeHouse, declared, house_in

IN_TIME = 4.0

STEPS = ["check_image", "launch", "start", "stop", "survivors", "adopt", "discard"]


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


async def timed(house: FakeHouse, method: str, **params: Any) -> tuple[float, str]:
    """How long it took, and what came of it in a word."""
    started = trio.current_time()
    try:
        word = (await house.call(method, **params))["status"]
    except ArmorclawError as error:
        word = error.name
    return trio.current_time() - started, word


@pytest.mark.mission("C.start", "C.stop")
@pytest.mark.parametrize("step", STEPS)
async def test_an_engine_that_hangs(house: FakeHouse, step: str, autojump_clock: MockClock) -> None:
    """In each step of making a container, or of ending it: for an agent that is new, runs, or is known."""
    await house.up(declared("ada", image="i"))
    await house.until("running")
    house.docker.hangs.add(step)
    words = []
    for method, params in (
        ("stop", {"name": "ada"}),
        ("start", {"name": "ada"}),
        ("containers.restart", {"name": "ada"}),
        ("start", {"name": "bob", "image": "i"}),
        ("stop", {"name": "bob"}),
        ("stop", {"name": "ada"}),
    ):
        took, word = await timed(house, method, **params)
        assert took < IN_TIME, (method, params)
        words.append(word)
    house.docker.hangs.clear()
    assert "internal" not in words


@pytest.mark.parametrize("step", STEPS)
async def test_an_engine_that_refuses_and_then_hangs(house: FakeHouse, step: str, autojump_clock: MockClock) -> None:
    """What never ran is removed again, and that takes its time."""
    await house.up()
    house.docker.errors[step] = ArmorclawError("engine_refused", "no")
    house.docker.takes["remove"] = 9.0
    took, _ = await timed(house, "start", name="bob", image="i")
    assert took < IN_TIME
    took, _ = await timed(house, "start", name="bob", image="i")
    assert took < IN_TIME
    await trio.sleep(60)
    names = [row["name"] for row in await house.call("containers.list")]
    assert names == ([] if step in ("check_image", "launch", "survivors") else ["bob"])


async def test_a_container_that_takes_its_time_to_go(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared("ada"))
    await house.until("running")
    house.runtime.takes["remove"] = 60.0
    house.runtime.heeds_sigterm = False
    for method, wanted in (
        ("containers.restart", "restarting"),
        ("stop", "stopping"),
        ("start", "stopping"),
        ("stop", "stopping"),
    ):
        took, word = await timed(house, method, name="ada")
        assert (word, took < IN_TIME) == (wanted, True), method
    await house.until("stopped")


@pytest.mark.parametrize("hangs", [{"adopt", "discard"}, {"check_image", "discard"}, {"discard"}])
async def test_a_survivor_of_an_earlier_bridge(house: FakeHouse, hangs: set[str], autojump_clock: MockClock) -> None:
    """That its engine neither gives up nor removes."""
    house.docker.left.append(Found("c0ffee", "ada", "0" * 64, running=True))
    house.docker.hangs |= hangs
    await house.up(declared("ada", image="i"))
    await trio.sleep(0.1)
    for method in ("stop", "start", "containers.restart", "stop"):
        took, _ = await timed(house, method, name="ada")
        assert took < IN_TIME, method
    house.docker.hangs.clear()
    await house.until("stopped")
