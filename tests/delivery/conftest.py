"""A homeserver that remembers transaction ids, and can be told to misbehave."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
import trio

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import DeliverySection
from armorclaw.delivery.outbox import Outbox, Outgoing
from armorclaw.delivery.transport import Refused
from armorclaw.events.event import Event, ascii_json
from armorclaw.events.journal import Journal
from armorclaw.guard.audit import AuditLog
from tests.events.inline_store import InlineDatabase

Trouble = BaseException | str


@attrs.frozen
class Said:
    """One event of a room's timeline, from us or, with a `sender`, from somebody else."""

    room_id: str
    event_id: str
    body: str
    at_ms: float
    content: bytes = b""
    txn_id: str | None = None
    device_id: str | None = None
    sender: str | None = None


class FakeHomeserver:
    """`attempts` is every request as (time, room, transaction id, body); `visible` what people in the rooms see.

    `trouble[room]` holds what happens to the next requests there: an exception, "lose" (accepted, and the answer is
    lost: then the exception), or "hang"; `look_trouble` what happens to the next looks at a timeline. Transaction ids
    are known by device, until `forget` is called, as homeservers do after a day. `device_id` is who asks.
    """

    def __init__(self, wall: Callable[[], float] = trio.current_time) -> None:
        self.attempts: list[tuple[float, str, str, str]] = []
        self.timeline: list[Said] = []
        self.known: dict[tuple[str, str], str] = {}
        self.trouble: defaultdict[str, deque[Trouble]] = defaultdict(deque)
        self.look_trouble: deque[BaseException] = deque()
        self.looks = 0
        self.device_id = "PHONE"
        self.latency = 0.0
        self.in_flight: defaultdict[str, int] = defaultdict(int)
        self.most_in_flight = 0
        self.point: Callable[[str], object] = lambda name: None
        self._wall = wall

    @property
    def visible(self) -> list[tuple[str, str]]:
        return [(each.room_id, each.body) for each in self.timeline if each.sender is None]

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        body = json.loads(content)["body"]
        self.attempts.append((trio.current_time(), room_id, txn_id, body))
        self.in_flight[room_id] += 1
        self.most_in_flight = max(self.most_in_flight, sum(self.in_flight.values()))
        device_id = self.device_id
        try:
            assert self.in_flight[room_id] == 1, "two at once in one room"
            self.point("before put")
            await trio.sleep(self.latency)
            trouble = self.trouble[room_id].popleft() if self.trouble[room_id] else None
            if trouble == "hang":
                await trio.sleep_forever()
            if trouble == "lose":
                self._accept(room_id, txn_id, content, device_id)
                trouble = self.trouble[room_id].popleft()
            knows = (device_id, txn_id) in self.known and isinstance(trouble, Refused) and trouble.sure
            if isinstance(trouble, BaseException) and not knows:  # what it has accepted it does not refuse
                raise trouble
            event_id = self._accept(room_id, txn_id, content, device_id)
            self.point("after put")
            return event_id
        finally:
            self.in_flight[room_id] -= 1

    async def find_echo(
        self,
        room_id: str,
        type: str,  # noqa: A002
        content: bytes,
        since_ms: int,
        claimed: Callable[[str], Awaitable[bool]],
    ) -> str | None:
        self.looks += 1
        self.point("before look")
        await trio.sleep(self.latency)
        if self.look_trouble:
            raise self.look_trouble.popleft()
        for each in self.timeline:
            ours = each.room_id == room_id and each.content == content and each.at_ms >= since_ms
            if ours and not await claimed(each.event_id):
                return each.event_id
        return None

    def say(self, room_id: str, body: str = "hi", sender: str = "@person:x") -> str:
        """Somebody else says something; returns its event id."""
        return self._add(Said(room_id, "", body, self._wall() * 1000, sender=sender))

    def forget(self) -> None:
        self.known.clear()

    def _accept(self, room_id: str, txn_id: str, content: bytes, device_id: str) -> str:
        known = self.known.get((device_id, txn_id))
        if known is None:
            body = json.loads(content)["body"]
            said = Said(room_id, "", body, self._wall() * 1000, content, txn_id, device_id)
            known = self.known[device_id, txn_id] = self._add(said)
        return known

    def _add(self, said: Said) -> str:
        event_id = f"${len(self.timeline)}"
        self.timeline.append(attrs.evolve(said, event_id=event_id))
        return event_id

    def times(self, room_id: str) -> list[float]:
        return [at for at, room, _, _ in self.attempts if room == room_id]

    def bodies(self, room_id: str) -> list[str]:
        return [body for room, body in self.visible if room == room_id]


class Alarms:
    """The alerts that were raised, as (name, severity, text, agent, fields)."""

    def __init__(self) -> None:
        self.raised: list[tuple[str, str, str, str | None, dict[str, Any]]] = []

    async def raise_alert(
        self, name: str, severity: str, text: str, *, agent: str | None = None, **fields: Any
    ) -> None:
        await trio.lowlevel.checkpoint()
        self.raised.append((name, severity, text, agent, fields))


def make_outgoing(body: str, room: str = "!a:x", *, key: str | None = None, agent: str = "echo") -> Outgoing:
    content = ascii_json({"msgtype": "m.text", "body": body})
    return Outgoing(account="main", agent=agent, room_id=room, content=content, idempotency_key=key)


class World:
    """A store, a homeserver and an outbox between them, which can be had anew."""

    def __init__(self) -> None:
        self.db = InlineDatabase()
        self.wall_offset = 1_700_000_000.0
        self.server = FakeHomeserver(self.wall)
        self.events: list[Event] = []
        self.alarm = Alarms()
        self.section = DeliverySection()
        self.synced = 0
        self.outbox = self.reopen()

    def wall(self) -> float:
        return self.wall_offset + trio.current_time()

    def reopen(self) -> Outbox:
        """A new bridge over the same store."""
        around = Surroundings(Clock(wall=self.wall))
        self.journal = Journal(self.db, around.clock)  # type: ignore[arg-type]  # the same shape
        self.journal.subscribe_hub(self.events.extend)
        self.outbox = Outbox(
            self.db,  # type: ignore[arg-type]  # the same shape
            AuditLog(around),
            self.journal,
            around,
            self.section,
            self.alarm,
        )
        return self.outbox

    async def sync(self, *reads: tuple[str, str, str], forgetful: bool = False) -> None:
        """Takes in what the timelines have since the last time, and receipts as (room, event, reader).

        `forgetful`: as a homeserver that does not say which transaction an event was sent by.
        """
        receipts, journal = self.outbox.receipts, self.journal
        news = self.server.timeline[self.synced :]

        def work(conn: Any) -> list[Event]:
            new = []
            for said in news:
                if said.sender is None:
                    mine = said.device_id == self.server.device_id and not forgetful
                    told = receipts.echoed(conn, "main", said.room_id, said.event_id, said.txn_id if mine else None)
                    for event in journal.append(conn, [told] if told is not None else []):
                        receipts.placed(conn, "main", said.event_id, event.seq)
                        new.append(event)
                else:
                    where = {"account": "main", "room_id": said.room_id, "event_id": said.event_id}
                    new += journal.append(conn, [Event.make("m.room.message", {}, at_ms=1, **where)])
            for room_id, event_id, reader in reads:
                new += journal.append(conn, receipts.read(conn, "main", room_id, event_id, reader))
            for room_id in dict.fromkeys(said.room_id for said in news):
                new += journal.append(conn, receipts.caught_up(conn, "main", room_id))
            return new

        def then(new: list[Event]) -> None:
            receipts.committed(new)
            journal.publish(new)

        await self.db.write(work, then=then)
        self.synced += len(news)

    def told(self, delivery_id: str | None = None) -> list[str]:
        """The states that events of type `delivery` told of, of one message or of all."""
        contents = [json.loads(event.content) for event in self.events if event.type == "delivery"]
        return [each["state"] for each in contents if delivery_id in (None, each["delivery_id"])]

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
