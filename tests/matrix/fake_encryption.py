"""An encryption without secrets, for tests of what stands on it: it can read what it was told the key of."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import trio

from armorclaw.matrix.answer import Answer, Raw
from armorclaw.matrix.crypto.encryption import Decrypted
from armorclaw.matrix.crypto.failures import Undecryptable

KEY = "test.key"


class FakeEncryption:
    """`keys` are those it has, of rooms and sessions; `log` is what it was asked, in order.

    `fail` makes the next `encrypt` raise, `reasons` says why a session cannot be read, ever.
    """

    def __init__(self, *keys: tuple[str, str]) -> None:
        self.keys = set(keys)
        self.seen: set[str] = set()
        self.log: list[tuple[str, ...]] = []
        self.reasons: dict[str, str] = {}
        self.fail: Exception | None = None
        self.on_keys: Callable[[Sequence[tuple[str, str]]], object] = lambda keys: None
        self.absorbing: Callable[[], object] = lambda: None
        self.rooms: set[str] = set()
        self.identity_key = "own"
        self.current = True
        self.device_made_ms = 0
        self.places: list[tuple[str | None, str]] = []

    async def start_over(self) -> None:
        await trio.lowlevel.checkpoint()

    def stands(self, since: str | None, next_batch: str) -> None:
        self.places.append((since, next_batch))

    def knows(self, room_id: str) -> bool:
        return room_id in self.rooms

    async def absorb(self, answer: Answer) -> None:
        await trio.lowlevel.checkpoint()
        self.absorbing()
        for raw in answer.to_device:
            mark = json.dumps(raw, sort_keys=True)
            if raw.get("type") == KEY and mark not in self.seen:
                self.seen.add(mark)
                self.receive(raw["content"]["room_id"], raw["content"]["session_id"])
        await trio.lowlevel.checkpoint()

    def receive(self, room_id: str, session_id: str) -> None:
        """A key comes, by whatever way."""
        self.keys.add((room_id, session_id))
        self.on_keys([(room_id, session_id)])

    async def room_state(self, room_id: str, raw: Raw) -> None:
        await trio.lowlevel.checkpoint()
        self.log.append(("state", room_id, raw["type"], raw["state_key"]))
        if raw["type"] == "m.room.encryption":
            self.rooms.add(room_id)

    async def forget_members(self, room_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.log.append(("forget", room_id))

    async def decrypt(self, room_id: str, raw: Raw) -> Decrypted:
        await trio.lowlevel.checkpoint()
        session = raw["content"].get("session_id", "")
        self.log.append(("decrypt", raw["event_id"]))
        if session in self.reasons:
            raise Undecryptable(self.reasons[session], session)
        if (room_id, session) not in self.keys:
            raise Undecryptable("no_key", session, later=True)
        inner = raw["content"]["ciphertext"]
        return Decrypted(inner["type"], inner["content"], session, "verified")

    async def encrypt(self, room_id: str, type: str, content: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.log.append(("encrypt", room_id, type))
        if self.fail is not None:
            raise self.fail
        return sealed(type, dict(content))


def sealed(type: str, content: dict[str, Any], session_id: str = "s") -> dict[str, Any]:  # noqa: A002
    """The content of an encrypted event, for whoever has the key."""
    return {
        "algorithm": "m.megolm.v1.aes-sha2",
        "session_id": session_id,
        "ciphertext": {"type": type, "content": content},
    }


def key(room_id: str, session_id: str = "s") -> dict[str, Any]:
    """The to-device message that brings one."""
    return {"type": KEY, "sender": "@ann:x", "content": {"room_id": room_id, "session_id": session_id}}
