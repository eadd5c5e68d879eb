"""Orders that people give in a chat, heard from the journal and carried out one after the other.

The policy has marked them (`guard.policy`, rule "order"), so that no agent hears them. The console follows the
journal by a cursor of its own: an order that was given while the bridge was down is heard later, and told to be late.
What changes something is carried out at most once: an order that comes again, since a bridge died over it, is not.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event, ascii_json
from armorclaw.events.filter import EventFilter
from armorclaw.events.inside import Inbox, listen_on
from armorclaw.events.journal import Journal
from armorclaw.events.methods import is_for_part
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.limits import Bucket
from armorclaw.guard.policy import BRIDGE, Place
from armorclaw.log import get_logger
from armorclaw.matrix.chat.answer import Answer, of_error, span
from armorclaw.matrix.chat.carrying_out import CarryingOut, Given
from armorclaw.matrix.chat.confirmations import NO, WITHIN, YES, Confirmations, Pending, verdict
from armorclaw.matrix.chat.hands import Rooms
from armorclaw.matrix.chat.order import MisreadError, read_order
from armorclaw.matrix.routing.said import read_said
from armorclaw.rpc.admission import Rate

log = get_logger(__name__)

LATE = 300.0
"""Seconds after which an order that changes something is too late: who gave it may have thought of something else."""

ORDERS = Rate(0.5, 10)
"""Of one person: ten at once, then one each two seconds."""

PEOPLE = 256
"""Whose rate is remembered."""

_INTERRUPTED = "I was interrupted over that. See whether it was done, and give the order again if not."
_NAME = "commands"
_for_us = partial(is_for_part, BRIDGE)
_FILTER = EventFilter(types=("m.room.message", "m.reaction"))
_ASKED = "claw-ask:"
_ANSWERED = "claw:"


class Note(Protocol):
    """Where what was ordered is recorded, as event and in the audit."""

    async def __call__(self, type: str, content: Mapping[str, object], *, agent: str | None) -> object: ...  # noqa: A002


class Console:
    """Hears orders, has them carried out, answers."""

    def __init__(
        self,
        carrying_out: CarryingOut,
        rooms: Rooms,
        *,
        subscriptions: Subscriptions,
        journal: Journal,
        outbox: Outbox,
        note: Note,
        clock: Clock,
    ) -> None:
        self._carrying_out = carrying_out
        self._rooms = rooms
        self._subscriptions = subscriptions
        self._journal = journal
        self._outbox = outbox
        self._note = note
        self._clock = clock
        self._confirmations = Confirmations()
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when no order can be missed. Raises what the store raises before that."""
        await listen_on(self._listen, "orders wait", task_status)

    async def _listen(self, when_started: Callable[[], object]) -> None:
        """Until something raises; what was not dealt with then comes again."""
        inbox = Inbox("the orders")
        async with trio.open_nursery() as nursery:
            subscription = self._subscriptions.open(BRIDGE, _NAME, _FILTER, "now", _for_us, inbox)
            await nursery.start(inbox.follow, subscription)
            when_started()
            while True:
                said = None
                with trio.move_on_at(self._confirmations.next_end):
                    said = await anext(inbox)
                for each in self._confirmations.over():
                    await self._off(each, f"It was not confirmed within {span(WITHIN)}.")
                if said is not None:
                    await self._deal_with(said, subscription)

    async def _deal_with(self, said: Mapping[str, Any], subscription: Subscription) -> None:
        found = await self._journal.find([said["seq"]])  # with its account, which is not on the wire
        event = next(iter(found), None)
        if event is not None and not event.erased and event.sender is not None:
            if not self._rooms.may_command(event.sender):
                log.warning("order of somebody who may give none any more", by=event.sender)
            elif event.type == "m.reaction":
                await self._decided(event, again=said["redelivered"] > 0)
            else:
                await self._ordered(event, again=said["redelivered"] > 0)
        await subscription.ack(said["seq"])

    # -- orders

    async def _ordered(self, event: Event, *, again: bool) -> None:
        words, _ = read_said(event)
        place = self._rooms.standing(*_where(event))
        if not words.is_text or place is None or not self._has_turn(event, again=again):
            return
        try:
            order = read_order(words.body, place.user_id, place.display_name)
            given = Given(order, event, place, sees_all=self._sees_all(event, place), others=self._others(place))
            await self._carrying_out.check(given)
        except MisreadError as error:
            await self._say(event, Answer(str(error)))
            return
        except ArmorclawError as error:
            await self._say(event, of_error(error))
            return
        late = (self._clock.now_ms() - event.at_ms) / 1000
        if given.order.verb.changes and late > LATE:
            text = f"That was said {span(late)} ago, and reaches me only now. Say it again if it still holds."
            await self._say(event, Answer(text))
        elif (question := self._carrying_out.question(given)) is not None:
            await self._ask(given, question)
        else:
            await self._carry_out(given, event, again=again)

    async def _ask(self, given: Given, question: str) -> None:
        key = f"{_ASKED}{given.event.id}"
        for each in self._confirmations.ask(key, given):
            await self._off(each, "You have given another order meanwhile.")
        text = f"{question}\n{given.by}: react to this with {YES} within {span(WITHIN)}, or with {NO}."
        await self._say(given.event, Answer(text), key=key)

    async def _decided(self, event: Event, *, again: bool) -> None:
        relation = json.loads(event.content).get("m.relates_to")
        relation = relation if isinstance(relation, dict) else {}
        yes, target = verdict(relation.get("key")), relation.get("event_id")
        account, room_id = _where(event)
        if yes is None or not isinstance(target, str):
            return
        question = await self._outbox.of_event(account, target)
        key = "" if question is None or question.agent else question.idempotency_key or ""
        if not key.startswith(_ASKED):
            return
        pending = self._confirmations.answer(key, str(event.sender), account, room_id)
        if pending is not None and yes:
            await self._carry_out(pending.given, event, again=again)
        elif pending is not None:
            await self._off(pending, "")
        elif key in self._confirmations:
            log.warning("order confirmed by somebody else than who gave it", by=event.sender, room=room_id)
        elif self._has_turn(event, again=again):
            text = _INTERRUPTED if again else "Nothing waits for that any more. Give the order again."
            await self._say(attrs.evolve(event, event_id=target), Answer(text))

    async def _carry_out(self, given: Given, event: Event, *, again: bool) -> None:
        """`event` is what has it done: the order itself, or the reaction that confirmed it."""
        order = given.order
        if again and order.verb.changes:
            await self._say(given.event, Answer(_INTERRUPTED), key=f"{_ANSWERED}{event.id}")
            return
        outcome = "done"
        try:
            answer = await self._carrying_out.carry_out(given)
        except MisreadError as error:
            answer, outcome = Answer(str(error)), "misread"
        except ArmorclawError as error:
            answer, outcome = of_error(error), error.name
        if order.verb.changes:
            facts = {"order": str(order), "by": given.by, "room": given.event.room_id, "outcome": outcome}
            await self._note("bridge.order", facts, agent=order.agent)
        await self._say(given.event, answer, key=f"{_ANSWERED}{event.id}")

    async def _off(self, pending: Pending, why: str) -> None:
        text = f"!claw {pending.given.order} is off. {why}".rstrip()
        await self._say(pending.given.event, Answer(text), key=f"{_ANSWERED}off:{pending.given.event.id}")

    # -- who, where

    def _others(self, place: Place) -> list[Place]:
        return [each for each in self._rooms.in_room(place.lineage[0]) if each.account != place.account]

    def _sees_all(self, event: Event, place: Place) -> bool:
        """In a direct chat with who asks, and where operators are told of alerts: others may be in other rooms."""
        return place.direct == event.sender or self._rooms.is_private(*_where(event))

    def _has_turn(self, event: Event, *, again: bool) -> bool:
        who = str(event.sender)
        bucket = self._buckets.setdefault(who, Bucket(ORDERS))
        self._buckets.move_to_end(who)
        if len(self._buckets) > PEOPLE:
            self._buckets.popitem(last=False)
        if not again and bucket.take(self._clock.monotonic()):
            log.warning("order left out: too many", by=who, room=event.room_id)
            return False
        return True

    async def _say(self, asked: Event, answer: Answer, *, key: str = "") -> None:
        """Raises what the outbox raises."""
        account, room_id = _where(asked)
        _, relation = read_said(asked)
        out = Outgoing(
            account=account,
            agent="",
            room_id=room_id,
            content=ascii_json(answer.content(asked, relation.thread)),
            idempotency_key=key or f"{_ANSWERED}{asked.id}",
        )
        await self._outbox.enqueue(out)


def _where(event: Event) -> tuple[str, str]:
    """The account that heard it, and the room: an event that was said has both."""
    assert event.account is not None, "it came through an account"
    assert event.room_id is not None, "it was said in a room"
    return event.account, event.room_id
