"""A part of the bridge is restarted, and the bridge goes on: what runs in an engine goes on as well."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config
from armorclaw.containers.agent import Agent
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Role
from armorclaw.testing.engines import EngineWithImage
from tests.faults.ward import Place, processes

ENGINES = ["docker", "podman"]
ASKED = {"agent": "ada", "method": "echo", "params": {"n": 1}}


@pytest.fixture(params=[*ENGINES, "sandbox"])
def place(request: pytest.FixtureRequest) -> Place:
    kind = str(request.param)
    engine = request.getfixturevalue(kind) if kind in ENGINES else None
    assert engine is None or isinstance(engine, EngineWithImage)
    return Place(kind, engine)


@asynccontextmanager
async def running(folder: Path, place: Place, **declared: Any) -> AsyncIterator[Bridge]:
    where = {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")}
    if place.engine is not None:
        where["engine_socket"] = place.engine.socket_path
    config = Config.parse({"bridge": where, "agents": {"ada": place.agent(**declared)}})
    with trio.fail_after(60):
        async with open_bridge(config) as bridge:
            await until_ready(bridge)
            yield bridge


async def until_ready(bridge: Bridge, *, generation: int = 1) -> Agent:
    agent = bridge.fleet.get("ada")
    while not (agent.state == "ready" and agent.generations >= generation):
        await agent.progress.wait()
    return agent


async def crash(bridge: Bridge) -> None:
    """The supervisor of containers fails, and is started again by that of the features."""

    async def fail() -> None:
        raise RuntimeError("the test says so")

    nursery = bridge.fleet._nursery
    assert nursery is not None
    nursery.start_soon(fail)
    await trio.lowlevel.checkpoint()


async def restart_store(bridge: Bridge) -> None:
    """All that depends on it is restarted, down to the listeners."""
    await bridge._root.restart("store")


@pytest.mark.mission("P0.3")
@pytest.mark.parametrize("harm", [crash, restart_store])
async def test_an_agent_outlives_its_supervisor(armorclaw_folder: Path, place: Place, harm: Any) -> None:
    """The same container, whatever `on_restart` says of another bridge's; the sandbox's is started again."""
    async with running(armorclaw_folder, place, on_restart="kill") as bridge:
        agent = bridge.fleet.get("ada")
        assert agent.generation is not None
        before, pids = agent.generation.running.id, processes(armorclaw_folder, "ada")
        await harm(bridge)
        await until_ready(bridge, generation=2)
        assert agent.generation is not None
        after = agent.generation.running.id
        if place.engine is None:
            assert after != before
        else:
            assert after == before
            assert agent.generation.adopted
            assert processes(armorclaw_folder, "ada") == pids
            assert not agent.ends
        assert await call_local(bridge.registry, "agent.call", ASKED, role=Role.OPERATOR) == {"n": 1}
    assert processes(armorclaw_folder, "ada") == []


@pytest.mark.parametrize("place", ["docker"], indirect=True)
async def test_a_bridge_that_ends_before_they_are_adopted_leaves_nothing(
    armorclaw_folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor of containers is back, but has not come as far as to look for what it left."""
    begun = trio.Event()

    async def hang() -> set[str]:
        begun.set()
        await trio.sleep_forever()

    async with running(armorclaw_folder, place) as bridge:
        pids = processes(armorclaw_folder, "ada")
        monkeypatch.setattr(bridge.fleet._register, "stopped", hang)
        await crash(bridge)
        await begun.wait()
        assert processes(armorclaw_folder, "ada") == pids != []
    assert processes(armorclaw_folder, "ada") == []
