"""kill -9 at random moments, again and again, while people talk, an agent answers and the operator sends."""

from __future__ import annotations

import random
import secrets

import pytest
import trio

from armorclaw.client import Client
from tests.faults.lives import MARKS, ROOMS, TOLD, Trial, Zygote, new_zygote, open_trial, operator, short_folder

KILLS = 100
LONGEST = 0.7
"""Seconds that a bridge lives at most, if it is not one of those that may work."""

AT_WORK = 4
"""Every so many lives one is let live until something has come through, so that there is work to interrupt."""

BACKLOG = 16
"""Messages that nobody has dealt with, at most: the load waits for the bridge, as people do."""


async def talk(trial: Trial, chance: random.Random) -> None:
    while not trial.calm.is_set():
        if len([1 for _, event_id, _ in trial.said[-BACKLOG:] if not trial.echo.settled(event_id)]) < BACKLOG:
            trial.say(chance.choice(ROOMS), f"word {len(trial.said)}")
        await trio.sleep(chance.uniform(0, 0.1))


async def send(trial: Trial, client: Client, chance: random.Random) -> None:
    while not trial.calm.is_set():
        await trial.send(client, chance.choice(ROOMS), f"notice {len(trial.sent)}")
        await trio.sleep(chance.uniform(0, 0.2))


async def live(trial: Trial, zygote: Zygote, kills: int, chance: random.Random) -> None:
    """One bridge after the other, each killed but the last, which lives until this is cancelled."""
    for number in range(kills):
        async with zygote.bridge(trial.order()) as life, trio.open_nursery() as nursery:
            nursery.start_soon(trial.until_ended, life, -9)
            if number % AT_WORK == 0:
                heard = len(trial.echo.acked)
                with trial.within("at work"):
                    while len(trial.echo.acked) < heard + 3:
                        await trial.echo.news.wait()
            await trio.sleep(chance.uniform(0, LONGEST))
            life.kill()
    trial.calm.set()
    async with zygote.bridge(trial.order()) as life:
        await trial.until_ended(life, None)


async def kill_again_and_again(kills: int, seed: int) -> None:
    print(f"seed {seed}")
    chance = random.Random(seed)
    with new_zygote() as zygote, short_folder() as folder:
        async with open_trial(folder) as trial, trio.open_nursery() as nursery:
            nursery.start_soon(live, trial, zygote, kills, chance)
            with trial.within("synced"):
                await trial.town.synced.wait()
            async with operator(trial) as client:
                async with trio.open_nursery() as load:
                    load.start_soon(talk, trial, chance)
                    load.start_soon(send, trial, client, chance)
                await trial.until_heard()
                await trial.until_settled(client, told=TOLD)
                trial.check(await trial.deliveries(client), marks=MARKS)
            nursery.cancel_scope.cancel(reason="all is said")
    print(f"{len(trial.said)} said, {len(trial.sent)} sent, {trial.echo.connections} connections of the agent")
    assert trial.statuses == [-9] * kills


@pytest.mark.timeout(240)
@pytest.mark.mission("P1.1", "P3.1", "P3.3")
async def test_a_hundred_kills_under_load() -> None:
    await kill_again_and_again(KILLS, secrets.randbits(32))


@pytest.mark.long
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("part", range(10))
async def test_a_thousand_kills_under_load(part: int) -> None:
    await kill_again_and_again(KILLS, secrets.randbits(32))
