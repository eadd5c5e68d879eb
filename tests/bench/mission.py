"""What was asked for, measured: push against polling, pooled connections, a cache, and work done together.

A bridge in a process of its own, a homeserver with a memory in this one, reached over loopback. Each pair is measured
in turns in one run, and judged by its ratio. Loopback flatters whoever connects anew and asks again: over a network
both cost a round trip more.
"""

from __future__ import annotations

import random
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
from armorclaw.matrix.markers import GATHER
from armorclaw.matrix.pools import open_pool
from armorclaw.matrix.transport import TrioHTTPAPI
from armorclaw.store import Database
from armorclaw.store.lane import MAX_GROUP, Writing
from tests.bench import Figure, percentile
from tests.faults.lives import OTHER, ROOM, Trial, Zygote, new_zygote, open_trial, operator, short_folder
from tests.faults.town import BOT

POLL_SECONDS = 0.25
"""Between two polls: four calls a second, from each client, for nothing most of the time."""

TOGETHER, EACH = 64, 4
"""Producers, and how many events each of them records."""

ROOMS, PEOPLE = 20, 100
KEPT, ELSEWHERE = "!0:town", "!elsewhere:town"
"""A room the account is in, and one like it where it is not."""

APART = 5
UNCOUNTED = 2
"""First rounds, in which all grows warm."""

VERSIONS = "_matrix/client/versions"


def run(quick: bool) -> list[Figure]:
    """About 20 s when quick, 40 s otherwise."""
    return trio.run(_measure, 40 if quick else 120)


async def _measure(count: int) -> list[Figure]:
    with new_zygote() as zygote, short_folder() as folder:
        async with open_trial(folder) as trial:
            _settle_in(trial)
            figures = await _with_a_bridge(folder, trial, zygote, count)
    return figures


async def _with_a_bridge(folder: Path, trial: Trial, zygote: Zygote, count: int) -> list[Figure]:
    async with zygote.bridge(trial.order()), trio.open_nursery() as nursery:
        with trial.within("connected"):
            await trial.town.synced.wait()
        async with operator(trial) as client:
            await trio.sleep(0.5)
            figures = await _polled_and_pushed(trial, client, max(20, count // 4))
            figures += await _pooled(trial, count)
            figures += await _cached(trial, client, count)
            figures += await _hit_rate(trial, client, count)
            figures += await _receipts(trial)
            figures += await _together(folder, max(4, count // 10))
        nursery.cancel_scope.cancel(reason="all is measured")
    return figures


def _settle_in(trial: Trial) -> None:
    """Rooms and people to ask about."""
    for room in (*(f"!{number}:town" for number in range(ROOMS)), ELSEWHERE):
        trial.town.add_room(room)
        people = [_person(number) for number in range(PEOPLE)]
        trial.town.rooms[room].members = {*people} if room == ELSEWHERE else {BOT, *people[1:]}
        for person in people:
            content = {"membership": "join", "displayname": person[1:]}
            trial.town.rooms[room].state["m.room.member", person] = content
        trial.town.rooms[room].state["m.room.topic", ""] = {"topic": "what is measured"}
        trial.town.rooms[room].state["m.room.name", ""] = {"name": room}


def _person(number: int) -> str:
    return f"@person{number}:town"


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
        Figure("pushed, p99", percentile(by_push, 0.99), "ms"),
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
    """The same questions about a room that is kept, and about one like it that the account is not in, so that each is
    asked of the homeserver again."""
    questions: dict[str, tuple[str, dict[str, Any]]] = {
        "members": ("matrix.members", {}),
        "a member's profile": ("matrix.profile", {"user_id": _person(3)}),
        "a piece of state": ("matrix.state", {"type": "m.room.topic"}),
    }
    figures: list[Figure] = []
    for name, (method, params) in questions.items():
        known = partial(client.call, method, account="main", room_id=KEPT, **params)
        asked = partial(client.call, method, account="main", room_id=ELSEWHERE, **params)
        for ask in (known, asked):
            answer = await ask()
            assert answer.get("count") == PEOPLE or answer.get("display_name") or answer.get("content"), answer
        before = trial.town.asked.total() - trial.town.asked["GET sync"]
        ours, other = await _in_turns(known, asked, count)
        requests = trial.town.asked.total() - trial.town.asked["GET sync"] - before
        assert requests == len(other) + UNCOUNTED, f"{requests} requests for {name}"
        figures += _pair(f"{name}, from the cache", ours, "asked for", other, 0.8)
    return figures


async def _hit_rate(trial: Trial, client: Client, count: int) -> list[Figure]:
    """An agent looks at who speaks and at the room's name for each message, at the members for every tenth. A few
    rooms and people say most; one message in fifty comes with a change of what is asked."""
    chance = random.Random(1)
    before = trial.town.asked.total() - trial.town.asked["GET sync"]
    questions = 0
    for number in range(10 * count):
        room = f"!{min(int(chance.expovariate(0.2)), ROOMS - 1)}:town"
        person = _person(min(int(chance.expovariate(0.1)), PEOPLE - 1))
        if number % 50 == 49:
            content = {"membership": "join", "displayname": f"{number}"}
            trial.town.change(room, "m.room.member", person, content)
        await client.call("matrix.profile", room_id=room, user_id=person, account="main")
        await client.call("matrix.state", room_id=room, type="m.room.name", account="main")
        questions += 2
        if number % 10 == 0:
            await client.call("matrix.members", room_id=room, account="main")
            questions += 1
    requests = trial.town.asked.total() - trial.town.asked["GET sync"] - before
    return [
        Figure("questions of an agent in 20 rooms", questions),
        Figure("of them asked of the homeserver", requests),
        Figure("hit rate", 1 - requests / questions),
        Figure("asked / questions", requests / questions, "", 0.5),
    ]


async def _receipts(trial: Trial) -> list[Figure]:
    """Read receipts for messages that an agent acknowledges: 100 within two seconds, and some so far apart that each
    has one of its own."""

    async def sent(messages: int, pause: float) -> int:
        before = trial.town.asked["POST receipt"]
        for number in range(messages):
            last = trial.town.say(ROOM, f"{number}")
            await trio.sleep(pause)
        await trial.town.until(lambda: trial.town.receipts()[-1:] == [(ROOM, last)])
        return trial.town.asked["POST receipt"] - before

    with trial.within("read"):
        alone = await sent(APART, GATHER + 0.3)
    with trial.within("read"):
        together = await sent(100, 0.02)
    ratio = (together / 100) / (alone / APART)
    return [
        Figure("100 messages acknowledged in 2 s, receipts", together),
        Figure(f"{APART} acknowledged apart, receipts", alone),
        Figure("receipts for each message, gathered / apart", ratio, "", 0.25),
    ]


async def _together(folder: Path, rounds: int) -> list[Figure]:
    """As many producers, each of which records one event after the other durably: with one commit for all that wait,
    and with one for each, which is the same store with its groups limited to one."""
    clock = Clock()
    async with Database.open(folder / "bench.db", bytes(32)) as db:
        journal = Journal(db, clock)

        async def produce() -> None:
            for _ in range(EACH):
                await journal.record([Event.make("app.bench", {}, at_ms=clock.now_ms())], durable=True)

        async def record(most: int) -> None:
            Writing.max_group = most
            async with trio.open_nursery() as nursery:
                for _ in range(TOGETHER):
                    nursery.start_soon(produce)

        try:
            together, single = await _in_turns(partial(record, MAX_GROUP), partial(record, 1), rounds)
        finally:
            Writing.max_group = MAX_GROUP
    name = f"{TOGETHER * EACH} events of {TOGETHER} producers, commits shared"
    return _pair(name, together, "a commit for each", single, 0.5)


async def _in_turns(
    ours: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]], count: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of each."""
    took: tuple[list[float], list[float]] = ([], [])
    for number in range(count + UNCOUNTED):
        for one, into in ((ours, took[0]), (other, took[1])):
            began = time.perf_counter()
            await one()
            if number >= UNCOUNTED:
                into.append((time.perf_counter() - began) * 1000)
    return took


def _pair(name: str, ours: list[float], other_name: str, other: list[float], limit: float) -> list[Figure]:
    ratio = statistics.median(ours) / statistics.median(other)
    return [
        Figure(f"{name}, p50", statistics.median(ours), "ms"),
        Figure(f"{other_name}, p50", statistics.median(other), "ms"),
        Figure(f"{name} / {other_name}", ratio, "", limit),
    ]
