"""One account, over all of its sessions."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Protocol

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import StoredKey
from armorclaw.matrix import aliases
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.markers import ReadMarkers
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.routing.service import Routing
from armorclaw.matrix.shapes import AccountStanding
from armorclaw.matrix.status import SessionStatus, login_command
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.matrix.typists import Typists
from armorclaw.store import Database
from armorclaw.structure import Secret


class KeyReader(Protocol):
    """Where an account's recovery key may be kept."""

    async def get(self, id: str, *, by: str) -> StoredKey: ...  # noqa: A002 - the keystore's word


class Entry:
    """One account: its settings, and what outlives a single session."""

    def __init__(
        self,
        account: Account,
        grants: Grants,
        routing: Routing,
        around: Surroundings,
        *,
        own: Iterable[str],
        keystore: KeyReader | None,
    ) -> None:
        self.account = account
        self.trust = TrustPort(account.name, partial(self._recovery_key, keystore))
        self.rooms = Rooms(account.name, around.clock)
        self.granted = Granted(
            account.name, grants, own, rooms=self.rooms, table=routing.table, policy=routing.policy
        )
        self.status = SessionStatus(account.name, account.homeserver, around.clock)
        self.router = routing.open(account, self.granted, self.rooms, self.status)
        self.facts = Facts(account.name, self.rooms)
        self.markers = ReadMarkers(account.name, around)
        self.typists = Typists(account.name, around)
        self.password: Secret | None = None
        self.logging_in = trio.Lock()
        self.logged_in = trio.Event()

    async def load(self, db: Database) -> None:
        """Read how its rooms stood last. Raises what the store raises."""
        self.rooms.replace(await db.read(self.rooms.load))
        self.granted.replace(await db.read(partial(aliases.load, account=self.account.name)))

    def report(self, sends_waiting: int) -> AccountStanding:
        """For `status` and `matrix.status`."""
        standing = self.status.report(sorted(self.rooms_missing()), sends_waiting)
        hint = self.trust.hint
        if standing.encryption == "lost":
            hint = f"make a new device of the account: {login_command(self.account)}"
        if self.trust.unpublished:
            standing = attrs.evolve(standing, encryption="unpublished")
        return attrs.evolve(standing, signed=self.trust.signed, hint=hint)

    async def _recovery_key(self, keystore: KeyReader | None) -> Secret | None:
        """What the operator gave. Raises config_invalid and key_not_found."""
        name = self.account.recovery_key_id
        if name is None or keystore is None:
            return self.account.find_recovery_key()
        return Secret((await keystore.get(name, by=f"account {self.account.name}")).token)

    def is_in(self, room: str) -> bool:
        """Whether the account has joined a room, given by id or by alias."""
        room_id = self.granted.id_of(room)
        return room_id is not None and self.rooms.joined(room_id)

    def rooms_missing(self) -> frozenset[str]:
        """The rooms that are granted to agents, or of the bridge itself, and that the account is not in."""
        outside = {room for room in self.granted.room_ids() if not self.rooms.joined(room)}
        return self.granted.unresolved() | outside
