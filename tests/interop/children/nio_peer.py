"""A peer on matrix-nio: asyncio, with a cryptographic stack and a store of its own."""

# ruff: noqa: ASYNC230, ASYNC240 - a disk that waits holds up nothing here

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

import nio
import nio.crypto.sas
from nio.crypto import SessionStore
from nio.crypto.attachments import decrypt_attachment
from nio.store import OlmSessions

from tests.interop.children.wire import FILTER, LIMIT, Device, serve

CONFIG = nio.AsyncClientConfig(
    encryption_enabled=True, store_sync_tokens=True, max_timeouts=0, max_limit_exceeded=10, pickle_key="pickle key"
)

SEND_TRIES = 5


def _mend_sas() -> None:
    """nio 0.26.0 verifies nobody but itself: its commitment is hexadecimal, its MAC has the name of the other one,
    and its emoji are not those of the bits. (matrix-nio, issue 570 and pull request 573.)"""

    class Base64:
        def __init__(self, data: bytes) -> None:
            self._digest = hashlib.sha256(data).digest()

        def hexdigest(self) -> str:
            return base64.b64encode(self._digest).rstrip(b"=").decode()

    def emoji(self: Any, info: str) -> list[tuple[str, str]]:
        return [self.emoji[index] for index in self.established_sas.bytes(info).emoji_indices]

    sas: Any = nio.crypto.sas
    sas.sha256 = Base64
    sas.Sas._mac_normal = "hkdf-hmac-sha256.v2"
    sas.Sas._mac_v1 = [sas.Sas._mac_normal]
    sas.Sas._generate_emoji = emoji


class NioDevice(Device):
    client: Any
    """nio.AsyncClient."""

    async def do_open(self, homeserver: str, user: str, password: str, store: str, name: str) -> dict[str, str]:
        folder = Path(store)
        folder.mkdir(parents=True, exist_ok=True)
        session_file = folder / "session.json"
        saved = json.loads(session_file.read_text()) if session_file.exists() else None
        self.client = nio.AsyncClient(homeserver, user, store_path=store, config=CONFIG)
        if saved:
            self.client.restore_login(user, saved["device_id"], saved["token"])
        else:
            answer = await self.client.login(password, device_name=name)
            assert isinstance(answer, nio.LoginResponse), answer
            session_file.write_text(json.dumps({"device_id": answer.device_id, "token": answer.access_token}))
        self.first = True
        self.waiting: dict[str, list[nio.MegolmEvent]] = {}
        self.batch: list[tuple[str, nio.Event]] = []
        self._receive = self.client.receive_response
        self.client.receive_response = self._receive_response
        self.client.add_event_callback(lambda room, event: self.batch.append((room.room_id, event)), nio.Event)
        self.client.add_to_device_callback(self._to_device, nio.ToDeviceEvent)
        await self._upkeep()
        keys = self.client.olm.account.identity_keys
        return {
            "user_id": self.client.user_id,
            "device_id": self.client.device_id,
            "identity_key": keys["curve25519"],
            "fingerprint": keys["ed25519"],
        }

    async def shut(self) -> None:
        await self.client.close()
        self.client.store.database.close()

    # -- receiving

    async def sync_once(self, timeout_ms: int) -> None:
        before = self.client.next_batch or self.client.loaded_sync_token
        with self.waiting_for_answer():
            answer = await self.client.sync(timeout_ms, sync_filter=FILTER, full_state=self.first)
        if not isinstance(answer, nio.SyncResponse):
            raise OSError(str(answer))
        self.first = False
        batch, self.batch = self.batch, []
        for room_id, room in answer.rooms.join.items():
            if room.timeline.limited and before:
                for event in await self._gap(room_id, room.timeline.prev_batch, before):
                    self._event(room_id, event)
            for where, event in batch:
                if where == room_id:
                    self._event(room_id, event)
        for event in answer.to_device_events:
            if isinstance(event, nio.RoomKeyRequest | nio.RoomKeyRequestCancellation):  # callbacks hear of none
                self._to_device(event)
        await self._upkeep()
        for room_id in answer.rooms.invite:
            self.tell("invite", room_id=room_id)
            if self.joins:
                await self.client.join(room_id)

    async def _receive_response(self, answer: nio.Response) -> None:
        """What nio does with any answer. It goes past one of a sync before it is through with it."""
        if isinstance(answer, nio.SyncResponse):
            self.answered()
        await self._receive(answer)

    async def _gap(self, room_id: str, place: str, end: str) -> list[nio.Event]:
        found: list[nio.Event] = []
        while place:
            answer = await self.client.room_messages(room_id, place, end, limit=LIMIT)
            if not isinstance(answer, nio.RoomMessagesResponse):
                raise OSError(str(answer))
            found += answer.chunk
            place = answer.end if answer.chunk else ""
        return found[::-1]

    async def _upkeep(self) -> None:
        """What nio has to say to the homeserver after each answer."""
        client = self.client
        await client.send_to_device_messages()
        if client.should_upload_keys:
            await client.keys_upload()
        if client.should_query_keys:
            await client.keys_query()
        if client.should_claim_keys:
            await client.keys_claim(client.get_users_for_key_claiming())
            await client._collect_key_requests()  # those that waited for it; nio itself asks when more is received
        await client.send_to_device_messages()

    def _to_device(self, event: nio.ToDeviceEvent) -> None:
        source = event.source if isinstance(event.source, dict) else {}
        kind = type(event).__name__
        shown = {"kind": kind, "sender": event.sender, "type": source.get("type"), "content": source.get("content")}
        if isinstance(event, nio.KeyVerificationEvent):
            shown["transaction_id"] = event.transaction_id
        self.tell("to_device", **shown)
        if isinstance(event, nio.RoomKeyEvent | nio.ForwardedRoomKeyEvent):
            for waited in self.waiting.pop(event.session_id, []):
                self._event(waited.room_id, waited)
        elif isinstance(event, nio.UnknownToDeviceEvent) and self.answers_requests:
            asyncio.get_running_loop().create_task(self._ready(event))

    answers_requests = False

    async def _ready(self, event: nio.UnknownToDeviceEvent) -> None:
        """nio knows nothing of requests for verification: what it says to one is said here."""
        if event.type != "m.key.verification.request":
            return
        asked = event.source["content"]
        content = {
            "from_device": self.client.device_id,
            "methods": ["m.sas.v1"],
            "transaction_id": asked["transaction_id"],
        }
        message = nio.event_builders.ToDeviceMessage(
            "m.key.verification.ready", event.sender, asked["from_device"], content
        )
        await self.client.to_device(message)

    def _event(self, room_id: str, event: nio.Event) -> None:
        if isinstance(event, nio.MegolmEvent):
            event.room_id = room_id
            try:
                clear = self.client.decrypt_event(event)
            except nio.EncryptionError as error:
                self.waiting.setdefault(event.session_id, []).append(event)
                self.tell(
                    "undecryptable",
                    room_id=room_id,
                    event_id=event.event_id,
                    sender=event.sender,
                    session_id=event.session_id,
                    sender_key=event.sender_key,
                    why=repr(error),
                )
                return
            clear.session_id = event.session_id
            event = clear
        source = event.source
        if isinstance(event, nio.RoomMemberEvent):
            self.tell("member", room_id=room_id, user_id=event.state_key, membership=event.membership)
        elif "state_key" not in source:
            self.tell(
                "timeline",
                room_id=room_id,
                event_id=event.event_id,
                sender=event.sender,
                type=source["type"],
                content=source["content"],
                encrypted=event.decrypted,
                session_id=event.session_id,
                trust="verified" if event.verified else "unverified",
            )

    # -- rooms and messages

    async def do_create_room(self, invite: list[str], encrypted: bool, messages: int | None, direct: bool) -> str:
        content: dict[str, Any] = {"algorithm": "m.megolm.v1.aes-sha2"}
        if messages is not None:
            content["rotation_period_msgs"] = messages
        state = [{"type": "m.room.encryption", "state_key": "", "content": content}] if encrypted else []
        answer = await self.client.room_create(
            invite=invite, initial_state=state, is_direct=direct, preset=nio.RoomPreset.private_chat
        )
        room_id: str = _good(answer).room_id
        return room_id

    async def do_encrypt(self, room_id: str) -> None:
        """From now on for good."""
        content = {"algorithm": "m.megolm.v1.aes-sha2"}
        _good(await self.client.room_put_state(room_id, "m.room.encryption", content))

    async def do_invite(self, room_id: str, user_id: str) -> None:
        _good(await self.client.room_invite(room_id, user_id))

    async def do_kick(self, room_id: str, user_id: str) -> None:
        _good(await self.client.room_kick(room_id, user_id))

    async def do_leave(self, room_id: str) -> None:
        _good(await self.client.room_leave(room_id))

    async def do_join(self, room_id: str) -> None:
        _good(await self.client.join(room_id))

    async def do_encrypts(self, room_id: str) -> bool:
        """Whether it knows that the room is encrypted."""
        return room_id in self.client.rooms and self.client.rooms[room_id].encrypted

    async def do_send(self, room_id: str, content: dict[str, Any]) -> str:
        return await self._send(room_id, "m.room.message", content)

    async def do_react(self, room_id: str, event_id: str, key: str) -> str:
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self._send(room_id, "m.reaction", {"m.relates_to": relation})

    async def _send(self, room_id: str, kind: str, content: dict[str, Any]) -> str:
        """Its sync throws the room's key away when devices change, even one that is just being handed out.

        Whoever hands it out then does not find it, and those who wait for that have one that nobody was given; both
        before anything is sent.
        """
        tries_left = SEND_TRIES
        while True:
            if self.client.should_query_keys:
                await self.client.keys_query()
            try:
                answer = await self.client.room_send(room_id, kind, content, ignore_unverified_devices=True)
                return str(_good(answer).event_id)
            except (KeyError, nio.exceptions.GroupEncryptionError) as error:
                tries_left -= 1
                if not tries_left or (isinstance(error, KeyError) and error.args != (room_id,)):
                    raise

    async def do_send_at_once(self, room_id: str, bodies: list[str]) -> list[str]:
        """Without waiting for one another."""
        contents = ({"msgtype": "m.text", "body": body} for body in bodies)
        return await asyncio.gather(*(self.do_send(room_id, content) for content in contents))

    async def do_send_file(self, room_id: str, path: str, mimetype: str, msgtype: str) -> dict[str, Any]:
        source = Path(path)
        size = source.stat().st_size
        with source.open("rb") as file:
            answer, keys = await self.client.upload(file, mimetype, source.name, encrypt=True, filesize=size)
        content = {
            "msgtype": msgtype,
            "body": source.name,
            "info": {"mimetype": mimetype, "size": size},
            "file": {"url": _good(answer).content_uri, **keys},
        }
        return {"event_id": await self.do_send(room_id, content), "content": content}

    async def do_fetch_file(self, file: dict[str, Any]) -> str:
        """The SHA-256 of what was in an encrypted file."""
        sealed = _good(await self.client.download(file["url"])).body
        clear = decrypt_attachment(sealed, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
        return hashlib.sha256(clear).hexdigest()

    # -- devices and keys

    async def do_outbound(self, room_id: str) -> str | None:
        """The Megolm session that it would send with."""
        session = self.client.olm.outbound_group_sessions.get(room_id)
        return None if session is None else session.id

    async def do_devices(self, user_id: str) -> list[str]:
        """Whom it would send keys to, as far as it knows."""
        return sorted(device.id for device in self.client.device_store.active_user_devices(user_id))

    async def do_trust(self, user_id: str, device_id: str) -> str:
        return str(self.client.device_store[user_id][device_id].trust_state.name)

    async def do_vouched(self, user_id: str, device_id: str) -> bool:
        """Whether a device is signed by its owner's identity; nio itself does not look at that."""
        path = nio.Api._build_path(["keys", "query"])
        headers = {"Authorization": f"Bearer {self.client.access_token}"}
        answer = await self.client.send("POST", path, json.dumps({"device_keys": {user_id: []}}), headers)
        keys = await answer.json()
        device = keys["device_keys"][user_id][device_id]
        ((_, master),) = keys["master_keys"][user_id]["keys"].items()
        ((_, signer),) = keys["self_signing_keys"][user_id]["keys"].items()
        verify = self.client.olm.verify_json
        chain = (keys["self_signing_keys"][user_id], master), (device, signer)
        return all(verify(thing, key, user_id, key) for thing, key in chain)

    async def do_log_out(self) -> None:
        """The device is gone for everybody."""
        await self._stop()
        _good(await self.client.logout())

    async def do_verify_by_hand(self, user_id: str, device_id: str) -> None:
        """Trust a device as if its keys had been compared."""
        self.client.verify_device(self.client.device_store[user_id][device_id])

    async def do_request_key(self, room_id: str, sender_key: str, session_id: str, devices: list[str]) -> None:
        """Ask other devices of its own user, for what could not be decrypted."""
        await self.client.request_room_key(self.waiting[session_id][0])

    async def do_forget_channels(self) -> None:
        """Lose all Olm sessions, so that what others send over them cannot be read."""
        self.client.olm.session_store = SessionStore()
        store = self.client.store
        with store.database.bind_ctx(store.models):
            OlmSessions.delete().execute()

    async def do_forget_session(self, room_id: str) -> None:
        """Send the next message with a new Megolm session."""
        self.client.invalidate_outbound_session(room_id)

    # -- verification by comparing emoji

    async def do_answer_requests(self) -> None:
        self.answers_requests = True

    async def do_sas_start(self, user_id: str, device_id: str) -> str:
        """Begin, without a request before it; the transaction."""
        _good(await self.client.start_key_verification(self.client.device_store[user_id][device_id]))
        sas = self.client.get_active_sas(user_id, device_id)
        assert sas is not None
        return str(sas.transaction_id)

    async def do_sas_accept(self, transaction_id: str) -> None:
        _good(await self.client.accept_key_verification(transaction_id))

    async def do_sas_emoji(self, transaction_id: str) -> list[str]:
        return [emoji for emoji, _ in self.client.key_verifications[transaction_id].get_emoji()]

    async def do_sas_confirm(self, transaction_id: str) -> None:
        _good(await self.client.confirm_short_auth_string(transaction_id))

    async def do_sas_cancel(self, transaction_id: str, reject: bool) -> None:
        _good(await self.client.cancel_key_verification(transaction_id, reject=reject))


def _good(answer: Any) -> Any:
    if isinstance(answer, nio.ErrorResponse):
        raise OSError(str(answer))
    return answer


if __name__ == "__main__":
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)
    _mend_sas()
    asyncio.run(serve(NioDevice))
