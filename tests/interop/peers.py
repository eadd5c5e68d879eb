"""The side of the test: peers that are not ours, each kind one child process that is as many devices as wanted."""

from __future__ import annotations

import itertools
import json
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import trio

from armorclaw.testing.homeserver import Homeserver

Kind = Literal["mautrix", "nio"]
KINDS: tuple[Kind, ...] = ("mautrix", "nio")

SECONDS = 30.0
"""Within which anything asked of a peer, or awaited from it, must have happened."""

POLL = 0.05

ROOT = Path(__file__).parent.parent.parent
_STDERR_SHOWN = 3000
_numbers = itertools.count(1)


class PeerError(AssertionError):
    """A peer could not do what it was told, or did not see what it should have; with what it said."""


class Program:
    """The child process. It outlives a test; `attended` reads from it for the length of one."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind
        self._stderr = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - lives as long as the child
        command = [sys.executable, "-m", f"tests.interop.children.{kind}_peer"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr
        )
        self._rest = b""
        self._waiting: dict[int, trio.Event] = {}
        self._answers: dict[int, dict[str, Any]] = {}
        self.peers: dict[int, Peer] = {}

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def end(self) -> None:
        """It ends when its stdin does; killed if it does not."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def kill(self) -> None:
        """As a crash would."""
        self._process.kill()
        self._process.wait()

    def said(self) -> str:
        """The end of its stderr."""
        if self._stderr.closed:
            return "(it was killed)"
        size = self._stderr.seek(0, os.SEEK_END)
        return os.pread(self._stderr.fileno(), _STDERR_SHOWN, max(0, size - _STDERR_SHOWN)).decode(errors="replace")

    async def listen(self) -> None:
        """Read what it says, until cancelled."""
        assert self._process.stdout is not None
        async with trio.lowlevel.FdStream(os.dup(self._process.stdout.fileno())) as out:
            async for data in out:
                *lines, self._rest = (self._rest + data).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
        for waiting in self._waiting.values():
            waiting.set()

    async def clear(self) -> None:
        """Close all devices that a test left open; the process is killed when that fails."""
        with trio.move_on_after(SECONDS, shield=True):
            for peer in list(self.peers.values()):
                try:
                    await peer.close()
                except PeerError:
                    self._process.kill()
        self.peers.clear()

    async def ask(self, device: int, do: str, seconds: float, **params: Any) -> Any:
        number = next(_numbers)
        order = json.dumps({"id": number, "device": device, "do": do, "with": params}) + "\n"
        self._waiting[number] = answered = trio.Event()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(order.encode())
            self._process.stdin.flush()
            with trio.move_on_after(seconds):
                await answered.wait()
        except BrokenPipeError:
            pass
        finally:
            del self._waiting[number]
        answer = self._answers.pop(number, None)
        if answer is None:
            state = f"did not answer within {seconds:g} s" if self.alive else "is dead"
            raise PeerError(f"the {self.kind} peer, asked to {do}, {state}; it said:\n{self.said()}")
        if "error" in answer:
            raise PeerError(f"the {self.kind} peer could not {do}: {answer['error']}; it said:\n{self.said()}")
        return answer["result"]

    def _take(self, value: dict[str, Any]) -> None:
        if "device" in value:
            peer = self.peers.get(value["device"])
            if peer is not None:  # else of an earlier test
                peer.note(value)
        elif "id" in value and value["id"] in self._waiting:
            self._answers[value["id"]] = value
            self._waiting[value["id"]].set()


@attrs.define(eq=False)
class Peer:
    """One device of one person, in a peer's program."""

    program: Program = attrs.field(repr=False)
    number: int
    user_id: str
    password: str = attrs.field(repr=False)
    store: Path = attrs.field(repr=False)
    homeserver: str = attrs.field(repr=False)
    device_id: str = ""
    identity_key: str = attrs.field(default="", repr=False)
    fingerprint: str = attrs.field(default="", repr=False)
    seen: list[dict[str, Any]] = attrs.field(factory=list, repr=False)
    """All that it told of, oldest first."""
    _news: trio.Event = attrs.field(factory=trio.Event, repr=False)

    def note(self, value: dict[str, Any]) -> None:
        self.seen.append(value)
        self._news.set()
        self._news = trio.Event()

    async def do(self, what: str, /, *, seconds: float = SECONDS, **params: Any) -> Any:
        """Have it carry out an order of `children/`; raises PeerError."""
        return await self.program.ask(self.number, what, seconds, **params)

    async def open(self, name: str = "peer") -> None:
        """Log in, or go on with what is in `store`, and follow."""
        self.program.peers[self.number] = self
        who = await self.do(
            "open",
            homeserver=self.homeserver,
            user=self.user_id,
            password=self.password,
            store=str(self.store),
            name=name,
        )
        self.device_id = who["device_id"]
        self.identity_key, self.fingerprint = who["identity_key"], who["fingerprint"]
        await self.do("sync")

    async def close(self) -> None:
        """End this device's client; `open` goes on with its store."""
        if self.program.peers.pop(self.number, None) is not None and self.program.alive:
            await self.do("close")

    async def say(self, room_id: str, body: str, **more: Any) -> str:
        """A message; its event id."""
        event_id: str = await self.do("send", room_id=room_id, content={"msgtype": "m.text", "body": body, **more})
        return event_id

    async def create_room(
        self, *invite: str, encrypted: bool = True, messages: int | None = None, direct: bool = False
    ) -> str:
        """A room, by default encrypted, with a new Megolm session every so many messages if that is given."""
        room_id: str = await self.do(
            "create_room", invite=list(invite), encrypted=encrypted, messages=messages, direct=direct
        )
        return room_id

    async def wait(
        self, what: str, wanted: Callable[[dict[str, Any]], bool], seconds: float = SECONDS
    ) -> dict[str, Any]:
        """The first thing it told of, from the beginning on, that is wanted."""
        with trio.move_on_after(seconds):
            looked_at = 0
            while True:
                while looked_at < len(self.seen):
                    if wanted(self.seen[looked_at]):
                        return self.seen[looked_at]
                    looked_at += 1
                await self._news.wait()
        told = "\n".join(_short(value) for value in self.seen[-20:])
        who = f"{self.user_id}, a {self.program.kind} peer,"
        raise PeerError(
            f"{who} did not see {what} within {seconds:g} s, but last:\n{told}\nit said:\n{self.program.said()}"
        )

    async def sees(self, body: str, *, seconds: float = SECONDS) -> dict[str, Any]:
        """A message that it could read."""
        return await self.wait(f"the message {body!r}", lambda seen: _body(seen) == body, seconds)

    async def cannot_read(self, event_id: str, *, seconds: float = SECONDS) -> dict[str, Any]:
        """A message that it has, and no key for."""
        return await self.wait(
            f"{event_id} as undecryptable",
            lambda seen: seen["seen"] == "undecryptable" and seen["event_id"] == event_id,
            seconds,
        )

    async def until_member(self, room_id: str, user_id: str, membership: str = "join") -> None:
        """Until it knows who is in a room."""
        await self.wait(
            f"{user_id} {membership} {room_id}",
            lambda seen: (
                seen["seen"] == "member"
                and (seen["room_id"], seen["user_id"], seen["membership"]) == (room_id, user_id, membership)
            ),
        )

    async def until(self, what: str, wanted: Callable[[Any], bool], **params: Any) -> None:
        """Ask for the same again and again until the answer is the wanted one."""
        answer = None
        with trio.move_on_after(SECONDS):
            while not wanted(answer := await self.do(what, **params)):  # noqa: ASYNC110 - in another process
                await trio.sleep(POLL)
            return
        raise PeerError(f"the {self.program.kind} peer, asked for {what} {params}, still says {answer!r}")

    async def knows(self, user_id: str, device_id: str) -> None:
        """Until it knows of a device."""
        await self.until("devices", lambda devices: device_id in devices, user_id=user_id)

    async def unreadable(self, sender: Peer | str) -> dict[str, Any]:
        """The first message of somebody that it had no key for when it came."""
        user_id = sender if isinstance(sender, str) else sender.user_id
        return await self.wait(
            f"anything undecryptable of {user_id}",
            lambda seen: seen["seen"] == "undecryptable" and seen["sender"] == user_id,
        )

    def read(self, room_id: str) -> list[str]:
        """The bodies of all it could read in a room, in order, its own too."""
        return [body for seen in self.seen if seen.get("room_id") == room_id and (body := _body(seen)) is not None]

    def unread(self) -> list[str]:
        """Events that it could not read and did not read later either."""
        read = {seen["event_id"] for seen in self.seen if seen["seen"] == "timeline"}
        return [
            seen["event_id"] for seen in self.seen if seen["seen"] == "undecryptable" and seen["event_id"] not in read
        ]


def _body(seen: dict[str, Any]) -> str | None:
    if seen["seen"] != "timeline" or seen["type"] != "m.room.message":
        return None
    body: str = seen["content"].get("body", "")
    return body


def _short(value: dict[str, Any]) -> str:
    return "  " + json.dumps(value)[:300]


@attrs.frozen
class Peers:
    """Factory of devices for one test, with a nursery that listens to their programs."""

    homeserver: Homeserver
    folder: Path
    program_of: Callable[[Kind], Program]
    nursery: trio.Nursery
    attended: dict[Kind, Program] = attrs.field(factory=dict)

    async def __call__(
        self,
        kind: Kind,
        name: str = "alice",
        *,
        of: Peer | None = None,
        user: tuple[str, str] | None = None,
    ) -> Peer:
        """A new device: of somebody new, of the person that another peer is, or of `user` with a password."""
        if of is not None:
            user_id, password = of.user_id, of.password
        elif user is not None:
            user_id, password = user
        else:
            password = secrets.token_urlsafe(12)
            register = self.homeserver.register
            user_id = await trio.to_thread.run_sync(register, f"{name}-{secrets.token_hex(4)}", password)
        number = next(_numbers)
        store = self.folder / f"peer-{number}"
        peer = Peer(self._program(kind), number, user_id, password, store, self.homeserver.url)
        await peer.open(name)
        return peer

    async def crash(self, peer: Peer) -> None:
        """kill -9 of the process that this device is in, with all others there, and the same device in a new one."""
        kind = peer.program.kind
        self.attended.pop(kind).kill()
        peer.program = self._program(kind)
        peer.seen.clear()
        await peer.open()

    def _program(self, kind: Kind) -> Program:
        if kind not in self.attended:
            self.attended[kind] = self.program_of(kind)
            self.nursery.start_soon(self.attended[kind].listen)
        return self.attended[kind]

    async def clear(self) -> None:
        for program in self.attended.values():
            await program.clear()


def programs() -> Iterator[Callable[[Kind], Program]]:
    """A running program of each kind, started when it is first wanted, and anew if it died."""
    running: dict[Kind, Program] = {}

    def get(kind: Kind) -> Program:
        if kind in running and not running[kind].alive:
            running.pop(kind).end()
        if kind not in running:
            running[kind] = Program(kind)
        return running[kind]

    try:
        yield get
    finally:
        for program in running.values():
            program.end()
