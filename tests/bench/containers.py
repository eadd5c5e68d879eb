"""Agents that die, hang, sleep and are adopted: how soon the bridge knows, and what watching them costs.

Deaths are in Docker, and take turns with the same done by hand (`_bare_container`): kill, wait for the verdict,
remove, create, start, until the same agent says `agent.ready` on a bare socket server. Times are taken in this
process, which has the bridge in it; an agent's own are from the same clock of the host. Cost is that of a bridge in a
process of its own with idle agents in sandboxes, less that of one without any.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import attrs
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config
from armorclaw.containers.agent import Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.engines.http import Engine
from armorclaw.containers.recipe import spec_of
from armorclaw.containers.snapshot import snapshot_library
from armorclaw.events.event import Event
from armorclaw.testing.engines import EngineWithImage, engine_with_image, why_missing
from armorclaw.testing.handles import AgentHandle, BridgeProcess
from tests.bench import Figure, percentile
from tests.bench._bare_container import BareContainer, Death
from tests.bench._real import ROOT, folder
from tests.faults.ward import PATIENT, processes

AT_ONCE = {"in_row": 0, "per_hour": 0, "stable": 0.001, "longest_pause": 0.001}
"""Every restart at once, as after a life that was long enough, and never given up."""

DEATHS, QUICK_DEATHS = 40, 5
HANGS = 6
SETTLE = 0.2
"""Seconds from a start to the next death, in which everybody finishes what comes after a start."""

TOGETHER = 20
EVENTS = 50
STORMS, QUICK_STORMS = 3, 1
ADOPTED = 5
ADOPTIONS, QUICK_ADOPTIONS = 5, 2
WAKINGS, QUICK_WAKINGS = 8, 2
IDLE, QUICK_IDLE = 100, 40
WATCHED, QUICK_WATCHED = 30.0, 5.0
PATIENCE = 60.0
"""Seconds to wait for anything before giving up."""


def run(quick: bool) -> list[Figure]:
    """About 40 s when quick, 150 s otherwise."""
    if reason := why_missing("docker"):
        raise RuntimeError(reason)
    with engine_with_image("docker") as engine:
        figures = trio.run(deaths, engine, QUICK_DEATHS if quick else DEATHS)
        figures += trio.run(others, QUICK_STORMS if quick else STORMS)
        figures += trio.run(hangs)
        figures += adoptions(engine, QUICK_ADOPTIONS if quick else ADOPTIONS)
        figures += trio.run(wakings, engine, QUICK_WAKINGS if quick else WAKINGS)
    return figures + watching(*((QUICK_IDLE, QUICK_WATCHED) if quick else (IDLE, WATCHED)))


class Ward:
    """A bridge in this process, and what its agents go through, with the time of each change."""

    def __init__(self, bridge: Bridge, nursery: trio.Nursery) -> None:
        self.bridge = bridge
        self._nursery = nursery
        self.history: dict[str, list[tuple[float, str, int]]] = {}

    def watch(self, name: str) -> Agent:
        agent = self.bridge.fleet.get(name)
        self.history[name] = []
        self._nursery.start_soon(self._watch, agent)
        return agent

    async def _watch(self, agent: Agent) -> None:
        while True:
            self.history[agent.name].append((time.monotonic(), agent.state.value, agent.generations))
            await agent.progress.wait()

    async def until(self, agent: Agent, true: Callable[[], bool]) -> None:
        with trio.fail_after(PATIENCE):
            while not true():
                await agent.progress.wait()
            while [entry[1:] for entry in self.history[agent.name][-1:]] != [(agent.state.value, agent.generations)]:
                await trio.lowlevel.checkpoint()  # it is being written down

    async def until_ready(self, agent: Agent, generation: int = 1) -> None:
        await self.until(agent, lambda: agent.state.value == "ready" and agent.generations >= generation)

    def first(self, name: str, states: Sequence[str], since: float) -> float:
        """When it first was in one of these states."""
        return next(at for at, state, _ in self.history[name] if at >= since and state in states)


@asynccontextmanager
async def ward(home: Path, agents: dict[str, Any], engine: EngineWithImage | None = None) -> AsyncIterator[Ward]:
    async with open_bridge(Config.parse(_config(home, agents, engine))) as bridge, trio.open_nursery() as nursery:
        made = Ward(bridge, nursery)
        for agent in [made.watch(name) for name in agents]:
            await made.until_ready(agent)
        yield made
        nursery.cancel_scope.cancel(reason="measured")


def _config(home: Path, agents: dict[str, Any], engine: EngineWithImage | None) -> dict[str, Any]:
    where = {"state_dir": str(home / "state"), "runtime_dir": str(home / "run")}
    if engine is not None:
        where["engine_socket"] = engine.socket_path
    return {"bridge": where, "agents": agents}


def _boxed(engine: EngineWithImage, **more: Any) -> dict[str, Any]:
    return {"runtime": "docker", "image": engine.image, "code": str(PATIENT), **more}


# -- death


@attrs.frozen
class Noticed:
    """Seconds from a kill until the bridge suspected it, had the verdict, and had the next one ready."""

    suspect: float
    verdict: float
    ready: float


async def deaths(engine: EngineWithImage, rounds: int) -> list[Figure]:
    ours: list[Noticed] = []
    bare: list[Death] = []
    with folder() as home, folder() as beside:
        async with ward(home, {"patient": _boxed(engine, restart=AT_ONCE)}, engine) as house:
            agent = house.bridge.fleet.get("patient")
            assert agent.generation is not None
            state_dir, runtime = house.bridge.config.bridge.state_dir, agent.generation.runtime
            library = snapshot_library(state_dir)
            spec = await spec_of(
                agent.declared, runtime, agent.socket, instance="bare", state_dir=state_dir, library=library
            )
            async with Engine.open(engine.socket_path) as client:
                async with BareContainer.running(client, spec, beside) as by_hand:
                    for number in range(rounds):
                        for is_ours in (True, False) if number % 2 else (False, True):
                            await trio.sleep(SETTLE)
                            if is_ours:
                                ours.append(await _die(house, agent))
                            else:
                                bare.append(await by_hand.die())
    pairs = zip(ours, bare, strict=True)
    suspect, verdict = [each.suspect * 1000 for each in ours], [each.verdict * 1000 for each in ours]
    return [
        Figure("deaths in Docker", len(ours)),
        Figure("end of its session by hand, p50", percentile([each.gone * 1000 for each in bare], 0.5), "ms"),
        Figure("end of its session by hand, p99", percentile([each.gone * 1000 for each in bare], 0.99), "ms"),
        Figure("suspect by the end of its session, p50", percentile(suspect, 0.5), "ms"),
        Figure("suspect by the end of its session, p99", percentile(suspect, 0.99), "ms", 20.0),
        Figure("verdict by hand, p50", percentile([each.verdict * 1000 for each in bare], 0.5), "ms"),
        Figure("verdict by hand, p99", percentile([each.verdict * 1000 for each in bare], 0.99), "ms"),
        Figure("verdict, p50", percentile(verdict, 0.5), "ms"),
        Figure("verdict, p99", percentile(verdict, 0.99), "ms", 250.0),
        Figure("death to next ready by hand, p50", percentile([each.ready * 1000 for each in bare], 0.5), "ms"),
        Figure("death to next ready, p50", percentile([each.ready * 1000 for each in ours], 0.5), "ms"),
        Figure(
            "death to next ready, bridge / by hand", statistics.median(a.ready / b.ready for a, b in pairs), "x", 1.3
        ),
    ]


async def _die(house: Ward, agent: Agent) -> Noticed:
    generation = agent.generation
    assert generation is not None
    pid = await generation.running.main_pid()
    assert pid is not None
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    await house.until_ready(agent, generation.number + 1)
    verdict = house.first(agent.name, ("exited", "oom"), killed)
    suspect = house.first(agent.name, ("suspect", "exited", "oom"), killed)
    ready = house.first(agent.name, ("ready",), verdict)
    return Noticed(suspect - killed, verdict - killed, ready - killed)


async def others(rounds: int) -> list[Figure]:
    """From before an event is recorded until the handler of an agent begins, while twenty others die and return."""
    alone: list[float] = []
    beside: list[float] = []
    names = [f"patient{number}" for number in range(TOGETHER)]
    near = {"runtime": "sandbox", "code": str(PATIENT), "restart": AT_ONCE}

    async def tell(house: Ward, number: int) -> float:
        now = house.bridge.around.clock.now_ms()
        began = time.monotonic()
        await house.bridge.journal.record([Event.make("test.work", {"n": number}, at_ms=now, agent="witness")])
        return await _handled_at(house.bridge, "witness", number) - began

    with folder() as home:
        async with ward(home, dict.fromkeys(["witness", *names], near)) as house:
            number = 0
            for turn in range(rounds):
                alone += [
                    await tell(house, -each) * 1000 for each in range(turn * EVENTS + 1, (turn + 1) * EVENTS + 1)
                ]
                pids = [processes(home, name)[0] for name in names]
                for pid in pids:
                    os.kill(pid, signal.SIGKILL)
                agents = [house.bridge.fleet.get(name) for name in names]
                while any(not (agent.state.value == "ready" and agent.generations > turn + 1) for agent in agents):
                    beside.append(await tell(house, number := number + 1) * 1000)
    return [
        Figure("event to another agent, nobody dies, p50", percentile(alone, 0.5), "ms"),
        Figure("event to another agent, nobody dies, p99", percentile(alone, 0.99), "ms"),
        Figure(f"the same while {TOGETHER} die at once, p50", percentile(beside, 0.5), "ms"),
        Figure(f"the same while {TOGETHER} die at once, p99", percentile(beside, 0.99), "ms", 50.0),
    ]


# -- hang


async def hangs() -> list[Figure]:
    """Stopped one after the other over a second, so that they are at all points between two pings."""
    took: list[float] = []
    names = [f"patient{number}" for number in range(HANGS)]
    fast = {"runtime": "sandbox", "code": str(PATIENT), "health": {"period": 1.0}}

    async def hang(house: Ward, home: Path, number: int) -> None:
        await trio.sleep(number / HANGS)
        agent = house.bridge.fleet.get(names[number])
        pid = processes(home, agent.name)[0]
        began = time.monotonic()
        os.kill(pid, signal.SIGSTOP)
        await house.until(agent, lambda: agent.generations > 1)
        took.append(house.first(agent.name, ("hung",), began) - began)

    with folder() as home:
        async with ward(home, dict.fromkeys(names, fast)) as house:
            async with trio.open_nursery() as nursery:
                for number in range(HANGS):
                    nursery.start_soon(hang, house, home, number)
    return [
        Figure("hang noticed in fast mode, median", statistics.median(took), "s"),
        Figure("hang noticed in fast mode, longest", max(took), "s", 4.5),
    ]


# -- adoption


def adoptions(engine: EngineWithImage, rounds: int) -> list[Figure]:
    """From the first agent's socket of a new bridge until all agents of one that was killed are ready again."""
    served: list[float] = []
    opened: list[float] = []
    names = [f"patient{number}" for number in range(ADOPTED)]
    with folder() as home:
        agents = {name: _boxed(engine) for name in names}
        for _ in range(rounds):
            killed = BridgeProcess(home, _config(home, agents, engine))
            killed.start()
            before = {name: AgentHandle(name, killed).wait_ready()["container_id"] for name in names}
            killed.kill()
            began = time.monotonic()
            listened, ready, after = trio.run(_adopt, home, agents, engine)
            assert before == after
            served.append((ready - listened) * 1000)
            opened.append((ready - began) * 1000)
        clean = BridgeProcess(home, _config(home, agents, engine))
        clean.start()
        clean.stop()
    return [
        Figure(f"bridge started to {ADOPTED} agents serving, p50", statistics.median(opened), "ms"),
        Figure(f"listening to {ADOPTED} adopted agents serving, p50", statistics.median(served), "ms", 250.0),
    ]


async def _adopt(home: Path, agents: dict[str, Any], engine: EngineWithImage) -> tuple[float, float, dict[str, str]]:
    """When the first agent could connect, when the last was ready, and the ids of their containers.

    This bridge leaves in order, which ends its agents.
    """
    listening: list[float] = []
    listen = AgentSocket.listen

    def timed(socket: AgentSocket) -> trio.SocketListener:
        listener = listen(socket)
        listening.append(time.monotonic())
        return listener

    with mock.patch.object(AgentSocket, "listen", timed):
        async with ward(home, agents, engine) as house:
            ready = max(house.first(name, ("ready",), 0.0) for name in agents)
            ids = {row.name: str(row.container_id) for row in house.bridge.fleet.standings()}
            return min(listening), ready, ids


# -- sleep


async def wakings(engine: EngineWithImage, rounds: int) -> list[Figure]:
    """From before an event is recorded until the handler of the agent that slept begins."""
    took: list[float] = []
    with folder() as home:
        async with ward(home, {"patient": _boxed(engine, idle_timeout=0.5)}, engine) as house:
            agent = house.bridge.fleet.get("patient")
            for number in range(rounds):
                await house.until(agent, lambda: agent.state.value == "sleeping")
                now = house.bridge.around.clock.now_ms()
                event = Event.make("test.work", {"n": number}, at_ms=now, agent=agent.name)
                began = time.monotonic()
                await house.bridge.journal.record([event])
                await house.until_ready(agent)
                took.append(await _handled_at(house.bridge, agent.name, number) - began)
    return [
        Figure("wake from sleep to work, Docker, p50", statistics.median(took), "s"),
        Figure("wake from sleep to work, Docker, longest", max(took), "s", 1.5),
    ]


async def _handled_at(bridge: Bridge, agent: str, number: int) -> float:
    with trio.fail_after(PATIENCE):
        while True:
            if (
                at := await bridge.call("agent.call", agent=agent, method="handled_at", params={"n": number})
            ) is not None:
                return float(at)
            await trio.sleep(0.01)


# -- cost


def watching(count: int, seconds: float) -> list[Figure]:
    """Of a bridge in a process of its own, in sandboxes, each with the limits and the pings it has by default."""
    without, watched = (_idle(number, seconds) for number in (0, count))
    share = (watched["cpu_share"] - without["cpu_share"]) * 100
    size = (watched["resident"] - without["resident"]) / count / 1000
    return [
        Figure("bridge with no agent, CPU of one core", without["cpu_share"] * 100, "%"),
        Figure(f"watching {count} idle agents in sandboxes, CPU", share, "%", 5.0),
        Figure("memory of each", size, "kB", 150.0),
    ]


def _idle(count: int, seconds: float) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.bench._idle_agents", str(count), str(seconds)]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
