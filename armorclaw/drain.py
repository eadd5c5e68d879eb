"""The orderly end: nothing new is begun; what was accepted is finished, or is on disk for the next life.

While a bridge drains, connections that are there go on, and agents may call as before: they finish what they have in
hand. New connections of people are turned away, their calls that would begin work are refused, and no agent is given
another event. Messages are sent on until the agents are through; then those that are under way are waited for, and
the others stay where they are, on disk.
"""

from __future__ import annotations

from typing import Protocol

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.rpc.registry import Registry, Role

log = get_logger(__name__)

STAYS = frozenset(
    {
        *("status", "health", "metrics", "rpc.discover"),
        *("containers.list", "containers.inspect", "containers.isolation", "containers.logs", "containers.stats"),
        *("delivery.status", "delivery.list", "delivery.cancel"),
        *("events.ack", "events.unsubscribe", "events.stats", "events.dead_letters"),
        *("list_keys", "get_key", "list_configs", "matrix.status", "webrtc.list", "webrtc.get_audit_log"),
        "stop",  # it ends work
    }
)
"""What operators may still call: nothing is begun by it."""

LOOKS_ON = STAYS | {"matrix.receive"}
"""Calls that nobody waits for at the end: whoever made one can make it again."""

LAST_SHARE = 0.2
"""Of the time there is, what is kept for messages under way when the agents have used up theirs."""

LOOK = 0.02
"""Seconds between looks at what is left: three parts that have no common word for it, for ten seconds of a life."""


class Giving(Protocol):
    """Who gives events to agents."""

    def hold_all(self) -> None:
        """Give nothing new; what was given can still be answered."""

    def in_hand(self) -> int:
        """Events that agents were given and have not answered."""
        ...


class Sending(Protocol):
    """Who sends messages."""

    def hold(self) -> None:
        """Begin no other attempt: what is queued stays so."""

    def in_flight(self) -> int:
        """Attempts that are under way."""
        ...


@attrs.frozen
class Left:
    """What a drain did not get done: events in the hands of agents, calls, messages under way."""

    events: int = 0
    calls: int = 0
    messages: int = 0

    def __bool__(self) -> bool:
        return bool(self.events or self.calls or self.messages)


def draining(what: str) -> ArmorclawError:
    """That it is too late for `what`."""
    return ArmorclawError("draining", what, why="the bridge is about to end")


class Drain:
    """Of one bridge, once; there is no way back."""

    def __init__(self, registry: Registry, giving: Giving, sending: Sending) -> None:
        self.begun = False
        self._over = trio.Event()
        self._registry = registry
        self._giving = giving
        self._sending = sending
        self._left = Left()

    def check(self) -> None:
        """Raises `draining` once it has begun: for whoever is about to come in."""
        if self.begun:
            raise draining("no new connections")

    async def run(self, seconds: float) -> Left:
        """Begin, and return when everything is finished, at most `seconds` later; what is left then.

        Whoever asks again waits for the same end.
        """
        if self.begun:
            await self._over.wait()
            return self._left
        self.begun = True
        began = trio.current_time()
        log.info("draining", seconds=seconds)
        for role in (Role.OPERATOR, Role.REMOTE):
            self._registry.close(role, but=STAYS, error=draining)
        self._giving.hold_all()
        try:
            await self._until_done(began + seconds * (1 - LAST_SHARE), messages=False)
            self._sending.hold()
            await self._until_done(began + seconds, messages=True)
        finally:
            self._left = self._look()
            self._over.set()
        took = round(trio.current_time() - began, 3)
        if self._left:
            log.warning("drained in part", seconds=took, **attrs.asdict(self._left))
        else:
            log.info("drained", seconds=took)
        return self._left

    async def _until_done(self, deadline: float, *, messages: bool) -> None:
        while trio.current_time() < deadline:
            left = self._look()
            if not (left.events or left.calls or (messages and left.messages)):
                return
            await trio.sleep(LOOK)

    def _look(self) -> Left:
        calls = sum(count for name, count in self._registry.answering.items() if name not in LOOKS_ON)
        return Left(self._giving.in_hand(), calls, self._sending.in_flight())
