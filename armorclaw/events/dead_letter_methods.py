"""Dead letters on the wire: seen, given once more, dropped."""

from __future__ import annotations

from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.dead_letters import DeadLetter, DeadLetters
from armorclaw.events.shapes import DeadLetterShown, DeadLettersOf, Done, WhichDeadLetter
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role


def register(registry: Registry, subscriptions: Subscriptions, dead: DeadLetters) -> None:
    """Adds events.dead_letters, .redrive and .drop for operators and agents."""
    both = {Role.OPERATOR, Role.AGENT}

    doc = (
        "Events that were given up, each for one subscription: given too often, or lost too often. The newest first. "
        "An agent sees its own."
    )

    @registry.method("events.dead_letters", params=DeadLettersOf, result=list[DeadLetterShown], roles=both, doc=doc)
    async def dead_letters(call: Call, params: DeadLettersOf) -> list[DeadLetterShown]:
        owner = params.agent if call.agent is None else _owner(call, params.agent)
        return [_shown(letter) for letter in await dead.list(owner, params.limit)]

    doc = (
        "Give a dead letter to its subscription once more: now if somebody is connected, else when somebody is. An "
        "acknowledgement then removes it; if it fails again it is a dead letter again."
    )

    @registry.method("events.redrive", params=WhichDeadLetter, result=Done, roles=both, doc=doc)
    async def redrive(call: Call, params: WhichDeadLetter) -> Done:
        await subscriptions.give_again(_owner(call, params.agent), params.subscription, params.seq)
        return Done()

    doc = "Delete a dead letter: nobody wants it any more."

    @registry.method("events.drop", params=WhichDeadLetter, result=Done, roles=both, doc=doc)
    async def drop(call: Call, params: WhichDeadLetter) -> Done:
        await dead.drop(_owner(call, params.agent), params.subscription, params.seq)
        return Done()


def _owner(call: Call, agent: str | None) -> str:
    """Whose subscription is meant. Raises `denied` to an agent that names another."""
    if call.agent is None:
        return agent or ""
    if agent not in (None, call.agent):
        raise ArmorclawError("denied", "an agent has its own subscriptions, and no other's")
    return call.agent


def _shown(letter: DeadLetter) -> DeadLetterShown:
    event = letter.event
    return DeadLetterShown(
        owner=letter.owner,
        subscription=letter.name,
        seq=letter.seq,
        at_ms=letter.at_ms,
        given=letter.given,
        lost=letter.lost,
        reason=letter.reason,
        again=letter.again,
        type=None if event is None else event.type,
        room_id=None if event is None else event.room_id,
        event_id=None if event is None else event.event_id,
    )
