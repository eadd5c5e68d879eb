"""Errors on their way across the wire, out and in, and into the log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armorclaw.errors import ERRORS, ArmorclawError

_BY_CODE = {kind.code: name for name, kind in ERRORS.items()}
_OWN = frozenset({"name", "hint", "retryable"})  # what ArmorclawError.payload adds by itself
_RESERVED = frozenset({"self", "what", "why"})


def error_from_wire(error: Mapping[str, Any]) -> ArmorclawError:
    """The error of ours that an `error` member stands for; `remote_failed` for codes that are not ours.

    The other side's sentence is kept, its code too where the table has no row for it.
    """
    code, message = error.get("code"), str(error.get("message", ""))
    data = error.get("data")
    data = data if isinstance(data, Mapping) else {}
    name = data.get("name")
    if not isinstance(name, str) or name not in ERRORS:
        name = _BY_CODE.get(code) if isinstance(code, int) else None
    hint = data.get("hint")
    fields = {str(key): value for key, value in data.items() if key not in _OWN and key not in _RESERVED}
    if name is None:
        name = "remote_failed"
        fields["code"] = code
    return ArmorclawError(name, message, hint=hint if isinstance(hint, str) else "", **fields)
