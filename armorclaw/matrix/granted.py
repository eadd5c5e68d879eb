"""One account's view of the grants: which rooms matter, what gave them to whom, and which are still only an alias."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import trio

from armorclaw.guard.grants import Grants
from armorclaw.guard.policy import Policy
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.routing.table import RouteTable

LONGEST_LINE = 32
"""Rooms that may have replaced each other one after the other. Whoever makes more of them is up to something."""


class Granted:
    """Follows the grants from now on.

    `own` are rooms, ids or aliases, that the account is to be in for the bridge itself: no agent hears them by that,
    and what is said there is not kept. What is granted by name is completed here: by the room's id where it is an
    alias, since events carry only the id; by the rooms that have replaced it; and, as `table` says, by direct chats
    with people that `policy` knows, and by rooms where somebody chose an agent.
    """

    def __init__(
        self,
        account: str,
        grants: Grants,
        own: Iterable[str] = (),
        *,
        rooms: Rooms | None = None,
        table: RouteTable | None = None,
        policy: Policy | None = None,
    ) -> None:
        self.changed = trio.Event()
        """Set, and replaced by a new one, at each change of the grants or of the account's rooms."""
        self.version = 0
        """Another number after each of them."""
        self._account = account
        self._grants = grants
        self._own = frozenset(own)
        self._rooms = rooms or Rooms(account)
        self._table = table
        self._policy = policy
        self._wanted: dict[str, frozenset[str]] = {}  # per agent, as it was granted: ids and aliases
        self._named: dict[str, frozenset[str]] = {}  # the same by ids, with the rooms that replaced them
        self._ids: dict[str, str] = {}
        self._before: dict[str, tuple[str, ...]] = {}  # room → those that it replaced
        self._by_name: frozenset[str] = frozenset()  # ids of what is granted by name
        self._direct: dict[str, str] = {}
        self._completing = False
        grants.on_change(self._note)
        if table is not None:
            table.on_change(self._note_choice)

    # -- rooms

    def lineage(self, room_id: str) -> tuple[str, ...]:
        """The room and all that it replaced, itself or by others, the nearest first."""
        found = [room_id]
        for each in found:  # it grows on the way
            found += [room for room in self._before.get(each, ()) if room not in found]
            if len(found) >= LONGEST_LINE:
                break
        return tuple(found[:LONGEST_LINE])

    def direct(self, lineage: Sequence[str]) -> str | None:
        """With whom a room is a direct chat, or one that it replaced was, if the policy knows that person."""
        return next((self._direct[room] for room in lineage if room in self._direct), None)

    def line(self, room: str) -> frozenset[str]:
        """The id of a room, given by id or alias, and what replaced it; empty for an alias that is not resolved."""
        return frozenset(self._line(room))

    def hearing(self, room_id: str) -> frozenset[str]:
        """The agents that may hear a room, whatever gave it to them."""
        return self._grants.agents_in(self._account, room_id)

    def named_in(self, lineage: Sequence[str]) -> frozenset[str]:
        """The agents that are granted a room by its name, or that of a room that it replaced."""
        return frozenset(agent for agent, rooms in self._named.items() if not rooms.isdisjoint(lineage))

    def room_ids(self) -> frozenset[str]:
        """The rooms to be in whose id is known: those granted by name, and what replaced any that we are in."""
        by_name = [line for room in self._rooms_by_name() for line in [self._line(room)] if line]
        others = [self._line(room)[1:] for room in self._beyond() if self._rooms.joined(room)]
        return frozenset(room for line in (*by_name, *others) for room in self._of_line(line))

    def aliases(self) -> frozenset[str]:
        """Those granted by alias, with a known room or without."""
        return frozenset(room for room in self._rooms_by_name() if room.startswith("#"))

    def unresolved(self) -> frozenset[str]:
        """The aliases whose room is not known."""
        return self.aliases() - self._ids.keys()

    def id_of(self, room: str) -> str | None:
        """The id of a room given by id or alias; None for an alias that is not resolved, or names no room.

        Of a room that was replaced, the id of what replaced it, as far as we are in there.
        """
        line = self._line(room)
        return next((each for each in reversed(line) if self._rooms.joined(each)), line[0] if line else None)

    def named_by(self, alias: str) -> str | None:
        """The id of the very room that an alias names, replaced or not; None for one that is not resolved."""
        return self._ids.get(alias)

    def is_replaced(self, room_id: str) -> bool:
        """Whether another room has taken its place."""
        return len(self._line(room_id)) > 1

    # -- grants

    def covers(self, room_id: str) -> bool:
        """Whether any agent may hear this room."""
        return bool(self._grants.agents_in(self._account, room_id))

    def beyond_names(self, agent: str, names: Iterable[str]) -> frozenset[str]:
        """What an agent is granted beside these ids and aliases, if those are what it is granted by name."""
        wanted = frozenset(names)
        return self._whole(agent, wanted) - wanted

    def resolved(self, alias: str, room_id: str) -> None:
        """Whoever is granted `alias` is granted `room_id`, now and later, and no longer what it named before."""
        self.replace({**self._ids, alias: room_id})

    def replace(self, ids: Mapping[str, str]) -> None:
        """Forget what the aliases named and take these ids by alias."""
        self._ids = dict(ids)
        self.poke()

    def poke(self) -> None:
        """Something about the account's rooms has changed, or about what people chose there."""
        self._complete()

    def _note(self, agent: str) -> None:
        if self._completing:
            return
        if self._grants.account_of(agent) != self._account:
            if self._wanted.pop(agent, None) is None:
                return
        else:
            routed = self._table.routed_by_name(agent) if self._table is not None else frozenset()
            self._wanted[agent] = self._grants.rooms_of(agent) | routed
        self._complete()

    def _note_choice(self, account: str, room_id: str) -> None:
        if account == self._account:
            self.poke()

    def _complete(self) -> None:
        self._look_at_rooms()
        self._named = {agent: frozenset(self._lines(wanted)) for agent, wanted in self._wanted.items()}
        self._completing = True
        try:
            for agent, wanted in self._wanted.items():
                self._grants.set(agent, self._account, self._whole(agent, wanted))
        finally:
            self._completing = False
        self.version += 1
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _whole(self, agent: str, wanted: frozenset[str]) -> frozenset[str]:
        """All that an agent is granted which is granted these by name."""
        return wanted.union(self._lines(wanted), self._lines(self._beyond(agent)))

    def _beyond(self, agent: str | None = None) -> Iterator[str]:
        """The rooms that somebody chose it for, and the direct chats where it answers; of one agent, or of all."""
        if self._table is None:
            return
        for room, chosen in self._table.choices(self._account).items():
            if agent in (None, chosen.agent):
                yield room
        if agent is None or any(each.agent == agent for each in self._table.of_direct(self._account)):
            for room in self._direct:
                lineage = self.lineage(room)
                if self._table.chosen(self._account, lineage) is None and not self.named_in(lineage):
                    yield room

    def _rooms_by_name(self) -> frozenset[str]:
        return self._own.union(*self._wanted.values())

    def _lines(self, rooms: Iterable[str]) -> Iterator[str]:
        for room in rooms:
            yield from self._line(room)

    def _line(self, room: str) -> list[str]:
        """The id of a room, given by id or alias, and what replaced it, in order; empty for an unknown alias."""
        at = self._ids.get(room) if room.startswith("#") else room
        line: list[str] = []
        while at is not None and at not in line and len(line) < LONGEST_LINE:
            line.append(at)
            at = self._successor(at)
        return line

    def _of_line(self, line: Sequence[str]) -> Sequence[str]:
        """Of rooms that replaced each other, the last that we are in, and those after it; all, if we are in none."""
        joined = [at for at, room in enumerate(line) if self._rooms.joined(room)]
        return line[joined[-1] :] if joined else line

    def _successor(self, room_id: str) -> str | None:
        """What replaced it, as far as that is true: whoever governs a room can name any other as the one that did.

        We were in there to see it, and the other says the same. One that we never were in is believed until we are:
        else we would miss what is said there first; but not if it is granted to somebody by its own name.
        """
        state = self._rooms.get(room_id)
        if state is None or state.membership == "invite" or state.successor is None:
            return None
        other = self._rooms.get(state.successor)
        if other is None or other.membership == "invite":
            return None if state.successor in self._by_name else state.successor
        return state.successor if other.predecessor == room_id else None

    def _look_at_rooms(self) -> None:
        before: dict[str, tuple[str, ...]] = {}
        self._by_name = frozenset(self._ids.get(room, room) for room in self._rooms_by_name())
        self._direct = {}
        for room_id, state in self._rooms.all().items():
            successor = self._successor(room_id)
            if successor is not None:
                before[successor] = (*before.get(successor, ()), room_id)
            if state.direct is not None and self._policy is not None and self._policy.knows(state.direct):
                self._direct[room_id] = state.direct
        self._before = before
