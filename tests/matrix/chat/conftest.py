"""A console on a store without a thread, and a room that reads what it says."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, cast

import attrs
import pytest
import trio

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Agent
from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.guard.policy import BRIDGE, Place, Routed
from armorclaw.matrix.chat.carrying_out import CarryingOut
from armorclaw.matrix.chat.console import Console
from armorclaw.matrix.chat.hands import Hands, Rooms
from armorclaw.matrix.routing.table import RouteTable
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

ROOM, DIRECT, ADMIN = "!r:x", "!dm:x", "!ops:x"
ANN, BEN = "@ann:x", "@ben:x"
START = 1_800_000_000.0
NOTHING: Mapping[str, Any] = MappingProxyType({})

Answering = Callable[..., Awaitable[Any]]


class Homeserver:
    """The outbox's transport: all that was said, in order."""

    device_id = "BRIDGE"

    def __init__(self) -> None:
        self.said: list[tuple[str, dict[str, Any]]] = []

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.said.append((room_id, json.loads(content)))
        return self.id_of(len(self.said) - 1)

    async def find_echo(self, *_: object) -> str | None:
        return None

    @staticmethod
    def id_of(at: int) -> str:
        return f"$bridge{at}"


class FakeHands:
    """What the methods of the bridge answer; `asked` is what was called."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answers: dict[str, Any] = {
            "health": {"status": "degraded", "reasons": ["the folder /var/lib/armorclaw/state is odd"]},
            "status": {
                "version": "1.2",
                "uptime_s": 7_300,
                "accounts": [{"account": "main", "state": "connected"}],
            },
            "containers.list": [
                {"name": "echo", "state": "ready", "restarts": 2, "status": "thinking\n of you", "last_end": ""},
                {"name": "ada", "state": "stopped", "restarts": 0, "status": "", "last_end": "exit 3"},
            ],
            "start": {"status": "running", "ready": True},
            "stop": {"status": "stopped"},
            "containers.restart": {"status": "restarting", "ready": False},
            "containers.logs": [{"text": "one\ntwo "}, {"text": "tok-secret <b>\n"}],
        }
        self.secrets = ["tok-secret"]
        self.waits = 0.0

    async def call(self, method: str, /, **params: Any) -> Any:
        self.asked.append((method, params))
        await trio.sleep(self.waits)
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer

    @asynccontextmanager
    async def stream(self, method: str, /, **params: Any) -> AsyncIterator[AsyncIterator[Any]]:
        pieces = await self.call(method, **params)

        class Pieces:
            def __init__(self) -> None:
                self._left = iter(pieces)

            def __aiter__(self) -> Pieces:
                return self

            async def __anext__(self) -> Any:
                await trio.lowlevel.checkpoint()
                try:
                    return next(self._left)
                except StopIteration:
                    raise StopAsyncIteration from None

        yield Pieces()

    async def secrets_of(self, agent: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        return self.secrets

    def changed(self) -> list[tuple[str, Any]]:
        """Calls that change something: the method, and of whom."""
        return [(method, params.get("name")) for method, params in self.asked if method in CHANGING]


CHANGING = ("start", "stop", "containers.restart")


@attrs.define
class World:
    """Outlives the console, as store, people and homeserver do."""

    db: InlineDatabase = attrs.field(factory=InlineDatabase)
    hands: FakeHands = attrs.field(factory=FakeHands)
    homeserver: Homeserver = attrs.field(factory=Homeserver)
    commanders: set[str] = attrs.field(factory=lambda: {ANN, BEN})
    places: dict[str, Place] = attrs.field(factory=dict)
    shared: dict[str, list[Place]] = attrs.field(factory=dict)
    """How rooms stand for all accounts, where there are several."""
    notes: list[tuple[dict[str, Any], str | None]] = attrs.field(factory=list)
    numbers: Any = attrs.field(factory=itertools.count)
    journal: Journal = attrs.field(init=False)
    outbox: Outbox = attrs.field(init=False)
    table: RouteTable = attrs.field(init=False)
    note_fails: ArmorclawError | None = None

    def __attrs_post_init__(self) -> None:
        hearing = frozenset({"echo"})
        routed = (Routed("echo", "mention", "routes[0]"),)
        self.places = {
            ROOM: Place("main", (ROOM,), "@bot:x", routed=routed, level="route", hearing=hearing),
            DIRECT: Place("main", (DIRECT,), "@bot:x", direct=ANN),
            ADMIN: Place("main", (ADMIN,), "@bot:x"),
        }

    @asynccontextmanager
    async def running(self, *, console: bool = True) -> AsyncIterator[Console]:
        clock = Clock(wall=lambda: START + trio.current_time(), monotonic=trio.current_time)
        around = Surroundings(clock=clock)
        db = cast(Database, self.db)
        self.journal = Journal(db, clock)
        subscriptions = Subscriptions(db, self.journal, around)
        self.outbox = Outbox(db, AuditLog(around), self.journal, around)
        agents = {name: Agent(command=("x",)) for name in ("echo", "ada")}
        self.table = RouteTable((), agents, Grants(), db, clock)
        await self.table.load()
        hands = Hands(
            offers=lambda method: method in self.hands.answers,
            call=self.hands.call,
            stream=self.hands.stream,
            secrets_of=self.hands.secrets_of,
        )
        made = Console(
            CarryingOut(hands, self.table),
            Rooms(
                standing=lambda account, room: self.places.get(room) if account == "main" else None,
                in_room=lambda room: self.shared.get(room, []),
                may_command=lambda user: user in self.commanders,
                is_private=lambda account, room: room == ADMIN,
            ),
            subscriptions=subscriptions,
            journal=self.journal,
            outbox=self.outbox,
            note=self._note,
            clock=clock,
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(self.outbox.serve, "main", self.homeserver)
            if console:
                await nursery.start(made.run)
            yield made
            nursery.cancel_scope.cancel(reason="the test is over")

    async def say(
        self, text: str, by: str = ANN, room: str = ROOM, *, ago: float = 0.0, more: Mapping[str, Any] = NOTHING
    ) -> str:
        content = {"msgtype": "m.text", "body": text, **more}
        return await self.record("m.room.message", content, by, room, ago)

    async def react(self, target: str, key: str = "✅", by: str = ANN, room: str = ROOM) -> None:
        relation = {"rel_type": "m.annotation", "event_id": target, "key": key}
        await self.record("m.reaction", {"m.relates_to": relation}, by, room, 0.0)

    async def ask(self, text: str, by: str = ANN, room: str = ROOM, *, ago: float = 0.0) -> str:
        """Say something; the first answer."""
        before = len(self.homeserver.said)
        await self.say(text, by, room, ago=ago)
        await settled()
        assert len(self.homeserver.said) == before + 1, self.texts()[before:]
        return self.texts()[before]

    def texts(self) -> list[str]:
        return [content["body"] for _, content in self.homeserver.said]

    @property
    def last(self) -> str:
        """The event id of what the bridge said last."""
        return self.homeserver.id_of(len(self.homeserver.said) - 1)

    async def record(self, type: str, content: dict[str, Any], by: str, room: str, ago: float) -> str:  # noqa: A002
        number = next(self.numbers)
        event = Event.make(
            type,
            content,
            at_ms=int((START + trio.current_time() - ago) * 1000),
            account="main",
            room_id=room,
            sender=by,
            event_id=f"$said{number}",
            id=f"said{number}",
        )
        await self.journal.record([attrs.evolve(event, addressed=(BRIDGE,))])
        return f"$said{number}"

    async def _note(self, type: str, content: Any, *, agent: str | None) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        assert type == "bridge.order"
        if self.note_fails is not None:
            error, self.note_fails = self.note_fails, None
            raise error
        self.notes.append((dict(content), agent))


async def settled() -> None:
    await trio.sleep(0.5)


@pytest.fixture
def world() -> Iterator[World]:
    made = World()
    yield made
    made.db.close()
