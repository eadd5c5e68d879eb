"""Keys that sign JSON, as Matrix has it. Specification: Appendices, "Signing JSON"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armorclaw.matrix.crypto.olm import PkSigning
from armorclaw.matrix.crypto.upstream import canonical_json

SEED_BYTES = 32


class SigningKey:
    """An Ed25519 key from its seed."""

    def __init__(self, seed: bytes) -> None:
        self.seed = seed
        self._key = PkSigning(seed)
        self.public = self._key.public_key

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(PkSigning.generate_seed())

    def sign(self, user_id: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """The same with this key's signature added, as `user_id`'s."""
        given = value.get("signatures")
        signatures = {user: dict(by) for user, by in given.items()} if isinstance(given, Mapping) else {}
        signatures.setdefault(user_id, {})[f"ed25519:{self.public}"] = self._key.sign(signed_text(value))
        return {**value, "signatures": signatures}


def signed_text(value: Mapping[str, Any]) -> str:
    """What a signature is of: all but the signatures, and what the homeserver adds."""
    return str(canonical_json({k: v for k, v in value.items() if k not in ("signatures", "unsigned")}))
