"""A person asks, an agent answers, through Synapse: the bridge and a sandboxed agent, beside plain mautrix.

One person, on one Synapse, asks in two rooms in turn. In one of them the bridge has its example agent in bubblewrap;
in the other is a program that does the same with mautrix's own client on asyncio, without container, journal, outbox
or audit. The bridge's guarantees are all on: the agent is told of each answer that it arrived, and what it
acknowledges is shown as read; in the end it is checked that the agent has heard and acknowledged all of it. A time is
that from before the person's send until the person has read the answer to it.
"""

from __future__ import annotations

import random
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from armorclaw.testing.handles import BridgeProcess, new_person, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person, Seen
from tests.bench import Figure, percentile
from tests.bench._real import ROOT, daemon, homeserver, start_echo

SECONDS, QUICK_SECONDS = 90.0, 24.0
"""How long they talk: Synapse's own share, most of each time, differs by a factor of three between machines."""

WARM_UP = 20
"""Pairs that do not count."""

PAUSE, MORE = 0.02, 0.1
"""Seconds after each answer, in which everybody finishes what comes after it: acknowledgements, delivery events; and
up to how many more. Those are random, so that what comes later still, as read receipts do, falls on both alike."""


def run(quick: bool) -> list[Figure]:
    """About 35 s when quick, 105 s otherwise."""
    ours: list[float] = []
    plain: list[float] = []
    with homeserver() as server, new_person(server, "person") as person, daemon(server) as bridge:
        our_room = _bridge_room(bridge, person)
        with _mautrix_room(server, person) as plain_room:
            person.catch_up()
            end = time.monotonic() + (QUICK_SECONDS if quick else SECONDS)
            number = 0
            while time.monotonic() < end or number < 2 * WARM_UP:
                number += 1
                # whoever comes second finds a warmer Synapse: they take turns at that too
                turns = [(our_room, ours), (plain_room, plain)]
                for room, times in turns if number % 2 else reversed(turns):
                    times.append(_ask(person, room, f"message {number}"))
            guarantees = _guarantees(bridge, number)
    ours, plain = ours[WARM_UP:], plain[WARM_UP:]
    pairs = list(zip(ours, plain, strict=True))
    return [
        Figure("messages in each room", len(ours)),
        *guarantees,
        Figure("bridge, sandboxed agent, p50", percentile(ours, 0.5), "ms"),
        Figure("plain mautrix echo, p50", percentile(plain, 0.5), "ms"),
        Figure("bridge, sandboxed agent, p99", percentile(ours, 0.99), "ms"),
        Figure("plain mautrix echo, p99", percentile(plain, 0.99), "ms"),
        Figure("difference within a pair, p50", statistics.median(a - b for a, b in pairs), "ms"),
        Figure("bridge / plain mautrix within a pair, p50", statistics.median(a / b for a, b in pairs), "x"),
        Figure("bridge / plain mautrix, p50", percentile(ours, 0.5) / percentile(plain, 0.5), "x", 1.1),
    ]


def _ask(person: Person, room: str, text: str) -> float:
    """Milliseconds until the answer is there."""
    began = time.perf_counter()
    event_id = person.send(room, text)

    def answers(seen: Seen) -> bool:
        relation = seen.content.get("m.relates_to", {})
        return bool(relation.get("m.in_reply_to", {}).get("event_id") == event_id)

    seen = person.wait_for(answers)
    assert seen.body == f"echo: {text}", seen
    time.sleep(PAUSE + random.uniform(0, MORE))
    return (seen.at - began) * 1000


def _guarantees(bridge: BridgeProcess, asked: int) -> list[Figure]:
    """What the bridge did beside answering: its own words, and the homeserver's."""
    time.sleep(2)
    rows = bridge.call("delivery.list", limit=asked)
    came_back = sum(row["state"] in ("delivered", "read") for row in rows)
    assert came_back == len(rows) == asked, f"{asked} were answered, {came_back} of {len(rows)} known to be delivered"
    (main,) = [each for each in bridge.call("events.stats") if each["owner"] == "echo" and each["connected"]]
    assert main["behind"] == main["in_hand"] == 0, f"the agent has not acknowledged all, delivery events too: {main}"
    return [Figure("answers of which the agent knows that they arrived", came_back)]


def _bridge_room(bridge: BridgeProcess, person: Person) -> str:
    room = person.create_room("bridge", invite=[bridge.user_id])
    start_echo(bridge, [room])
    wait_until(lambda: bridge.user_id in person.members(room), 20, "the bridge joins")
    return room


@contextmanager
def _mautrix_room(server: Homeserver, person: Person) -> Iterator[str]:
    password = secrets.token_urlsafe(12)
    user_id = server.register(f"plain-{secrets.token_hex(4)}", password)
    room = person.create_room("plain", invite=[user_id])
    command = [sys.executable, "-m", "tests.bench._mautrix_echo", server.url, user_id, room]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(password + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("the plain echo did not start")
            yield room
        finally:
            process.kill()
