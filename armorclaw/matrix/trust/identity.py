"""A person's cross-signing identity: three keys, of which the first vouches for the other two, and what they sign.

Source: "Cross-signing" of the Matrix specification. No I/O here: answers of /keys/query in, bodies of uploads out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import attrs

from armorclaw.matrix.crypto.signatures import is_signed
from armorclaw.matrix.trust.sas import SasError, check_key
from armorclaw.matrix.trust.signing import SEED_BYTES, SigningKey, signed_text

USAGES = ("master", "self_signing", "user_signing")


@attrs.frozen
class Identity:
    """The public half. `master_object` is the whole of what the homeserver has, as others sign it."""

    user_id: str
    master: str
    self_signing: str
    user_signing: str | None
    master_object: Mapping[str, Any] = attrs.field(repr=False, eq=False)

    def owns(self, device: Mapping[str, Any]) -> bool:
        """Whether these keys of a device are signed by their owner: a device of this very person."""
        return is_signed(device, self.user_id, self.self_signing, self.self_signing)


def identity_in(answer: Mapping[str, Any], user_id: str) -> Identity | None:
    """The identity of a user in an answer of /keys/query; None if there is none that holds together."""
    found = {usage: _key_object(answer, user_id, usage) for usage in USAGES}
    master, owner = found["master"], found["self_signing"]
    if master is None or owner is None:
        return None
    key = _only_key(master)
    assert key is not None, "an object without a key is not found"
    others = {usage: found[usage] for usage in USAGES[1:]}
    signed = {
        usage: each for usage, each in others.items() if each is not None and is_signed(each, user_id, key, key)
    }
    if "self_signing" not in signed:
        return None
    user_signing = _only_key(signed["user_signing"]) if "user_signing" in signed else None
    return Identity(user_id, key, str(_only_key(owner)), user_signing, master)


def device_in(answer: Mapping[str, Any], user_id: str, device_id: str) -> dict[str, Any] | None:
    """The keys of a device in an answer of /keys/query, signed by itself; None if there is no such."""
    users = answer.get("device_keys")
    devices = users.get(user_id) if isinstance(users, dict) else None
    device = devices.get(device_id) if isinstance(devices, dict) else None
    if not isinstance(device, dict) or (device.get("user_id"), device.get("device_id")) != (user_id, device_id):
        return None
    key = fingerprint(device)
    return device if key is not None and is_signed(device, user_id, device_id, key) else None


def devices_in(answer: Mapping[str, Any], user_id: str) -> dict[str, dict[str, Any]]:
    """All devices of a user in an answer of /keys/query, as `device_in`, by id."""
    users = answer.get("device_keys")
    devices = users.get(user_id) if isinstance(users, dict) else None
    found = {name: device_in(answer, user_id, name) for name in devices} if isinstance(devices, dict) else {}
    return {name: device for name, device in found.items() if device is not None}


def fingerprint(device: Mapping[str, Any]) -> str | None:
    """The Ed25519 key of a device."""
    keys = device.get("keys")
    key = keys.get(f"ed25519:{device.get('device_id')}") if isinstance(keys, dict) else None
    return key if isinstance(key, str) else None


@attrs.frozen
class PrivateIdentity:
    """The private half, ours."""

    user_id: str
    master: SigningKey = attrs.field(repr=False)
    self_signing: SigningKey = attrs.field(repr=False)
    user_signing: SigningKey = attrs.field(repr=False)

    @classmethod
    def generate(cls, user_id: str) -> PrivateIdentity:
        return cls(user_id, SigningKey.generate(), SigningKey.generate(), SigningKey.generate())

    @classmethod
    def from_seeds(cls, user_id: str, seeds: Mapping[str, bytes]) -> PrivateIdentity:
        """From the seeds by usage. Raises ValueError for what are none."""
        if any(len(seeds.get(usage, b"")) != SEED_BYTES for usage in USAGES):
            raise ValueError("these are no seeds of signing keys")
        return cls(user_id, *(SigningKey(seeds[usage]) for usage in USAGES))

    def seeds(self) -> dict[str, bytes]:
        keys = (self.master, self.self_signing, self.user_signing)
        return {usage: key.seed for usage, key in zip(USAGES, keys, strict=True)}

    def is_of(self, identity: Identity) -> bool:
        """Whether this is the private half of that one, whole."""
        public = (self.master.public, self.self_signing.public, self.user_signing.public)
        return public == (identity.master, identity.self_signing, identity.user_signing)

    def public_objects(self, device_id: str, device: Signer) -> dict[str, Any]:
        """The body that publishes it: each key signed by the master key, that one by our device."""
        master = self._object("master", self.master)
        master["signatures"] = {self.user_id: {f"ed25519:{device_id}": device.sign(signed_text(master))}}
        others = {"self_signing": self.self_signing, "user_signing": self.user_signing}
        signed = {usage: self.master.sign(self.user_id, self._object(usage, key)) for usage, key in others.items()}
        return {"master_key": master, **{f"{usage}_key": each for usage, each in signed.items()}}

    def own_device(self, device: Mapping[str, Any]) -> dict[str, Any]:
        """The body that tells everybody that this device is ours."""
        signed = self.self_signing.sign(self.user_id, _bare(device))
        return {self.user_id: {str(device["device_id"]): signed}}

    def verified(self, other: Identity) -> dict[str, Any]:
        """The body that tells our own devices, and nobody else, that we have verified that person."""
        signed = self.user_signing.sign(self.user_id, _bare(other.master_object))
        return {other.user_id: {other.master: signed}}

    def _object(self, usage: str, key: SigningKey) -> dict[str, Any]:
        return {"user_id": self.user_id, "usage": [usage], "keys": {f"ed25519:{key.public}": key.public}}


class Signer(Protocol):
    """What signs with the key of our device, such as `armorclaw.matrix.crypto.olm.Account`."""

    def sign(self, message: str | bytes) -> str: ...


def _bare(value: Mapping[str, Any]) -> dict[str, Any]:
    """Without what others have signed of it, which they upload themselves."""
    return {name: entry for name, entry in value.items() if name not in ("signatures", "unsigned")}


def _key_object(answer: Mapping[str, Any], user_id: str, usage: str) -> dict[str, Any] | None:
    users = answer.get(f"{usage}_keys")
    found = users.get(user_id) if isinstance(users, dict) else None
    if not isinstance(found, dict) or found.get("user_id") != user_id:
        return None
    usages = found.get("usage")
    return found if isinstance(usages, list) and usage in usages and _only_key(found) is not None else None


def _only_key(value: Mapping[str, Any]) -> str | None:
    """The key of such an object, whose name is the key itself."""
    keys = value.get("keys")
    if not isinstance(keys, dict) or len(keys) != 1:
        return None
    name, key = next(iter(keys.items()))
    try:
        check_key(key)
    except (SasError, TypeError):
        return None
    return str(key) if name == f"ed25519:{key}" else None
