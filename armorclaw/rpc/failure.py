"""Errors on their way across the wire, out and in, and into the log."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from armorclaw.errors import ERRORS, ArmorclawError

_BY_CODE = {kind.code: name for name, kind in ERRORS.items()}
_OWN = frozenset({"name", "hint", "retryable"})  # what ArmorclawError.payload adds by itself
_RESERVED = frozenset({"self", "what", "why"})


TEXT_LIMIT = 200
"""Characters kept of a text of the other side, which goes into logs and events."""

FIELDS_LIMIT = 16
"""Fields kept of its data."""


def error_from_wire(error: Mapping[str, Any], *, cut: bool = True) -> ArmorclawError:
    """The error of ours that an `error` member stands for; `remote_failed` for codes that are not ours.

    The other side's sentence is kept, its code too where the table has no row for it. Texts are cut to `TEXT_LIMIT`
    printable characters, and of other values only small ones are kept, unless `cut` is false: for a client, to which
    the bridge is no stranger.
    """
    if cut:
        error = _shortened(error)
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


def _shortened(error: Mapping[str, Any]) -> dict[str, Any]:
    data = error.get("data")
    fields = islice(data.items(), FIELDS_LIMIT) if isinstance(data, Mapping) else ()
    kept = {_text(str(name)): _text(value) for name, value in fields if _is_small(value)}
    code = error.get("code")
    message = error.get("message", "")
    return {
        "code": _text(code) if _is_small(code) else None,
        "message": _text(message) if isinstance(message, str) else "",
        "data": kept,
    }


def _is_small(value: object) -> bool:
    if isinstance(value, int):
        return value.bit_length() < 64
    return value is None or isinstance(value, str | float)


def printable(text: str, limit: int = TEXT_LIMIT) -> str:
    """A text of the other side, cut, without what a terminal or a log might take for more than text."""
    head = "".join(each if each.isprintable() else " " for each in text[:limit])
    return head if len(text) <= limit else head[:-1] + "…"


def _text(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
