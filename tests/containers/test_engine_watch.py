"""Engines that hang: their streams stay open, but they do not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.engine_watch import PING_EVERY, PINGS, EngineWatch
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import News
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeHouse, FakeRuntime, declared, house_in

pytestmark = pytest.mark.mission("P0.2")

NO_ANSWER = ArmorclawError("engine_unreachable", "no answer in time")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


def of_engines(house: FakeHouse) -> list[str]:
    return [kind for kind, _, _ in house.notes if kind.startswith("engine")]


async def test_an_engine_that_hangs_is_lost_and_said_so_once(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(image="i", runtime="docker"))
    await house.ready()
    house.docker.errors["ping"] = NO_ANSWER
    began = trio.current_time()
    await house.until("unknown")
    assert trio.current_time() - began <= PINGS * PING_EVERY
    await trio.sleep(600)
    assert of_engines(house) == ["engine.lost"]
    house.docker.errors.clear()
    await house.until("ready")
    await trio.sleep(60)
    assert of_engines(house) == ["engine.lost", "engine.back"]
    ada = house.fleet.get("ada")
    assert (ada.state, ada.generations) == ("ready", 1)


async def test_an_engine_that_hangs_while_an_agent_starts(house: FakeHouse, autojump_clock: MockClock) -> None:
    """Nothing can be said of a container that does not run yet."""
    house.docker.takes["start"] = 100.0
    await house.up(declared(image="i", runtime="docker"))
    house.docker.errors["ping"] = NO_ANSWER
    await trio.sleep(50)
    assert of_engines(house) == ["engine.lost"]
    assert house.fleet.get("ada").state == "starting"
    house.docker.errors.clear()
    await house.until("running")


@pytest.mark.parametrize("name", ["engine_refused", "engine_unreachable"])
async def test_what_does_not_make_an_engine_lost(house: FakeHouse, name: str, autojump_clock: MockClock) -> None:
    """Pings that it refuses; and a single one that it does not answer."""
    await house.up(declared(image="i", runtime="docker"))
    await house.until("running")
    for _ in range(10):
        house.docker.errors["ping"] = ArmorclawError(name, "no")
        await trio.sleep(PING_EVERY * (1 if name == "engine_unreachable" else 5))
        house.docker.errors.clear()
        await trio.sleep(PING_EVERY)
    assert of_engines(house) == []


class Heard:
    """Notes what the watch tells; its looking again may take for ever."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.looks = False

    def on_heard(self, runtime: Runtime) -> None:
        pass

    def on_news(self, news: News) -> None:
        self.told.append(news.what)

    def on_lost(self, runtime: Runtime, why: str) -> None:
        self.told.append(f"lost: {why}")

    async def on_back(self, runtime: Runtime) -> None:
        if self.looks:
            self.told.append("looks")
            await trio.sleep_forever()
        self.told.append("back")


async def test_one_that_hangs_from_the_beginning(autojump_clock: MockClock) -> None:
    runtime, heard = FakeRuntime("docker"), Heard()
    runtime.hangs.add("news")
    runtime.errors["ping"] = NO_ANSWER
    async with trio.open_nursery() as nursery:
        nursery.start_soon(EngineWatch(runtime, "inst", heard).run)
        await trio.sleep(60)
        assert heard.told == ["lost: it does not answer"]
        runtime.hangs.clear()
        await trio.sleep(60)
        assert heard.told == ["lost: it does not answer"]  # a stream alone says nothing
        runtime.errors.clear()
        await trio.sleep(10)
        assert heard.told == ["lost: it does not answer", "back"]
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.parametrize("phase", ["news", "listening", "ping", "pause", "on_back"])
async def test_cut_in_every_phase(phase: str, autojump_clock: MockClock) -> None:
    runtime, heard = FakeRuntime("docker"), Heard()
    if phase in ("news", "ping"):
        runtime.hangs.add(phase)
    runtime.lost = phase in ("pause", "on_back")
    heard.looks = phase == "on_back"
    with trio.fail_after(100):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(EngineWatch(runtime, "inst", heard).run)
            await trio.sleep(1)
            if phase == "on_back":
                runtime.lost = False
                await trio.sleep(3)
                assert heard.told[-1] == "looks"
            nursery.cancel_scope.cancel(reason="the test says so")
    assert "back" not in heard.told
