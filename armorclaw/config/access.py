"""Whom the bridge listens to: the section `[access]`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from armorclaw.config.checks import is_name
from armorclaw.structure import FaultError
from armorclaw.user_ids import UserPattern

Invites = Literal["granted", "trusted", "none"]
"""Which invitations an account accepts: to rooms that are granted by name, to these and from people that are trusted
by name, or none at all."""


def _people(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        UserPattern.parse(text)


def _room_ids(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        if text.startswith("#"):
            why = f"{text!r} is an alias, which others may move to another room"
            raise FaultError(why, 'write the id of the room, "!opaque:server" (room settings, advanced)')
        if not re.fullmatch(r"![!-~]{1,254}", text):
            raise FaultError(f"{text!r} is not the id of a room", 'write "!opaque:server" (room settings, advanced)')


def _speaker(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not is_name(value):
        try:
            UserPattern.parse(value)
        except FaultError as fault:
            raise FaultError(f"{value!r} is neither an agent nor a Matrix user", fault.fix) from None


@attrs.frozen
class Talk:
    """That one agent hears another: `to` hears what `from_` says in rooms that both are in.

    `from_`, in TOML `from`, is the name of an agent, or a Matrix user whose program marks what it says as a
    program's, as pattern of `armorclaw.user_ids`. Nobody answers for what two agents make of each other: give both
    directions only to agents that know when to stop.
    """

    from_: str = attrs.field(validator=_speaker)
    to: str = attrs.field()


@attrs.frozen
class AccessSection:
    """Who is heard, and who may give orders; patterns of users as in `armorclaw.user_ids`.

    Of `trusted` people what they say is heard; with none named, of all in the rooms that are granted by name. With
    `rooms`, by id, nobody is heard anywhere else. What others say is not kept, and their invitations are ignored or
    declined, as `strangers` says. `commands` names those whose messages that begin with `!claw` are orders to the
    bridge; with none named there are no orders. `talk`: what agents hear of agents; else they hear nothing of them.
    """

    trusted: tuple[str, ...] = attrs.field(default=(), validator=_people)
    rooms: tuple[str, ...] = attrs.field(default=(), validator=_room_ids)
    strangers: Literal["ignore", "reject"] = "ignore"
    commands: tuple[str, ...] = attrs.field(default=(), validator=_people)
    talk: tuple[Talk, ...] = ()
