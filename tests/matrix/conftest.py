"""A real Synapse for the run, people on it, and sessions of ours under test."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.store import Database
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver

KEY = bytes(32)


@pytest.fixture(scope="session")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    with Homeserver(tmp_path_factory.mktemp("synapse")) as running:
        yield running


@attrs.frozen
class Person:
    """Somebody on the homeserver, by plain HTTP: nothing of ours is used to test ours."""

    http: httpx.AsyncClient = attrs.field(repr=False)
    user_id: str
    password: str = attrs.field(repr=False)
    token: str = attrs.field(repr=False)

    @property
    def name(self) -> str:
        return self.user_id[1:].partition(":")[0]

    async def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"/_matrix/client/v3/{path}"
        answer = await self.http.request(method, url, json=body if method != "GET" else None, headers=headers)
        assert answer.status_code == 200, answer.text
        result: dict[str, Any] = answer.json()
        return result

    async def create_room(self, *invite: str, encrypted: bool = False, **more: Any) -> str:
        state = [{"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]
        body = {"preset": "private_chat", "invite": invite, "initial_state": state if encrypted else [], **more}
        room_id: str = (await self.call("POST", "createRoom", body))["room_id"]
        return room_id

    async def say(self, room_id: str, text: str) -> str:
        path = f"rooms/{room_id}/send/m.room.message/{secrets.token_hex(8)}"
        event_id: str = (await self.call("PUT", path, {"msgtype": "m.text", "body": text}))["event_id"]
        return event_id

    async def read(self, room_id: str, limit: int = 200) -> list[dict[str, Any]]:
        """The messages of a room, oldest first."""
        answer = await self.call("GET", f"rooms/{room_id}/messages?dir=b&limit={limit}")
        return [raw for raw in answer["chunk"][::-1] if raw["type"] == "m.room.message"]

    async def has_read(self, room_id: str, event_id: str) -> None:
        """Tell everybody so."""
        await self.call("POST", f"rooms/{room_id}/receipt/m.read/{event_id}", {})

    async def member_of(self, room_id: str, user_id: str) -> bool:
        return user_id in (await self.call("GET", f"rooms/{room_id}/joined_members"))["joined"]


@attrs.define
class Watch:
    """What a client of somebody's shows of who has read what in a room, from now on."""

    person: Person
    room_id: str
    since: str = ""
    seen: list[tuple[str, str]] = attrs.field(factory=list)
    """Readers and events, in order."""

    async def look(self) -> list[tuple[str, str]]:
        """What was seen so far."""
        place = f"&since={self.since}" if self.since else ""  # a second first sync would come out of a cache
        answer = await self.person.call("GET", f"sync?timeout=0{place}")
        self.since = answer["next_batch"]
        part = answer.get("rooms", {}).get("join", {}).get(self.room_id, {})
        for raw in part.get("ephemeral", {}).get("events", []):
            if raw["type"] == "m.receipt":
                for event_id, kinds in raw["content"].items():
                    self.seen += [(reader, event_id) for reader in kinds.get("m.read", {})]
        return self.seen


@attrs.frozen
class Bench:
    """The parts of a bridge that a session needs, on one database."""

    db: Database
    journal: Journal
    outbox: Outbox
    grants: Grants
    around: Surroundings
    events: list[Event]

    def accounts(
        self, *accounts: Account, alerts: Any = None, vault: Vault | None = None, agents: Sequence[str] = ("echo",)
    ) -> Accounts:
        made = Accounts(
            {account.name: account for account in accounts},
            db=self.db,
            journal=self.journal,
            outbox=self.outbox,
            grants=self.grants,
            around=self.around,
            receipts=self.outbox.receipts,
            alerts=alerts,
            vault=vault,
        )
        for agent in agents:  # in a bridge they are granted once the accounts are there, and follow that
            if (account := self.grants.account_of(agent)) is not None:
                rooms = self.grants.rooms_of(agent)
                self.grants.forget(agent)
                self.grants.set(agent, account, rooms)
        return made

    def messages(self) -> list[str]:
        """The bodies of the messages that were journalled, in order."""
        return [event.plain()["content"]["body"] for event in self.events if event.type == "m.room.message"]


@asynccontextmanager
async def open_bench(folder: Path) -> AsyncIterator[Bench]:
    around = Surroundings()
    async with Database.open(folder / "test.db", KEY) as db:
        journal = Journal(db)
        events: list[Event] = []
        journal.subscribe_hub(events.extend)
        outbox = Outbox(db, AuditLog(around), journal, around)
        yield Bench(db, journal, outbox, Grants(), around, events)


@asynccontextmanager
async def running(accounts: Accounts, *, connected: bool = True) -> AsyncIterator[Accounts]:
    """The sessions at work for the length of a block; by default once the first is connected."""
    async with trio.open_nursery() as nursery:
        await nursery.start(accounts.run)
        if connected:
            await until(lambda: bool((status := accounts.status()) and status.connected))
        yield accounts
        nursery.cancel_scope.cancel(reason="the test is done")


async def until(wanted: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 20.0) -> None:
    """Wait for something that another process brings about."""
    with trio.fail_after(seconds):
        while True:
            result = wanted()
            if result if isinstance(result, bool) else await result:
                return
            await trio.sleep(0.01)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with open_bench(tmp_path) as made:
        yield made


@asynccontextmanager
async def people(homeserver: Homeserver) -> AsyncIterator[Callable[[str], Awaitable[Person]]]:
    """A factory of people, each of a name never used before that begins with the given word."""
    async with httpx.AsyncClient(base_url=homeserver.url, trust_env=False, timeout=30.0) as http:

        async def make(word: str) -> Person:
            name, password = f"{word}{secrets.token_hex(4)}", secrets.token_hex(8)
            user_id = await trio.to_thread.run_sync(homeserver.register, name, password)
            body = {
                "type": "m.login.password",
                "identifier": {"type": "m.id.user", "user": name},
                "password": password,
            }
            answer = await http.post("/_matrix/client/v3/login", json=body)
            return Person(http, user_id, password, answer.json()["access_token"])

        yield make


@pytest.fixture
async def person(homeserver: Homeserver) -> AsyncIterator[Callable[[str], Awaitable[Person]]]:
    async with people(homeserver) as make:
        yield make


def account_of(person: Person, homeserver: Homeserver, **more: Any) -> Account:
    """The account a bridge would be given to speak as this person."""
    return Account(homeserver=homeserver.url, user=person.name, password=Secret(person.password), **more)
