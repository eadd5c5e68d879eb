"""Agents that take all there is of something: they meet their limits, it is told, and others live on."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.faults.ward import SECONDS, Place, processes, ward

MIB = 1024 * 1024
SMALL = {"memory": "96 MiB", "pids": 40, "files": 200}


@pytest.mark.mission("P0.1")
async def test_memory(armorclaw_folder: Path, place: Place) -> None:
    """Its main process eats: the kernel ends it, or refuses it more, and the end says so."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            await house.ask("patient", "eat")
            end = await house.ended("patient")
            if end["code"] == 70:  # refused: a process of a sandbox has a limit of its own, below that of the whole
                assert place.kind == "sandbox"
            else:
                assert end["signal"] == signal.SIGKILL
                assert end["cause"] == "oom" or "memory limit suspected" in end["text"]
                assert place.kind != "docker" or (end["cause"], end["oom"]) == ("oom", True)
            await house.until_ready("patient", generation=2)


@pytest.mark.parametrize("place", ["docker", "podman"], indirect=True)
async def test_memory_of_a_child(armorclaw_folder: Path, place: Place) -> None:
    """The kernel ends a child, the agent lives on: that is told, and again in the record of its end."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            assert await house.ask("patient", "eat_in_child") == -9
            now = await house.inspect("patient")
            assert (now["generation"], now["ready"]) == (1, True)
            await house.until_warned("patient", "oom")
            await house.ask("patient", "exit", status=3)
            end = await house.ended("patient")
            assert (end["code"], end["oom"]) == (3, True)
            assert "oom" in end["text"].lower() or "memory" in end["text"]
            await house.until_ready("patient", generation=2)


async def test_memory_of_many(armorclaw_folder: Path, place: Place) -> None:
    """No child takes more than one may, but all together do: the limit is that of the whole agent."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            ends = await house.ask("patient", "eat_together", count=4, bytes=40 * MIB)
            assert -9 in ends
            now = await house.inspect("patient")
            assert (now["generation"], now["ready"]) == (1, True)
            await house.until_warned("patient", "oom")


@pytest.mark.mission("P0.1")
async def test_processes(armorclaw_folder: Path, place: Place) -> None:
    """A fork bomb meets the limit, and a warning is raised; given back, the agent is as before."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            count = await house.ask("patient", "fork")
            assert 20 < count < SMALL["pids"]
            assert len(processes(house.folder, "patient")) == count + 1
            await house.until_warned("patient", "pids")
            await house.ask("patient", "release")
            assert await house.ask("patient", "echo", n=1) == {"n": 1}
            assert (await house.inspect("patient"))["generation"] == 1


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_a_fork_bomb_dies_with_its_agent(armorclaw_folder: Path, place: Place) -> None:
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            await house.ask("patient", "fork")
            old = processes(house.folder, "patient")
            house.kill("patient")
            await house.until_ready("patient", generation=2)
            assert set(old).isdisjoint(processes(house.folder, "patient"))


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_open_files(armorclaw_folder: Path, place: Place) -> None:
    """An agent without a descriptor to spare keeps its session and answers."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(limits=SMALL)}) as house:
        async with house.others_served():
            count = await house.ask("patient", "open")
            assert 150 < count < SMALL["files"]
            assert await house.ask("patient", "echo", n=1) == {"n": 1}
            await house.work("patient", 1)
            await house.until_handled("patient", [(1, 0)])
            await house.ask("patient", "release")
            assert (await house.inspect("patient"))["generation"] == 1


async def test_long_lines(armorclaw_folder: Path, place: Place) -> None:
    """A line of 10 MiB: printed while the agent is served, kept as far as logs are kept, and the bridge no larger."""
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house:
        async with house.others_served():
            await house.ask("patient", "print", bytes=10 * MIB)
            before = resident()
            text = ""
            with trio.fail_after(SECONDS):
                async with house.client.stream("containers.logs", name="patient", tail=5, follow=True) as logs:
                    async for piece in logs:
                        text += piece["text"] if piece["stream"] != "bridge" else ""
                        if text.endswith("\nand on\n"):
                            break
            assert len(text) <= 10 * MIB + len("\nand on\n")
            assert resident() - before < 40 * MIB  # the client is in this process, and keeps the text
            assert await house.ask("patient", "echo", n=1) == {"n": 1}
            assert (await house.inspect("patient"))["generation"] == 1


async def test_zombies(armorclaw_folder: Path, place: Place) -> None:
    """Children nobody waits for do not make it ill, and go with it."""
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house:
        async with house.others_served():
            assert await house.ask("patient", "zombies", count=20) >= 20
            assert (await house.inspect("patient"))["state"] == "ready"
            house.kill("patient")
            await house.until_ready("patient", generation=2)
            assert await house.ask("patient", "zombies", count=0) == 0


def resident() -> int:
    """Bytes of this process, which has the bridge in it."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
