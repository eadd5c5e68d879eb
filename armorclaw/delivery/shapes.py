"""What the methods of the outbox take and answer."""

from __future__ import annotations

from typing import Literal

import attrs

from armorclaw.rpc.shape import between

State = Literal["queued", "unknown", "sent", "delivered", "read", "failed", "cancelled"]


@attrs.frozen
class WhichDelivery:
    """`delivery_id` is what `matrix.send` answered."""

    delivery_id: str


@attrs.frozen
class ListDeliveries:
    """The newest `limit` messages, of one state or room if that is given."""

    state: State | None = None
    room_id: str | None = None
    limit: int = attrs.field(default=100, validator=between(1, 1000))


@attrs.frozen
class DeliveryShown:
    """What became of a message. `agent` is null for one of the operator's.

    `unknown`: it waits as a queued one does, but an attempt may have reached the homeserver. `sent`: the homeserver
    has it. `delivered`: it came back to us. `read`: somebody has read it. `reason` says why it failed or, while it
    waits, why the last of its `attempts` did. Times are milliseconds since the epoch.
    """

    delivery_id: str
    state: State
    event_id: str | None
    reason: str | None
    account: str
    agent: str | None
    room_id: str
    type: str
    attempts: int
    created_ms: int
    settled_ms: int | None
