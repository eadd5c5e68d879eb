"""What becomes of agents when the bridge or the engine dies, or stands still: they live on, and no work is lost."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.rpc import blocking
from armorclaw.testing.engines import engine_with_image, why_missing
from armorclaw.testing.handles import AgentHandle, BridgeProcess, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from armorclaw.testing.plugin import missing
from tests.faults.ward import SECONDS, Place, processes, ward

STANDS_STILL = 5.0
HEALTH = {"period": 2.0, "timeout": 2.0}
LOOK_ON = 7.0
"""Seconds after it goes on: three pings that wrongly counted as missed would have ended an agent by then."""


def start(bridge: BridgeProcess, place: Place, agents: dict[str, dict[str, Any]]) -> dict[str, AgentHandle]:
    """With these agents; returns when all are ready."""
    bridge.config["agents"] = agents
    if place.engine is not None:
        bridge.config["bridge"]["engine_socket"] = place.engine.socket_path
    bridge.start()
    handles = {name: AgentHandle(name, bridge) for name in agents}
    for handle in handles.values():
        handle.wait_ready()
    return handles


@contextmanager
def stopped_at_last(bridge: BridgeProcess) -> Iterator[None]:
    """However the block ends; a block that passes leaves a bridge that ends in order."""
    try:
        yield
        assert bridge.stop() == 0
    finally:
        bridge.kill()


def ask(bridge: BridgeProcess, agent: str, method: str) -> Any:
    """A call of the agent's own."""
    return blocking.call(bridge.socket, "agent.call", {"agent": agent, "method": method}, timeout=SECONDS)


@pytest.mark.mission("P0.3", "P3.1")
def test_a_bridge_that_is_killed(
    homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person], place: Place
) -> None:
    """Its agents are adopted, the same containers; what was unsettled is answered, once."""
    survives = place.kind != "sandbox"  # a sandbox dies with its bridge
    bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    alice = matrix_user("alice")
    room = alice.create_room("a room", invite=[bridge.user_id])

    def holds() -> bool:
        return bool(bridge.call("containers.inspect", name="patient")["health"]["unacknowledged"])

    with stopped_at_last(bridge):
        agents = start(bridge, place, {"patient": place.agent(rooms=[room]), "other": place.agent()})
        wait_until(lambda: bridge.user_id in alice.members(room), SECONDS, "the bridge joins")
        alice.catch_up()
        alice.send(room, "hold")
        wait_until(holds, SECONDS, "the agent has it in its hands")
        before = {name: agent.standing for name, agent in agents.items()}
        pids = processes(armorclaw_folder, "patient")
        bridge.kill()
        alice.send(room, "meanwhile")
        bridge.start()
        for name, agent in agents.items():
            now = agent.wait_ready()
            assert (now["container_id"] == before[name]["container_id"]) is survives
            assert bridge.call("containers.inspect", name=name)["adopted"] is survives
        assert (processes(armorclaw_folder, "patient") == pids) is survives
        ask(bridge, "patient", "let_go")
        heard = [alice.wait_for(lambda seen: True, timeout=SECONDS).body for _ in range(2)]
        heard += [seen.body for seen in alice.seen(quiet=0.5)]
        assert heard == ["hold at first" if survives else "hold again", "meanwhile at first"]
    assert processes(armorclaw_folder, "patient") == []


@pytest.mark.parametrize("place", ["docker"], indirect=True)
def test_what_a_bridge_that_was_killed_adopts(armorclaw_folder: Path, place: Place) -> None:
    """Not what is declared otherwise now, nor what is to be ended, nor what nobody declares."""
    bridge = BridgeProcess(armorclaw_folder, {})
    declared = {
        "same": place.agent(),
        "changed": place.agent(),
        "killed": place.agent(on_restart="kill"),
        "dropped": place.agent(),
    }
    with stopped_at_last(bridge):
        agents = start(bridge, place, declared)
        before = {name: agent.standing["container_id"] for name, agent in agents.items()}
        assert len(processes(armorclaw_folder, "dropped")) == 1
        bridge.kill()
        del declared["dropped"]
        declared["changed"]["env"] = {"CHANGED": "yes"}
        agents = start(bridge, place, declared)
        after = {name: agent.standing["container_id"] for name, agent in agents.items()}
        assert [name for name in declared if after[name] == before[name]] == ["same"]
        wait_until(lambda: not processes(armorclaw_folder, "dropped"), SECONDS, "no orphan is left")


@pytest.mark.parametrize("place", ["docker"], indirect=True)
def test_a_bridge_that_stands_still(armorclaw_folder: Path, place: Place) -> None:
    """Stopped for 5 s, it does not take its own absence for the death of everybody else."""
    bridge = BridgeProcess(armorclaw_folder, {})
    near = Place("sandbox")
    declared = {f"near{number}": near.agent(health=HEALTH) for number in range(4)}
    declared |= {f"boxed{number}": place.agent(health=HEALTH) for number in range(2)}

    def well() -> bool:
        standings = [agent.standing for agent in agents.values()]
        assert {standing["generation"] for standing in standings} == {1}
        assert {standing["last_end"] for standing in standings} == {""}
        missed = [bridge.call("containers.inspect", name=name)["health"]["pings_missed"] for name in agents]
        return {standing["state"] for standing in standings} == {"ready"} and not any(missed)

    with stopped_at_last(bridge):
        agents = start(bridge, place, declared)
        assert bridge.process is not None
        os.kill(bridge.process.pid, signal.SIGSTOP)
        time.sleep(STANDS_STILL)
        os.kill(bridge.process.pid, signal.SIGCONT)
        until = time.monotonic() + LOOK_ON
        while time.monotonic() < until:
            well()
            time.sleep(0.1)
        wait_until(well, SECONDS, "all answer")


@pytest.mark.mission("P0.1", "P0.3")
@pytest.mark.parametrize("kind", ["docker", "podman"])
async def test_an_engine_that_is_killed(armorclaw_folder: Path, kind: Any) -> None:
    """Its agents live on, unknown to it: they are served all the while, and none is started anew for that. One that
    dies meanwhile is missed when the engine is back."""
    if reason := why_missing(kind):
        missing(reason)
    with engine_with_image(kind, live_restore=True) as engine:
        place = Place(kind, engine)
        agents = {"patient": place.agent(), "unlucky": place.agent()}
        async with ward(armorclaw_folder, place, agents) as house, house.others_served():
            before, pids = await house.inspect("patient"), processes(armorclaw_folder, "patient")
            engine.engine.kill()
            for name in agents:
                await house.until_state(name, "unknown")
            assert await house.ask("patient", "echo", n=1) == {"n": 1}
            await house.work("patient", 1)
            await house.until_handled("patient", [(1, 0)])
            house.kill("unlucky")
            await trio.to_thread.run_sync(engine.engine.restart)
            await house.until_ready("unlucky", generation=2)
            assert (await house.ended("unlucky"))["text"]
            after = await house.until_so("patient", lambda now: now["state"] == "ready", "is known again")
            assert after["generation"] == 1
            assert after["container_id"] == before["container_id"]
            assert processes(armorclaw_folder, "patient") == pids


async def test_a_docker_that_ends_what_lived_on(armorclaw_folder: Path) -> None:
    """Without live-restore dockerd stops, when it comes back, what it had lost: that is an end as any other."""
    if reason := why_missing("docker"):
        missing(reason)
    with engine_with_image("docker") as engine:
        place = Place("docker", engine)
        async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house, house.others_served():
            await house.work("patient", 1, hold=True)
            engine.engine.kill()
            await house.until_state("patient", "unknown")
            await trio.to_thread.run_sync(engine.engine.restart)
            await house.until_ready("patient", generation=2)
            await house.until_handled("patient", [(1, 1)])
