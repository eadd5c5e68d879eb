"""What was asked for, measured: push against polling, pooled connections, a cache, and work done together.

A bridge in a process of its own, a homeserver with a memory in this one, reached over loopback. Each pair is measured
in turns in one run, and judged by its ratio. Loopback flatters whoever connects anew and asks again: over a network
both cost a round trip more.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio
from mautrix.api import Method

import armorclaw
from armorclaw.client import Client
from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.matrix.pools import open_pool
from armorclaw.matrix.transport import TrioHTTPAPI
from armorclaw.store import Database
from tests.bench import Figure, percentile
from tests.faults.lives import OTHER, ROOM, Trial, new_zygote, open_trial, operator, short_folder

POLL_SECONDS = 0.25
"""Between two polls: four calls a second, from each client, for nothing most of the time."""

TOGETHER = 64
VERSIONS = "_matrix/client/versions"


def run(quick: bool) -> list[Figure]:
    """About 15 s when quick, 40 s otherwise."""
    return trio.run(_measure, 40 if quick else 120)


async def _measure(count: int) -> list[Figure]:
    with new_zygote() as zygote, short_folder() as folder:
        async with open_trial(folder) as trial, zygote.bridge(trial.order()), trio.open_nursery() as nursery:
            with trial.within("connected"):
                await trial.town.synced.wait()
            async with operator(trial) as client:
                await trio.sleep(0.5)
                figures = await _polled_and_pushed(trial, client, max(20, count // 4))
                figures += await _pooled(trial, count)
                figures += await _cached(trial, client, count)
                figures += await _together(folder, max(4, count // 10))
            nursery.cancel_scope.cancel(reason="all is measured")
    return figures


async def _polled_and_pushed(trial: Trial, client: Client, count: int) -> list[Figure]:
    """From somebody's word to the reader, who polls or is pushed to, side by side."""
    polled: dict[str, float] = {}
    pushed: dict[str, float] = {}
    calls = 0

    async def poll(reader: Client) -> None:
        nonlocal calls
        while True:
            calls += 1
            batch = await reader.call("matrix.receive", consumer="bench", limit=100)
            polled.update({event["event_id"]: time.perf_counter() for event in batch["events"]})
            await trio.sleep(POLL_SECONDS)

    async def listen(reader: Client) -> None:
        async with reader.subscribe(types=["m.room.message"]) as events:
            async for event in events:
                pushed[event["event_id"]] = time.perf_counter()

    said: dict[str, float] = {}
    async with armorclaw.connect(trial.socket) as other, trio.open_nursery() as nursery:
        nursery.start_soon(poll, client)
        nursery.start_soon(listen, other)
        await trio.sleep(0.5)
        calls = 0
        for number in range(count):
            began = time.perf_counter()
            said[trial.town.say(OTHER, f"{number}")] = began
            await trio.sleep(0.1 + (number % 7) * 0.03)
        await trio.sleep(2 * POLL_SECONDS)
        nursery.cancel_scope.cancel(reason="all was heard")
    by_poll = [(polled[one] - at) * 1000 for one, at in said.items()]
    by_push = [(pushed[one] - at) * 1000 for one, at in said.items()]
    ratio = percentile(by_push, 0.5) / percentile(by_poll, 0.5)
    return [
        Figure(f"polled each {POLL_SECONDS:g} s, p50", percentile(by_poll, 0.5), "ms"),
        Figure("polled, calls for each event", calls / count),
        Figure("pushed, p50", percentile(by_push, 0.5), "ms"),
        Figure("pushed, p99", percentile(by_push, 0.99), "ms", 50.0),
        Figure("pushed / polled, p50", ratio, "", 0.25),
    ]


async def _pooled(trial: Trial, count: int) -> list[Figure]:
    """One request of a session over its pool, and over a connection of its own."""
    url = trial.config["accounts"]["main"]["homeserver"]
    clock = Clock()
    async with open_pool(url) as pool:
        kept = TrioHTTPAPI(url, pool, clock)

        async def anew() -> None:
            async with open_pool(url) as own:
                await TrioHTTPAPI(url, own, clock).request(Method.GET, VERSIONS)

        pooled, alone = await _in_turns(partial(kept.request, Method.GET, VERSIONS), anew, count)
    return _pair("request over a pool", pooled, "over a new connection", alone, 0.9)


async def _cached(trial: Trial, client: Client, count: int) -> list[Figure]:
    """A piece of a room's state: the same again, and another each time, which has to be asked for."""
    number = 0
    state = partial(client.call, "matrix.state", room_id=ROOM, type="m.room.topic")

    async def other() -> None:
        nonlocal number
        number += 1
        await state(state_key=f"{number}")

    before = trial.town.asked["GET state"]
    cached, asked = await _in_turns(partial(state, state_key=""), other, count)
    assert trial.town.asked["GET state"] == before + count + 3
    return _pair("state from the cache", cached, "asked for", asked, 0.8)


async def _together(folder: Path, rounds: int) -> list[Figure]:
    """Events recorded durably, one after the other, and as many at once: the disk is waited for once by all."""
    clock = Clock()
    async with Database.open(folder / "bench.db", bytes(32)) as db:
        journal = Journal(db, clock)

        async def record() -> None:
            await journal.record([Event.make("app.bench", {}, at_ms=clock.now_ms())], durable=True)

        async def one_by_one() -> None:
            for _ in range(TOGETHER):
                await record()

        async def at_once() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(TOGETHER):
                    nursery.start_soon(record)

        together, single = await _in_turns(at_once, one_by_one, rounds)
    return _pair(f"{TOGETHER} events at once", together, "one by one", single, 0.5)


async def _in_turns(
    ours: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]], count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each."""
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(count + 2):
        for one, into in ((ours, took[0]), (other, took[1])):
            began = time.perf_counter()
            await one()
            if number >= 2:
                into.append((time.perf_counter() - began) * 1000)
    return took


def _pair(name: str, ours: list[float], other_name: str, other: list[float], limit: float) -> list[Figure]:
    ratio = statistics.median(ours) / statistics.median(other)
    return [
        Figure(f"{name}, p50", statistics.median(ours), "ms"),
        Figure(f"{other_name}, p50", statistics.median(other), "ms"),
        Figure(f"{name} / {other_name}", ratio, "", limit),
    ]
