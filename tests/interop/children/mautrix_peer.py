"""A peer on asyncio: mautrix as it comes, python-olm, its SQLite stores. Only the order of things is ours.

mautrix's own loop runs handlers as loose tasks, so that a room key and the first message in one answer race, and it
knows nothing of answers that leave events out; neither is what is to be tested here.
"""

# ruff: noqa: ASYNC240 - a disk that waits holds up nothing here

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

from mautrix.api import HTTPAPI, Method
from mautrix.api import Path as ApiPath
from mautrix.client import Client
from mautrix.client.state_store.asyncpg import PgStateStore
from mautrix.crypto import OlmMachine
from mautrix.crypto.attachments import decrypt_attachment, encrypt_attachment
from mautrix.crypto.cross_signing_key import CrossSigningSeeds
from mautrix.crypto.store.asyncpg import PgCryptoStateStore, PgCryptoStore
from mautrix.errors import DecryptionError, SessionNotFound
from mautrix.types import (
    DeviceLists,
    DeviceOTKCount,
    EncryptedEvent,
    Event,
    EventType,
    Membership,
    RoomCreatePreset,
    SerializerError,
    StateEvent,
    ToDeviceEvent,
    UserID,
)
from mautrix.util.async_db import Database

from tests.interop.children.wire import FILTER, LIMIT, Device, serve

ROOMS: Any = ApiPath.v3.rooms


class MautrixDevice(Device):
    # of Client, OlmMachine, PgCryptoStore and PgCryptoStateStore, which have a type of their own for each kind of id
    client: Any
    machine: Any
    crypto: Any
    state: Any
    database: Any
    since: str | None

    async def do_open(self, homeserver: str, user: str, password: str, store: str, name: str) -> dict[str, str]:
        folder = Path(store)
        folder.mkdir(parents=True, exist_ok=True)
        self.database = Database.create(
            f"sqlite:///{folder / 'mautrix.db'}", upgrade_table=PgCryptoStore.upgrade_table
        )
        await self.database.start()
        await PgStateStore.upgrade_table.upgrade(self.database)
        self.session_file = folder / "session.json"
        saved = json.loads(self.session_file.read_text()) if self.session_file.exists() else {}
        api = HTTPAPI(base_url=homeserver, token=saved.get("token", ""), default_retry_count=0)
        self.state = PgCryptoStateStore(self.database)
        self.client = Client(mxid=UserID(user), device_id=saved.get("device_id", ""), api=api, state_store=self.state)
        if not saved:
            answer = await self.client.login(user, password=password, device_name=name)
            saved = {"device_id": answer.device_id, "token": answer.access_token}
            self.session_file.write_text(json.dumps(saved))
        self.crypto = PgCryptoStore(user, "pickle key", self.database)
        self.crypto._device_id = self.client.device_id
        self.machine = OlmMachine(self.client, self.crypto, self.state)
        await self.machine.load()
        await self.crypto.put_device_id(self.client.device_id)
        self.client.crypto = self.machine
        if not self.machine.account.shared:
            await self.machine.share_keys(0)
        self.since = await self.crypto.get_next_batch() or None
        self.waiting: dict[str, list[Any]] = {}
        return {
            "user_id": self.client.mxid,
            "device_id": self.client.device_id,
            "identity_key": self.machine.account.identity_key,
            "fingerprint": self.machine.account.signing_key,
        }

    async def shut(self) -> None:
        await self.client.api.session.close()
        await self.database.stop()

    # -- receiving

    async def sync_once(self, timeout_ms: int) -> None:
        with self.waiting_for_answer():
            answer: Any = await self.client.sync(self.since, timeout_ms, filter_id=json.dumps(FILTER))
        for raw in answer.get("to_device", {}).get("events", []):
            await self._to_device(raw)
        lists = answer.get("device_lists", {})
        if lists.get("changed"):
            await self.machine.handle_device_lists(DeviceLists(changed=lists["changed"], left=[]))
        count = answer.get("device_one_time_keys_count", {}).get("signed_curve25519", 0)
        await self.machine.handle_otk_count(DeviceOTKCount(signed_curve25519=count, curve25519=0))
        rooms = answer.get("rooms", {})
        for room_id, room in (rooms.get("join", {}) | rooms.get("leave", {})).items():
            for raw in room.get("state", {}).get("events", []):
                await self._state(room_id, raw)
            timeline = room.get("timeline", {})
            events = timeline.get("events", [])
            if timeline.get("limited") and self.since:
                events = await self._gap(room_id, timeline["prev_batch"]) + events
            for raw in events:
                await self._timeline(room_id, raw)
        self.since = answer["next_batch"]
        await self.crypto.put_next_batch(self.since)
        for room_id in rooms.get("invite", {}):
            self.tell("invite", room_id=room_id)
            if self.joins:
                await self.client.join_room_by_id(room_id)

    async def _gap(self, room_id: str, start: str) -> list[dict[str, Any]]:
        """The events between two answers that the homeserver left out, oldest first."""
        found: list[dict[str, Any]] = []
        place: str | None = start
        while place:
            query = {"dir": "b", "from": place, "to": self.since, "limit": str(LIMIT)}
            answer = await self.client.api.request(Method.GET, ROOMS[room_id].messages, query_params=query)
            found += answer["chunk"]
            place = answer.get("end") if answer["chunk"] else None
        return found[::-1]

    async def _to_device(self, raw: Any) -> None:
        self.tell("to_device", type=raw["type"], sender=raw["sender"], content=raw["content"])
        try:
            event: Any = ToDeviceEvent.deserialize(raw)
        except SerializerError:
            return
        event.type = event.type.with_class(EventType.Class.TO_DEVICE)
        event.source = None
        if raw["type"] == "m.room.encrypted":
            try:
                await self.machine.handle_to_device_event(event)
            except DecryptionError as error:
                self.tell("olm_failure", sender=raw["sender"], why=repr(error))
        elif raw["type"] == "m.room_key_request":
            await self.machine.handle_room_key_request(event)
        for session_id, events in list(self.waiting.items()):
            if await self.crypto.has_group_session(events[0].room_id, session_id):
                for waited in self.waiting.pop(session_id):
                    await self._decrypt(waited)

    async def _state(self, room_id: str, raw: Any) -> None:
        try:
            event: Any = StateEvent.deserialize(raw | {"room_id": room_id})
        except SerializerError:
            return
        event.type = event.type.with_class(EventType.Class.STATE)
        if event.type == EventType.ROOM_MEMBER:
            await self.machine.handle_member_event(event)
            if event.content.membership in (Membership.LEAVE, Membership.BAN):
                await self.state.set_membership(room_id, event.state_key, event.content.membership)
            self.tell("member", room_id=room_id, user_id=raw["state_key"], membership=raw["content"]["membership"])
        await self.state.update_state(event)

    async def _timeline(self, room_id: str, raw: dict[str, Any]) -> None:
        if "state_key" in raw:
            await self._state(room_id, raw)
            return
        event: Any = Event.deserialize(raw | {"room_id": room_id})
        event.type = event.type.with_class(EventType.Class.MESSAGE)
        if isinstance(event, EncryptedEvent):
            await self._decrypt(event)
        else:
            self._show(raw | {"room_id": room_id})

    async def _decrypt(self, event: Any) -> None:
        session_id = event.content.session_id
        try:
            clear = await self.machine.decrypt_megolm_event(event)
        except DecryptionError as error:
            if isinstance(error, SessionNotFound):
                self.waiting.setdefault(session_id, []).append(event)
            sender_key = event.content.sender_key
            self.tell(
                "undecryptable",
                room_id=event.room_id,
                event_id=event.event_id,
                sender=event.sender,
                session_id=session_id,
                sender_key=sender_key,
                why=repr(error),
            )
            return
        trust = clear["mautrix"]["trust_state"]
        self._show(clear.serialize(), session_id=session_id, trust=trust.name.lower())

    def _show(self, raw: dict[str, Any], *, session_id: str | None = None, trust: str | None = None) -> None:
        kept = {name: raw[name] for name in ("room_id", "event_id", "sender", "type", "content")}
        self.tell("timeline", **kept, encrypted=session_id is not None, session_id=session_id, trust=trust)

    # -- rooms and messages

    async def do_create_room(self, invite: list[str], encrypted: bool, messages: int | None, direct: bool) -> str:
        content: dict[str, Any] = {"algorithm": "m.megolm.v1.aes-sha2"}
        if messages is not None:
            content["rotation_period_msgs"] = messages
        state = [{"type": "m.room.encryption", "state_key": "", "content": content}] if encrypted else []
        room_id: str = await self.client.create_room(
            preset=RoomCreatePreset.PRIVATE, invitees=invite, initial_state=state, is_direct=direct
        )
        return room_id

    async def do_encrypt(self, room_id: str) -> None:
        """From now on for good."""
        content = {"algorithm": "m.megolm.v1.aes-sha2"}
        await self.client.send_state_event(room_id, EventType.ROOM_ENCRYPTION, content)

    async def do_invite(self, room_id: str, user_id: str) -> None:
        await self.client.invite_user(room_id, user_id)

    async def do_kick(self, room_id: str, user_id: str) -> None:
        await self.client.kick_user(room_id, user_id)

    async def do_leave(self, room_id: str) -> None:
        await self.client.leave_room(room_id)

    async def do_join(self, room_id: str) -> None:
        await self.client.join_room_by_id(room_id)

    async def do_encrypts(self, room_id: str) -> bool:
        """Whether it knows that the room is encrypted."""
        return bool(await self.state.is_encrypted(room_id))

    async def do_send(self, room_id: str, content: dict[str, Any]) -> str:
        event_id: str = await self.client.send_message_event(room_id, EventType.ROOM_MESSAGE, content)
        return event_id

    async def do_react(self, room_id: str, event_id: str, key: str) -> str:
        return str(await self.client.react(room_id, event_id, key))

    async def do_send_at_once(self, room_id: str, bodies: list[str]) -> list[str]:
        """Without waiting for one another."""
        contents = ({"msgtype": "m.text", "body": body} for body in bodies)
        return await asyncio.gather(*(self.do_send(room_id, content) for content in contents))

    async def do_send_file(self, room_id: str, path: str, mimetype: str, msgtype: str) -> dict[str, Any]:
        sealed, file = encrypt_attachment(Path(path).read_bytes())
        file.url = await self.client.upload_media(sealed, mime_type="application/octet-stream")
        content = {
            "msgtype": msgtype,
            "body": Path(path).name,
            "info": {"mimetype": mimetype, "size": Path(path).stat().st_size},
            "file": file.serialize(),
        }
        return {"event_id": await self.do_send(room_id, content), "content": content}

    async def do_fetch_file(self, file: dict[str, Any]) -> str:
        """The SHA-256 of what was in an encrypted file."""
        sealed = await self.client.download_media(file["url"])
        clear = decrypt_attachment(sealed, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
        return hashlib.sha256(clear).hexdigest()

    # -- devices and keys

    async def do_outbound(self, room_id: str) -> str | None:
        """The Megolm session that it would send with."""
        session = await self.crypto.get_outbound_group_session(room_id)
        return None if session is None else session.id

    async def do_devices(self, user_id: str) -> list[str]:
        """Whom it would send keys to, as far as it knows."""
        return sorted(await self.crypto.get_devices(user_id) or {})

    async def do_trust(self, user_id: str, device_id: str) -> str:
        device = await self.machine.get_or_fetch_device(user_id, device_id)
        if device is None:
            return "unknown"
        return str((await self.machine.resolve_trust(device)).name.lower())

    async def do_log_out(self) -> None:
        """The device is gone for everybody."""
        await self._stop()
        await self.client.logout()

    async def do_cross_sign(self) -> str:
        """Make a cross-signing identity; its recovery key."""
        return str(await self.machine.generate_recovery_key())

    async def do_reset_identity(self, password: str) -> None:
        """Another cross-signing identity in place of the one before, as somebody makes who has lost it."""
        seeds = CrossSigningSeeds.generate()
        user = {"type": "m.id.user", "user": self.client.mxid}
        proof = {"type": "m.login.password", "identifier": user, "password": password}
        await self.machine._publish_cross_signing_keys(seeds.to_keys(), auth=proof)
        await self.machine.sign_own_device(self.machine.own_identity)

    async def do_recover(self, recovery_key: str) -> None:
        """Sign itself with the identity that another device made."""
        await self.machine.verify_with_recovery_key(recovery_key)

    async def do_request_key(self, room_id: str, sender_key: str, session_id: str, devices: list[str]) -> None:
        """Ask other devices of its own user."""
        await self.machine.request_room_key(
            room_id, sender_key, session_id, from_devices={self.client.mxid: devices}, timeout=0
        )

    async def do_forget_channels(self) -> None:
        """Lose all Olm sessions, so that what others send over them cannot be read."""
        await self.database.execute("DELETE FROM crypto_olm_session")
        self.crypto._olm_cache.clear()

    async def do_forget_session(self, room_id: str) -> None:
        """Send the next message with a new Megolm session."""
        await self.crypto.remove_outbound_group_session(room_id)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("mau.crypto").setLevel(logging.ERROR)  # else a line for each device that is not cross-signed
    asyncio.run(serve(MautrixDevice))
