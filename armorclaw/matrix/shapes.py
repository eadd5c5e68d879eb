"""What the Matrix methods take and answer."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs

from armorclaw.rpc.shape import FieldError, between, omit_none

TIMEOUT_LIMIT_MS = 2**31 - 1
"""What may be asked for, in milliseconds: the largest that clients in other languages can mean."""


@attrs.frozen
class LoginParams:
    """`account` names one of the configuration; by default the first."""

    username: str
    password: str = attrs.field(repr=False)
    account: str | None = None


@attrs.frozen
class LoggedIn:
    """`status` is "logging_in", and `user_id` null, if the homeserver takes over 3.5 s."""

    status: Literal["logged_in", "logging_in"]
    user_id: str | None


@attrs.frozen
class AccountStanding:
    """How one account stands. `last_sync_s` is how many seconds ago a sync was answered, null if none was;
    `rooms_missing` are rooms granted to agents, or meant for alerts, that the account is not in."""

    account: str
    homeserver: str
    state: str
    connected: bool
    user_id: str | None
    device_id: str | None
    reason: str
    last_sync_s: float | None
    rooms_missing: list[str]


@omit_none
@attrs.frozen
class MatrixStatus:
    """`connected` means that the last sync was answered, and not long ago. `reason` and `accounts`, all there are,
    are for operators and observers, and only where Matrix is configured."""

    enabled: bool
    status: Literal["connected", "disconnected", "not_configured"]
    user_id: str | None
    logged_in: bool
    reason: str | None = None
    accounts: list[AccountStanding] | None = None


@attrs.frozen
class SendParams:
    """`content` adds to, or replaces, {msgtype, body}.

    The same `idempotency_key` again sends nothing, whatever the rest says.
    """

    room_id: str
    message: str
    msgtype: str = "m.text"
    content: dict[str, Any] | None = None
    idempotency_key: str | None = None
    account: str | None = None


@attrs.frozen
class MatrixSent:
    """`event_id` is null while `status` is "queued"."""

    event_id: str | None
    room_id: str
    delivery_id: str
    status: Literal["queued", "sent"]


def _is_cursor(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch("[0-9]{0,32}", value):
        raise FieldError(field, "must be that of an answer, or empty")


@attrs.frozen
class ReceiveParams:
    """`cursor` is the one of the answer before, or empty; `timeout_ms` is how long to wait for the first event, where
    more than 3500 counts as 3500."""

    cursor: str = attrs.field(default="", validator=_is_cursor)
    timeout_ms: int = attrs.field(default=0, validator=between(0, TIMEOUT_LIMIT_MS))
    limit: int = attrs.field(default=10, validator=between(1, 100))


@attrs.frozen
class ReceivedEvent:
    """`origin_server` is the sender's server."""

    type: str
    room_id: str
    sender: str
    content: dict[str, Any]
    origin_server: str
    event_id: str


@attrs.frozen
class Received:
    """`cursor` is for the next call; `count` is how many events there are."""

    events: list[ReceivedEvent]
    count: int
    cursor: str
