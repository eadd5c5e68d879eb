"""What the methods about rooms take and answer."""

from __future__ import annotations

import attrs

from armorclaw.rpc.shape import FieldError, omit_none

VIA_LIMIT = 10


def _is_room(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not (value[:1] in ("!", "#") and 1 < len(value) <= 255 and value.isprintable() and " " not in value):
        raise FieldError(field, "must be a room id, like !abc, or an alias, like #name:server")


def _are_servers(_params: object, field: attrs.Attribute[list[str]], value: list[str]) -> None:
    if len(value) > VIA_LIMIT or not all(0 < len(each) <= 255 and each.isprintable() for each in value):
        raise FieldError(field, f"must be at most {VIA_LIMIT} names of servers")


@attrs.frozen
class RoomsParams:
    """`account` is for operators, who without it are told of all."""

    account: str | None = None


@omit_none
@attrs.frozen
class RoomShown:
    """A room of an account. `direct` is with whom it is a direct chat, `inviter` who asked us in, `successor` the
    room that replaced it. `agents`, for operators alone, are those it is granted to."""

    room_id: str
    account: str
    membership: str
    encrypted: bool
    name: str | None = None
    alias: str | None = None
    direct: str | None = None
    inviter: str | None = None
    successor: str | None = None
    agents: list[str] | None = None


@attrs.frozen
class JoinParams:
    """`room` is a room id or an alias; `via` are servers that are in it, for an id of elsewhere."""

    room: str = attrs.field(validator=_is_room)
    via: list[str] = attrs.field(factory=list, validator=_are_servers)
    account: str | None = None


@attrs.frozen
class Joined:
    room_id: str
    account: str


@attrs.frozen
class LeaveParams:
    """`reason` is seen by everybody in the room."""

    room_id: str
    reason: str | None = None
    account: str | None = None
