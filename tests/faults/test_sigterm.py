"""SIGTERM in the middle of work: the daemon ends in order and in time, and the next life has whatever was left."""

from __future__ import annotations

import random
import secrets
import signal

import pytest
import trio

from armorclaw.client import Client
from armorclaw.errors import ArmorclawError
from tests.faults.lives import ROOMS, Trial, Zygote, new_zygote, open_trial, operator, short_folder
from tests.faults.test_random_kills import talk

TERMS = 5
"""Ends in order, one after the other, each under load."""

SENDERS = 4
DRAIN_S = 3.0
MARGIN = 10.0
"""Seconds for the stop itself, on a machine that does something else, too."""


async def send(trial: Trial, client: Client, name: str, chance: random.Random) -> None:
    """One operator, who asks again under the same key whenever the bridge drains or is away."""
    number = 0
    while not trial.calm.is_set():
        number += 1
        room, body = chance.choice(ROOMS), f"notice {number} of {name}"
        while True:
            try:
                await trial.send(client, room, body)
                break
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                await trio.sleep(0.02)
        await trio.sleep(chance.uniform(0, 0.02))


async def work(trial: Trial, name: str, chance: random.Random) -> None:
    async with operator(trial) as client:
        await send(trial, client, name, chance)


async def until_at_work(trial: Trial) -> None:
    """Until the agent and the operators have got something through in this life."""
    heard, accepted = len(trial.echo.acked), len(trial.accepted)
    with trial.within("at work"):
        while len(trial.echo.acked) < heard + 3 or len(trial.accepted) < accepted + 3:
            await trial.echo.news.wait()


async def live(trial: Trial, zygote: Zygote, chance: random.Random) -> None:
    """One daemon after the other, each asked to end but the last."""
    for _ in range(TERMS):
        async with zygote.bridge(trial.order(daemon=True)) as life:
            await until_at_work(trial)
            await trio.sleep(chance.uniform(0, 0.3))
            life.signal(signal.SIGTERM)
            with trio.fail_after(DRAIN_S + MARGIN):
                await trial.until_ended(life, 0)
    trial.calm.set()
    async with zygote.bridge(trial.order(daemon=True)) as life:
        await trial.until_ended(life, None)


@pytest.mark.timeout(180)
@pytest.mark.mission("P1.1", "P3.1", "P3.3")
async def test_sigterm_under_load_loses_nothing_and_doubles_nothing() -> None:
    """People talk, an agent answers each of them, four operators send; what one of these was told is accepted is in
    the room once, and what was not dealt with comes again in the next life."""
    seed = secrets.randbits(32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    with new_zygote() as zygote, short_folder() as folder:
        async with open_trial(folder) as trial, trio.open_nursery() as nursery:
            trial.config["bridge"]["drain_s"] = DRAIN_S
            nursery.start_soon(live, trial, zygote, chance)
            with trial.within("synced"):
                await trial.town.synced.wait()
            async with trio.open_nursery() as load:
                load.start_soon(talk, trial, chance)
                for number in range(SENDERS):
                    load.start_soon(work, trial, f"{number}", chance)
            async with operator(trial) as client:
                await trial.until_heard()
                await trial.until_settled(client, told=True)
                trial.check(await trial.deliveries(client), marks=True)
            nursery.cancel_scope.cancel(reason="all is said")
    print(f"{len(trial.said)} said, {len(trial.sent)} sent, {trial.echo.connections} connections of the agent")
    assert trial.statuses == [0] * TERMS
