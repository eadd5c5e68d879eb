"""Which runtime an agent gets, and how long it is kept open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing

from armorclaw.containers import runtimes as module
from armorclaw.containers.engines.detect import Candidate
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.local.process import ProcessRuntime
from armorclaw.containers.local.sandbox import SandboxRuntime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import declared

pytestmark = pytest.mark.mission("K.start")


@attrs.define
class Engines:
    """What stands in for engines: where they are, and which are open."""

    usable: dict[str, str] = attrs.field(factory=lambda: {"docker": "/d.sock", "podman": "/p.sock"})
    opened: list[str] = attrs.field(factory=list)
    open_now: set[str] = attrs.field(factory=set)
    hangs: bool = False
    error: ArmorclawError | None = None

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[object]:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        if self.hangs:
            await trio.sleep_forever()
        self.opened.append(path)
        self.open_now.add(path)
        try:
            yield object()
        finally:
            self.open_now.remove(path)

    async def candidates(self) -> list[Candidate]:
        await trio.lowlevel.checkpoint()
        return [candidate(kind, self.usable.get(kind)) for kind in ("docker", "podman")]


def candidate(kind: str, path: str | None) -> Candidate:
    text = "there is no such file" if path is None else kind
    return Candidate(kind, path or f"/no/{kind}.sock", "its usual place", path is not None, text, f"install {kind}")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines()
    monkeypatch.setattr(EngineRuntime, "open", made.open)
    monkeypatch.setattr(module, "candidates", made.candidates)
    return made


@asynccontextmanager
async def running(socket: Path | None = None) -> AsyncIterator[Runtimes]:
    runtimes = Runtimes(socket, Path("/nowhere/logs"))
    async with trio.open_nursery() as nursery:
        await nursery.start(runtimes.run)
        try:
            yield runtimes
        finally:
            runtimes.close()


async def test_by_name_or_by_whether_there_is_an_image(engines: Engines) -> None:
    async with running() as runtimes:
        assert isinstance(await runtimes.choose(declared()), SandboxRuntime)
        assert isinstance(await runtimes.choose(declared(runtime="process")), ProcessRuntime)
        docker = await runtimes.choose(declared(image="i"))
        assert docker is await runtimes.choose(declared(image="i", runtime="docker"))
        assert docker is not await runtimes.choose(declared(image="i", runtime="podman"))
        assert engines.opened == ["/d.sock", "/p.sock"]
    assert engines.open_now == set()


async def test_it_never_falls_back_to_a_weaker_one(engines: Engines) -> None:
    engines.usable = {}
    async with running() as runtimes:
        with pytest.raises(ArmorclawError) as caught:
            await runtimes.choose(declared(image="i"))
        assert caught.value.name == "engine_unreachable"
        assert "/no/docker.sock: there is no such file; /no/podman.sock" in caught.value.why
        with pytest.raises(ArmorclawError, match="no Podman"):
            await runtimes.get("podman")
        assert await runtimes.every_engine() == []
        engines.usable = {"podman": "/p.sock"}
        assert len(await runtimes.every_engine()) == 1


async def test_an_engine_that_is_named_is_the_only_one(engines: Engines) -> None:
    async with running(Path("/mine.sock")) as runtimes:
        assert await runtimes.get("docker") is await runtimes.get("podman")
        assert len(await runtimes.every_engine()) == 1
    assert engines.opened == ["/mine.sock"]


async def test_one_that_cannot_be_opened_harms_no_other(engines: Engines) -> None:
    engines.error = ArmorclawError("engine_unreachable", "it does not answer")
    async with running() as runtimes:
        for _ in range(2):
            with pytest.raises(ArmorclawError, match="it does not answer"):
                await runtimes.get("docker")
        assert await runtimes.every_engine() == []
        assert isinstance(await runtimes.get("sandbox"), SandboxRuntime)
        engines.error = None
        await runtimes.get("docker")
        assert engines.open_now == {"/d.sock"}


async def test_wanted_twice_at_once_it_is_opened_once(engines: Engines) -> None:
    found = []

    async def get() -> None:
        found.append(await runtimes.get("docker"))

    async with running() as runtimes, trio.open_nursery() as nursery:
        nursery.start_soon(get)
        nursery.start_soon(get)
    assert found[0] is found[1]
    assert engines.opened == ["/d.sock"]


async def test_before_and_after_there_is_none(engines: Engines) -> None:
    async with running() as runtimes:
        await runtimes.get("docker")
    with pytest.raises(ArmorclawError, match="restarting"):
        await runtimes.get("docker")


async def test_cancelled_it_stays_open_until_no_agent_is_left(engines: Engines) -> None:
    runtimes = Runtimes(None, Path("/nowhere/logs"))
    ended = trio.Event()
    scope = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            await runtimes.run(task_status=task_status)
        ended.set()

    async with trio.open_nursery() as nursery:
        await nursery.start(run)
        await runtimes.get("docker")
        scope.cancel(reason="the test says so")
        await trio.testing.wait_all_tasks_blocked()
        assert engines.open_now == {"/d.sock"}
        assert not ended.is_set()
        with pytest.raises(ArmorclawError, match="restarting"):
            await runtimes.get("podman")
        runtimes.close()
        with trio.fail_after(30):
            await ended.wait()
        assert engines.open_now == set()
        await nursery.start(runtimes.run)
        await runtimes.get("docker")  # another, not the one that is closed
        assert engines.opened == ["/d.sock", "/d.sock"]
        runtimes.close()
    assert engines.open_now == set()


async def test_run_under_a_cancelled_scope_ends_at_once(engines: Engines) -> None:
    runtimes = Runtimes(None, Path("/nowhere/logs"))
    with trio.fail_after(30), trio.CancelScope() as scope:
        scope.cancel(reason="before it began")
        async with trio.open_nursery() as nursery:
            await nursery.start(runtimes.run)
    assert scope.cancelled_caught


@pytest.mark.parametrize("hangs", [True, False])
async def test_a_wish_that_is_cancelled_while_an_engine_opens_leaves_nothing_open(
    engines: Engines, hangs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also when it has just been opened: nobody took it over."""
    engines.hangs = hangs
    scope = trio.CancelScope()
    opened = engines.open
    if not hangs:

        @asynccontextmanager
        async def open_and_cancel(path: str) -> AsyncIterator[object]:
            async with opened(path) as made:
                scope.cancel(reason="at the last moment")
                yield made

        monkeypatch.setattr(EngineRuntime, "open", open_and_cancel)
    async with running() as runtimes:
        with trio.fail_after(30), scope:
            if hangs:
                scope.deadline = trio.current_time() + 0.05
            await runtimes.get("docker")
        await trio.testing.wait_all_tasks_blocked()
        assert engines.open_now == set()
        engines.hangs = False
        monkeypatch.setattr(EngineRuntime, "open", opened)
        await runtimes.get("docker")
        assert engines.open_now == {"/d.sock"}
