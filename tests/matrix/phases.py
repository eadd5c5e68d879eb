"""What a session can be in the middle of, and how long its end takes then.

The homeserver, over real HTTP, answers until it is asked the question of the phase; that one it holds. Then the
session is cancelled, and the time is taken until nothing of it is left.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from armorclaw.config import Account
from armorclaw.delivery.message import Outgoing
from armorclaw.events.event import ascii_json
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.structure import Secret
from tests.faults.town import BOT, PASSWORD, Town

from .conftest import KEY, Bench
from .fake_homeserver import Asked, Raw, Reply, fake_homeserver

HALF = b'HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{"a": ' + b" " * 500
"""Of an answer."""

ROOM, SECRET, ELSEWHERE = "!room:town", "!secret:town", "!elsewhere:town"


@attrs.frozen
class Phase:
    """`question` is what the homeserver is asked in this phase, by its kind; the `times`th is held, with `half` in
    the middle of the answer. `before` is done once the session is connected."""

    question: str
    times: int = 1
    half: bool = False
    before: Callable[[Bench, Town], Awaitable[object]] | None = None
    alias: bool = False


async def send(bench: Bench, town: Town) -> None:
    await _send(bench, ROOM)


async def send_encrypted(bench: Bench, town: Town) -> None:
    await _send(bench, SECRET)


async def _send(bench: Bench, room: str) -> None:
    content = ascii_json({"msgtype": "m.text", "body": "x" * 10_000})
    await bench.outbox.enqueue(Outgoing("main", "echo", room, content))


async def overflow(bench: Bench, town: Town) -> None:
    for number in range(150):
        town.say(ROOM, f"{number}")
    await trio.lowlevel.checkpoint()


async def expire(bench: Bench, town: Town) -> None:
    town.logins.expire()
    town.say(ROOM, "so that the poll ends")
    await trio.lowlevel.checkpoint()


async def forget(bench: Bench, town: Town) -> None:
    town.logins.clear()
    town.say(ROOM, "so that the poll ends")
    await trio.lowlevel.checkpoint()


PHASES: dict[str, Phase] = {
    "login": Phase("POST login"),
    "login, half the answer": Phase("POST login", half=True),
    "first keys": Phase("POST keys/upload"),
    "first sync": Phase("GET sync"),
    "first sync, half the answer": Phase("GET sync", half=True),
    "long poll": Phase("GET sync", times=2),
    "long poll, half the answer": Phase("GET sync", times=2, half=True),
    "alias": Phase("GET directory", alias=True),
    "join": Phase("POST join"),
    "send": Phase("PUT send", before=send),
    "send, half the answer": Phase("PUT send", before=send, half=True),
    "who is in the room": Phase("GET members", before=send_encrypted),
    "whose devices": Phase("POST keys/query", before=send_encrypted),
    "whose one-time keys": Phase("POST keys/claim", before=send_encrypted),
    "room key": Phase("PUT sendToDevice", before=send_encrypted),
    "encrypted send": Phase("PUT send", before=send_encrypted),
    "gap": Phase("GET messages", before=overflow),
    "refresh": Phase("POST refresh", before=expire),
    "who are we": Phase("GET account", before=forget),
    "next login": Phase("POST login", times=2, before=forget),
}


@attrs.define
class _Hold:
    """Answers in the place of the town from the phase's question on."""

    town: Town
    phase: Phase
    reached: trio.Event = attrs.field(factory=trio.Event)
    count: int = 0

    async def __call__(self, asked: Asked) -> Reply | Raw | None:
        await trio.lowlevel.checkpoint()
        if self.town.kind(asked) != self.phase.question:
            return None
        self.count += 1
        if self.count < self.phase.times:
            return None
        self.reached.set()
        return Raw(HALF if self.phase.half else b"", hold=60.0)


@asynccontextmanager
async def in_phase(bench: Bench, folder: Path, phase: Phase) -> AsyncIterator[Callable[[], Awaitable[float]]]:
    """A session that has got as far as this phase. What it gives cancels it, and tells in how many seconds."""
    town = Town()
    town.logins.lasts = 300.0
    for room in (ROOM, ELSEWHERE):
        town.add_room(room)
    town.add_room(SECRET, encrypted=True)
    town.rooms[ELSEWHERE].members.discard(BOT)
    hold = _Hold(town, phase)
    town.meddle = hold
    rooms = [ROOM, SECRET, ELSEWHERE, *(["#alias:town"] if phase.alias else [])]
    bench.grants.set("echo", "main", rooms)
    async with fake_homeserver(town.answer) as fake, trio.open_nursery() as nursery:
        account = Account(fake.url, BOT, password=Secret(PASSWORD))
        session = trio.CancelScope()
        ended = trio.Event()

        async def live() -> None:
            with session:
                await bench.accounts(account, vault=Vault(folder / "keys", lambda: KEY)).run()
            ended.set()

        async def end() -> float:
            began = time.perf_counter()
            session.cancel(reason="the phase is reached")
            await ended.wait()
            return time.perf_counter() - began

        nursery.start_soon(live)
        if phase.before is not None:
            await town.synced.wait()
            await phase.before(bench, town)
        with trio.fail_after(20):
            await hold.reached.wait()
        yield end
        nursery.cancel_scope.cancel(reason="measured")


async def seconds_to_end(bench: Bench, folder: Path, phase: Phase, settle: float = 0.02) -> float:
    """How long the end of a session takes in this phase. `settle` lets it come to rest there, in seconds."""
    async with in_phase(bench, folder, phase) as end:
        await trio.sleep(settle)
        return await end()
