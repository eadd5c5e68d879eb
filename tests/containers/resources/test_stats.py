"""Readings of what agents use, by containers that say what they are told to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.resources.usage import Usage
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeContainer, FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.4")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


async def test_a_snapshot_of_all(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(), declared("bob"))
    await house.until("running")
    await house.until("running", agent="bob")
    await house.call("stop", name="bob")
    (container,) = house.runtime.live
    container.uses = Usage(1, 2, 3, 4, 5, 6)
    began = trio.current_time()
    async with house.stream("containers.stats", count=1) as stream:
        ada, bob = await anext(stream)
        assert await stream.result() == {"readings": 1}
    assert trio.current_time() == began  # at once
    assert ada.pop("at_ms") > 0
    for peak in ("cpu_peak_percent", "memory_peak_bytes", "pids_peak"):
        ada.pop(peak)  # there if it was read before, which is a matter of whose turn it is
    assert ada == {
        "name": "ada",
        "state": "running",
        "cpu_ns": 1,
        "cpu_percent": None,
        "memory_bytes": 2,
        "memory_limit": 3,
        "pids": 4,
        "read_bytes": 5,
        "written_bytes": 6,
        "throttled_ns": None,
        "oom_kills": None,
        "tmp_bytes": None,
        "data_bytes": None,
    }
    bob.pop("at_ms")
    assert {bob.pop("name"), bob.pop("state")} == {"bob", "stopped"}
    assert set(bob.values()) == {None}


async def test_readings_of_one(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(), declared("bob"))
    await house.until("running")
    container = house.fleet.get("ada").generation.running  # type: ignore[union-attr]
    assert isinstance(container, FakeContainer)
    async with house.stream("containers.stats", name="ada", interval_ms=2000) as stream:
        began, percents = trio.current_time(), []
        for number, used in enumerate((1.0, 2.0, 2.0, 5.0)):
            container.uses = Usage(cpu_ns=int(used * 1e9))
            (reading,) = await anext(stream)
            assert trio.current_time() - began == pytest.approx(2.0 * number, abs=0.01)
            percents.append(reading["cpu_percent"])
        assert percents == [None, 50.0, 0.0, 150.0]
        container.end(1)
        await house.until("running", generation=2)
        assert (await anext(stream))[0]["cpu_percent"] is None  # another container
        await house.fleet.forget(house.fleet.get("ada"))
        assert (await stream.result())["readings"] in (5, 6)  # it takes a moment to be forgotten


async def test_a_slow_reader_gets_no_burst(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    async with house.stream("containers.stats", interval_ms=1000) as stream:
        await anext(stream)
        await trio.sleep(10)
        times = []
        for _ in range(4):
            await anext(stream)
            times.append(trio.current_time())
    assert times[2] - times[1] == pytest.approx(1.0, abs=0.01)
    assert times[3] - times[2] == pytest.approx(1.0, abs=0.01)


async def test_the_last_ten_minutes_first(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(), declared("bob"))
    await house.until("running")
    await house.until("running", agent="bob")
    container = house.fleet.get("ada").generation.running  # type: ignore[union-attr]
    assert isinstance(container, FakeContainer)
    container.uses = Usage(cpu_ns=0, memory_bytes=4096, pids=2)
    await trio.sleep(250)
    async with house.stream("containers.stats", name="ada", count=1, history=True) as stream:
        chunks = [chunk async for chunk in stream]
        assert await stream.result() == {"readings": 1}
    assert [len(chunk) for chunk in chunks][:2] == [100, 100]
    assert 245 <= sum(map(len, chunks[:-1])) <= 255
    assert all(each["name"] == "ada" and each["pids"] == 2 for chunk in chunks for each in chunk)
    past = chunks[0][0]
    assert (past["memory_bytes"], past["cpu_percent"], past["cpu_ns"], past["state"]) == (4096, None, None, "running")
    assert len(chunks[-1]) == 1


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_an_engine_in_trouble_tells_nothing(house: FakeHouse, trouble: str, autojump_clock: MockClock) -> None:
    """And it holds up the others for a few seconds at most."""
    await house.up(declared(), declared("bob", image="it"))
    await house.until("running")
    await house.until("running", agent="bob")
    house.runtime.last.uses = Usage(cpu_ns=7)
    if trouble == "hangs":
        house.docker.hangs.add("usage")
    else:
        house.docker.errors["usage"] = ArmorclawError("engine_unreachable", "it is gone")
    began = trio.current_time()
    async with house.stream("containers.stats", count=1) as stream:
        ada, bob = await anext(stream)
        assert trio.current_time() - began < 3.5
    assert (ada["cpu_ns"], bob["cpu_ns"], bob["state"]) == (7, None, "running")


@pytest.mark.parametrize(
    ("field", "params"),
    [("interval_ms", {"interval_ms": 99}), ("count", {"count": 0}), ("name", {"name": 5})],
)
async def test_wrong_params(house: FakeHouse, autojump_clock: MockClock, field: str, params: dict[str, Any]) -> None:
    await house.up(declared())
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.stats", **params)
    assert caught.value.name == "invalid_params"
    assert field in str(caught.value)


async def test_nobody(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.stats", name="nobody", count=1)
    assert caught.value.name == "container_not_found"
    async with house.stream("containers.stats", count=1) as stream:
        assert await anext(stream) == []
