"""Where grants began, on disk: what was said in a room before an agent was granted it is not for that agent.

Kept are those of agents that are declared in the configuration, as long as they are; and those of guests, who are
granted rooms while they run: with each that they are granted in their next run as well they go on, so that what they
had in hand comes again.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

RETRY_SECONDS = 1.0
"""Between attempts while the store does not answer."""

_ROWS = "SELECT agent, account, room, since, guest FROM grants"
_ALIASES = "SELECT account, alias, room_id FROM aliases"
_DROP = "DELETE FROM grants WHERE agent = ?"
_ADD = "INSERT INTO grants (agent, account, room, since, guest) VALUES (?, ?, ?, ?, ?)"

_UNKNOWN = ("", "")
"""In place of account and room, for an agent that is older than this table: its grants are as old."""


@attrs.frozen
class Declared:
    """What an agent is granted, by ids and aliases, for as long as it is declared.

    `beyond` are rooms that it may have been granted beside those when the bridge ended, and is about to be again.
    """

    agent: str
    account: str
    rooms: Collection[str]
    beyond: Collection[str] = ()


class Beginnings:
    """Keeps what `grants` says of the agents that were made known to it."""

    def __init__(self, db: Database, grants: Grants) -> None:
        self._db = db
        self._grants = grants
        self._declared: frozenset[str] = frozenset()
        self._guests: set[str] = set()
        self._dirty: set[str] = set()
        self._changed = trio.Event()
        grants.on_change(self._note)

    async def grant(self, declared: Iterable[Declared]) -> None:
        """Grant all that is declared. What was granted when the bridge ended goes on, what is new begins now.

        Returns when that is on disk. Raises what the store raises.
        """
        every = list(declared)
        rows, aliases = await self._db.read(_read)
        for each in every:
            if self._grants.account_of(each.agent) is None:  # else memory knows better
                self._grants.recall(each.agent, _still(each, [row for row in rows if not row[4]], aliases))
            self._grants.set(each.agent, each.account, each.rooms)
        self._declared = frozenset(each.agent for each in every)
        over = {agent for agent, *where, _, guest in rows if not guest and tuple(where) != _UNKNOWN}
        await self._write(self._declared | over)

    async def welcome(self, guest: Declared) -> None:
        """Grant what a guest is to have until `leave`. Waits for a store that is away."""
        self._grants.set(guest.agent, guest.account, ())  # from here on the name is taken
        while True:
            try:
                rows, aliases = await self._db.read(_read)
                self._grants.recall(guest.agent, _still(guest, rows, aliases))
                self._grants.set(guest.agent, guest.account, guest.rooms)
                self._guests.add(guest.agent)
                return await self._write([guest.agent])
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("the grants of an agent wait for the store", agent=guest.agent, why=str(error))
            await trio.sleep(RETRY_SECONDS)

    def leave(self, agent: str) -> None:
        """Take back what a guest had."""
        self._guests.discard(agent)
        self._dirty.discard(agent)
        self._grants.forget(agent)

    async def run(self) -> None:
        """Keep what changes, until cancelled; waits for a store that is away."""
        while True:
            await self._changed.wait()
            self._changed = trio.Event()
            dirty, self._dirty = self._dirty, set()
            try:
                await self._write(dirty)
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("where grants begin waits for the store", why=str(error))
                self._dirty |= {agent for agent in dirty if agent in self._declared or agent in self._guests}
                self._changed.set()
                await trio.sleep(RETRY_SECONDS)

    def _note(self, agent: str) -> None:
        if agent in self._declared or agent in self._guests:
            self._dirty.add(agent)
            self._changed.set()

    async def _write(self, agents: Collection[str]) -> None:
        guests = frozenset(self._guests)
        begun = {agent: dict(self._grants.begun(agent)) for agent in agents}

        def work(conn: Connection) -> None:
            for agent, beginnings in begun.items():
                conn.execute(_DROP, (agent,))
                for (account, room), since in beginnings.items():
                    conn.execute(_ADD, (agent, account, room, since, agent in guests))

        await self._db.write(work)


_Row = tuple[str, str, str, int, int]
_Alias = tuple[str, str, str]


def _read(conn: Connection) -> tuple[list[_Row], list[_Alias]]:
    return conn.execute(_ROWS).fetchall(), conn.execute(_ALIASES).fetchall()


def _still(declared: Declared, rows: Iterable[_Row], aliases: Iterable[_Alias]) -> dict[tuple[str, str], int]:
    """What of it was granted before, and since when; also the rooms that its aliases were known to name."""
    known = {(account, room): since for agent, account, room, since, _ in rows if agent == declared.agent}
    wanted = {*declared.rooms, *declared.beyond}
    wanted |= {room for account, alias, room in aliases if account == declared.account and alias in wanted}
    keys = {(declared.account, room) for room in wanted}
    if _UNKNOWN in known:
        return {key: known.get(key, known[_UNKNOWN]) for key in keys}
    return {key: known[key] for key in keys & known.keys()}
