"""Agents that live and do not work: hung, spinning, stalled, asleep. What they do is watched, not that they exist."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.faults.ward import FAST, Place, ward


def patience(stalled_limit: float) -> dict[str, Any]:
    """Stalled soon, but not hung for pings that a busy machine holds up."""
    return {"period": 2.0, "timeout": 2.0, "failures": 10, "stalled_after": 0.5, "stalled_limit": stalled_limit}


@pytest.mark.mission("P0.1", "P0.3")
async def test_hung(armorclaw_folder: Path, place: Place) -> None:
    """One is stopped (SIGSTOP), one spins in its event loop: alive for any engine, and both are restarted."""
    agents = {"stopped": place.agent(health=FAST), "spinning": place.agent(health=FAST)}
    async with ward(armorclaw_folder, place, agents) as house, house.others_served():
        house.kill("stopped", number=signal.SIGSTOP)
        await house.ask("spinning", "spin")
        for name in agents:
            await house.until_state(name, "hung")
            end = await house.ended(name)
            assert (end["cause"], end["generation"]) == ("hang", 1)
            await house.until_ready(name, generation=2)


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_stalled(armorclaw_folder: Path, place: Place) -> None:
    """Answers pings and settles nothing: stalled, then started again, and what it held goes to the next."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(health=patience(8.0))}) as house:
        async with house.others_served():
            await house.work("patient", 1, hold=True)
            await house.until_state("patient", "restarting")
            states = house.states("patient")
            assert states.index("stalled") < states.index("exited")
            end = await house.ended("patient")
            assert (end["cause"], end["generation"]) == ("stalled", 1)
            await house.until_ready("patient", generation=2)
            await house.until_handled("patient", [(1, 1)])


@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_stalled_for_a_while(armorclaw_folder: Path, place: Place) -> None:
    """One that works again in time is not ended."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(health=patience(0))}) as house:
        await house.work("patient", 1, hold=True)
        await house.until_state("patient", "stalled")
        await house.ask("patient", "let_go")
        await house.until_so("patient", lambda now: now["state"] == "ready", "works again")
        await house.until_handled("patient", [(1, 0)])
        assert (await house.inspect("patient"))["generation"] == 1


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_asleep(armorclaw_folder: Path, place: Place) -> None:
    """Idle, it is put to sleep: nothing of it runs; the next event wakes it, and is the first thing it does."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(idle_timeout=6.0)}) as house:
        async with house.others_served():
            await house.until_state("patient", "sleeping")
            await house.until_gone("patient")
            slept = await house.inspect("patient")
            assert slept["state"] == "sleeping"
            assert slept["ends"][-1]["cause"] == "idle"
            await house.work("patient", 1)
            await house.until_handled("patient", [(1, 0)])
            woken = await house.inspect("patient")
            assert woken["generation"] == slept["generation"] + 1
            assert not house.of("patient", "alert")


@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_away_for_a_moment(armorclaw_folder: Path, place: Place) -> None:
    """A stop that is over before too many pings are missed is no death."""
    health = {**FAST, "failures": 10}
    async with ward(armorclaw_folder, place, {"patient": place.agent(health=health)}) as house:
        house.kill("patient", number=signal.SIGSTOP)
        await house.until_so("patient", lambda now: now["health"]["pings_missed"] >= 1, "misses a ping")
        os.kill(house.main("patient"), signal.SIGCONT)
        assert await house.ask("patient", "echo", n=1) == {"n": 1}
        now = await house.until_so(
            "patient", lambda now: (now["health"]["pings_missed"], now["state"]) == (0, "ready"), "answers again"
        )
        assert now["generation"] == 1
