"""The outbox on the wire: what became of messages, and what operators can do about it."""

from __future__ import annotations

from armorclaw.delivery.message import Delivery
from armorclaw.delivery.outbox import Outbox, no_delivery
from armorclaw.delivery.shapes import DeliveryShown, ListDeliveries, WhichDelivery
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role


def register(registry: Registry, outbox: Outbox) -> None:
    """Adds delivery.status and .list, where an agent sees its own, and .retry and .cancel for operators."""
    readers = {Role.OPERATOR, Role.AGENT}
    operator = {Role.OPERATOR}
    method = registry.method

    @method("delivery.status", params=WhichDelivery, result=DeliveryShown, roles=readers)
    async def status(call: Call, params: WhichDelivery) -> DeliveryShown:
        """What became of a message."""
        delivery = await outbox.status(params.delivery_id)
        if call.agent is not None and delivery.agent != call.agent:
            raise no_delivery(params.delivery_id)  # as if there were none
        return _shown(delivery)

    @method("delivery.list", params=ListDeliveries, result=list[DeliveryShown], roles=readers)
    async def list_(call: Call, params: ListDeliveries) -> list[DeliveryShown]:
        """The last messages, the newest first."""
        found = await outbox.latest(params.limit, agent=call.agent, state=params.state, room_id=params.room_id)
        return [_shown(delivery) for delivery in found]

    @method("delivery.retry", params=WhichDelivery, result=DeliveryShown, roles=operator)
    async def retry(call: Call, params: WhichDelivery) -> DeliveryShown:
        """Try a failed message again, or one that waits now.

        It keeps its transaction id. What may have been seen already is looked for in its room first. What was
        cancelled stays so.
        """
        return _shown(await outbox.retry(params.delivery_id, by=f"uid {call.uid}"))

    @method("delivery.cancel", params=WhichDelivery, result=DeliveryShown, roles=operator)
    async def cancel(call: Call, params: WhichDelivery) -> DeliveryShown:
        """Take back a message that waits. One of which an attempt may have reached the homeserver stays."""
        return _shown(await outbox.cancel(params.delivery_id, by=f"uid {call.uid}"))


def _shown(delivery: Delivery) -> DeliveryShown:
    return DeliveryShown(
        delivery_id=delivery.delivery_id,
        state=delivery.state,
        event_id=delivery.event_id,
        reason=delivery.reason,
        account=delivery.account,
        agent=delivery.agent or None,
        room_id=delivery.room_id,
        type=delivery.type,
        attempts=delivery.attempts,
        created_ms=delivery.created_ms,
        settled_ms=delivery.settled_ms,
    )
