"""Routing on the inline store, with an outbox that only keeps what it is given."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, cast

from armorclaw.clock import Clock
from armorclaw.config import AccessSection, Account, Agent, Invites, Route
from armorclaw.delivery.message import Outgoing
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.guard.grants import Grants
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.routing.router import Router
from armorclaw.matrix.routing.service import Routing
from armorclaw.matrix.status import SessionStatus
from tests.events.inline_store import InlineDatabase

BOT, ALICE, STRANGER = "@bot:x", "@alice:x", "@mallory:evil"


class FakeOutbox:
    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.full = False

    async def enqueue(self, out: Outgoing) -> None:
        if self.full:
            raise ArmorclawError("queue_full", "message not accepted")
        if out.idempotency_key not in [each.idempotency_key for each in self.sent]:
            self.sent.append(out)


class House:
    """Account `main` is BOT. `agents` are declared with the rooms that they are granted; all speak for `main`."""

    def __init__(
        self,
        agents: dict[str, Sequence[str]] | None = None,
        *,
        access: AccessSection | None = None,
        routes: Sequence[Route] = (),
        invites: Invites = "granted",
        db: InlineDatabase | None = None,
        accounts: Iterable[str] = ("main",),
        speaks_for: dict[str, str] | None = None,
    ) -> None:
        self.db = db or InlineDatabase()
        self.wall = 1.7e9
        self.clock = Clock(wall=lambda: self.wall)
        self.grants = Grants()
        self.outbox = FakeOutbox()
        homes = speaks_for or {}
        self.agents = {
            name: Agent(command=("x",), rooms=tuple(rooms), account=homes.get(name, "main"), name=name)
            for name, rooms in (agents or {}).items()
        }
        self.routing = Routing(
            access or AccessSection(),
            routes,
            self.agents,
            db=cast(Any, self.db),
            outbox=cast(Any, self.outbox),
            grants=self.grants,
            clock=self.clock,
        )
        self.rooms: dict[str, Rooms] = {}
        self.granted: dict[str, Granted] = {}
        for name in accounts:
            rooms = self.rooms[name] = Rooms(name)
            table, policy = self.routing.table, self.routing.policy
            granted = Granted(name, self.grants, rooms=rooms, table=table, policy=policy)
            self.granted[name] = granted
            status = SessionStatus(name, "http://x", self.clock)
            status.user_id = BOT if name == "main" else f"@{name}:x"
            self.routing.open(Account("http://x", "bot", invites=invites, name=name), granted, rooms, status)
        for name, agent in self.agents.items():
            self.grants.set(name, agent.account, self.routing.table.granted_by_name(name))

    @property
    def router(self) -> Router:
        return self.routing.routers["main"]

    def be_in(self, room_id: str, membership: str = "join", *, account: str = "main", **facts: Any) -> None:
        self.rooms[account].apply({room_id: RoomState(membership, **facts)})
        self.granted[account].poke()

    async def hear(
        self,
        room_id: str,
        content: dict[str, Any] | str,
        *,
        sender: str = ALICE,
        type: str = "m.room.message",  # noqa: A002
        event_id: str = "$said",
        account: str = "main",
    ) -> Event | None:
        if isinstance(content, str):
            content = {"msgtype": "m.text", "body": content}
        event = Event.make(type, content, at_ms=1, account=account, room_id=room_id, sender=sender, event_id=event_id)
        return await self.routing.routers[account].place(event)

    async def heard_by(self, room_id: str, content: dict[str, Any] | str, **more: Any) -> list[str] | None:
        """Who is addressed; None if nothing is kept. "*" is everybody who may hear the room."""
        event = await self.hear(room_id, content, **more)
        if event is None:
            return None
        return ["*"] if event.addressed is None else list(event.addressed)

    def spoke(self, agent: str, event_id: str | None, *, txn_id: str = "", account: str = "main") -> None:
        """Something that an agent has sent."""
        self.db.conn.execute(
            "INSERT INTO outbox"
            " (delivery_id, txn_id, account, agent, room_id, type, content, state, event_id, created_ms)"
            " VALUES (?, ?, ?, ?, '!r:x', 'm.room.message', '{}', 'sent', ?, 0)",
            [f"d-{agent}-{event_id}-{txn_id}", txn_id or f"t-{event_id}", account, agent, event_id],
        )

    def journal(self, event_id: str, addressed: str | None) -> None:
        self.db.conn.execute(
            "INSERT INTO journal (id, type, at_ms, account, room_id, event_id, content, stored_ms, addressed)"
            " VALUES (?, 'm.room.message', 0, 'main', '!r:x', ?, '{}', 0, ?)",
            [f"main/{event_id}", event_id, addressed],
        )
