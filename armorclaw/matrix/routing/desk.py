"""What a sync asks about each event: whether it is anybody's, and whose."""

from __future__ import annotations

from typing import Protocol

from armorclaw.events.event import Event


class Desk(Protocol):
    """Decides for one account. It asks nobody over the network."""

    def covers(self, room_id: str) -> bool:
        """Whether anything that is said in this room may be anybody's."""
        ...

    def hears(self, room_id: str, sender: str) -> bool:
        """Whether anything that this user says there may be anybody's: what cannot be read of others is no loss."""
        ...

    def own(self, event_id: str, txn_id: str | None) -> None:
        """An event of our own has come back; in the order of the timeline. What answers it is known by it."""
        ...

    def follows(self, event: Event) -> str | None:
        """The event that must be placed before it is known whose this one is; None if that makes no difference."""
        ...

    async def place(self, event: Event, *, in_clear: bool = False) -> Event | None:
        """The event with `addressed` set; None if it is nobody's, which is counted. In the order of the timeline.

        `in_clear` tells of one that should be encrypted, as its room is, and is not: it is for nobody to hear.
        Reads the store if the event relates to another one. Raises what the store raises.
        """
        ...
