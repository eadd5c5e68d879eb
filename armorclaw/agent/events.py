"""What happened, as the bridge tells of it."""

from __future__ import annotations

import hashlib
import os
from typing import Any, NamedTuple, Optional

Key = tuple[int, str]
"""An event: its place in the journal, and its id, in case the journal was begun anew."""


class Keys:
    """Idempotency keys: of what is said because of an event, so that a handler that runs again, because the event
    came again, says nothing a second time; without an event (`base`) of what is said once.

    With either a call survives a bridge that restarts meanwhile.
    """

    def __init__(self, base: str = "") -> None:
        self._base = base or os.urandom(12).hex()
        self._counts: dict[str, int] = {}

    def next(self, *what: str) -> str:
        """The key of the next thing that is said; of changes to a message, of the next to that one."""
        kind = ":".join((what[0], hashlib.sha256("\0".join(what).encode()).hexdigest()[:16], "")) if what else ""
        number = self._counts[kind] = self._counts.get(kind, 0) + 1
        return f"{self._base}:{kind}{number}"


class Delivery(NamedTuple):
    """What became of a message so far. `status` is `sent` (then `event_id` is set) or `queued`: it will be sent.

    `parts` are the delivery ids, in order, of a message that was too long for one event; the rest is about the first.
    """

    status: str
    event_id: Optional[str]
    delivery_id: Any
    room_id: str
    parts: tuple[str, ...] = ()

    @classmethod
    def from_result(cls, result: Any) -> Delivery:
        result = result if isinstance(result, dict) else {}
        return cls(
            str(result.get("status", "")),
            result.get("event_id"),
            result.get("delivery_id"),
            str(result.get("room_id", "")),
            tuple(result.get("parts") or ()),
        )


class Receipt(NamedTuple):
    """What has become of a message that was sent before; handlers of `on_delivery` get it.

    `state` is `sent` (it has its `event_id`), `delivered` (it is in the room), `read` (by `by`), `failed` (`reason`
    says why, `retryable` whether certainly nobody has seen it), `cancelled`, or `unknown` (an attempt may have
    arrived; the bridge finds out). `at_ms` is when, in milliseconds since the epoch. `idempotency_key` is the one it
    was sent with, if any.
    """

    delivery_id: str
    state: str
    room_id: str
    event_id: Optional[str]
    reason: Optional[str]
    retryable: bool
    idempotency_key: Optional[str]
    by: Optional[str]
    at_ms: int

    @classmethod
    def of(cls, event: Event) -> Receipt:
        """From an event of type `delivery`."""
        told = event.content
        return cls(
            str(told.get("delivery_id", "")),
            str(told.get("state", "")),
            str(told.get("room_id") or ""),
            told.get("event_id"),
            told.get("reason"),
            told.get("retryable") is True,
            told.get("idempotency_key"),
            told.get("by"),
            int(told.get("at_ms") or event.at_ms),
        )


class Event:
    """An event the bridge pushed.

    `type` is a Matrix event type (`m.room.message`) or one of the bridge's own; `content` its content as Matrix has
    it. `at_ms` is when it happened, in milliseconds since the epoch. `redelivered` says how many times it was handed
    out before without being acknowledged: 0 at first. `room_id`, `sender`, `event_id` and `severity` (info, warning,
    error, critical) are empty where an event has none. `erased` says that its content was deleted since.
    """

    def __init__(self, wire: dict[str, Any]) -> None:
        self.seq: int = wire["seq"]
        self.id = str(wire.get("id", ""))
        self.type = str(wire.get("type", ""))
        self.at_ms = int(wire.get("at_ms", 0))
        self.room_id = str(wire.get("room_id") or "")
        self.sender = str(wire.get("sender") or "")
        self.event_id = str(wire.get("event_id") or "")
        self.severity = str(wire.get("severity") or "")
        self.erased = wire.get("erased") is True
        content = wire.get("content")
        self.content: dict[str, Any] = content if isinstance(content, dict) else {}
        self.redelivered = int(wire.get("redelivered", 0))
        self.keys = Keys(self.event_id or self.id)
        """Of what is said because of it."""

    @property
    def key(self) -> Key:
        """What tells this event from any other: its place in the bridge's journal, and its id there."""
        return self.seq, self.id

    @property
    def body(self) -> str:
        """The text of a message; empty when it has none."""
        body = self.content.get("body")
        return body if isinstance(body, str) else ""

    @property
    def msgtype(self) -> str:
        """`m.text`, `m.image` and so on; empty for what is no message."""
        msgtype = self.content.get("msgtype")
        return msgtype if isinstance(msgtype, str) else ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type} {self.event_id or self.id} in {self.room_id or 'no room'}>"

    @property
    def thread(self) -> Optional[str]:
        """The event that begins the thread this one is in; None if it is in none."""
        relation = self.content.get("m.relates_to")
        if not isinstance(relation, dict) or relation.get("rel_type") != "m.thread":
            return None
        event_id = relation.get("event_id")
        return event_id if isinstance(event_id, str) else None
