"""What is told of a message: each change of its state as an event of type `delivery`, for whoever sent it."""

from __future__ import annotations

from typing import Any

from armorclaw.delivery.message import Delivery
from armorclaw.events.event import Event

TYPE = "delivery"


def news_of(delivery: Delivery, at_ms: int, *, by: str | None = None, id: str = "") -> Event:  # noqa: A002
    """The event that tells of the state a message has come to; `by` is who read it.

    It has no room of its own, so that it goes to the sender and not to everyone in the room.
    """
    failed = delivery.state == "failed"
    content: dict[str, Any] = {
        "delivery_id": delivery.delivery_id,
        "state": delivery.state,
        "room_id": delivery.room_id,
        "event_id": delivery.event_id,
        "reason": delivery.reason,
        "retryable": not delivery.may_be_seen if failed else None,
        "idempotency_key": delivery.idempotency_key,
        "at_ms": at_ms,
        "by": by,
    }
    return Event.make(
        TYPE,
        {name: value for name, value in content.items() if value is not None},
        at_ms=at_ms,
        id=id,
        account=delivery.account,
        agent=delivery.agent or None,
        severity="warning" if failed else "info",
    )
