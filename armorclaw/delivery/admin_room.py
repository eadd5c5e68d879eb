"""The admin room: alerts as messages to people, each once, through the outbox.

It follows the journal by a cursor of its own, so an alert that was raised while the account was not in the room, the
homeserver was away or the bridge was down is told later, and none twice: the event's id is the message's key.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol

import trio

from armorclaw.clock import Surroundings
from armorclaw.config import AlertsSection
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.events.filter import EventFilter
from armorclaw.events.inside import Inbox, listen_on
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.alerts import RANK
from armorclaw.log import get_logger

log = get_logger(__name__)

PER_MINUTE = 10
"""Messages in any minute. What is beyond is left out; then one message says how many those were."""

PER_AGENT = 5
"""Of those about one agent, so that one that fails all the time leaves room for what others have."""

REPORTS_PER_MINUTE = 4
"""Messages about errors that agents report themselves. They have a budget apart, or an agent could by its reports
keep people from hearing what the bridge has to say about it, or about others."""

REPORTS_PER_AGENT = 2

CRITICAL_PER_MINUTE = 5
"""Critical alerts of the bridge in any minute, beyond all others."""

MAX_LEFT_OUT = 500
"""Alerts left out and not told of yet that come again after a restart of the bridge; of more only their number is
kept, until then."""

_AGAIN_MS = 3_600_000  # when what is left out would come again, had it not been told of by then

MINUTE = 60.0

TEXT_LIMIT = 2_000
"""Characters of a message: people read it, on a telephone too."""

_OWNER = "@bridge"  # no agent can have that name
_NAME = "alerts"
_FILTER = EventFilter(types=("alert",))
_NAMED = 5  # agents that the message about what was left out names


class Membership(Protocol):
    """What it needs of the Matrix accounts."""

    async def until_joined(self, account: str, rooms: Iterable[str]) -> None: ...
    def room_id(self, account: str, room: str) -> str | None: ...


class AdminRoom:
    """Tells the room of `section` what is as severe as it says there, or more."""

    def __init__(
        self,
        section: AlertsSection,
        subscriptions: Subscriptions,
        outbox: Outbox,
        membership: Membership,
        around: Surroundings,
    ) -> None:
        self._section = section
        self._subscriptions = subscriptions
        self._outbox = outbox
        self._membership = membership
        self._clock = around.clock
        self._verdicts = _Budget(PER_MINUTE, PER_AGENT)
        self._critical = _Budget(CRITICAL_PER_MINUTE, CRITICAL_PER_MINUTE)
        self._reports = _Budget(REPORTS_PER_MINUTE, REPORTS_PER_AGENT)
        self._left_out: dict[int, tuple[str, str]] = {}  # by number: id and agent, or ""; not acknowledged
        self._beyond: Counter[str] = Counter()  # by agent: acknowledged, as there were too many
        self._told_to = 0  # up to here all that was left out is told of
        self._say_at = math.inf  # when there is room to say so

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; started when no alert can be missed. Raises what the store raises before that."""
        await listen_on(self._listen, "alerts wait", task_status)

    async def _listen(self, when_started: Any) -> None:
        """Until something raises; what was not told then comes again."""
        account, room = self._section.account, self._section.room
        inbox = Inbox("the alerts")
        async with trio.open_nursery() as nursery:
            subscription = self._subscriptions.open(_OWNER, _NAME, _FILTER, "now", lambda event: True, inbox)
            await nursery.start(inbox.follow, subscription)
            when_started()
            await self._membership.until_joined(account, [room])
            while True:
                alert = None
                with trio.move_on_at(self._say_at):
                    alert = await anext(inbox)
                if alert is None:
                    await self._say_what_was_left_out(subscription)
                else:
                    await self._deal_with(alert, subscription)

    async def _deal_with(self, alert: dict[str, Any], subscription: Subscription) -> None:
        seq, agent, content = alert["seq"], alert.get("agent"), alert["content"]
        if alert.get("event_id") is not None:  # somebody said it in a room: it is no word of the bridge
            await subscription.ack(seq)
            return
        severity = content.get("severity")
        if seq in self._left_out:  # it comes again
            await subscription.nack(seq, _AGAIN_MS)
            return
        if seq > self._told_to and _rank(severity) >= RANK[self._section.severity]:
            budgets = self._budgets(content)
            now = self._clock.monotonic()
            room_at = [budget.room_at(agent) for budget in budgets]
            budget = next((each for each, at in zip(budgets, room_at, strict=True) if at <= now), None)
            if budget is None:
                await self._leave_out(alert, subscription, min(room_at))
                return
            await self._send(composed(content, agent), f"alert:{alert['id']}", agent, budget)
        await subscription.ack(seq)

    def _budgets(self, content: dict[str, Any]) -> list[_Budget]:
        """One of which must have room for it."""
        if content.get("name") == "agent_error":
            return [self._reports]
        return [self._verdicts, self._critical] if content.get("severity") == "critical" else [self._verdicts]

    async def _leave_out(self, alert: dict[str, Any], subscription: Subscription, room_at: float) -> None:
        """It is acknowledged when it is told of, so that it comes again if this bridge does not get so far."""
        seq, agent = alert["seq"], alert.get("agent") or ""
        if len(self._left_out) < MAX_LEFT_OUT:
            await subscription.nack(seq, _AGAIN_MS)
            self._left_out[seq] = alert["id"], agent
        else:
            await subscription.ack(seq)
            self._beyond[agent] += 1
        self._say_at = min(self._say_at, room_at)
        log.warning("alert left out of the room", id=alert["id"], agent=agent or None)

    async def _say_what_was_left_out(self, subscription: Subscription) -> None:
        room_at = self._verdicts.room_at(None)
        if room_at > self._clock.monotonic():  # others were told of meanwhile
            self._say_at = room_at
            return
        left_out = self._beyond + Counter(agent for _, agent in self._left_out.values())
        count = left_out.total()
        who = [f"{agent or 'the bridge'} {number}" for agent, number in left_out.most_common(_NAMED)]
        others = len(left_out) - len(who)
        names = ", ".join([*who, f"{others} others"] if others else who)
        alerts = "1 more alert was" if count == 1 else f"{count} more alerts were"
        text = f"{alerts} left out here: {names}\nnext: armorclaw events tail"
        first, last = min(self._left_out), max(self._left_out)
        key = f"alerts-left-out:{self._left_out[first][0]}:{self._left_out[last][0]}"
        await self._send(text, key, None, self._verdicts)
        self._left_out.clear()
        self._beyond.clear()
        self._told_to, self._say_at = last, math.inf
        await subscription.ack(last, cumulative=True)  # all below is told of, or was left out

    async def _send(self, text: str, key: str, agent: str | None, budget: _Budget) -> None:
        """Raises what the outbox raises."""
        account = self._section.account
        room_id = self._membership.room_id(account, self._section.room)
        if room_id is None:
            raise ArmorclawError("unavailable", f"the room of {self._section.room} is not known")
        # m.text, for notices ring no telephone; m.mentions, so that no words in it call the whole room
        content = {"msgtype": "m.text", "body": text, "m.mentions": {}}
        out = Outgoing(account=account, agent="", room_id=room_id, content=ascii_json(content), idempotency_key=key)
        await self._outbox.enqueue(out)
        budget.sent.append((self._clock.monotonic(), agent))


class _Budget:
    """How many messages of one sort there may be in any minute, in all and about one agent."""

    def __init__(self, per_minute: int, per_agent: int) -> None:
        self.sent: deque[tuple[float, str | None]] = deque(maxlen=per_minute)  # when, and about whom
        self._per_minute = per_minute
        self._per_agent = per_agent

    def room_at(self, agent: str | None) -> float:
        """When there is room for a message about an agent; gone by, if there is."""
        room_at = self.sent[0][0] + MINUTE if len(self.sent) >= self._per_minute else -math.inf
        same = [at for at, who in self.sent if agent is not None and who == agent]
        return max(room_at, same[-self._per_agent] + MINUTE) if len(same) >= self._per_agent else room_at


def _rank(severity: object) -> int:
    """0 for what is no severity, of whatever shape."""
    return RANK.get(severity, 0) if isinstance(severity, str) else 0


def composed(content: dict[str, Any], agent: str | None) -> str:
    """What people read: how severe, what, why, and the next command."""
    lines = [f"{content.get('severity', 'alert')}: {content.get('text', content.get('name', ''))}"]
    if agent and agent not in lines[0]:
        lines.append(f"agent: {agent}")
    if why := content.get("why"):
        lines.append(f"why: {why}")
    command = f"armorclaw containers inspect {agent}" if agent else "armorclaw status"
    tail = f"\nnext: {content.get('next') or command}"
    text = "\n".join(lines)
    most = TEXT_LIMIT - len(tail)
    return (text if len(text) <= most else text[: most - 1] + "…") + tail
