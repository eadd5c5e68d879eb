"""Each order carried out, and what is answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, cast

import attrs
import trio

from armorclaw.config import Respond
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.guard.policy import Place
from armorclaw.matrix.chat.answer import Answer, line, listed, span, without_secrets
from armorclaw.matrix.chat.hands import Hands
from armorclaw.matrix.chat.order import VERBS, MisreadError, Order, usage
from armorclaw.matrix.routing.table import RouteTable

LINES = 20
"""Lines of an agent's output that are shown when nobody says how many."""

MOST_LINES = 100

LOG_BYTES = 64 * 1024
"""Of that output: what is held while it is read."""

CALL_LIMIT = 20.0
"""Seconds for one order. Methods answer within 4; output may have to be fetched from an engine."""

NONE = "-"
"""Stands in `!claw use` for no choice: what the configuration says holds again."""

_DROP = "Drop what was chosen for this room, and go by the configuration again?"

_MONEY = {"budget": "budget.status", "approve": "budget.approve", "deny": "budget.deny"}


@attrs.frozen
class Given:
    """An order as it was given: in which message, and in a room that stands so.

    `sees_all`: only people who may see everything read the answer, as far as can be told. `others` is how the room
    stands for other accounts of the bridge in it, for which this one answers.
    """

    order: Order
    event: Event
    place: Place
    sees_all: bool = False
    others: Sequence[Place] = ()

    @property
    def places(self) -> Sequence[Place]:
        return (self.place, *self.others)

    @property
    def by(self) -> str:
        assert self.event.sender is not None, "somebody said it"
        return self.event.sender

    def concerns(self, agent: str) -> bool:
        """Whether this room may be told of an agent at all."""
        told = {agent for place in self.places for agent in (*place.hearing, *(each.agent for each in place.routed))}
        return self.sees_all or agent in told


class CarryingOut:
    """Carries orders out through `hands`; routes are chosen in `table`."""

    def __init__(self, hands: Hands, table: RouteTable) -> None:
        self._hands = hands
        self._table = table
        self._by_name: Mapping[str, Callable[[Given], Awaitable[Answer]]] = {
            "help": self._help,
            "status": self._status,
            "agents": self._agents,
            "who": self._who,
            "use": self._use,
            "start": self._start,
            "stop": self._stop,
            "restart": self._restart,
            "logs": self._logs,
            "budget": self._of_money,
            "approve": self._of_money,
            "deny": self._of_money,
        }

    def question(self, given: Given) -> str | None:
        """What is to be confirmed before this is carried out; None if it is harmless enough."""
        order = given.order
        if order.name in ("stop", "restart"):
            return f"{order.name.capitalize()} agent {order.agent}?"
        if order.name == "use":
            others = [each.agent for each in given.place.routed if each.agent != order.words[0]]
            if order.words[0] == NONE:
                chosen = self._table.chosen(given.place.account, [str(given.event.room_id)])
                return _DROP if others and chosen is not None and len(order.words) == 1 else None
            if others and self._can_use(given):
                return f"Have {order.words[0]} answer in this room, in place of {', '.join(others)}?"
        return None

    def _can_use(self, given: Given) -> bool:
        """What will be refused is not asked about: whoever misspelt a name would confirm it for nothing."""
        try:
            self._table.check(*_wanted(given))
        except ArmorclawError:
            return False
        return True

    async def check(self, given: Given) -> None:
        """Before anything is asked or done. Raises container_not_found for an agent that this room is not told of."""
        agent = given.order.agent
        if agent is not None and not given.concerns(agent):
            hint = "say it in a direct chat with me, for agents of other rooms"
            raise ArmorclawError("container_not_found", f"there is no agent {agent} in this room", hint=hint)

    async def carry_out(self, given: Given) -> Answer:
        """Raises what the methods raise, timed_out, and MisreadError."""
        await self.check(given)
        with trio.move_on_after(CALL_LIMIT):
            return await self._by_name[given.order.name](given)
        raise ArmorclawError("timed_out", f"!claw {given.order}", why="it took too long")

    async def _help(self, given: Given) -> Answer:
        return Answer(listed("Orders:", [f"{usage(name)}: {verb.what}" for name, verb in VERBS.items()]))

    async def _status(self, given: Given) -> Answer:
        health = await self._hands.call("health")
        if not given.sees_all:
            return Answer(f"The bridge is {health['status']}.\n{await self._standings(given)}")
        status = await self._hands.call("status")
        head = f"The bridge is {health['status']}: version {status['version']}, up for {span(status['uptime_s'])}."
        lines = [*health["reasons"], *(f"account {each['account']}: {each['state']}" for each in status["accounts"])]
        return Answer(f"{listed(head, lines)}\n{await self._standings(given)}")

    async def _agents(self, given: Given) -> Answer:
        return Answer(await self._standings(given, closely=True))

    async def _standings(self, given: Given, *, closely: bool = False) -> str:
        lines = [
            f"{each['name']}: {each['state']}" + (_closely(each) if closely else "")
            for each in await self._hands.call("containers.list")
            if given.concerns(each["name"])
        ]
        where = "" if given.sees_all else " of this room"
        return listed(f"Agents{where}:", sorted(lines)) if lines else f"There are no agents{where}."

    async def _who(self, given: Given) -> Answer:
        lines = [
            f"{each.agent}, to: {each.respond} ({each.origin}{f', account {place.account}' if given.others else ''})"
            for place in given.places
            for each in place.routed
        ]
        if lines:
            return Answer(listed("Here answers:", lines))
        return Answer("Nobody answers here. Choose an agent: !claw use AGENT")

    async def _use(self, given: Given) -> Answer:
        agent, *rest = given.order.words
        account, room_id = given.place.account, given.event.room_id
        assert room_id is not None, "orders are given in a room"
        if agent == NONE:
            if rest:
                raise MisreadError(f"Say it so: {usage('use')}")
            before = await self._table.unuse(account, room_id)
            if before is None:
                return Answer("Nothing was chosen here: the configuration says who answers.")
            return Answer("What was chosen here holds no more: the configuration says who answers.")
        *_, respond = _wanted(given)
        await self._table.use(account, room_id, agent, respond, by=given.by)
        return Answer(f"{agent} answers here from now on, to: {respond}.")

    async def _start(self, given: Given) -> Answer:
        started = await self._hands.call("start", name=given.order.agent)
        return Answer(f"{given.order.agent}: {'ready' if started['ready'] else started['status']}")

    async def _stop(self, given: Given) -> Answer:
        stopped = await self._hands.call("stop", name=given.order.agent)
        return Answer(f"{given.order.agent}: {stopped['status']}")

    async def _restart(self, given: Given) -> Answer:
        started = await self._hands.call("containers.restart", name=given.order.agent)
        return Answer(f"{given.order.agent}: {'ready' if started['ready'] else started['status']}")

    async def _logs(self, given: Given) -> Answer:
        agent, *rest = given.order.words
        if rest and not (rest[0].isascii() and rest[0].isdecimal() and 1 <= int(rest[0]) <= MOST_LINES):
            raise MisreadError(f"LINES is a number from 1 to {MOST_LINES}.")
        wanted = int(rest[0]) if rest else LINES
        text = without_secrets(await self._printed(agent, wanted), await self._hands.secrets_of(agent))
        if not text.strip():
            return Answer(f"{agent} has printed nothing.")
        return Answer(f"{agent} printed last:", text.rstrip("\n"))

    async def _printed(self, agent: str, lines: int) -> str:
        text = ""
        async with self._hands.stream("containers.logs", name=agent, tail=lines) as stream:
            async for piece in stream:
                text = (text + piece["text"])[-LOG_BYTES:]
        return text

    async def _of_money(self, given: Given) -> Answer:
        method, words = _MONEY[given.order.name], given.order.words
        if not self._hands.offers(method):
            return Answer("This version keeps no budget.")
        found = await self._hands.call(method, **({"id": words[0]} if words else {}))
        facts = found.items() if isinstance(found, Mapping) else ()
        return Answer(listed(f"{given.order.name}:", [f"{name}: {value}" for name, value in facts]))


def _wanted(given: Given) -> tuple[str, str, str, Respond]:
    """What `!claw use` is to choose: account, room, agent, respond. The table tells if the last is none."""
    agent, *rest = given.order.words
    room_id = given.event.room_id
    assert room_id is not None, "orders are given in a room"
    return given.place.account, room_id, agent, cast(Respond, rest[0].casefold() if rest else "always")


def _closely(standing: Mapping[str, Any]) -> str:
    facts: Collection[tuple[str, Any]] = (
        ("restarts", standing["restarts"]),
        ("it says", standing["status"]),
        ("ended last", standing["last_end"]),
    )
    return "".join(f", {name}: {line(str(value))}" for name, value in facts if value)
