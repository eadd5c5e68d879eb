"""What several sections ask of a value: plain validators of attrs, which raise FaultError."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import attrs

from armorclaw.structure import FaultError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


def is_name(text: str) -> bool:
    """Whether `text` may name an agent, an account or a subscription; such names become file names."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> None:
    if not is_name(text):
        raise FaultError(
            f"{what} {text!r} is not a name",
            "use 1 to 32 characters of a-z, 0-9, - and _, beginning with a letter or digit",
        )


def positive(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise FaultError(f"{value!r} is not above zero", f"give a positive {attribute.name}, or leave the key out")


def no_less_than_zero(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value < float("inf"):
        raise FaultError(f"{value!r} is below zero, or has no end", "give seconds or a number, or 0 for none")


def between(least: float, most: float) -> Callable[[object, attrs.Attribute[Any], float], None]:
    """A validator for seconds."""

    def check(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
        if not least <= value <= most:
            raise FaultError(f"{value!r} is out of range", f"give {least:g} to {most:g} seconds")

    return check


def rooms(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    check_rooms(value)


def check_rooms(rooms: Sequence[str]) -> None:
    """Raise FaultError for what is neither a room id nor an alias."""
    for room in rooms:
        if not re.fullmatch(r"[!#][^\s/?%]{1,254}", room) or not room.isprintable():
            raise FaultError(
                f"{room!r} is neither a room id nor an alias",
                'write "!opaque:server" (room settings, advanced) or "#alias:server"',
            )


def at_least_one(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value < 1:
        raise FaultError(f"{value!r} is below 1", f"give at least 1 for {attribute.name}")


def share(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value <= 1:
        raise FaultError(f"{value!r} is no share", "give more than 0 and at most 1: 0.8 warns at 80 %")
