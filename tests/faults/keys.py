"""What a homeserver keeps of keys: devices, one-time keys, messages from device to device, and account data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import attrs

from tests.matrix.fake_homeserver import Asked, Reply, refusal

Address = tuple[str, str]
"""A user and one of their devices."""


@attrs.define
class Keys:
    """`step` gives the next place in the stream of the town. `handed_out` counts how often each one-time key was."""

    step: Callable[[], int]
    devices: dict[str, dict[str, dict[str, Any]]] = attrs.field(factory=dict)
    handed_out: Counter[tuple[str, str, str]] = attrs.field(factory=Counter)
    on_device: list[Callable[[str, str], object]] = attrs.field(factory=list)
    """Told of each device that publishes its keys."""
    on_message: dict[Address, Callable[[dict[str, Any]], object]] = attrs.field(factory=dict)
    """Who takes the messages to a device out at once; those of other devices wait for a sync."""
    _one_time: dict[Address, dict[str, Any]] = attrs.field(factory=dict)
    _fallback: dict[Address, dict[str, Any]] = attrs.field(factory=dict)
    _identities: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    _queues: dict[Address, list[tuple[int, dict[str, Any]]]] = attrs.field(factory=dict)
    _sent: set[tuple[str, str, str]] = attrs.field(factory=set)  # device, type and transaction id
    _changes: list[tuple[int, str]] = attrs.field(factory=list)
    _data: dict[tuple[str, str], Any] = attrs.field(factory=dict)

    def answer(self, kind: str, words: list[str], asked: Asked, user: str, device: str) -> Reply | None:
        """None if this is about something else."""
        match kind, words:
            case "POST keys/upload", _:
                return self.upload(user, device, asked.json)
            case "POST keys/query", _:
                return self._query(asked.json)
            case "POST keys/claim", _:
                return Reply({"one_time_keys": self._claim(asked.json), "failures": {}})
            case "POST keys/device_signing", _:
                for name, usage in (("master_key", "master"), ("self_signing_key", "self_signing")):
                    if name in asked.json:
                        self._identities.setdefault(user, {})[usage] = asked.json[name]
                if "user_signing_key" in asked.json:
                    self._identities.setdefault(user, {})["user_signing"] = asked.json["user_signing_key"]
                self._changed(user)
                return Reply({})
            case "POST keys/signatures", _:
                self._sign(asked.json)
                return Reply({"failures": {}})
            case "PUT sendToDevice", [_, type_, txn]:
                self._send(user, device, type_, txn, asked.json["messages"])
                return Reply({})
            case "PUT user", ["user", _, "account_data", type_]:
                self._data[user, type_] = asked.json
                return Reply({})
            case "GET user", ["user", _, "account_data", type_]:
                found = self._data.get((user, type_))
                return refusal(404, "M_NOT_FOUND") if found is None else Reply(found)
        return None

    def in_sync(self, since: int | None, user: str, device: str) -> dict[str, Any]:
        """What belongs into an answer to /sync; what came up to `since` has arrived, and is forgotten."""
        queue = self._queues.setdefault((user, device), [])
        if since is not None:
            queue[:] = [(place, message) for place, message in queue if place > since]
        whole: dict[str, Any] = {"device_one_time_keys_count": self._count(user, device)}
        whole["device_unused_fallback_key_types"] = ["signed_curve25519"] if (user, device) in self._fallback else []
        if queue:
            whole["to_device"] = {"events": [message for _, message in queue]}
        if changed := sorted({who for place, who in self._changes if since is not None and place > since}):
            whole["device_lists"] = {"changed": changed, "left": []}
        return whole

    def has_news(self, since: int, user: str, device: str) -> bool:
        """Whether a sync has something to tell of keys."""
        return any(place > since for place, _ in (*self._queues.get((user, device), ()), *self._changes))

    def upload(self, user: str, device: str, body: dict[str, Any]) -> Reply:
        for key_id, key in body.get("one_time_keys", {}).items():
            known = self._one_time.setdefault((user, device), {})
            if known.get(key_id, key) != key:
                return refusal(400, "M_INVALID_PARAM")
            known[key_id] = key
        for key_id, key in body.get("fallback_keys", {}).items():
            self._fallback[user, device] = {key_id: key}
        if keys := body.get("device_keys"):
            self.devices.setdefault(user, {})[device] = keys
            self._changed(user)
            for tell in self.on_device:
                tell(user, device)
        return Reply({"one_time_key_counts": self._count(user, device)})

    def remove(self, user: str, device: str) -> None:
        """The device is logged out for good."""
        self.devices.get(user, {}).pop(device, None)
        for kept in (self._one_time, self._fallback, self._queues):
            kept.pop((user, device), None)
        self._changed(user)

    def claim(self, user: str, device: str) -> tuple[str, Any] | None:
        """One key of a device's, which nobody else gets; the last resort is one that everybody may get."""
        known = self._one_time.get((user, device))
        if known:
            key_id = next(iter(known))
            self.handed_out[user, device, key_id] += 1
            return key_id, known.pop(key_id)
        return next(iter(self._fallback.get((user, device), {}).items()), None)

    def deliver(self, sender: str, to: Address, type_: str, content: dict[str, Any]) -> None:
        message = {"type": type_, "sender": sender, "content": content}
        if (take := self.on_message.get(to)) is not None:
            take(message)
        else:
            self._queues.setdefault(to, []).append((self.step(), message))

    def _query(self, body: dict[str, Any]) -> Reply:
        asked = body["device_keys"]
        whole: dict[str, Any] = {"failures": {}, "device_keys": {user: self.devices.get(user, {}) for user in asked}}
        for usage in ("master", "self_signing", "user_signing"):
            whole[f"{usage}_keys"] = {
                user: self._identities[user][usage] for user in asked if usage in self._identities.get(user, {})
            }
        return Reply(whole)

    def _claim(self, body: dict[str, Any]) -> dict[str, Any]:
        claimed: dict[str, Any] = {}
        for user, devices in body["one_time_keys"].items():
            for device in devices:
                if (found := self.claim(user, device)) is not None:
                    claimed.setdefault(user, {})[device] = dict([found])
        return claimed

    def _send(self, user: str, device: str, type_: str, txn: str, messages: dict[str, Any]) -> None:
        if (device, type_, txn) in self._sent:
            return
        self._sent.add((device, type_, txn))
        for whom, contents in messages.items():
            for one, content in contents.items():
                for each in self.devices.get(whom, {}) if one == "*" else [one]:
                    self.deliver(user, (whom, each), type_, content)

    def _sign(self, body: dict[str, Any]) -> None:
        for user, things in body.items():
            for name, signed in things.items():
                known = [*self._identities.get(user, {}).values(), self.devices.get(user, {}).get(name)]
                for thing in known:
                    if thing is not None and thing.get("keys") == signed.get("keys"):
                        for by, signatures in signed.get("signatures", {}).items():
                            thing.setdefault("signatures", {}).setdefault(by, {}).update(signatures)
            self._changed(user)

    def _count(self, user: str, device: str) -> dict[str, int]:
        return {"signed_curve25519": len(self._one_time.get((user, device), {}))}

    def _changed(self, user: str) -> None:
        self._changes.append((self.step(), user))
