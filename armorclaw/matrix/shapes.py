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
    `rooms_missing` are rooms granted to agents, or meant for alerts, that the account is not in.

    `encryption` is "lost" while the keys of the device are, "unpublished" while the homeserver has lost them, "off"
    by configuration; `undecryptable_waiting` are messages whose key has not come yet, `decrypt_failures` those of the
    last hour that could not be read. `deaf`: it hears and cannot read; there were failures, for over a minute, and no
    success since. `signed`: whether the account's own identity has signed its device (null: not known). `hint`: what
    helps if the keys are lost, or the device is not signed.
    """

    account: str
    homeserver: str
    state: str
    connected: bool
    user_id: str | None
    device_id: str | None
    reason: str
    last_sync_s: float | None
    rooms_missing: list[str]
    encryption: Literal["ready", "starting", "unpublished", "lost", "off"] = "off"
    undecryptable_waiting: int = 0
    decrypt_failures: int = 0
    sends_waiting: int = 0
    deaf: bool = False
    signed: bool | None = None
    hint: str = ""


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


def _is_cursor(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch("[0-9]{0,32}", value):
        raise FieldError(field, "must be that of an answer, or empty")


def _is_consumer(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not re.fullmatch("[A-Za-z0-9_.-]{0,56}", value):
        raise FieldError(field, "must be up to 56 characters of A-Z, a-z, 0-9, _, . and -")


@attrs.frozen
class ReceiveParams:
    """`cursor` is the one of the answer before, or empty; `timeout_ms` is how long to wait for the first event, where
    more than 3500 counts as 3500. `consumer` is for operators: each name has all events, by default each uid has."""

    cursor: str = attrs.field(default="", validator=_is_cursor)
    timeout_ms: int = attrs.field(default=0, validator=between(0, TIMEOUT_LIMIT_MS))
    limit: int = attrs.field(default=10, validator=between(1, 100))
    consumer: str = attrs.field(default="", validator=_is_consumer)


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


def _is_name(_params: object, field: attrs.Attribute[str], value: str) -> None:
    # these are parts of a path at the homeserver
    if value in (".", "..") or len(value.encode("utf-8", "replace")) > 255 or not value.isprintable():
        raise FieldError(field, "must be printable, of 255 bytes at most")


def _is_type(_params: object, field: attrs.Attribute[str], value: str) -> None:
    _is_name(_params, field, value)
    if not value:
        raise FieldError(field, "must not be empty")


def _is_user(_params: object, field: attrs.Attribute[str], value: str) -> None:
    _is_name(_params, field, value)
    if not re.fullmatch("@[^:]+:.+", value):
        raise FieldError(field, "must be a user id, like @name:server")


@attrs.frozen
class MembersParams:
    """`after` is `next` of the answer before, or empty. `account` is for operators."""

    room_id: str
    after: str = attrs.field(default="", validator=_is_name)
    limit: int = attrs.field(default=500, validator=between(1, 1000))
    account: str | None = None


@attrs.frozen
class Member:
    """What people see of somebody in a room."""

    user_id: str
    display_name: str | None
    avatar_url: str | None


@attrs.frozen
class Members:
    """Those who have joined, by user id. `count` is how many; `next` is for the next call, null at the end."""

    room_id: str
    members: list[Member]
    count: int
    next: str | None


@attrs.frozen
class ProfileParams:
    """With `room_id` as the person is seen there; without, which is for operators, as their own server says."""

    user_id: str = attrs.field(validator=_is_user)
    room_id: str | None = None
    account: str | None = None


@attrs.frozen
class Profile:
    """`membership` is that in the room, null without one, or where they never were."""

    user_id: str
    display_name: str | None
    avatar_url: str | None
    membership: str | None


@attrs.frozen
class RoomStateParams:
    """`state_key` is empty for most types. `account` is for operators."""

    room_id: str
    type: str = attrs.field(validator=_is_type)
    state_key: str = attrs.field(default="", validator=_is_name)
    account: str | None = None


@attrs.frozen
class RoomStateContent:
    """`content` is null if the room has no such state."""

    room_id: str
    type: str
    state_key: str
    content: dict[str, Any] | None
