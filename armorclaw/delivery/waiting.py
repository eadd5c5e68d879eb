"""What waits to be sent, in memory: it follows the commits, and the store has the rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from operator import attrgetter

import trio

from armorclaw.delivery.message import Delivery
from armorclaw.errors import ArmorclawError

ACCOUNT_LIMIT = 10_000
"""Waiting messages of one account: what a homeserver that is away for hours may cost, in rows."""

AGENT_LIMIT = 1_000
"""Waiting messages of one agent, so that a babbling one does not use up its account."""


class Waiting:
    """The messages that wait, by account and in order of acceptance, without their content."""

    def __init__(self) -> None:
        self._by_account: defaultdict[str, dict[str, Delivery]] = defaultdict(dict)
        self._per_agent: Counter[str] = Counter()
        self._lots: dict[str, trio.lowlevel.ParkingLot] = {}

    def __contains__(self, delivery_id: str) -> bool:
        return self.get(delivery_id) is not None

    def get(self, delivery_id: str) -> Delivery | None:
        for deliveries in self._by_account.values():
            if (found := deliveries.get(delivery_id)) is not None:
                return found
        return None

    def has(self, delivery: Delivery) -> bool:
        """Whether this one waits: not what it was queued anew as since."""
        known = self._by_account.get(delivery.account, {}).get(delivery.delivery_id)
        return known is not None and known.seq == delivery.seq

    def of(self, account: str) -> list[Delivery]:
        """All of one account, as they are at this moment, in their order."""
        return sorted(self._by_account.get(account, {}).values(), key=attrgetter("seq"))

    def lengths(self) -> dict[str, int]:
        """How many wait, by account."""
        return {account: len(deliveries) for account, deliveries in self._by_account.items()}

    def add(self, delivery: Delivery) -> None:
        deliveries = self._by_account[delivery.account]
        self._per_agent[delivery.agent] += delivery.delivery_id not in deliveries
        deliveries[delivery.delivery_id] = delivery

    def note(self, delivery: Delivery) -> None:
        """How one that still waits stands now."""
        if self.has(delivery):
            self._by_account[delivery.account][delivery.delivery_id] = delivery

    def remove(self, delivery_id: str) -> Delivery | None:
        """It waits no more: whoever waits for that goes on. Returns what was known of it, if it was there."""
        if (lot := self._lots.pop(delivery_id, None)) is not None:
            lot.unpark_all()
        known = self.get(delivery_id)
        if known is not None:
            del self._by_account[known.account][delivery_id]
            self._per_agent[known.agent] -= 1
        return known

    async def change(self, delivery_id: str) -> None:
        """Until a message waits no more, or somebody calls `wake`."""
        await self._lots.setdefault(delivery_id, trio.lowlevel.ParkingLot()).park()

    def wake(self) -> None:
        """Has everyone who waits for a message look again."""
        lots, self._lots = self._lots, {}
        for lot in lots.values():
            lot.unpark_all()

    def is_full(self, account: str, agent: str) -> bool:
        """By what is committed: those on their way to the store at this moment, bounded by its queue, come on top."""
        limited = agent != "" and self._per_agent[agent] >= AGENT_LIMIT
        return limited or self._account_is_full(account)

    def refusal(self, account: str, agent: str, room_id: str) -> ArmorclawError:
        """The error for a message that there is no room for."""
        whose, limit = f"agent {agent!r}", AGENT_LIMIT
        if self._account_is_full(account):
            whose, limit = f"account {account!r}", ACCOUNT_LIMIT
        why = f"{limit} messages of {whose} are waiting to be sent"
        return ArmorclawError("queue_full", f"message to {room_id} not accepted", why=why)

    def _account_is_full(self, account: str) -> bool:
        return len(self._by_account.get(account, ())) >= ACCOUNT_LIMIT
