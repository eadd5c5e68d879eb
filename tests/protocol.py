"""What is generated from the registry of methods: docs/protocol.md and the typed methods of clients.

`python -m tests.protocol` writes them; a test fails when one is stale. The text of the page is tests/protocol.md.in.
"""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from armorclaw.bridge import Bridge
from armorclaw.clock import Surroundings
from armorclaw.config import BridgeSection, Config, EventsSection, LimitsSection
from armorclaw.errors import ERRORS
from armorclaw.events.pushing import outlet, window
from armorclaw.rpc import flow, framing, jsonrpc, outgoing, peer, streaming, unix
from armorclaw.rpc.registry import Method, Registry, Role
from armorclaw.rpc.shape import bounds, omits_none, wire_name
from tests import typed_client

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "protocol.md"
TEMPLATE = Path(__file__).parent / "protocol.md.in"

_CONSTANTS = {
    "MAX_FRAME": framing.MAX_FRAME,
    "MAX_DEPTH": framing.MAX_DEPTH,
    "MAX_BATCH": jsonrpc.MAX_BATCH,
    "MAX_ID": jsonrpc.MAX_ID,
    "MAX_METHOD": jsonrpc.MAX_METHOD,
    "MAX_WRONG": jsonrpc.MAX_WRONG,
    "FRAME_DEADLINE": int(peer.FRAME_DEADLINE),
    "MAX_IN_FLIGHT": peer.MAX_IN_FLIGHT,
    "WINDOW": flow.WINDOW,
    "HALF_WINDOW": flow.WINDOW // 2,
    "CHUNK_MAX": flow.CHUNK_MAX,
    "BYTES_MAX": flow.BYTES_MAX,
    "MAX_STREAMS": streaming.MAX_STREAMS,
    "MAX_GRANT": flow._MAX_GRANT,
    "AGENT_CALLS": int(LimitsSection().agent_calls),
    "OPERATOR_CALLS": int(LimitsSection().operator_calls),
    "SOFT_LIMIT": peer.SOFT_LIMIT,
    "HOLD_LIMIT": peer.HOLD_LIMIT,
    "WRITE_DEADLINE": int(outgoing.WRITE_DEADLINE),
    "USER_CONNECTIONS": unix.Gate().per_uid,
    "AGENT_CONNECTIONS": unix.AGENT_CONNECTIONS,
    "USER_CALLS": 4 * int(LimitsSection().operator_calls),
    "WINDOW_EVENTS": window.WINDOW_EVENTS,
    "WINDOW_BYTES": window.WINDOW_BYTES,
    "REDELIVER": int(EventsSection().redeliver_after_s),
    "MAX_DELIVERIES": EventsSection().max_deliveries,
    "MAX_LOST": EventsSection().max_lost,
    "SLOW_SECONDS": int(outlet.SLOW_SECONDS),
}


def registry() -> Registry:
    """Every method there is."""
    nowhere = Path("/nonexistent")
    return Bridge(Config(bridge=BridgeSection(state_dir=nowhere, runtime_dir=nowhere)), Surroundings()).registry


def pages() -> dict[Path, str]:
    """Every generated file as it should be."""
    methods = registry()
    return {PAGE: page(methods), ROOT / typed_client.PATH: typed_client.source(methods)}


def page(methods: Registry) -> str:
    """docs/protocol.md as it should be."""
    text = TEMPLATE.read_text(encoding="utf-8")
    for name, value in _CONSTANTS.items():
        text = text.replace(f"@{name}@", f"{value:,}" if value >= 1000 else str(value))
    parts = {"METHODS": _methods(methods), "ERRORS": _errors()}
    for name, part in parts.items():
        text = text.replace(f"@{name}@\n", part)
    left = re.search(r"@[A-Z_]+@", text)
    assert left is None, f"nothing fills {left}"
    return text


class _Inner:
    """Shapes within others, which get a heading of their own; those of params with defaults."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[type, bool]] = {}

    def link(self, shape: type, *, taken: bool) -> str:
        name = shape.__name__
        known, was_taken = self.found.get(name, (shape, False))
        assert known is shape, f"two shapes are called {name}"
        self.found[name] = shape, taken or was_taken
        return f"[{name}](#shape-{name.lower()})"


def _methods(methods: Registry) -> str:
    inner = _Inner()
    parts = ["## Methods\n", *(_method(method, inner) for method in methods)]
    if inner.found:
        parts.append("\n## Shapes\n\nWhat lies within params and results.\n")
    done: set[str] = set()
    while waiting := sorted(inner.found.keys() - done):
        for name in waiting:
            shape, taken = inner.found[name]
            about = _about(shape)
            parts.append(f"\n### Shape {name}\n\n" + (f"{about}\n\n" if about else ""))
            parts.append(_table(shape, inner, taken=taken))
        done.update(waiting)
    return "".join(parts)


def _method(method: Method, inner: _Inner) -> str:
    roles = ", ".join(role for role in Role if role in method.roles)
    text = f"\n### `{method.name}`\n\n{_plain(method.doc)}\n\nRoles: {roles}.\n"
    if method.rate is not None:
        text += f"\nLimit: {method.rate.per_second:g} per second, {method.rate.burst:g} at once.\n"
    if method.open:
        text += "\nUnknown params are ignored.\n"
    text += _section("Params", method.params, inner, taken=True)
    text += _section("Each piece of the upload", method.upload, inner, taken=True)
    text += _section("Each chunk", method.chunk, inner, taken=False)
    return text + (_section("Result", method.result, inner, taken=False) or "\nResult: an empty object.\n")


def _section(title: str, shape: Any, inner: _Inner, *, taken: bool) -> str:
    item, many = (get_args(shape)[0], True) if get_origin(shape) is list else (shape, False)
    if item is None:
        return ""
    if not attrs.has(item):
        return f"\n{title}: {'an array of ' if many else ''}{_type(item, inner, taken=taken)}.\n"
    if not attrs.fields(item):
        return ""
    heading = f"{title}, an array of: {_about(item)}" if many else f"{title}: {_about(item)}"
    return f"\n{heading.rstrip()}\n\n{_table(item, inner, taken=taken)}"


def _about(shape: type) -> str:
    text = _plain(inspect.getdoc(shape) or "")
    return "" if text.startswith("Method generated by attrs") else text


def _table(shape: type, inner: _Inner, *, taken: bool) -> str:
    """Its fields; of what is taken, the defaults too."""
    attrs.resolve_types(shape)
    rows = ["| field | type | default |", "|---|---|---|"] if taken else ["| field | type |", "|---|---|"]
    for field in attrs.fields(shape):
        kind = _type(field.type, inner, taken=taken)
        if (between := bounds(field)) is not None:
            kind = kind.replace("integer", f"integer from {between.low} to {between.high}")
        if omits_none(shape) and field.default is None:
            kind = kind.removesuffix(" or null") + ", may be absent"
        rows.append(f"| `{wire_name(field.name)}` | {kind} |" + (f" {_default(field)} |" if taken else ""))
    return "\n".join(rows) + "\n"


def _type(kind: Any, inner: _Inner, *, taken: bool) -> str:
    """The type in JSON's words."""
    origin, args = get_origin(kind), get_args(kind)
    if attrs.has(kind):
        return inner.link(kind, taken=taken)
    if origin in (Union, UnionType):
        members = sorted(args, key=lambda each: each is NoneType)
        return " or ".join(_type(each, inner, taken=taken) for each in members)
    if origin is Literal:
        return " or ".join(f"`{json.dumps(each)}`" for each in args)
    if origin in (list, tuple):
        return f"array of {_type(args[0], inner, taken=taken)}"
    if origin is dict and args[1] is not Any:
        return f"object of {_type(args[1], inner, taken=taken)} members"
    return _WORDS[origin or kind]


_WORDS = {
    str: "string",
    int: "integer",
    float: "number",
    bool: "boolean",
    NoneType: "null",
    bytes: "bytes, as base64 text",
    dict: "object",
    list: "array",
    Any: "any JSON value",
    object: "any JSON value",
}


def _default(field: attrs.Attribute[Any]) -> str:
    if field.default is attrs.NOTHING:
        return ""
    factory = getattr(field.default, "factory", None)
    return f"`{json.dumps(field.default if factory is None else factory())}`"


def _errors() -> str:
    rows = ["| code | name | may be tried again | hint |", "|---|---|---|---|"]
    rows += [
        f"| {kind.code} | {kind.name} | {'yes' if kind.retryable else 'no'} | {kind.hint} |"
        for kind in ERRORS.values()
    ]
    return "\n## Errors by code\n\n" + "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
