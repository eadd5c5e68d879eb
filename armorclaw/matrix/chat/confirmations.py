"""Orders that wait for the word of whoever gave them. In memory: what a bridge that ends had asked is off."""

from __future__ import annotations

import math
from collections import OrderedDict

import attrs
import trio

from armorclaw.matrix.chat.carrying_out import Given

WITHIN = 120.0
"""Seconds that an order waits to be confirmed."""

WAITING = 32
"""Orders that wait at a time; one more, and the oldest is off."""

YES, NO = "✅", "❌"

_VARIANT = "\ufe0f"  # some clients put it behind a sign, to say that it is a picture


@attrs.frozen
class Pending:
    """One that waits: its question is the message with this key (`delivery.message.Outgoing`)."""

    key: str
    given: Given
    until: float


class Confirmations:
    """One of each person in each room: a later one takes its place."""

    def __init__(self) -> None:
        self._pending: OrderedDict[str, Pending] = OrderedDict()

    @property
    def next_end(self) -> float:
        """When the first is over, by `trio.current_time`."""
        return min((each.until for each in self._pending.values()), default=math.inf)

    def __contains__(self, key: str) -> bool:
        return key in self._pending

    def ask(self, key: str, given: Given) -> list[Pending]:
        """From now on it waits. Returns those that are off by that."""
        off = [each for each in self._pending.values() if each.key != key and _same_place(each.given, given)]
        if len(self._pending) - len(off) >= WAITING:
            off.append(next(each for each in self._pending.values() if each not in off))
        for each in off:
            del self._pending[each.key]
        self._pending[key] = Pending(key, given, trio.current_time() + WITHIN)
        return off

    def answer(self, key: str, by: str, account: str | None, room_id: str | None) -> Pending | None:
        """What this person, in this room, may decide by this message; it waits no more. None: nothing."""
        found = self._pending.get(key)
        if found is None or found.given.by != by or trio.current_time() >= found.until:
            return None
        if (found.given.event.account, found.given.event.room_id) != (account, room_id):
            return None
        return self._pending.pop(key)

    def over(self) -> list[Pending]:
        """Those whose time is over; they wait no more."""
        now = trio.current_time()
        found = [each for each in self._pending.values() if each.until <= now]
        for each in found:
            del self._pending[each.key]
        return found


def verdict(key: object) -> bool | None:
    """What a reaction says: yes, no, or nothing about it."""
    sign = key.removesuffix(_VARIANT) if isinstance(key, str) else None
    return {YES: True, NO: False}.get(sign) if sign is not None else None


def _same_place(one: Given, other: Given) -> bool:
    return (one.by, one.event.account, one.event.room_id) == (other.by, other.event.account, other.event.room_id)
