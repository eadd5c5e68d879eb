"""A message on its way out, and what became of it."""

from __future__ import annotations

from typing import Literal, get_args

import attrs

from armorclaw.errors import ArmorclawError

CONTENT_LIMIT = 64 * 1024
"""Bytes of content. Matrix allows 65,536 for the whole event, so no larger content can ever be sent."""

KEY_LIMIT = 300
"""Characters of an idempotency key: a Matrix event id has up to 255, and the number of a reply comes behind it."""

State = Literal["queued", "unknown", "sent", "delivered", "read", "failed", "cancelled"]
"""Unknown: it waits as a queued one does, but an attempt may have reached the homeserver. Sent: the homeserver has
it. Delivered: it came back in our own sync. Read: somebody's receipt covers it. Cancelled: taken back before any
attempt could have arrived."""

STATES: tuple[State, ...] = get_args(State)

WAITING: tuple[State, ...] = ("queued", "unknown")
"""The states in which a message is still to be sent."""


@attrs.frozen
class Outgoing:
    """A message to send. `agent` is "" for the operator; `content` is a JSON object.

    The same (agent, idempotency_key) again is the same message, whatever its body. With `refers` it is about an
    earlier message to the same room, whose delivery id that is and stands in the content: by the time this one is
    sent, the event id is there in its place. Raises `too_large` for more than Matrix can carry, `invalid_params` for
    an odd key.
    """

    account: str
    agent: str
    room_id: str
    content: bytes = attrs.field(repr=False)
    type: str = "m.room.message"
    idempotency_key: str | None = None
    refers: str | None = None

    def __attrs_post_init__(self) -> None:
        if len(self.content) > CONTENT_LIMIT:
            why = f"it has {len(self.content)} bytes, Matrix allows {CONTENT_LIMIT}"
            raise ArmorclawError("too_large", f"message to {self.room_id}", why=why, hint="send it in parts")
        if self.idempotency_key is not None and not 1 <= len(self.idempotency_key) <= KEY_LIMIT:
            field, why = "idempotency_key", f"it must have 1 to {KEY_LIMIT} characters"
            raise ArmorclawError("invalid_params", field, why=why, fields=[field])


@attrs.frozen
class Delivery:
    """What became of a message. `reason` says why it failed or, while it waits, why the last attempt did.

    `txn_id` is the Matrix transaction id of every attempt. Times are milliseconds since the epoch.
    """

    delivery_id: str
    txn_id: str
    account: str
    agent: str
    room_id: str
    type: str
    state: State
    created_ms: int
    event_id: str | None = None
    reason: str | None = None
    attempts: int = 0
    settled_ms: int | None = None
    seq: int = 0
    """Its place in the order of acceptance, which is the order of sending within a room."""
    idempotency_key: str | None = None
    tried_ms: int | None = None
    """When the first of the attempts was made that may have arrived without our knowing; None: there are none."""
    device_id: str | None = None
    """The device that made these, or makes the next. On disk before any attempt, so None there means no attempt."""
    refers: str | None = None
    """The delivery that it is about, and whose id stands in its content, as in `Outgoing`."""
    in_doubt: bool = False
    """Of one that waits: whether an attempt is under way, or may have reached the homeserver all the same."""

    @property
    def waiting(self) -> bool:
        """Whether it is still to be sent."""
        return self.state in WAITING

    @property
    def may_be_seen(self) -> bool:
        """Of one that failed: whether it may be in the room all the same."""
        return self.tried_ms is not None
