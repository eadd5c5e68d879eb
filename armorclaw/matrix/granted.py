"""One account's view of the grants: which rooms matter, and which of them are still only an alias."""

from __future__ import annotations

from collections.abc import Iterable

import trio

from armorclaw.guard.grants import Grants


class Granted:
    """Follows the grants from now on; `agents` names those that may have some already.

    A grant to `#alias:server` is completed by the room's id as soon as that is known, since events carry only the id.
    """

    def __init__(self, account: str, grants: Grants, agents: Iterable[str] = ()) -> None:
        self.changed = trio.Event()
        """Set, and replaced by a new one, at each change of the grants or of the account's rooms."""
        self._account = account
        self._grants = grants
        self._wanted: dict[str, frozenset[str]] = {}
        self._ids: dict[str, str] = {}
        grants.on_change(self._note)
        for agent in agents:
            self._note(agent)

    def covers(self, room_id: str) -> bool:
        """Whether any agent may hear this room."""
        return bool(self._grants.agents_in(self._account, room_id))

    def room_ids(self) -> frozenset[str]:
        """The granted rooms whose id is known."""
        return frozenset(room for room in self._rooms() if room.startswith("!"))

    def unresolved(self) -> frozenset[str]:
        """The granted aliases whose room is not known."""
        return frozenset(room for room in self._rooms() if room.startswith("#")) - self._ids.keys()

    def id_of(self, room: str) -> str | None:
        """The id of a room given by id or alias; None for an alias that is not resolved, or names no room."""
        return self._ids.get(room) if room.startswith("#") else room

    def resolved(self, alias: str, room_id: str) -> None:
        """Whoever is granted `alias` is granted `room_id`, now and later."""
        self._ids[alias] = room_id
        for agent in self._grants.agents_in(self._account, alias):
            self._note(agent)

    def poke(self) -> None:
        """Something about the account's rooms changed."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _rooms(self) -> frozenset[str]:
        return frozenset[str]().union(*self._wanted.values())

    def _note(self, agent: str) -> None:
        if self._grants.account_of(agent) != self._account:
            self._wanted.pop(agent, None)
        else:
            rooms = self._grants.rooms_of(agent)
            self._wanted[agent] = rooms
            known = rooms | {self._ids[room] for room in rooms & self._ids.keys()}
            if known != rooms:
                self._grants.set(agent, self._account, known)  # comes back here
        self.poke()
