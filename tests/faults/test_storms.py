"""Whatever a homeserver answers, it is not asked in a storm: every odd answer to every question."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.status import SessionState
from armorclaw.matrix.sync import ROUNDS, SURGE
from tests.faults.simulated import Simulation, simulation
from tests.faults.town import limited
from tests.matrix.fake_homeserver import Asked, Raw, Reply, refusal

ROOM, ELSEWHERE = "!a:town", "!elsewhere:town"

PER_MINUTE = 60
"""Requests in any minute; a session that is well makes two, and one for each thing that happens."""

Answer = Callable[[Asked], Reply | Raw]


def always(reply: Reply | Raw) -> Answer:
    return lambda asked: reply


ANSWERS: dict[str, Answer] = {
    "429": always(limited(None)),
    "429 for no time": always(limited(0)),
    "429 until yesterday": always(limited(None, header="Tue, 01 Jan 2002 00:00:00 GMT")),
    "502 with a page": always(Reply(b"<html>", 502)),
    "500": always(refusal(500, "M_UNKNOWN")),
    "403": always(refusal(403, "M_FORBIDDEN")),
    "404": always(refusal(404, "M_UNRECOGNIZED")),
    "400": always(refusal(400, "M_UNKNOWN")),
    "401 for a lock": always(refusal(401, "M_USER_LOCKED", soft_logout=True)),
    "401 softly": always(refusal(401, "M_UNKNOWN_TOKEN", soft_logout=True)),
    "401 hard": always(refusal(401, "M_UNKNOWN_TOKEN", soft_logout=False)),
    "a redirect": always(Reply(b"", 302, {"location": "http://elsewhere/"})),
    "nothing": always(Raw(b"")),
    "an empty object": always(Reply({})),
    "a page": always(Reply(b"<html>")),
}

QUESTIONS = ("POST login", "GET sync", "PUT send", "POST join", "GET messages", "POST receipt")


def _number() -> Callable[[], int]:
    count = itertools.count()
    return lambda: next(count)


number = _number()


def _timeline(body: str, **more: Any) -> dict[str, Any]:
    event = {
        "type": "m.room.message",
        "sender": "@person:town",
        "event_id": f"${number()}",
        "content": {"msgtype": "m.text", "body": body},
    }
    return {"rooms": {"join": {ROOM: {"timeline": {"events": [event], **more}}}}}


SAME = _timeline("the same")

SYNCS: dict[str, Answer] = {
    "at once, and nothing": lambda asked: Reply({"next_batch": f"s{number()}"}),
    "at once, the same place": always(Reply({"next_batch": "s0"})),
    "the same events again": always(Reply({"next_batch": "s0", **_timeline("again")})),
    "the same events at new places": lambda asked: Reply({"next_batch": f"s{number()}", **SAME}),
    "a place that is none": always(Reply({"next_batch": 5})),
    "a place that is empty": always(Reply({"next_batch": ""})),
    "200 and forgotten": always(Reply({"errcode": "M_UNKNOWN_TOKEN", "error": "who?"})),
    "rooms of another kind": lambda asked: Reply(
        {"next_batch": f"s{number()}", "rooms": {"join": [1], "leave": "x"}}
    ),
    "a gap each time": lambda asked: Reply(
        {"next_batch": f"s{number()}", **_timeline("gap", limited=True, prev_batch="s0")}
    ),
    "receipts of nobody": lambda asked: Reply(
        {
            "next_batch": f"s{number()}",
            "rooms": {"join": {ROOM: {"ephemeral": {"events": [{"type": "m.receipt", "content": {"$x": 1}}]}}}},
        }
    ),
    "rooms that come and go": lambda asked: Reply(
        {"next_batch": f"s{number()}", "rooms": {(number() % 2 and "join") or "leave": {ROOM: {}}}}
    ),
    "invites to a room that is granted": lambda asked: Reply(
        {"next_batch": f"s{number()}", "rooms": {"invite": {ELSEWHERE: {"invite_state": {"events": []}}}}}
    ),
}

BUSY = (
    "a gap each time",
    "invites to a room that is granted",
    "rooms that come and go",
    "the same events at new places",
)
"""What a homeserver in which much happens answers, too."""


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Simulation]:
    with simulation(tmp_path, 1) as made:
        yield made


@attrs.define
class Meter:
    """Requests of each minute since it was made."""

    minutes: dict[int, int] = attrs.field(factory=lambda: dict.fromkeys(range(6), 0))
    began: float = attrs.field(factory=trio.current_time)

    def count(self) -> None:
        minute = int((trio.current_time() - self.began) // 60)
        self.minutes[min(minute, 5)] += 1


async def storm(sim: Simulation, answers: Mapping[str, Answer], *, busy: bool = False) -> None:
    """Minutes in which some questions are always answered oddly, with messages to send and to read all along."""
    meter = Meter()
    # each sync, the gap that it tells of, and that it was read
    per_minute = int(3 * 60 * ROUNDS) if busy else PER_MINUTE
    sim.town.add_room(ROOM)
    sim.town.hold_longest = 25.0

    async def meddle(asked: Asked) -> Reply | Raw | None:
        await trio.lowlevel.checkpoint()
        meter.count()
        odd = answers.get(sim.town.kind(asked))
        return None if odd is None else odd(asked)

    sim.town.meddle = meddle

    async def hear(message: Any) -> None:
        await trio.lowlevel.checkpoint()

    with capture_logs() as logs:
        async with sim.live([ROOM, ELSEWHERE], hear) as bridge:
            began = trio.current_time()
            for minute in range(2 if busy else 6):
                with contextlib.suppress(ArmorclawError):  # that the homeserver refused
                    await bridge.call("matrix.send", room_id=ROOM, message=f"{minute}")
                sim.town.say(ROOM, f"{minute}")
                for extra in range(120 if minute == 3 else 0):  # more than one answer holds
                    sim.town.say(ROOM, f"more {extra}")
                await trio.sleep_until(began + 60 * (minute + 1))
            status = bridge.accounts.status()
            assert status is not None
            helpless = status.state is SessionState.LOGGED_OUT
    assert [entry["trace"] for entry in logs if entry["event"] == "child crashed"] == []
    first, *later = meter.minutes.values()
    assert first <= per_minute + (3 * SURGE if busy else 0)
    assert max(later) <= per_minute
    if helpless:
        assert answers.keys() & {"POST login", "GET sync"}, "nothing else is a reason to give up"
        assert sum(later) == 0
    else:
        assert sum(later) >= 1, "it has given up"


@pytest.mark.parametrize("name", sorted(ANSWERS))
@pytest.mark.parametrize("question", QUESTIONS)
async def test_an_odd_answer_to(sim: Simulation, autojump_clock: MockClock, question: str, name: str) -> None:
    await storm(sim, {question: ANSWERS[name]})


@pytest.mark.parametrize("name", sorted(SYNCS))
async def test_an_odd_sync(sim: Simulation, autojump_clock: MockClock, name: str) -> None:
    await storm(sim, {"GET sync": SYNCS[name]}, busy=name in BUSY)


@pytest.mark.parametrize("name", sorted(ANSWERS))
async def test_a_token_that_is_unknown_and_an_odd_word_about_it(
    sim: Simulation, autojump_clock: MockClock, name: str
) -> None:
    await storm(sim, {"GET sync": ANSWERS["401 hard"], "GET account": ANSWERS[name]})
