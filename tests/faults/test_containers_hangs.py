"""Agents that live and do not work: hung, spinning, stalled, asleep. What they do is watched, not that they exist."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.faults.ward import Place, ward

NOTICED = 4.5
"""Seconds in fast mode: three pings, a second apart, each of which may take a second."""


@pytest.mark.mission("P0.1", "P0.3")
async def test_hung(armorclaw_folder: Path, place: Place) -> None:
    """One is stopped (SIGSTOP), one spins in its event loop: alive for any engine, and both are restarted."""
    agents = {"stopped": place.agent(), "spinning": place.agent()}
    async with ward(armorclaw_folder, place, agents) as house, house.others_served():
        began = house.kill("stopped", number=signal.SIGSTOP)
        await house.ask("spinning", "spin")
        for name in agents:
            await house.until_state(name, "hung", seconds=NOTICED + 1.0)
        noticed = time.monotonic() - began
        assert noticed < NOTICED + 0.5
        for name in agents:
            end = await house.ended(name)
            assert end["cause"] == "hang"
            await house.until_ready(name, generation=2)


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_stalled(armorclaw_folder: Path, place: Place) -> None:
    """Answers pings and settles nothing: stalled, then started again, and what it held goes to the next."""
    patience = {"period": 0.5, "timeout": 0.5, "stalled_after": 0.5, "stalled_limit": 1.5}
    async with ward(armorclaw_folder, place, {"patient": place.agent(health=patience)}) as house:
        async with house.others_served():
            await house.work("patient", 1, hold=True)
            await house.until_state("patient", "stalled", seconds=4.0)
            assert (await house.inspect("patient"))["generation"] == 1
            assert (await house.ended("patient"))["cause"] == "stalled"
            await house.until_ready("patient", generation=2)
            await house.until_handled("patient", [(1, 1)])


@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_stalled_for_a_while(armorclaw_folder: Path, place: Place) -> None:
    """One that works again in time is not ended."""
    patience = {"period": 0.5, "timeout": 0.5, "stalled_after": 0.5, "stalled_limit": 0}
    async with ward(armorclaw_folder, place, {"patient": place.agent(health=patience)}) as house:
        await house.work("patient", 1, hold=True)
        await house.until_state("patient", "stalled", seconds=4.0)
        await house.ask("patient", "let_go")
        await house.until_state("patient", "ready", times=2, seconds=4.0)
        await house.until_handled("patient", [(1, 0)])
        assert (await house.inspect("patient"))["generation"] == 1


@pytest.mark.parametrize("place", ["sandbox", "docker"], indirect=True)
async def test_asleep(armorclaw_folder: Path, place: Place) -> None:
    """Idle, it is put to sleep: nothing of it runs; the next event wakes it, and is the first thing it does."""
    async with ward(armorclaw_folder, place, {"patient": place.agent(idle_timeout=0.5)}) as house:
        async with house.others_served():
            await house.until_state("patient", "sleeping")
            await house.until_gone("patient")
            slept = await house.inspect("patient")
            assert slept["state"] == "sleeping"
            assert slept["ends"][-1]["cause"] == "idle"
            began = time.monotonic()
            await house.work("patient", 1)
            ((_, _, at),) = await house.until_handled("patient", [(1, 0)])
            assert at - began < 1.5 * 3  # the benchmark judges; here the machine may be busy
            woken = await house.inspect("patient")
            assert woken["generation"] == slept["generation"] + 1
            assert not house.of("patient", "alert")


@pytest.mark.parametrize("place", ["sandbox"], indirect=True)
async def test_away_for_a_moment(armorclaw_folder: Path, place: Place) -> None:
    """A stop that is over before three pings are missed is no death."""
    async with ward(armorclaw_folder, place, {"patient": place.agent()}) as house:
        house.kill("patient", number=signal.SIGSTOP)
        await house.until_so("patient", lambda now: now["health"]["pings_missed"] == 1, "misses a ping")
        os.kill(house.main("patient"), signal.SIGCONT)
        assert await house.ask("patient", "echo", n=1) == {"n": 1}
        await house.until_so("patient", lambda now: now["health"]["pings_missed"] == 0, "answers again")
        now = await house.inspect("patient")
        assert (now["generation"], now["state"]) == (1, "ready")
