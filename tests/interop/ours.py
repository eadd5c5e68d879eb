"""Our side: an account, and bridges that are it, in the test's own loop or as a daemon that can be killed."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, TypeVar

import attrs
import httpx
import trio

from armorclaw.agent.events import Event
from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import AccessSection, Account, Agent, AlertsSection, BridgeSection, Config
from armorclaw.store.connection import open_connection
from armorclaw.store.keyfile import load_or_create_key
from armorclaw.structure import Secret
from armorclaw.testing.handles import BridgeProcess
from armorclaw.testing.homeserver import Homeserver
from tests.interop.peers import POLL, SECONDS, Peer

T = TypeVar("T")

EARS = "ears"
"""The agent that is granted the rooms of a test, so that what is said there is kept."""


@attrs.frozen
class Bot:
    """A user of the homeserver that bridges are to be, and the folder of one of them."""

    homeserver: Homeserver
    folder: Path
    user_id: str
    password: str = attrs.field(repr=False)

    @classmethod
    async def register(cls, homeserver: Homeserver, folder: Path) -> Bot:
        password = secrets.token_urlsafe(12)
        name = f"bot-{secrets.token_hex(4)}"
        user_id = await trio.to_thread.run_sync(homeserver.register, name, password)
        return cls(homeserver, folder, user_id, password)

    def elsewhere(self, name: str) -> Bot:
        """The same user with another folder: another device."""
        return attrs.evolve(self, folder=self.folder / name)

    @property
    def keys(self) -> list[Path]:
        """The files of its cryptographic state."""
        return sorted((self.folder / "state" / "matrix").glob("main.db*"))

    @asynccontextmanager
    async def open(
        self, *rooms: str, url: str = "", commands: Sequence[str] = (), alerts: str = "", **account: Any
    ) -> AsyncIterator[Ours]:
        """A bridge in this loop, connected and in the rooms, to each of which the bot is invited.

        People in `commands` may give it orders; its alerts go to the room `alerts`.
        """
        where = url or self.homeserver.url
        main = Account(homeserver=where, user=self.user_id, password=Secret(self.password), **account)
        config = Config(
            bridge=BridgeSection(state_dir=self.folder / "state", runtime_dir=self.folder / "run"),
            accounts={"main": main},
            agents={EARS: Agent(name=EARS, runtime="attached", rooms=rooms)},
            access=AccessSection(commands=tuple(commands)),
            alerts=AlertsSection(room=alerts),
        )
        async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
            ours = Ours(self, bridge)
            nursery.start_soon(ours.listen)
            with trio.fail_after(SECONDS):
                await bridge.until_connected()
                await bridge.until_joined([*rooms, alerts] if alerts else rooms)
            yield ours
            nursery.cancel_scope.cancel(reason="the bridge is about to be closed")

    async def log_out(self, device_id: str) -> None:
        """End one of its devices, as a person does in a client."""
        identifier = {"type": "m.id.user", "user": self.user_id}
        proof = {"type": "m.login.password", "identifier": identifier, "password": self.password}
        async with httpx.AsyncClient(base_url=f"{self.homeserver.url}/_matrix/client/v3", trust_env=False) as http:
            token = (await http.post("login", json=proof)).raise_for_status().json()["access_token"]
            headers = {"Authorization": f"Bearer {token}"}
            asked = await http.request("DELETE", f"devices/{device_id}", json={}, headers=headers)
            auth = {**proof, "session": asked.json()["session"]}
            done = await http.request("DELETE", f"devices/{device_id}", json={"auth": auth}, headers=headers)
            done.raise_for_status()
            (await http.post("logout", headers=headers)).raise_for_status()

    def forget_channels(self) -> None:
        """Lose all Olm sessions, so that what others send over them cannot be read. No bridge may be open."""
        section = BridgeSection(state_dir=self.folder / "state")
        key = load_or_create_key(section.key_file, section.database)
        with closing(open_connection(self.folder / "state" / "matrix" / "main.db", key)) as db:
            assert db.execute("DELETE FROM channels").rowcount > 0
            db.commit()

    def daemon(self, *rooms: str, url: str = "") -> BridgeProcess:
        """The same as a process; not started."""
        self.folder.mkdir(parents=True, exist_ok=True)
        password_file = self.folder / "password"
        password_file.write_text(self.password)
        main = {"homeserver": url or self.homeserver.url, "user": self.user_id, "password_file": password_file}
        ears = {"runtime": "attached", "rooms": list(rooms)}
        return BridgeProcess(self.folder, {"accounts": {"main": main}, "agents": {EARS: ears}})


@attrs.define(eq=False)
class Ours:
    """A bridge at work, and all that its journal has."""

    bot: Bot
    bridge: Bridge
    heard: list[Event] = attrs.field(factory=list, repr=False)
    _news: trio.Event = attrs.field(factory=trio.Event, repr=False)

    @property
    def standing(self) -> Any:
        """How the account stands."""
        return self.bridge.status().accounts[0]

    @property
    def device_id(self) -> str:
        return str(self.standing.device_id)

    async def listen(self) -> None:
        """From the first event of the journal on."""
        async for event in self.bridge.events(from_=0):
            self.heard.append(event)
            self._news.set()
            self._news = trio.Event()

    async def wait(self, what: str, wanted: Callable[[Event], bool], seconds: float = SECONDS) -> Event:
        """The first event in the journal that is wanted."""
        with trio.move_on_after(seconds):
            at = 0
            while True:
                while at < len(self.heard):
                    if wanted(self.heard[at]):
                        return self.heard[at]
                    at += 1
                await self._news.wait()
        last = "\n".join(f"  {event.type} {json.dumps(event.content)[:200]}" for event in self.heard[-20:])
        raise AssertionError(
            f"the bridge heard nothing of {what} within {seconds:g} s, but last:\n{last}\n{self.standing}"
        )

    async def hears(self, body: str, *, seconds: float = SECONDS) -> Event:
        """A message that it could read."""
        return await self.wait(f"the message {body!r}", lambda event: _body(event) == body, seconds)

    def read(self, room_id: str) -> list[str]:
        """The bodies of all it could read of others in a room, in order."""
        return [body for event in self.heard if event.room_id == room_id and (body := _body(event)) is not None]

    def alerts(self) -> list[Any]:
        return [event.content for event in self.heard if event.type == "alert"]

    async def send(self, room_id: str, body: str, **more: Any) -> str:
        """A message into the outbox; its delivery id."""
        sent = await self.bridge.call("matrix.send", room_id=room_id, message=body, **more)
        return str(sent["delivery_id"])

    async def say(self, room_id: str, body: str, **more: Any) -> str:
        """A message that has been sent; its event id."""
        return await self.sent(await self.send(room_id, body, **more))

    async def sent(self, delivery_id: str) -> str:
        """The event id of a message of the outbox, once it has one."""

        async def look() -> str | None:
            row = await self.bridge.call("delivery.status", delivery_id=delivery_id)
            assert row["state"] not in ("failed", "cancelled"), row
            event_id: str | None = row["event_id"]
            return event_id

        return await eventually(look, f"{delivery_id} is sent")


async def eventually(look: Callable[[], Awaitable[T | None]], what: str, seconds: float = SECONDS) -> T:
    """The first answer that is one."""
    with trio.move_on_after(seconds):
        while (found := await look()) is None:  # noqa: ASYNC110 - other processes are waited for
            await trio.sleep(POLL)
        return found
    raise AssertionError(f"{what}: not within {seconds:g} s")


async def room_of(bot: Bot, *peers: Peer, messages: int | None = None, encrypted: bool = True) -> str:
    """A room that the first of these made, with the others in it and the bot invited."""
    first, *others = peers
    invite = [bot.user_id, *(peer.user_id for peer in others)]
    room = await first.create_room(*invite, messages=messages, encrypted=encrypted)
    for peer in others:
        await first.until_member(room, peer.user_id)
        await peer.until_member(room, peer.user_id)
    return room


async def joined(room: str, bot: Bot, *peers: Peer) -> None:
    """Until the peers know that the bot is in, and what devices it has."""
    for peer in peers:
        await peer.until_member(room, bot.user_id)


def _body(event: Event) -> str | None:
    return event.content.get("body", "") if event.type == "m.room.message" else None
