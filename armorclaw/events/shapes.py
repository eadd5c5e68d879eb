"""What the methods of events take and answer."""

from __future__ import annotations

import re
from typing import Any, Literal

import attrs

from armorclaw.rpc.shape import FieldError, between, omit_none

PUBLISH_LIMIT = 48 * 1024
"""Bytes of the content of a published event, as JSON."""

_TYPE = re.compile(r"app\.[a-z0-9_.-]{1,60}")


def _own_type(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not _TYPE.fullmatch(value):
        raise FieldError(field, 'must be "app." and 1 to 60 of the characters a-z, 0-9, ., _ and -')


@attrs.frozen
class Subscribe:
    """With a `name` the subscription outlives the connection and its events want to be acknowledged. A name has 1 to
    64 of the characters A-Z, a-z, 0-9 and _ . - of which the first is a letter or a digit.

    `from` is where a new one begins: "now", the number of the last event already seen, or a time in RFC 3339, such
    as 2026-01-31T09:30:00Z, from which on events came to the bridge. For an agent that is never before what it has
    acknowledged of its subscription "main".
    """

    name: str | None = None
    filter: dict[str, Any] = attrs.field(factory=dict)
    from_: str | int = "now"


@attrs.frozen
class Subscribed:
    subscription: str
    cursor: int


@attrs.frozen
class Unsubscribe:
    subscription: str


@attrs.frozen
class Forget:
    """`subscription` is a name."""

    subscription: str


@attrs.frozen
class Ack:
    """`nack_ms` asks for the event again after so many milliseconds, 0 to 3,600,000; `cumulative` means all up to
    `seq`. `working` acknowledges nothing: it says that the event is still being worked on, so that it is not given
    again for want of an answer; the time for that begins anew."""

    subscription: str
    seq: int
    cumulative: bool = False
    nack_ms: int | None = None
    working: bool = False


@attrs.frozen
class Done:
    ok: bool = True


@attrs.frozen
class Publish:
    """`type` begins with "app."; `content` has at most 48 KiB as JSON. An `ephemeral` event is kept nowhere: it goes
    to those who follow now, without a name, and have room."""

    type: str = attrs.field(validator=_own_type)
    content: dict[str, Any] = attrs.field(factory=dict)
    severity: Literal["info", "warning", "error", "critical"] | None = None
    ephemeral: bool = False


@attrs.frozen
class Published:
    """`seq` is the event's number; 0 for an ephemeral one."""

    id: str
    seq: int


@attrs.frozen
class DeadLettersOf:
    """`agent` is for operators: those of one agent, "" for their own; without it, all."""

    limit: int = attrs.field(default=100, validator=between(1, 1000))
    agent: str | None = None


@omit_none
@attrs.frozen
class DeadLetterShown:
    """An event that was given up for one subscription. Its content is where it was, in the journal."""

    owner: str
    subscription: str
    seq: int
    at_ms: int
    given: int
    lost: int
    reason: str
    again: bool
    type: str | None = None
    room_id: str | None = None
    event_id: str | None = None


@attrs.frozen
class WhichDeadLetter:
    """`agent` is for operators: whose subscription it is; without it, their own."""

    subscription: str
    seq: int
    agent: str | None = None


@omit_none
@attrs.frozen
class SubscriptionStats:
    """One subscription. `owner` is an agent, "" for operators, or "@" and a part of the bridge.

    `behind` is how many numbers of the journal are not settled, or for one without a name not pushed; not all of them
    need be for it. `in_hand` were pushed and are not answered, the oldest `oldest_s` seconds ago. `acknowledged` are
    those above the oldest unsettled one. `redelivered` and `missed` count since it was opened: events pushed again,
    and events that are kept nowhere and for which it had no room.
    """

    owner: str
    subscription: str
    named: bool
    connected: bool
    behind: int
    in_hand: int = 0
    oldest_s: float | None = None
    acknowledged: int = 0
    dead: int = 0
    redelivered: int = 0
    missed: int = 0
