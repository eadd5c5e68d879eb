"""A homeserver that remembers transaction ids, and can be told to misbehave."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

import pytest
import trio

from armorclaw.clock import Clock, Surroundings
from armorclaw.delivery.outbox import Outbox, Outgoing
from armorclaw.events.event import ascii_json
from armorclaw.guard.audit import AuditLog
from tests.events.inline_store import InlineDatabase

Trouble = BaseException | str


class FakeHomeserver:
    """`attempts` is every request as (time, room, transaction id, body); `visible` what people in the rooms see.

    `trouble[room]` holds what happens to the next requests there: an exception, "lose" (accepted, and the answer is
    lost: then the exception), or "hang".
    """

    def __init__(self) -> None:
        self.attempts: list[tuple[float, str, str, str]] = []
        self.visible: list[tuple[str, str]] = []
        self.events: dict[str, str] = {}
        self.trouble: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self.latency = 0.0
        self.in_flight: defaultdict[str, int] = defaultdict(int)
        self.most_in_flight = 0
        self.point: Callable[[str], object] = lambda name: None

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        body = json.loads(content)["body"]
        self.attempts.append((trio.current_time(), room_id, txn_id, body))
        self.in_flight[room_id] += 1
        self.most_in_flight = max(self.most_in_flight, sum(self.in_flight.values()))
        try:
            assert self.in_flight[room_id] == 1, "two at once in one room"
            self.point("before put")
            await trio.sleep(self.latency)
            trouble = self.trouble[room_id].popleft() if self.trouble[room_id] else None
            if trouble == "hang":
                await trio.sleep_forever()
            if trouble == "lose":
                self._accept(room_id, txn_id, body)
                trouble = self.trouble[room_id].popleft()
            if isinstance(trouble, BaseException):
                raise trouble
            event_id = self._accept(room_id, txn_id, body)
            self.point("after put")
            return event_id
        finally:
            self.in_flight[room_id] -= 1

    def _accept(self, room_id: str, txn_id: str, body: str) -> str:
        if txn_id not in self.events:
            self.events[txn_id] = f"${len(self.events)}"
            self.visible.append((room_id, body))
        return self.events[txn_id]

    def times(self, room_id: str) -> list[float]:
        return [at for at, room, _, _ in self.attempts if room == room_id]

    def bodies(self, room_id: str) -> list[str]:
        return [body for room, body in self.visible if room == room_id]


def make_outgoing(body: str, room: str = "!a:x", *, key: str | None = None, agent: str = "echo") -> Outgoing:
    content = ascii_json({"msgtype": "m.text", "body": body})
    return Outgoing(account="main", agent=agent, room_id=room, content=content, idempotency_key=key)


class World:
    """A store, a homeserver and an outbox between them, which can be had anew."""

    def __init__(self) -> None:
        self.db = InlineDatabase()
        self.server = FakeHomeserver()
        self.wall_offset = 1_700_000_000.0
        self.outbox = self.reopen()

    def reopen(self) -> Outbox:
        """A new bridge over the same store."""
        around = Surroundings(Clock(wall=lambda: self.wall_offset + trio.current_time()))
        self.outbox = Outbox(self.db, AuditLog(around), around)  # type: ignore[arg-type]  # the same shape
        return self.outbox

    def rows(self) -> list[tuple[str, str | None, int]]:
        """(state, reason, attempts) in order of acceptance."""
        return list(self.db.conn.execute("SELECT state, reason, attempts FROM outbox ORDER BY seq"))

    def audit(self) -> list[str]:
        return [body.decode() for (body,) in self.db.conn.execute("SELECT body FROM audit ORDER BY seq")]


@pytest.fixture(scope="session")
def new_world() -> Callable[[], World]:
    return World


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    yield world
    world.db.close()


@pytest.fixture(scope="session")
def out() -> Callable[..., Outgoing]:
    """Makes a text message to !a:x from the agent echo."""
    return make_outgoing
