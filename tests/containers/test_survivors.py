"""What is left in engines, looked for again while agents go on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.spec import Found
from tests.containers.conftest import MakeSpec
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.2")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


async def test_a_container_that_has_become_its_agents_since_it_was_listed_stays(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    """Removing those before it in the list takes a while."""
    docker = house.docker
    await house.up(declared("ada", image="i", runtime="docker"), declared("bob", image="i", runtime="docker"))
    await house.until("running", agent="bob")
    bobs = docker.last.id
    docker.lose()
    await trio.sleep(60)
    docker.left += [Found("orphan", "eve", "", running=True), Found(bobs, "bob", "", running=True)]
    docker.left.append(Found("another", "bob", "", running=True))
    docker.lose(False)
    await trio.sleep(10)
    assert docker.discarded == ["orphan", "another"]
    docker.left.clear()


@pytest.mark.parametrize("runtime_kind", ["docker", "podman"], indirect=True)
async def test_an_engine_discards_nothing_that_somebody_holds(
    engine_runtime: EngineRuntime, make_spec: MakeSpec
) -> None:
    spec = make_spec("time.sleep(60)", hello=False)
    async with engine_runtime.launch(spec) as running:
        await engine_runtime.discard(Found(running.id, spec.name, spec.digest(), running=False))
        assert (await engine_runtime.engine.inspect(running.id))["Id"] == running.id
