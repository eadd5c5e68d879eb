"""Room keys that we miss and ask our other devices for, and those that others ask us for.

Keys are passed on between verified devices of the same user alone. Specification: Client-Server API, "Key requests".
"""

from __future__ import annotations

import uuid
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.answer import is_id, is_room_id
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.channels import Channels, Letter
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.device_lists import DeviceLists
from armorclaw.matrix.crypto.olm import OlmError
from armorclaw.matrix.crypto.policy import Trust
from armorclaw.matrix.crypto.room_keys import ALGORITHM, RoomKeys
from armorclaw.matrix.crypto.sharing import Sharing
from armorclaw.matrix.crypto.standing import Device, Standing
from armorclaw.matrix.failures import TROUBLES, may_pass

log = get_logger(__name__)

PATIENCE_MS = 5_000
"""Before anybody is asked: the key is often just behind the message."""

WANTED_MS = 24 * 3600 * 1000
"""After this a key is given up."""

MAX_WANTED = 1000
"""Keys that are missed at a time; of more the oldest are given up."""

MAX_ASKED = 100
"""Requests of others that wait for their turn; of more the oldest are dropped."""

_ASK = 50  # keys asked for in one round


@attrs.frozen
class _Request:
    """That a device of `user_id` asks for a key."""

    user_id: str
    device_id: str
    request_id: str
    room_id: str
    session_id: str


class KeyRequests:
    """Both directions, of one account."""

    def __init__(
        self,
        client: MatrixClient,
        db: CryptoDatabase,
        *,
        channels: Channels,
        devices: DeviceLists,
        standing: Standing,
        keys: RoomKeys,
        sharing: Sharing,
        clock: Clock,
    ) -> None:
        self._client = client
        self._db = db
        self._channels = channels
        self._devices = devices
        self._standing = standing
        self._keys = keys
        self._sharing = sharing
        self._clock = clock
        db.run("UPDATE wanted SET asked_ms = NULL")  # whether the last life still did, nobody knows
        self._alone = False  # we have no other devices, by what was heard last
        self._asked: OrderedDict[tuple[str, str, str], _Request] = OrderedDict()

    # -- what we miss --

    def want(self, room_id: str, session_id: str, sender_key: Any) -> None:
        """A message came whose key did not, or only from further on."""
        self._db.run(
            "INSERT INTO wanted VALUES (?, ?, ?, ?, ?, NULL) "
            "ON CONFLICT DO UPDATE SET since_ms = excluded.since_ms WHERE since_ms = 0",  # what came does not serve
            room_id,
            session_id,
            sender_key if is_id(sender_key) else "",
            uuid.uuid4().hex,
            self._clock.now_ms(),
        )
        self._db.run(
            "DELETE FROM wanted WHERE (room_id, session_id) IN "
            "(SELECT room_id, session_id FROM wanted ORDER BY since_ms DESC LIMIT -1 OFFSET ?)",
            MAX_WANTED,
        )

    def accept(self, letter: Letter) -> tuple[str, str] | None:
        """The key of an m.forwarded_room_key, if we miss it and it comes from a verified device of our own.

        Raises OlmError for any other.
        """
        device = self._standing.device_of_key(letter.sender, letter.sender_key)
        if letter.sender != str(self._client.mxid) or device is None or device.trust is not Trust.VERIFIED:
            raise OlmError("a key was forwarded by a device that is not a verified one of ours")
        if device.signing_key != letter.signing_key:
            raise OlmError("a key was forwarded by a device with other keys")
        room_id, session_id = letter.content.get("room_id"), letter.content.get("session_id")
        sql = "SELECT 1 FROM wanted WHERE room_id = ? AND session_id = ?"
        if not (isinstance(room_id, str) and isinstance(session_id, str) and self._db.one(sql, room_id, session_id)):
            raise OlmError("a key was forwarded that nobody misses")
        return self._keys.receive_forwarded(letter.content)

    async def ask(self) -> None:
        """Ask for what is missing by now, and take back what is not any more. Raises MatrixError."""
        now = self._clock.now_ms()
        rows = self._db.all(
            "SELECT *, since_ms <= ? AS over FROM wanted "
            "WHERE over OR (asked_ms IS NULL AND since_ms <= ? AND NOT ?) LIMIT ?",
            now - WANTED_MS,
            now - PATIENCE_MS,
            self._alone,
            _ASK,
        )
        for row in rows:
            if row["over"]:
                if row["asked_ms"] is not None:
                    await self._put({"action": "request_cancellation"}, row["request_id"])
                place = row["room_id"], row["session_id"]
                sql = "DELETE FROM wanted WHERE room_id = ? AND session_id = ? AND since_ms <= ?"
                self._db.run(sql, *place, now - WANTED_MS)
                # if it is there still, then it is wanted anew
                self._db.run("UPDATE wanted SET asked_ms = NULL WHERE room_id = ? AND session_id = ?", *place)
                continue
            if not self._alone and not await self._are_others():
                self._alone = True
            if self._alone:
                continue
            wanted = {name: row[name] for name in ("room_id", "session_id", "sender_key")}
            await self._put({"action": "request", "body": {"algorithm": ALGORITHM, **wanted}}, row["request_id"])
            sql = "UPDATE wanted SET asked_ms = ? WHERE room_id = ? AND session_id = ?"
            self._db.run(sql, now, row["room_id"], row["session_id"])

    def next_due_ms(self) -> int | None:
        """When there is something to ask for (epoch, ms). Where there is nobody to ask, that is when one comes."""
        if self._alone:
            return None
        row = self._db.one("SELECT min(since_ms) FROM wanted WHERE asked_ms IS NULL")
        return None if row is None or row[0] is None else int(row[0]) + PATIENCE_MS

    def own_devices_changed(self) -> None:
        """There may be somebody to ask."""
        self._alone = False

    async def _are_others(self) -> bool:
        """Whether we have other devices at all."""
        own = str(self._client.mxid)
        if self._devices.is_pending(own):
            await self._devices.refresh([own])
        return any(device.key != self._channels.account.identity_key for device in self._standing.devices(own))

    async def _put(self, content: Mapping[str, Any], request_id: str) -> None:
        body = {**content, "requesting_device_id": str(self._client.device_id), "request_id": request_id}
        await self._channels.put("m.room_key_request", {str(self._client.mxid): {"*": body}})

    # -- what others miss --

    def asked(self, sender: str, content: Mapping[str, Any]) -> None:
        """Somebody asks for a key, or no longer does. It is answered by `answer`."""
        device_id, request_id, body = (content.get(name) for name in ("requesting_device_id", "request_id", "body"))
        if not (is_id(device_id) and is_id(request_id)) or self._is_me(sender, device_id):
            return
        place = (sender, device_id, request_id)
        if content.get("action") == "request_cancellation":
            self._asked.pop(place, None)
            return
        room_id, session_id = (
            (body.get("room_id"), body.get("session_id")) if isinstance(body, dict) else (None, None)
        )
        if content.get("action") != "request" or not (is_room_id(room_id) and is_id(session_id)):
            return
        self._asked[place] = _Request(sender, device_id, request_id, room_id, session_id)
        if len(self._asked) > MAX_ASKED:
            _, dropped = self._asked.popitem(last=False)
            log.warning("too many key requests: one is dropped", user=dropped.user_id, device=dropped.device_id)

    async def answer(self) -> None:
        """Answer all who asked. Raises what may pass of the homeserver and the disk; who was not answered stays."""
        while self._asked:
            place, request = self._asked.popitem(last=False)
            try:
                await self._answer(request)
            except TROUBLES as error:
                if may_pass(error):
                    self._asked[place] = request
                    raise
                log.warning("a key request cannot be answered", device=request.device_id, why=str(error))

    async def _answer(self, request: _Request) -> None:
        if request.user_id == str(self._client.mxid) and self._devices.is_pending(request.user_id):
            await self._devices.refresh([request.user_id])
        device = self._standing.device(request.user_id, request.device_id)
        if device is None:
            return
        if request.user_id != str(self._client.mxid):
            # it has been given this key: that got lost, and may come once more, but nothing from before
            if self._sharing.serves(request.room_id, request.session_id, request.user_id, request.device_id):
                self._sharing.share_again(request.user_id, request.device_id)
            return
        if device.trust is not Trust.VERIFIED:
            await self._refuse(device, request, "m.unverified", "the device is not verified")
            return
        key = self._keys.get(request.room_id, request.session_id)
        if key is None:
            await self._refuse(device, request, "m.unavailable", "the key is not here")
            return
        content = {
            "algorithm": ALGORITHM,
            "room_id": request.room_id,
            "session_id": request.session_id,
            "session_key": key.session.export_session(key.session.first_known_index),
            "sender_key": key.sender_key,
            "sender_claimed_ed25519_key": key.signing_key,
            "forwarding_curve25519_key_chain": [],
        }
        if await self._channels.send([device], "m.forwarded_room_key", content):
            log.warning("a key cannot be passed on: no channel", device=request.device_id)

    async def _refuse(self, device: Device, request: _Request, code: str, reason: str) -> None:
        content = {
            "algorithm": ALGORITHM,
            "room_id": request.room_id,
            "session_id": request.session_id,
            "sender_key": self._channels.account.identity_key,
            "code": code,
            "reason": reason,
        }
        await self._channels.put("m.room_key.withheld", {device.user_id: {device.device_id: content}})

    def _is_me(self, user_id: str, device_id: str) -> bool:
        return (user_id, device_id) == (str(self._client.mxid), str(self._client.device_id))
