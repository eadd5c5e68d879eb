"""Whether a message that may have been sent is there: looked up in the timeline, never guessed.

Homeservers forget transaction ids after a day, and know them by device. After that the room itself is all there is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from armorclaw.delivery.transport import Refused
from armorclaw.matrix.answer import Raw
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.failures import as_attempt
from armorclaw.matrix.reading import ENCRYPTED, Decrypts

PAGE = 200
PAGES = 50
"""Read at most; the homeserver gives only what we sent ourselves, so this is ten thousand messages of ours."""

CLOCKS_MS = 5 * 60 * 1000
"""How far the homeserver's clock may be behind ours."""


class Reads(Decrypts, Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`."""

    @property
    def identity_key(self) -> str: ...
    @property
    def device_made_ms(self) -> int: ...


async def find_echo(
    client: MatrixClient,
    room_id: str,
    type_: str,
    content: bytes,
    since_ms: int,
    claimed: Callable[[str], Awaitable[bool]],
    *,
    decrypts: Reads | None = None,
) -> str | None:
    """The id of our own event with this content that no other delivery has; None if there certainly is none.

    Looks at what was sent since `since_ms`, and of several takes the first; with `decrypts` also at what was sent
    encrypted. Raises Delayed if the homeserver cannot tell now, Refused if it never can.
    """
    wanted = json.loads(content)
    types = [type_] if decrypts is None else [type_, ENCRYPTED]
    found: list[str] = []
    for raw in await _own_since(client, room_id, types, since_ms - CLOCKS_MS):
        event_id = raw.get("event_id")
        if not isinstance(event_id, str) or raw.get("sender") != client.mxid or raw.get("type") not in types:
            continue
        if _redacted(raw):
            if not await claimed(event_id):
                raise Refused("somebody has removed a message there that may have been this one")
        elif raw.get("type") == type_:
            if _same(type_, raw, wanted):
                found.append(event_id)
        elif decrypts is not None and not await claimed(event_id):
            try:
                inner = await decrypts.decrypt(room_id, raw)
            except Undecryptable as error:
                if _of_another_device(raw, decrypts, since_ms):
                    continue
                why = f"there is a message of our own that may be this one, and cannot be read: {error.reason}"
                raise Refused(why) from error
            if inner.type == type_ and inner.content == wanted:
                found.append(event_id)
    for event_id in reversed(found):
        if not await claimed(event_id):
            return event_id
    return None


def _of_another_device(raw: Raw, own: Reads, since_ms: int) -> bool:
    """Whether another client of our user sent it; ours always says which device it is.

    What is looked for may have been sent by the device that we were before this one.
    """
    content = raw.get("content")
    told = content.get("sender_key") if isinstance(content, dict) else None
    return told != own.identity_key and own.device_made_ms <= since_ms


def _same(type_: str, raw: Raw, wanted: Raw) -> bool:
    """Of a redaction the reason may have been left out, and what it is about stands in one of two places."""
    content = raw.get("content")
    if type_ != "m.room.redaction" or not isinstance(content, dict):
        return content == wanted
    return (content.get("redacts") or raw.get("redacts")) == wanted.get("redacts")


async def _own_since(client: MatrixClient, room_id: str, types: list[str], since_ms: int) -> list[Raw]:
    """What we sent to the room, the newest first, down to the first from before that time."""
    only = json.dumps({"senders": [str(client.mxid)], "types": types}, separators=(",", ":"))
    found: list[Raw] = []
    at: str | None = None
    for _ in range(PAGES):
        with as_attempt():
            chunk, at = await client.latest(room_id, PAGE, start=at, filter=only)
        for raw in chunk:
            if _time(raw) < since_ms:
                return found
            found.append(raw)
        if at is None:
            return found
    raise Refused("too much was said there since to tell whether it was sent")


def _time(raw: Raw) -> float:
    at: Any = raw.get("origin_server_ts")
    return at if type(at) is int else float("inf")


def _redacted(raw: Raw) -> bool:
    unsigned = raw.get("unsigned")
    return isinstance(unsigned, dict) and "redacted_because" in unsigned
