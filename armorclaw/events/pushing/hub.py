"""Where events go from their commit: to the relay of each nursery in which somebody follows."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import trio

from armorclaw.events.event import Event
from armorclaw.events.pushing.relay import Relay
from armorclaw.events.pushing.subscription import Subscription


class Hub:
    """The relays, each with its nursery."""

    def __init__(self) -> None:
        self._relays: dict[Relay, None] = {}
        self._of: WeakKeyDictionary[trio.Nursery, Relay] = WeakKeyDictionary()

    @property
    def followers(self) -> list[Subscription]:
        """Everyone who is being served now."""
        return [follower for relay in self._relays for follower in relay.followers]

    @property
    def overflows(self) -> int:
        """How often a relay's channel was full, of those relays that are."""
        return sum(relay.overflows for relay in self._relays)

    def relay(self) -> Relay:
        """One more; who asks for it has to run it."""
        return Relay(self._relays)

    def relay_of(self, commons: trio.Nursery) -> Relay:
        """The one that serves all followers in a nursery. It is started there at its first use, and ends with it."""
        relay = self._of.get(commons)
        if relay is None:
            relay = self._of[commons] = self.relay()
            commons.start_soon(relay.run, name="relay of events")
        return relay

    def publish(self, events: Sequence[Event]) -> None:
        """Hand a batch to every relay; for any task, and never waits."""
        size = sum(len(event.content) for event in events)
        for relay in tuple(self._relays):
            relay.tell(events, size)
