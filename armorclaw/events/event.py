"""One event, and its bytes on the wire."""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Mapping
from json.encoder import encode_basestring_ascii as quote
from typing import Any

import attrs

CONTENT_LIMIT = 256 * 1024
"""Bytes of one event's content. A Matrix event has at most 64 KiB, and writing it in ASCII at most triples that."""

SEVERITIES = ("info", "warning", "error", "critical")
"""How bad what happened is, for those events that say so."""

OWN_NAMES = frozenset({"alert", "delivery", "gap"})
OWN_PREFIXES = (
    *("agent.", "app.", "bridge.", "budget.", "call.", "container.", "egress.", "engine.", "events.", "matrix."),
    *("message.", "quota.", "security.", "storage."),
)
"""Types of the bridge's own events, those to come among them. Matrix's begin with `m.` or with somebody's domain."""

FOREIGN = "matrix."
"""What is put before the type of a Matrix event that has one of these names: any member of a room may send any."""


_ENCODER = json.JSONEncoder(separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def ascii_json(value: object) -> bytes:
    """Compact JSON in ASCII: one line, whatever the strings hold. Raises ValueError for NaN and infinity."""
    return _ENCODER.encode(value).encode("ascii")


def _check_content(_event: object, _field: object, content: bytes) -> None:
    """One frame is one line: a stray newline in here would break the framing of everyone who reads lines."""
    if not content.startswith(b"{") or not content.isascii() or b"\n" in content:
        raise ValueError("the content of an event must be a JSON object in ASCII, on one line")
    if len(content) > CONTENT_LIMIT:
        raise ValueError(f"the content of an event has {len(content)} bytes, at most {CONTENT_LIMIT} are allowed")


def is_own(type: str) -> bool:  # noqa: A002 - the word of the wire
    """Whether a type belongs to the bridge, so that an event of Matrix may not go by it."""
    return type in OWN_NAMES or type.startswith(OWN_PREFIXES)


def _names(given: Iterable[str] | str | None) -> tuple[str, ...] | None:
    """From the names themselves, or from their column in the journal."""
    if given is None:
        return None
    return tuple(json.loads(given) if isinstance(given, str) else given)


@attrs.frozen
class Event:
    """Something that happened; `seq` is its place in the journal, 0 as long as it has none.

    `id` is ours and the same however often the event is seen; `event_id` is Matrix's, and None for an event of the
    bridge's own: ask for that, and not for the `type` alone, before you believe one. `at_ms` is when it happened, in
    milliseconds since the epoch. `agent` names the agent it is about, which is not who may read it. `severity` is one
    of `SEVERITIES`, or None. Of an event that is `erased` only the envelope is left: its content is `{}`.
    `addressed` names those whom it is for, as was decided when it came: agents, or "@bridge" for the bridge itself;
    None if it is for all who may hear its room. It never gets on the wire: who else is there is nobody's business.
    """

    type: str
    content: bytes = attrs.field(repr=False, validator=_check_content)
    at_ms: int
    id: str
    account: str | None = None
    agent: str | None = None
    room_id: str | None = None
    sender: str | None = None
    event_id: str | None = None
    seq: int = 0
    severity: str | None = None
    erased: bool = attrs.field(default=False, converter=bool)
    addressed: tuple[str, ...] | None = attrs.field(default=None, converter=_names)
    _wire: bytes = attrs.field(init=False, default=b"", eq=False, repr=False)

    @classmethod
    def make(
        cls,
        type: str,  # noqa: A002 - the word of the wire
        content: Mapping[str, Any],
        *,
        at_ms: int,
        id: str = "",  # noqa: A002
        account: str | None = None,
        agent: str | None = None,
        room_id: str | None = None,
        sender: str | None = None,
        event_id: str | None = None,
        severity: str | None = None,
    ) -> Event:
        """An event from content that is not encoded yet; without an `id` it gets a fresh one.

        Raises ValueError for content that JSON cannot hold or that is too large, and for a severity that is none.
        """
        if severity is not None and severity not in SEVERITIES:
            raise ValueError(f"the severity {severity!r} of an event is none of {', '.join(SEVERITIES)}")
        return cls(
            type,
            ascii_json(content),
            at_ms,
            id or secrets.token_urlsafe(12),
            account,
            agent,
            room_id,
            sender,
            event_id,
            severity=severity,
        )

    @property
    def addressed_text(self) -> str | None:
        """`addressed` as its column in the journal has it."""
        return None if self.addressed is None else ascii_json(self.addressed).decode("ascii")

    def is_for(self, name: str) -> bool:
        """Whether it is addressed to that agent, or to everybody."""
        return self.addressed is None or name in self.addressed

    def wire(self) -> bytes:
        """The members every subscriber gets, from `"seq":` to the content, without the braces around them.

        Encoded at the first call and shared by all subscribers: each splices its own head in front (`frame`).
        """
        if not self._wire:
            object.__setattr__(self, "_wire", self._encode())  # a cache: the value does not change
        return self._wire

    def _encode(self) -> bytes:
        members = [f'"seq":{self.seq},"id":{quote(self.id)},"type":{quote(self.type)},"at_ms":{self.at_ms}']
        for name, value in (
            ("agent", self.agent),
            ("room_id", self.room_id),
            ("sender", self.sender),
            ("event_id", self.event_id),
            ("severity", self.severity),
        ):
            if value is not None:
                members.append(f'"{name}":{quote(value)}')
        if self.erased:
            members.append('"erased":true')
        return b'%b,"content":%b' % (",".join(members).encode("ascii"), self.content)

    def plain(self) -> dict[str, Any]:
        """The same members as a dict, for replies that carry events."""
        members: dict[str, Any] = json.loads(b"{%b}" % self.wire())
        return members


def frame_head(subscription: str, redelivered: int) -> bytes:
    """The start of an `event` notification; `frame` puts the event behind it."""
    return (
        '{"jsonrpc":"2.0","method":"event","params":'
        f'{{"subscription":{quote(subscription)},"redelivered":{redelivered},'
    ).encode("ascii")


def frame(head: bytes, event: Event) -> bytes:
    """A whole `event` notification, newline included."""
    return b"%b%b}}\n" % (head, event._wire or event.wire())
