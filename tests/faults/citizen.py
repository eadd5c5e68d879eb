"""Somebody of the town who encrypts: one device, on vodozemac alone, so that nothing of ours tests ours.

What they are sent is checked as a careful client would: a message index that is used for two texts, a one-time key
that is used twice, a text that nobody can read. What was wrong is in `complaints`.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from typing import Any

import vodozemac

from tests.faults.keys import Address, Keys

OLM, MEGOLM = "m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"

ROTATION = 100
"""Messages for which one room key is used."""


class Citizen:
    """`keys` is where their town keeps keys, `friend` whose devices get the keys of what they say."""

    def __init__(self, user: str, keys: Keys, friend: str, device: str = "CITIZEN") -> None:
        self.user = user
        self.complaints: list[str] = []
        self._device = device
        self._friend = friend
        self._keys = keys
        self._account = vodozemac.Account()
        self._channels: dict[str, list[Any]] = defaultdict(list)  # Olm sessions by the other side's key
        self._room_keys: dict[str, tuple[Any, int]] = {}  # what is used for a room now, and how often it was
        self._shared: dict[tuple[str, str], set[str]] = defaultdict(set)  # by room and session: devices that have it
        self._first: dict[tuple[str, str], str] = {}  # by room and session: the key from its first message on
        self._inbound: dict[tuple[str, str], Any] = {}
        self._indexes: dict[tuple[str, str, int], str] = {}  # by room, session and index: the event that used it
        self._publish()
        keys.on_message[user, device] = self._take
        keys.on_device.append(self._meet)

    # -- saying

    def encrypt(self, room_id: str, type_: str, content: dict[str, Any]) -> dict[str, Any]:
        """The content of an encrypted event. Whoever of the friend's devices is known by now has its key."""
        session, used = self._room_keys.get(room_id, (None, ROTATION))
        if used >= ROTATION:
            session, used = vodozemac.GroupSession(), 0
            self._first[room_id, session.session_id] = session.session_key.to_base64()
        self._room_keys[room_id] = session, used + 1
        for device in self._keys.devices.get(self._friend, {}):
            self._share(room_id, session.session_id, device)
        inner = {"type": type_, "content": content, "room_id": room_id}
        return {
            "algorithm": MEGOLM,
            "sender_key": self._curve,
            "device_id": self._device,
            "session_id": session.session_id,
            "ciphertext": session.encrypt(json.dumps(inner).encode()).to_base64(),
        }

    def _meet(self, user: str, device: str) -> None:
        """A new device of the friend's: it gets what it cannot read yet."""
        if user == self._friend:
            for room_id, session_id in tuple(self._first):
                self._share(room_id, session_id, device)

    def _share(self, room_id: str, session_id: str, device: str) -> None:
        shared = self._shared[room_id, session_id]
        known = self._keys.devices[self._friend][device]
        key = known["keys"][f"curve25519:{device}"]
        if key in shared:
            return
        content = {
            "algorithm": MEGOLM,
            "room_id": room_id,
            "session_id": session_id,
            "session_key": self._first[room_id, session_id],
        }
        if self._write((self._friend, device), "m.room_key", content):
            shared.add(key)

    def _write(self, to: Address, type_: str, content: dict[str, Any]) -> bool:
        """Whether it could be: the other device may have no one-time key left."""
        user, device = to
        known = self._keys.devices[user][device]["keys"]
        curve, ed = known[f"curve25519:{device}"], known[f"ed25519:{device}"]
        if not self._channels[curve]:
            if (claimed := self._keys.claim(user, device)) is None:
                return False
            one_time = vodozemac.Curve25519PublicKey.from_base64(claimed[1]["key"])
            other = vodozemac.Curve25519PublicKey.from_base64(curve)
            self._channels[curve].append(self._account.create_outbound_session(other, one_time))
        inner = {
            "type": type_,
            "content": content,
            "sender": self.user,
            "sender_device": self._device,
            "recipient": user,
            "recipient_keys": {"ed25519": ed},
            "keys": {"ed25519": self._ed},
        }
        kind, body = self._channels[curve][-1].encrypt(json.dumps(inner).encode()).to_parts()
        sealed = {"type": kind, "body": base64.b64encode(body).decode().rstrip("=")}
        whole = {"algorithm": OLM, "sender_key": self._curve, "ciphertext": {curve: sealed}}
        self._keys.deliver(self.user, to, "m.room.encrypted", whole)
        return True

    # -- hearing

    def read(self, room_id: str, event: dict[str, Any]) -> dict[str, Any] | None:
        """What an encrypted event says, as `type` and `content`; None if it cannot be read."""
        content = event["content"]
        session = self._inbound.get((room_id, content["session_id"]))
        if session is None:
            return None
        found = session.decrypt(vodozemac.MegolmMessage.from_base64(content["ciphertext"]))
        index = room_id, content["session_id"], found.message_index
        if self._indexes.setdefault(index, event["event_id"]) != event["event_id"]:
            self.complaints.append(f"{event['event_id']} uses the index of {self._indexes[index]}: {index}")
        inner: dict[str, Any] = json.loads(found.plaintext)
        if inner.get("room_id") != room_id:
            self.complaints.append(f"{event['event_id']} is of another room: {inner.get('room_id')}")
        return inner

    def _take(self, message: dict[str, Any]) -> None:
        """A message from device to device."""
        content = message["content"]
        sealed = content.get("ciphertext", {}).get(self._curve)
        if message["type"] != "m.room.encrypted" or sealed is None:
            return
        body = base64.b64decode(sealed["body"] + "=" * (-len(sealed["body"]) % 4))
        text = self._open(content["sender_key"], vodozemac.AnyOlmMessage.from_parts(sealed["type"], body))
        if text is None:
            self.complaints.append(f"a message of {message['sender']} cannot be read")
            return
        inner = json.loads(text)
        if (inner["recipient"], inner["recipient_keys"]["ed25519"]) != (self.user, self._ed):
            self.complaints.append("a message is for somebody else")
        if inner["type"] == "m.room_key":
            told = inner["content"]
            where = told["room_id"], told["session_id"]
            key = vodozemac.InboundGroupSession(vodozemac.SessionKey(told["session_key"]))
            known = self._inbound.get(where)
            if known is None or key.first_known_index < known.first_known_index:
                self._inbound[where] = key

    def _open(self, key: str, message: Any) -> bytes | None:
        first = message.to_parts()[0] == 0
        for session in reversed(self._channels[key]):
            if first and not session.session_matches(message.to_pre_key()):
                continue
            try:
                return bytes(session.decrypt(message))
            except vodozemac.OlmDecryptionException:
                continue
        if not first:
            return None
        other = vodozemac.Curve25519PublicKey.from_base64(key)
        try:
            session, text = self._account.create_inbound_session(other, message.to_pre_key())
        except vodozemac.SessionCreationException:
            return None
        self._channels[key].append(session)
        return bytes(text)

    # -- keys

    @property
    def _curve(self) -> str:
        return str(self._account.curve25519_key.to_base64())

    @property
    def _ed(self) -> str:
        return str(self._account.ed25519_key.to_base64())

    def _publish(self) -> None:
        self._account.generate_one_time_keys(50)
        self._account.generate_fallback_key()  # type: ignore[attr-defined]  # its stubs leave it out
        keys = {f"curve25519:{self._device}": self._curve, f"ed25519:{self._device}": self._ed}
        device = {"user_id": self.user, "device_id": self._device, "algorithms": [OLM, MEGOLM], "keys": keys}

        def signed(known: dict[str, Any], **more: Any) -> dict[str, Any]:
            return {
                f"signed_curve25519:{name}": self._signed({"key": key.to_base64(), **more})
                for name, key in known.items()
            }

        body = {
            "device_keys": self._signed(device),
            "one_time_keys": signed(self._account.one_time_keys),
            "fallback_keys": signed(self._account.fallback_key, fallback=True),  # type: ignore[attr-defined]
        }
        self._keys.upload(self.user, self._device, body)
        self._account.mark_keys_as_published()

    def _signed(self, thing: dict[str, Any]) -> dict[str, Any]:
        text = json.dumps(thing, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        signature = self._account.sign(text.encode()).to_base64()
        return {**thing, "signatures": {self.user: {f"ed25519:{self._device}": signature}}}
