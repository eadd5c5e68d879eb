"""What the methods that send, change and mark messages take and answer."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from armorclaw.matrix.shapes import TIMEOUT_LIMIT_MS
from armorclaw.rpc.shape import FieldError, between, omit_none

MENTIONS_LIMIT = 100
KEY_BYTES = 256
"""Of a reaction; a word or an emoji is what people expect."""

TYPING_LIMIT_MS = 10 * 60_000

Format = Literal["plain", "markdown"]


def is_event_id(_params: object, field: attrs.Attribute[Any], value: str | None) -> None:
    """For `attrs.field(validator=…)`."""
    if value is not None and not (value.startswith("$") and 1 < len(value) <= 255 and value.isprintable()):
        raise FieldError(field, "must be an event id, as $abc")


def _are_users(_params: object, field: attrs.Attribute[Any], value: list[str]) -> None:
    if len(value) > MENTIONS_LIMIT:
        raise FieldError(field, f"must be at most {MENTIONS_LIMIT}")
    for user in value:
        is_user = user.startswith("@") and ":" in user and len(user) <= 255 and user.isprintable()
        if not is_user and user != "@room":
            raise FieldError(field, "must be user ids, like @name:server, or @room")


def _is_key(_params: object, field: attrs.Attribute[Any], value: str) -> None:
    if not value.strip() or len(value.encode("utf-8", "replace")) > KEY_BYTES:
        raise FieldError(field, f"must have 1 to {KEY_BYTES} bytes")


def _wait() -> Any:
    return attrs.field(default=3500, validator=between(0, TIMEOUT_LIMIT_MS))


@attrs.frozen
class SendParams:
    """`format`: whether `message` is Markdown. `reply_to` and `thread` are event ids; that of a thread is its first
    event. `mentions` are user ids, or "@room". `content` adds to, or replaces, what becomes of all that.

    The same `idempotency_key` again sends nothing, whatever the rest says. `wait_ms` is how long to wait for the
    event id, where more than 3500 counts as 3500.
    """

    room_id: str
    message: str
    msgtype: str = "m.text"
    content: dict[str, Any] | None = None
    idempotency_key: str | None = None
    account: str | None = None
    format: Format = "plain"
    reply_to: str | None = attrs.field(default=None, validator=is_event_id)
    thread: str | None = attrs.field(default=None, validator=is_event_id)
    mentions: list[str] = attrs.field(factory=list, validator=_are_users)
    wait_ms: int = _wait()


@omit_none
@attrs.frozen
class MatrixSent:
    """`event_id` is null while `status` is "queued". `parts` are all deliveries, in order, of a message that had to
    be split; the rest is about the first."""

    event_id: str | None
    room_id: str
    delivery_id: str
    status: Literal["queued", "sent"]
    parts: list[str] | None = None


@attrs.frozen
class EditParams:
    """The message is given by `event_id`, or by `delivery_id` as matrix.send answered it, also while it is queued.
    `thread` is where new messages go if the text has become too long for one.

    `interim`: one of many that follow each other. It is cut to what one event holds, and refused (`unavailable`)
    while the message, or an edit of it before, is not sent yet.
    """

    room_id: str
    message: str
    event_id: str | None = attrs.field(default=None, validator=is_event_id)
    delivery_id: str | None = None
    msgtype: str = "m.text"
    content: dict[str, Any] | None = None
    idempotency_key: str | None = None
    account: str | None = None
    format: Format = "plain"
    thread: str | None = attrs.field(default=None, validator=is_event_id)
    mentions: list[str] = attrs.field(factory=list, validator=_are_users)
    interim: bool = False
    wait_ms: int = _wait()


@attrs.frozen
class ReactParams:
    """`key` is the emoji, or a word. The event is given as for matrix.edit, but may be anybody's."""

    room_id: str
    key: str = attrs.field(validator=_is_key)
    event_id: str | None = attrs.field(default=None, validator=is_event_id)
    delivery_id: str | None = None
    idempotency_key: str | None = None
    account: str | None = None
    wait_ms: int = _wait()


@attrs.frozen
class RedactParams:
    """The event is given as for matrix.edit. `reason` is seen by everybody in the room, and left out in encrypted
    ones."""

    room_id: str
    event_id: str | None = attrs.field(default=None, validator=is_event_id)
    delivery_id: str | None = None
    reason: str | None = None
    idempotency_key: str | None = None
    account: str | None = None
    wait_ms: int = _wait()


@attrs.frozen
class TypingParams:
    """`timeout_ms` is how long it is shown at most, unless this is called again. `account` is for operators."""

    room_id: str
    typing: bool = True
    timeout_ms: int = attrs.field(default=30_000, validator=between(1_000, TYPING_LIMIT_MS))
    account: str | None = None


@attrs.frozen
class ReadParams:
    """Everything in the room up to this event is read. `account` is for operators."""

    room_id: str
    event_id: str = attrs.field(validator=is_event_id)
    account: str | None = None
