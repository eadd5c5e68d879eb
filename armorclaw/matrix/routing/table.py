"""The one table of routes: what people chose in their rooms, and what the configuration says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

import attrs

from armorclaw.clock import Clock
from armorclaw.config import Agent, Respond, Route
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.guard.policy import Routed
from armorclaw.store import Connection, Database

CHOSEN_LIMIT = 10_000
"""Rooms of all accounts with a choice of their own; they are held in memory."""

_LOAD = "SELECT account, room_id, agent, respond, by, at_ms FROM routes"
_SAVE = (
    "INSERT INTO routes (account, room_id, agent, respond, by, at_ms) VALUES (?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET agent = excluded.agent, respond = excluded.respond, by = excluded.by,"
    " at_ms = excluded.at_ms"
)
_DROP = "DELETE FROM routes WHERE account = ? AND room_id = ?"
_TOLD = "DELETE FROM unrouted WHERE account = ? AND room_id = ?"  # if nobody answers there again, it is news


@attrs.frozen
class Chosen:
    """What somebody chose for a room, who that was, and when, in milliseconds since the epoch."""

    agent: str
    respond: Respond
    by: str
    at_ms: int

    @property
    def origin(self) -> str:
        """In words, for whoever asks where a rule is written."""
        return f"!claw use, by {self.by}"


class RouteTable:
    """Routes of all accounts. `agents` are those of the configuration; others are known by their grants."""

    def __init__(
        self, routes: Sequence[Route], agents: Mapping[str, Agent], grants: Grants, db: Database, clock: Clock
    ) -> None:
        self._agents = agents
        self._grants = grants
        self._db = db
        self._clock = clock
        self._chosen: dict[tuple[str, str], Chosen] = {}
        self._listeners: list[Callable[[str, str], object]] = []
        self._by_room: dict[str, dict[str, list[Routed]]] = {}
        self._direct: dict[str, list[Routed]] = {}
        for at, route in enumerate(routes):
            account = route.account_among(agents)
            routed = Routed(route.agent, route.respond, f"routes[{at}]")
            if route.dm:
                self._direct.setdefault(account, []).append(routed)
            else:
                self._by_room.setdefault(account, {}).setdefault(route.room, []).append(routed)

    async def load(self) -> None:
        """Read what people chose. Raises what the store raises."""
        rows = await self._db.read(lambda conn: conn.execute(_LOAD).fetchall())
        self._chosen = {(account, room): Chosen(*rest) for account, room, *rest in rows}

    def on_change(self, listener: Callable[[str, str], object]) -> None:
        """Call `listener` with account and room whenever somebody has chosen anew."""
        self._listeners.append(listener)

    def chosen(self, account: str, lineage: Sequence[str]) -> Chosen | None:
        """What was chosen for a room, or last for one that it replaced; of agents that are there."""
        for room_id in lineage:
            found = self._chosen.get((account, room_id))
            if found is not None:
                return found if self.account_of(found.agent) == account else None
        return None

    def account_of(self, agent: str) -> str | None:
        """The account that an agent speaks for, None if there is none of that name."""
        declared = self._agents.get(agent)
        return self._grants.account_of(agent) if declared is None else declared.account

    def choices(self, account: str) -> dict[str, Chosen]:
        """By room, all that was chosen for rooms of an account."""
        return {room: chosen for (name, room), chosen in self._chosen.items() if name == account}

    def of_rooms(self, account: str) -> Mapping[str, Sequence[Routed]]:
        """What the configuration routes to rooms, by the id or alias it names."""
        return self._by_room.get(account, {})

    def of_direct(self, account: str) -> Sequence[Routed]:
        """What it routes to direct chats."""
        return self._direct.get(account, ())

    def origin(self, agent: str) -> str:
        """Where it is written that an agent is granted rooms."""
        return f"agents.{agent}.rooms" if agent in self._agents else f"agent {agent}, for as long as it runs"

    def granted_by_name(self, agent: str) -> frozenset[str]:
        """The rooms, ids and aliases, that its declaration and routes by room grant an agent."""
        declared = self._agents.get(agent)
        return self.routed_by_name(agent) | frozenset(() if declared is None else declared.rooms)

    def routed_by_name(self, agent: str) -> frozenset[str]:
        """Those that its routes by room grant it."""
        by_room = [entry for rooms in self._by_room.values() for entry in rooms.items()]
        return frozenset(room for room, answering in by_room if any(each.agent == agent for each in answering))

    def check(self, account: str, room_id: str, agent: str, respond: Respond) -> None:
        """Whether `agent` may be chosen for the room.

        Raises invalid_params for another word than those of `Respond`, container_not_found for an agent that there
        is not, not_routable for one that speaks for another account, queue_full for too many choices.
        """
        if respond not in get_args(Respond):
            words = ", ".join(get_args(Respond))
            what = f"respond = {respond[:40]!r}"
            raise ArmorclawError("invalid_params", what, why=f"it is one of {words}", hint="name one of these")
        speaks_for = self.account_of(agent)
        if speaks_for is None:
            raise ArmorclawError("container_not_found", f"there is no agent {agent[:80]!r} here")
        if speaks_for != account:
            what = f"agent {agent} cannot answer in {room_id}"
            raise ArmorclawError("not_routable", what, why=f"it speaks for account {speaks_for!r}, not {account!r}")
        if (account, room_id) not in self._chosen and len(self._chosen) >= CHOSEN_LIMIT:
            raise ArmorclawError(
                "queue_full", f"there are choices for {CHOSEN_LIMIT} rooms, the most that there may be"
            )

    async def use(self, account: str, room_id: str, agent: str, respond: Respond, *, by: str) -> Chosen:
        """From now on `agent` answers in the room, in place of what the configuration says. On disk when it returns.

        Raises what `check` raises.
        """
        self.check(account, room_id, agent, respond)
        chosen = Chosen(agent, respond, by, self._clock.now_ms())

        def work(conn: Connection) -> None:
            conn.execute(_SAVE, (account, room_id, *attrs.astuple(chosen)))
            conn.execute(_TOLD, (account, room_id))

        await self._db.write(work, durable=True, then=lambda _: self._keep(account, room_id, chosen))
        return chosen

    async def unuse(self, account: str, room_id: str) -> Chosen | None:
        """Back to what the configuration says; returns what was chosen, None if nothing was."""
        before = self._chosen.get((account, room_id))
        if before is not None:

            def work(conn: Connection) -> None:
                conn.execute(_DROP, (account, room_id))

            await self._db.write(work, durable=True, then=lambda _: self._keep(account, room_id, None))
        return before

    def _keep(self, account: str, room_id: str, chosen: Chosen | None) -> None:
        if chosen is None:
            self._chosen.pop((account, room_id), None)
        else:
            self._chosen[account, room_id] = chosen
        for listener in tuple(self._listeners):
            listener(account, room_id)
