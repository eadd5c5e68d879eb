"""What the outbox sends goes through here: encrypted where the room is, and nowhere in the clear by mistake.

Every doubt is settled before anything is sent: a room of which nothing certain is known is asked about, and what
cannot be encrypted is not sent.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, TypeVar

from mautrix.errors import MatrixError

from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix import echo
from armorclaw.matrix.answer import is_id
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import as_attempt, judge
from armorclaw.matrix.reading import ENCRYPTED, IN_THE_CLEAR, REDACTION
from armorclaw.matrix.rooms import Knows, Rooms

T = TypeVar("T")

OFF = "room_encrypted: a message there would be in the clear, as encryption is switched off for this account"
LOST = "the account has lost its keys, and cannot encrypt before it is logged in anew"
NOT_CURRENT = "the homeserver has not said yet who came and went since the last time"


class Encrypts(Knows, echo.Reads, Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`."""

    @property
    def current(self) -> bool: ...

    async def encrypt(self, room_id: str, type: str, content: Mapping[str, Any]) -> dict[str, Any]: ...  # noqa: A002


class Postman:
    """One account's transport, as the outbox wants it, while it is logged in.

    `encryption` is None if the account has it switched off: then encrypted rooms get nothing. If its keys are `lost`,
    what is for those rooms waits for a login.
    """

    def __init__(
        self, client: MatrixClient, rooms: Rooms, encryption: Encrypts | None, *, lost: bool = False
    ) -> None:
        self._client = client
        self._rooms = rooms
        self._encryption = encryption
        self._lost = lost

    @property
    def device_id(self) -> str:
        """The device that we are now: homeservers know transaction ids by device."""
        return str(self._client.device_id)

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        """Send one event and return its id. Raises Delayed or Refused, as the outbox wants it."""
        encrypted = await self._before_sending(self.is_encrypted(room_id))
        if type == REDACTION:
            return await self._redact(room_id, txn_id, content, encrypted=encrypted)
        if encrypted and type not in IN_THE_CLEAR:
            type, content = ENCRYPTED, await self._encrypted(room_id, type, content)  # noqa: A001
        try:
            return await self._client.put_event(room_id, type, txn_id, content)
        except MatrixError as error:
            raise judge(error).exception() from error

    async def find_echo(
        self,
        room_id: str,
        type: str,  # noqa: A002
        content: bytes,
        since_ms: int,
        claimed: Callable[[str], Awaitable[bool]],
    ) -> str | None:
        """As `echo.find_echo`: whether a message that may have been sent is in the room, encrypted or not."""
        decrypts = self._encryption if type not in IN_THE_CLEAR else None
        looking = echo.find_echo(self._client, room_id, type, content, since_ms, claimed, decrypts=decrypts)
        return await _unless_stored(looking)

    async def is_encrypted(self, room_id: str) -> bool:
        """Whether a message in this room must be encrypted; asks the homeserver if that is not known for certain.

        Raises MatrixError if it does not tell.
        """
        return await self._rooms.find_out(
            room_id, self._encryption, lambda: self._client.state(room_id, "m.room.encryption", "")
        )

    async def _encrypted(self, room_id: str, type_: str, content: bytes) -> bytes:
        if self._encryption is None:
            raise Delayed(None, LOST, sure=True) if self._lost else Refused(OFF, sure=False)
        if not self._encryption.current:
            raise Delayed(None, NOT_CURRENT, sure=True)
        return ascii_json(await self._before_sending(self._encryption.encrypt(room_id, type_, json.loads(content))))

    async def _redact(self, room_id: str, txn_id: str, content: bytes, *, encrypted: bool) -> str:
        told = json.loads(content)
        event_id, reason = told.get("redacts"), told.get("reason")
        if not is_id(event_id):
            raise Refused("a redaction must say what it `redacts`", sure=False)
        if encrypted or not isinstance(reason, str):
            reason = None  # it would be in the clear
        with as_attempt():
            return await self._client.redact_event(room_id, event_id, txn_id, reason)

    async def _before_sending(self, doing: Awaitable[T]) -> T:
        """Nothing was sent yet if this fails; and of earlier attempts that says nothing."""
        try:
            return await _unless_stored(doing)
        except Delayed as delay:
            raise Delayed(delay.seconds, delay.reason, sure=True, whole=delay.whole) from delay
        except Refused as refusal:
            raise Refused(refusal.reason, sure=False) from refusal
        except MatrixError as error:
            verdict = judge(error)
            if verdict.again:
                raise Delayed(verdict.after, verdict.reason, sure=True, whole=verdict.whole) from error
            raise Refused(verdict.reason, sure=False) from error


async def _unless_stored(doing: Awaitable[T]) -> T:
    """What the disk refuses now it may take later."""
    try:
        return await doing
    except ArmorclawError as error:
        if not error.kind.retryable:
            raise
        raise Delayed(None, str(error), sure=True) from error
