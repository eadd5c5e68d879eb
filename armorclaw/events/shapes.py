"""What the methods of events take and answer."""

from __future__ import annotations

from typing import Any, Literal

import attrs


@attrs.frozen
class Subscribe:
    """With a `name` the subscription outlives the connection and its events want to be acknowledged. A name has 1 to
    64 of the characters A-Z, a-z, 0-9 and _ . - of which the first is a letter or a digit.

    `from` is where a new one begins: "now", or the number of the last event already seen. For an agent that is
    never before what it has acknowledged of its subscription "main".
    """

    name: str | None = None
    filter: dict[str, Any] = attrs.field(factory=dict)
    from_: Literal["now"] | int = "now"


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
    `seq`."""

    subscription: str
    seq: int
    cumulative: bool = False
    nack_ms: int | None = None


@attrs.frozen
class Done:
    ok: bool = True
