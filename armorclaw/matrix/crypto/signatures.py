"""Signatures over JSON, as Matrix has them. Specification: Appendices, "Signing JSON"."""

from __future__ import annotations

from typing import Any

from armorclaw.matrix.crypto.olm import OlmVerifyError, ed25519_verify
from armorclaw.matrix.crypto.upstream import canonical_json


def is_signed(thing: Any, user_id: str, key_id: str, key: str) -> bool:
    """Whether an object from elsewhere, of whatever shape, carries this user's valid signature by this key."""
    try:
        body = {name: value for name, value in thing.items() if name not in ("signatures", "unsigned")}
        signature = thing["signatures"][user_id][f"ed25519:{key_id}"]
        ed25519_verify(key, canonical_json(body), signature)
    except (OlmVerifyError, AttributeError, KeyError, TypeError, ValueError, RecursionError):
        return False
    return True
