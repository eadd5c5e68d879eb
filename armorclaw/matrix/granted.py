"""One account's view of the grants: which rooms matter, and which of them are still only an alias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import trio

from armorclaw.guard.grants import Grants


class Granted:
    """Follows the grants from now on; `agents` names those that may have some already.

    `own` are rooms, ids or aliases, that the account is to be in for the bridge itself: no agent hears them by that,
    and what is said there is not kept.

    A grant to `#alias:server` is completed by the room's id as soon as that is known, since events carry only the id.
    """

    def __init__(self, account: str, grants: Grants, agents: Iterable[str] = (), own: Iterable[str] = ()) -> None:
        self.changed = trio.Event()
        """Set, and replaced by a new one, at each change of the grants or of the account's rooms."""
        self._account = account
        self._grants = grants
        self._own = frozenset(own)
        self._wanted: dict[str, frozenset[str]] = {}  # per agent, as it was granted: ids and aliases
        self._ids: dict[str, str] = {}
        self._completing = False
        grants.on_change(self._note)
        for agent in agents:
            self._note(agent)

    def covers(self, room_id: str) -> bool:
        """Whether any agent may hear this room."""
        return bool(self._grants.agents_in(self._account, room_id))

    def room_ids(self) -> frozenset[str]:
        """The rooms to be in whose id is known."""
        return frozenset(room for room in map(self.id_of, self._rooms()) if room is not None)

    def aliases(self) -> frozenset[str]:
        """Their aliases, with a known room or without."""
        return frozenset(room for room in self._rooms() if room.startswith("#"))

    def unresolved(self) -> frozenset[str]:
        """The aliases whose room is not known."""
        return self.aliases() - self._ids.keys()

    def id_of(self, room: str) -> str | None:
        """The id of a room given by id or alias; None for an alias that is not resolved, or names no room."""
        return self._ids.get(room) if room.startswith("#") else room

    def resolved(self, alias: str, room_id: str) -> None:
        """Whoever is granted `alias` is granted `room_id`, now and later, and no longer what it named before."""
        self.replace({**self._ids, alias: room_id})

    def replace(self, ids: Mapping[str, str]) -> None:
        """Forget what the aliases named and take these ids by alias."""
        self._ids = dict(ids)
        for agent in tuple(self._wanted):
            self._complete(agent)
        self.poke()

    def poke(self) -> None:
        """Something about the account's rooms changed."""
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _rooms(self) -> frozenset[str]:
        return self._own.union(*self._wanted.values())

    def _note(self, agent: str) -> None:
        if self._completing:
            return
        if self._grants.account_of(agent) != self._account:
            self._wanted.pop(agent, None)
        else:
            self._wanted[agent] = self._grants.rooms_of(agent)
            self._complete(agent)
        self.poke()

    def _complete(self, agent: str) -> None:
        wanted = self._wanted[agent]
        self._completing = True
        try:
            self._grants.set(agent, self._account, wanted | {self._ids[room] for room in wanted & self._ids.keys()})
        finally:
            self._completing = False
