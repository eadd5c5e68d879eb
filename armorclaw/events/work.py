"""Whether there is work for agents: events for which one that sleeps is woken."""

from __future__ import annotations

from functools import partial

from armorclaw.events.event import Event
from armorclaw.events.methods import hears
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.grants import Grants

_NO_WORK = frozenset({"alert", "delivery", "gap"})


def wakes(grants: Grants, agent: str, event: Event) -> bool:
    """Whether an event is worth its being awake: it may hear it, and it is not news of its own container or messages.

    That it was put to sleep is an event about it, too; and what became of a message can wait until there is more.
    """
    if event.type in _NO_WORK or (event.room_id is None and event.type.startswith("agent.")):
        return False
    return hears(grants, agent, event)


class AgentWork:
    """The main subscriptions of agents, as those see them who start and stop agents."""

    def __init__(self, subscriptions: Subscriptions, grants: Grants) -> None:
        self._subscriptions = subscriptions
        self._grants = grants

    async def ensure(self, owner: str, name: str) -> None:
        """See `Subscriptions.ensure`."""
        await self._subscriptions.ensure(owner, name)

    def unsettled(self, owner: str) -> tuple[int, float | None]:
        """See `Subscriptions.unsettled`."""
        return self._subscriptions.unsettled(owner)

    async def has_work(self, owner: str) -> bool:
        """Whether `until_work` would return at once. Raises what the store raises."""
        return await self._subscriptions.has_work(owner, allowed=partial(wakes, self._grants, owner))

    async def until_work(self, owner: str) -> None:
        """Until an event waits that it has not acknowledged; one that is there already counts."""
        await self._subscriptions.until_work(owner, allowed=partial(wakes, self._grants, owner))
