"""Events on the wire: subscriptions, acknowledgements, and the `event` notification."""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import datetime
from functools import partial
from weakref import WeakKeyDictionary

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.events import dead_letter_methods
from armorclaw.events.durable.cursor import Start
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.shapes import (
    Ack,
    Done,
    Forget,
    Subscribe,
    Subscribed,
    SubscriptionStats,
    Unsubscribe,
)
from armorclaw.events.subscriptions import MAIN, Subscriptions, is_agent
from armorclaw.guard.grants import Grants
from armorclaw.guard.limits import Quota
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role

MAX_SUBSCRIPTIONS = 32
"""Of one agent, on all its connections together, or of one connection of an operator: each is asked at each event."""

FOR_OTHERS = frozenset(
    {
        *("agent.status", "agent.error", "agent.event", "agent.progress"),
        *("agent.adopted", "agent.started", "agent.ended", "agent.failed", "agent.state"),
        *("agent.expired", "agent.oom", "agent.touched"),
        "alert",
    }
)
"""Events about an agent that it does not hear itself: its own words, and the record of its life, which would wake it
from the sleep that it tells of."""

PUBLISHED = "app."
"""How the types begin of events that agents and operators publish; the agent that did does not hear its own."""


def hears(grants: Grants, agent: str, event: Event) -> bool:
    """Whether an agent may hear an event: one of a room granted to it, said since then and addressed to it, or one
    about itself and not `FOR_OTHERS`.

    What has become of its own messages (`delivery`) is about itself.
    """
    if not event.is_for(agent):
        return False
    if event.room_id is not None:
        return grants.hears(agent, event.account, event.room_id, event.seq)
    return event.agent == agent and event.type not in FOR_OTHERS and not event.type.startswith(PUBLISHED)


def _everything(event: Event) -> bool:
    return True


def is_for_part(part: str, event: Event) -> bool:
    """Whether an event is for a part of the bridge that follows the journal: a word of the bridge itself, or what was
    said and is addressed to it by name."""
    return event.event_id is None or (event.addressed is not None and part in event.addressed)


def register(registry: Registry, subscriptions: Subscriptions, grants: Grants) -> None:
    """Adds events.subscribe, .unsubscribe, .forget, .ack and .stats, for operators and agents.

    Those of `dead_letter_methods` as well, if dead letters are kept.
    """
    listeners = {Role.OPERATOR, Role.AGENT}

    def policy(owner: str) -> Callable[[Event], bool] | None:
        if not is_agent(owner):
            return partial(is_for_part, owner) if owner else _everything
        # without any grant, even of no room, it is not there now: what it may hear when it is, nobody knows
        return None if grants.account_of(owner) is None else partial(hears, grants, owner)

    subscriptions.policy = policy
    by_peer: WeakKeyDictionary[Peer, dict[str, Subscription]] = WeakKeyDictionary()
    quota = Quota("subscriptions", MAX_SUBSCRIPTIONS)  # those about to be count as well

    def find(call: Call, name: str) -> Subscription:
        try:
            return by_peer[call.peer][name]
        except KeyError:
            raise ArmorclawError("not_found", f"this connection has no subscription {name[:80]!r}") from None

    async def serve(subscription: Subscription, call: Call, *, task_status: trio.TaskStatus[None]) -> None:
        mine = by_peer.setdefault(call.peer, {})

        def begun() -> None:  # not before: until then another may have its name, and keep it
            mine[subscription.id] = subscription
            task_status.started()

        with quota.hold(call.agent or call.peer, f"agent {call.agent}" if call.agent else "this connection"):
            try:
                await subscription.run(task_status=_Begun(begun))
            finally:
                if mine.get(subscription.id) is subscription:
                    del mine[subscription.id]

    doc = (
        "Have events pushed as `event` notifications. A connection of an operator has at most 32 subscriptions, and "
        "so has an agent on all its connections; of names there are at most 64, used or not. An agent cannot begin "
        "one before what it has acknowledged of its own, `main`: rooms granted later may have been others' before."
    )

    @registry.method(
        "events.subscribe", params=Subscribe, result=Subscribed, roles=listeners, doc=doc, quota="nothing"
    )
    async def subscribe(call: Call, params: Subscribe) -> Subscribed:
        if not isinstance(call.peer, Peer):
            raise ArmorclawError("invalid_request", "events.subscribe needs a connection to push to")
        allowed = _everything if call.agent is None else partial(hears, grants, call.agent)
        wanted = EventFilter.from_json(params.filter)
        start = await start_of(subscriptions, params.from_)
        if call.agent is not None and start != "now":
            start = max(start, await subscriptions.floor(call.agent))
        subscription = subscriptions.open(
            call.agent or "", params.name, wanted, start, allowed, call.peer, commons=call.peer.commons
        )
        subscription.hold()
        await call.peer.nursery.start(serve, subscription, call)
        try:
            call.peer.nursery.start_soon(_release, subscription)  # begins to run once this answer is written
        except RuntimeError:  # its nursery has ended, in this very moment: nobody reads the answer
            raise ArmorclawError("unavailable", "the connection has ended") from None
        return Subscribed(subscription.id, subscription.position)

    @registry.method(
        "events.unsubscribe",
        params=Unsubscribe,
        result=Done,
        roles=listeners,
        doc="End a subscription of this connection. What is kept for its name stays: see `events.forget`.",
    )
    def unsubscribe(call: Call, params: Unsubscribe) -> Done:
        subscription = find(call, params.subscription)
        del by_peer[call.peer][subscription.id]  # now: its end may wait for the store
        subscription.close("unsubscribed", orderly=True)
        return Done()

    doc = (
        "Delete what is kept for a name: where it stands, and what was acknowledged beyond. It is free then, and "
        "begins anew if it is used again. A connection that has the subscription hears `events.closed`. An agent "
        "keeps its own, `main`."
    )

    # a method of its own: it waits for the store, and what ends a subscription must come before what begins the next
    @registry.method("events.forget", params=Forget, result=Done, roles=listeners, doc=doc)
    async def forget(call: Call, params: Forget) -> Done:
        if call.agent is not None and params.subscription == MAIN:
            why = "messages that come while it is away are kept by it"
            raise ArmorclawError("denied", f"an agent cannot forget its subscription {MAIN!r}", why=why)
        await subscriptions.forget(call.agent or "", params.subscription, call.peer)
        return Done()

    @registry.method("events.ack", params=Ack, result=Done, roles=listeners, doc="Say what became of an event.")
    async def ack(call: Call, params: Ack) -> Done:
        if params.working + params.cumulative + (params.nack_ms is not None) > 1:
            what = "working, cumulative and nack_ms exclude each other"
            raise ArmorclawError("invalid_params", what, fields=["working", "cumulative", "nack_ms"])
        if params.working:
            await find(call, params.subscription).working(params.seq)
        elif params.nack_ms is not None:
            await find(call, params.subscription).nack(params.seq, params.nack_ms)
        elif params.subscription in by_peer.get(call.peer, ()):
            await find(call, params.subscription).ack(params.seq, cumulative=params.cumulative)
        else:  # it may come late, when another connection has the subscription: it is a fact all the same
            owner = call.agent or ""
            await subscriptions.ack(owner, params.subscription, params.seq, cumulative=params.cumulative)
        if call.agent is not None:
            subscriptions.on_work(call.agent)
        return Done()

    doc = (
        "How subscriptions stand, connected or not: what is in hand, how far each is behind. An agent sees its own, "
        "an operator all."
    )

    @registry.method("events.stats", result=list[SubscriptionStats], roles=listeners, doc=doc)
    async def stats(call: Call, params: NoParams) -> list[SubscriptionStats]:
        return await subscriptions.stats(call.agent)

    if subscriptions.dead is not None:
        dead_letter_methods.register(registry, subscriptions, subscriptions.dead)


async def start_of(subscriptions: Subscriptions, given: str | int) -> Start:
    """Raises `invalid_params` for what is no time, and what the store raises."""
    if isinstance(given, int) or given == "now":
        return given if isinstance(given, int) else "now"
    try:
        time = datetime.fromisoformat(given)
        if len(given) > 40 or time.tzinfo is None:
            raise ValueError
        time_ms = math.ceil(time.timestamp() * 1000)
    except (ValueError, OverflowError):
        why = 'it must be "now", a number, or a time with its zone, such as 2026-01-31T09:30:00Z'
        raise ArmorclawError("invalid_params", "from", why=why, fields=["from"]) from None
    return await subscriptions.seq_at(time_ms)


class _Begun(trio.TaskStatus[None]):
    """Has `then` called in the moment in which a task reports itself started."""

    def __init__(self, then: Callable[[], object]) -> None:
        self._then = then

    def started(self, value: None = None) -> None:
        self._then()


async def _release(subscription: Subscription) -> None:
    subscription.release()
