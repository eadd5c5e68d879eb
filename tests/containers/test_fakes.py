"""The fake runtime keeps the promises of the real ones, as far as that goes without processes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import ContainerSpec, Exit, Found
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeRuntime
from tests.containers.test_runtime_contract import (  # noqa: F401  # they are run here too
    test_cancellation_at_any_moment_leaves_nothing,
    test_check_names_what_it_is,
    test_exit_code,
    test_it_starts_again_under_the_same_name,
    test_leaving_without_a_start,
)

Make = Callable[..., ContainerSpec]


@pytest.fixture
def runtime_kind() -> str:
    return "docker"


@pytest.fixture
def runtime(runtime_kind: str) -> FakeRuntime:
    return FakeRuntime(runtime_kind)


@pytest.fixture
def open_runtime(runtime: FakeRuntime) -> Callable[[], object]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Runtime]:
        await trio.lowlevel.checkpoint()
        yield runtime

    return opened


@pytest.fixture
def make_spec(folder: Path) -> Make:
    def make(script: str = "", *, hello: bool = True) -> ContainerSpec:
        return ContainerSpec(
            instance="i", name="ada", image="x", command=(script,), env={}, uid=10001, gid=10001, socket_dir=folder
        )

    return make


async def test_stop_and_many_who_wait(runtime: FakeRuntime, make_spec: Make) -> None:
    ends: list[Exit] = []
    async with runtime.launch(make_spec()) as running:

        async def wait() -> None:
            ends.append(await running.wait())

        await running.start()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            nursery.start_soon(wait)
            await running.stop(1)
        await running.stop(1)
        ends.append(await running.wait())
    assert [end.signal for end in ends] == [15, 15, 15]


async def test_an_error_in_the_block_removes_it_and_passes(runtime: FakeRuntime, make_spec: Make) -> None:
    with pytest.raises(ZeroDivisionError):
        async with runtime.launch(make_spec()):
            raise ZeroDivisionError
    assert runtime.live == []


async def test_adopting_and_discarding(runtime: FakeRuntime) -> None:
    found = Found("x", "ada", "0", running=True)
    with pytest.raises(ArmorclawError) as caught:
        async with runtime.adopt(found):
            pass
    assert caught.value.name == "container_not_found"
    runtime.left.append(found)
    async with runtime.adopt(found) as running:
        assert running.id == "x"
    assert await runtime.survivors("i") == []
    await runtime.discard(found)
