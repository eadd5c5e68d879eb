"""Cross-signing identities of people in a town."""

from __future__ import annotations

import attrs

from armorclaw.matrix.crypto.olm import PkSigning
from armorclaw.matrix.crypto.upstream import canonical_json
from tests.matrix.crypto.conftest import Party, Raw


def _key() -> PkSigning:
    return PkSigning(PkSigning.generate_seed())


@attrs.frozen
class Identity:
    master: PkSigning = attrs.field(factory=_key)
    self_signing: PkSigning = attrs.field(factory=_key)
    user_signing: PkSigning = attrs.field(factory=_key)


def identify(party: Party, made: Identity | None = None, *, signed: bool = True) -> Identity:
    """Give the user of a device an identity, by default a new one; it has `signed` the device, or nothing."""
    server, user, made = party.server, party.user, made or Identity()

    def public(key: PkSigning, usage: str) -> Raw:
        return {"user_id": user, "usage": [usage], "keys": {f"ed25519:{key.public_key}": key.public_key}}

    server.identities.setdefault("master_keys", {})[user] = public(made.master, "master")
    for usage, key in (("self_signing", made.self_signing), ("user_signing", made.user_signing)):
        server.identities.setdefault(f"{usage}_keys", {})[user] = sign(public(key, usage), user, made.master)
    if signed:
        place = (user, party.device)
        server.device_keys[place] = sign(server.device_keys[place], user, made.self_signing)
    server.touch(user)
    return made


def sign(thing: Raw, user: str, key: PkSigning) -> Raw:
    """The same with one signature more."""
    body = {name: value for name, value in thing.items() if name not in ("signatures", "unsigned")}
    signatures = {name: dict(each) for name, each in thing.get("signatures", {}).items()}
    signatures.setdefault(user, {})[f"ed25519:{key.public_key}"] = key.sign(canonical_json(body))
    return {**thing, "signatures": signatures}
