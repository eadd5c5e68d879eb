"""Agents that die: each death is seen, its reason kept, the agent started again, and nobody else notices."""

from __future__ import annotations

import re
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from armorclaw.containers.engines.http import Engine
from tests.faults.ward import Place, Ward, ward

IMPATIENT = {"in_row": 3, "longest_pause": 0.2}
"""A restart record for tests that do not wait for back-off."""

LIFE = "starting (running )?ready (suspect ready )*"
"""The states of an agent that lives. It may be ready before the engine says that it runs, and late with an answer."""


@pytest.mark.mission("P0.1", "P0.3")
async def test_killed(armorclaw_folder: Path, place: Place) -> None:
    """SIGKILL from nowhere: its session's end makes it suspect, its container's end is the verdict."""
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house, house.others_served():
        before = await house.inspect("patient")
        house.kill("patient")
        end = await house.ended("patient")
        after = await house.until_ready("patient", generation=2)
        assert (end["cause"], end["signal"], end["generation"]) == ("signal", signal.SIGKILL, 1)
        assert end["container_id"] == before["container_id"] != after["container_id"]
        assert after["restarts"] == 1
        assert after["last_end"] == end["text"]
        # the bridge may have the verdict as soon as the end of the session
        lives = re.compile(f"{LIFE}(suspect )?exited restarting {LIFE}")
        await house.until(
            lambda: lives.fullmatch("".join(f"{state} " for state in house.states("patient"))),
            "it died and came back",
        )
        assert await house.ask("patient", "echo", n=1) == {"n": 1}


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_it_exits(armorclaw_folder: Path, place: Place) -> None:
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house, house.others_served():
        await house.ask("patient", "exit", status=5)
        end = await house.ended("patient")
        assert (end["cause"], end["code"], end["signal"]) == ("exit", 5, None)
        assert "5" in end["text"]
        await house.until_ready("patient", generation=2)


@pytest.mark.parametrize("place", ["sandbox", "docker", "podman"], indirect=True)
async def test_dead_or_mute_from_birth(armorclaw_folder: Path, place: Place) -> None:
    """One exits before it is ready and one never gets ready: tried again, then given up, with one alert for each."""
    agents = {
        "dead": place.agent(env={"BORN": "dead"}, restart=IMPATIENT),
        "mute": place.agent(env={"BORN": "mute"}, restart=IMPATIENT, ready_timeout=0.7),
    }
    async with ward(armorclaw_folder, place, agents) as house, house.others_served():
        for name, cause in (("dead", "exit"), ("mute", "never ready")):
            await house.until_state(name, "failed")
            ends = (await house.inspect(name))["ends"]
            assert [end["cause"] for end in ends] == [cause] * len(ends)
            assert len(ends) >= IMPATIENT["in_row"]
            assert "ready" not in house.states(name)
            await house.until_alert(name)
        assert {end["code"] for end in (await house.inspect("dead"))["ends"]} == {3}
        assert [len(house.of(name, "alert")) for name in agents] == [1, 1]
        await house.until_gone("mute")


@pytest.mark.mission("P0.1")
@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_a_crash_loop(armorclaw_folder: Path, place: Place) -> None:
    """Ready each time, and dead soon after: given up with one alert; a start by hand begins with a clear record."""
    agents = {"patient": place.agent(restart=IMPATIENT)}
    async with ward(armorclaw_folder, place, agents) as house, house.others_served():
        generation = 0
        while "failed" not in house.states("patient"):
            generation += 1
            await house.until_ready("patient", generation=generation)
            house.kill("patient")
            await house.ended("patient", times=generation)
            await house.until(partial(came_back, house, generation), "it comes back or is given up")
        assert IMPATIENT["in_row"] <= generation <= IMPATIENT["in_row"] + 1
        await house.until_alert("patient")
        await house.client.call("containers.restart", name="patient")
        await house.until_ready("patient", generation=generation + 1)
        house.kill("patient")
        await house.until_ready("patient", generation=generation + 2)
        assert len(house.of("patient", "alert")) == 1


def came_back(house: Ward, deaths: int) -> bool:
    states = house.states("patient")
    return states.count("ready") > deaths or "failed" in states


@pytest.mark.parametrize("place", ["docker", "podman"], indirect=True)
async def test_a_container_removed_by_hand(armorclaw_folder: Path, place: Place) -> None:
    """`docker rm -f`: the agent is not given up for it, and nobody stays behind."""
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house, house.others_served():
        before = await house.inspect("patient")
        assert place.engine is not None
        async with Engine.open(place.engine.socket_path) as engine:
            await engine.remove(before["container_id"])
        after = await house.until_ready("patient", generation=2)
        assert after["container_id"] != before["container_id"]
        end = await house.ended("patient")
        assert end["container_id"] == before["container_id"]
        assert end["cause"] in ("signal", "engine")
        assert end["text"]


@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_twenty_at_once(armorclaw_folder: Path, place: Place) -> None:
    """All come back, and whoever did not die is served meanwhile; how fast on a quiet machine, a benchmark judges."""
    names = [f"p{number}" for number in range(20)]
    async with ward(armorclaw_folder, place, {name: place.agent() for name in names}) as house:
        async with house.events_reach_others() as took:
            began = house.kill(*names)
            for name in names:
                await house.until_ready(name, generation=2)
            back = time.monotonic() - began
        assert sorted(took)[len(took) // 4] < back / 4, took  # however slow the machine: it was not left for later
        for name in names:
            (end,) = (await house.inspect(name))["ends"]
            assert end["signal"] == signal.SIGKILL
            assert not house.of(name, "alert")
