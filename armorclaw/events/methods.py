"""Events on the wire: subscriptions, acknowledgements, and the `event` notification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal
from weakref import WeakKeyDictionary

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.grants import Grants
from armorclaw.rpc.peer import Call, Peer
from armorclaw.rpc.registry import Registry, Role

MAX_SUBSCRIPTIONS = 32
"""Of one agent, on all its connections together, or of one connection of an operator: each is asked at each event."""


@attrs.frozen
class Subscribe:
    """With a `name` the subscription outlives the connection and its events want to be acknowledged.

    `from_` is where a new one begins: "now", or the number of the last event already seen. For an agent that is
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
class Ack:
    """`nack_ms` asks for the event again after so many milliseconds; `cumulative` means all up to `seq`."""

    subscription: str
    seq: int
    cumulative: bool = False
    nack_ms: int | None = None


@attrs.frozen
class Done:
    ok: bool = True


def hears(grants: Grants, agent: str, event: Event) -> bool:
    """Whether an agent may hear an event: one of a room granted to it, or about itself."""
    if event.room_id is not None:
        return event.account == grants.account_of(agent) and grants.may(agent, event.room_id)
    return event.agent == agent


def _everything(event: Event) -> bool:
    return True


def register(registry: Registry, subscriptions: Subscriptions, grants: Grants) -> None:
    """Adds events.subscribe, events.unsubscribe and events.ack for operators and agents."""
    listeners = {Role.OPERATOR, Role.AGENT}
    by_peer: WeakKeyDictionary[Peer, dict[str, Subscription]] = WeakKeyDictionary()
    counts: Counter[str | Peer] = Counter()  # subscriptions there are or are about to be, of an agent or a connection

    def find(call: Call, name: str) -> Subscription:
        try:
            return by_peer[call.peer][name]
        except KeyError:
            raise ArmorclawError("not_found", f"this connection has no subscription {name[:80]!r}") from None

    @contextmanager
    def counted(call: Call) -> Iterator[None]:
        whose = call.agent if call.agent is not None else call.peer
        if counts[whose] >= MAX_SUBSCRIPTIONS:
            who = "this connection" if call.agent is None else f"agent {call.agent}"
            raise ArmorclawError("queue_full", f"{who} has {MAX_SUBSCRIPTIONS} subscriptions")
        counts[whose] += 1
        try:
            yield
        finally:
            counts[whose] -= 1
            if not counts[whose]:
                del counts[whose]

    async def serve(subscription: Subscription, call: Call, *, task_status: trio.TaskStatus[None]) -> None:
        mine = by_peer.setdefault(call.peer, {})
        with counted(call):
            mine[subscription.id] = subscription
            try:
                await subscription.run(task_status=task_status)
            finally:
                if mine.get(subscription.id) is subscription:
                    del mine[subscription.id]

    doc = (
        "Have events pushed as `event` notifications. An agent has at most 32 subscriptions, and cannot begin one "
        "before what it has acknowledged of its own, `main`: rooms granted later may have been others' before."
    )

    @registry.method("events.subscribe", params=Subscribe, result=Subscribed, roles=listeners, doc=doc)
    async def subscribe(call: Call, params: Subscribe) -> Subscribed:
        if not isinstance(call.peer, Peer):
            raise ArmorclawError("invalid_request", "events.subscribe needs a connection to push to")
        allowed = _everything if call.agent is None else partial(hears, grants, call.agent)
        wanted = EventFilter.from_json(params.filter)
        start = params.from_
        if call.agent is not None and start != "now":
            start = max(start, await subscriptions.floor(call.agent))
        subscription = subscriptions.open(call.agent or "", params.name, wanted, start, allowed, call.peer)
        subscription.hold()
        await call.peer.nursery.start(serve, subscription, call)
        call.peer.nursery.start_soon(_release, subscription)  # begins to run once this answer is written
        return Subscribed(subscription.id, subscription.position)

    @registry.method(
        "events.unsubscribe", params=Unsubscribe, result=Done, roles=listeners, doc="End a subscription here."
    )
    def unsubscribe(call: Call, params: Unsubscribe) -> Done:
        find(call, params.subscription).close("unsubscribed")
        return Done()

    @registry.method("events.ack", params=Ack, result=Done, roles=listeners, doc="Say what became of an event.")
    async def ack(call: Call, params: Ack) -> Done:
        if params.nack_ms is not None:
            await find(call, params.subscription).nack(params.seq, params.nack_ms)
        elif params.subscription in by_peer.get(call.peer, ()):
            await find(call, params.subscription).ack(params.seq, cumulative=params.cumulative)
        else:  # it may come late, when another connection has the subscription: it is a fact all the same
            owner = call.agent or ""
            await subscriptions.ack(owner, params.subscription, params.seq, cumulative=params.cumulative)
        return Done()


async def _release(subscription: Subscription) -> None:
    subscription.release()
