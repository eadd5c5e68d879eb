"""Routing for all accounts: one policy, one table, a desk for each account, and one task that tells people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import trio

from armorclaw.clock import Clock
from armorclaw.config import AccessSection, Account, Agent, Route
from armorclaw.delivery.outbox import Outbox
from armorclaw.guard.grants import Grants
from armorclaw.guard.policy import COMMAND, Place, Policy, Said, mentions
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.routing.guide import Guide
from armorclaw.matrix.routing.router import Router
from armorclaw.matrix.routing.table import RouteTable
from armorclaw.matrix.status import SessionState, SessionStatus, login_command
from armorclaw.store import Database


class Routing:
    """Made once for a bridge; `open` makes the desk of an account."""

    def __init__(
        self,
        access: AccessSection,
        routes: Sequence[Route],
        agents: Mapping[str, Agent],
        *,
        db: Database,
        outbox: Outbox,
        grants: Grants,
        clock: Clock,
    ) -> None:
        self.policy = Policy(access)
        self.table = RouteTable(routes, agents, grants, db, clock)
        self.routers: dict[str, Router] = {}
        self._db = db
        self._guide = Guide(db, outbox, clock, commands=bool(access.commands))
        self._accounts: dict[str, Account] = {}
        self._rooms: dict[str, Rooms] = {}
        self._statuses: dict[str, SessionStatus] = {}
        self._users: dict[str, str] = {}  # as of the last login, by account
        self.table.on_change(self._guide.forget)

    async def load(self) -> None:
        """Read what people chose, and who the accounts are. Before the first sync. Raises what the store raises."""
        await self.table.load()
        self._users = dict(
            await self._db.read(lambda conn: conn.execute("SELECT name, user_id FROM accounts").fetchall())
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell people where nobody answers, until cancelled."""
        await self._guide.run(task_status=task_status)

    def open(self, account: Account, granted: Granted, rooms: Rooms, status: SessionStatus) -> Router:
        """The desk of one account."""
        self._statuses[account.name] = status
        self._accounts[account.name] = account
        self._rooms[account.name] = rooms
        router = Router(
            account.name,
            policy=self.policy,
            table=self.table,
            granted=granted,
            rooms=rooms,
            db=self._db,
            invites=account.invites,
            ours=self.account_of,
            who=lambda: self._user_of(account.name),
            on_unrouted=self._guide.ask,
            speaker=self._speaker,
        )
        self.routers[account.name] = router
        return router

    def account_of(self, user_id: str) -> str | None:
        """The account of this bridge that a user id is of."""
        return next((name for name in self._statuses if self._user_of(name) == user_id), None)

    def standing(self, account: str, room_id: str) -> Place | None:
        """How a room stands now; None if there is no such account."""
        router = self.routers.get(account)
        return None if router is None else router.standing(room_id)

    def in_room(self, room_id: str) -> list[Place]:
        """How a room stands for each account that is in it and hears it, in the order of the configuration, those
        first that it is routed for."""
        there = [name for name, rooms in self._rooms.items() if rooms.joined(room_id)]
        hear = [name for name in there if self.routers[name].covers(room_id) and not self.deaf(name, room_id)]
        places = [self.routers[name].standing(room_id) for name in hear]
        return sorted(places, key=_by_route)

    def deaf(self, account: str, room_id: str) -> str:
        """Why an account hears nothing of a room that it is in, and what would change that; "" if it does hear."""
        status, config = self._statuses[account], self._accounts[account]
        if status.state is SessionState.LOGGED_OUT:
            return f"account {account} is logged out; log it in: {login_command(config)}"
        if not self._rooms[account].encrypted(room_id):
            return ""
        if not config.encryption:
            return f"the room is encrypted, and accounts.{account}.encryption is off; switch it on"
        if status.encryption == "lost":
            return f"the room is encrypted, and the keys are lost; make a new device: {login_command(config)}"
        return ""

    def counts(self) -> Mapping[tuple[str, bool], int]:
        """Events by the rule that decided, and whether they were kept; of all accounts, since the start."""
        total: Counter[tuple[str, bool]] = Counter()
        for router in self.routers.values():
            total.update(router.counts)
        return total

    def _speaker(self, place: Place, said: Said) -> str:
        """The account that answers in a room for the bridge: one that is mentioned, else that of the agent whom an
        order is about, else that for which the room is routed, else the first in it."""
        there = self.in_room(place.lineage[0])
        words = said.body.split(maxsplit=3) if len(there) > 1 else []
        home = self.table.account_of(words[2]) if len(words) > 2 and words[0].casefold() == COMMAND else None
        ranked = sorted(there, key=lambda each: (not mentions(each, said), each.account != home))
        return ranked[0].account if ranked else place.account

    def _user_of(self, account: str) -> str | None:
        return self._statuses[account].user_id or self._users.get(account)


def _by_route(place: Place) -> int:
    """What somebody chose there comes before what the configuration says, and both before nothing."""
    return ("chosen", "route", "dm", None).index(place.level)
