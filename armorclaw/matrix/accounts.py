"""The feature: every configured Matrix account as a supervised session, and logins while the bridge runs.

mautrix is imported when the first session starts, not before: it costs 300 ms and 15 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.receipts import Receipts
from armorclaw.errors import ArmorclawError
from armorclaw.events.journal import Journal
from armorclaw.guard.grants import Grants
from armorclaw.log import get_logger
from armorclaw.matrix import aliases
from armorclaw.matrix.cache import CacheCounts
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.markers import ReadMarkers
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.shapes import AccountStanding
from armorclaw.matrix.status import SessionState, SessionStatus
from armorclaw.store import Database
from armorclaw.structure import Secret
from armorclaw.supervision.backoff import Backoff
from armorclaw.supervision.changes import log_crash
from armorclaw.supervision.spec import ChildSpec, Restart
from armorclaw.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    from armorclaw.matrix.pools import Pools
    from armorclaw.matrix.session import Session

log = get_logger(__name__)

LOGIN_ANSWER = 3.5
"""Seconds after which matrix.login answers `logging_in`; its clients give up after 5."""

_LOGIN_TIMEOUT = 60.0
_BACKOFF = Backoff(max_in_row=None, max_per_hour=None)  # a session is never given up; its pauses grow to a minute


class AlertPort(Protocol):
    """Where a session that needs a person says so."""

    async def raise_alert(self, name: str, severity: Any, text: str, *, agent: str | None = None) -> None: ...


class _Entry:
    """One account: its settings, and what outlives a single session."""

    def __init__(self, account: Account, granted: Granted, around: Surroundings) -> None:
        self.account = account
        self.granted = granted
        self.rooms = Rooms(account.name)
        self.status = SessionStatus(account.name, account.homeserver, around.clock)
        self.facts = Facts(account.name, self.rooms)
        self.markers = ReadMarkers(account.name, around)
        self.password: Secret | None = None
        self.logging_in = trio.Lock()
        self.logged_in = trio.Event()

    def is_in(self, room: str) -> bool:
        """Whether the account has joined a room, given by id or by alias."""
        room_id = self.granted.id_of(room)
        return room_id is not None and self.rooms.joined(room_id)

    def rooms_missing(self) -> frozenset[str]:
        """The rooms that are granted to agents, or of the bridge itself, and that the account is not in."""
        outside = {room for room in self.granted.room_ids() if not self.rooms.joined(room)}
        return self.granted.unresolved() | outside


class Accounts:
    """All accounts. `agents` names those that had grants before this was made; later grants are followed.

    `own_rooms`, by account, are those that the bridge itself wants to be in. `receipts` hears what becomes of our
    messages, as part of each sync.
    """

    def __init__(
        self,
        accounts: Mapping[str, Account],
        *,
        db: Database,
        journal: Journal,
        outbox: Outbox,
        grants: Grants,
        around: Surroundings,
        receipts: Receipts | None = None,
        alerts: AlertPort | None = None,
        agents: Iterable[str] = (),
        own_rooms: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> None:
        self._db = db
        self._journal = journal
        self._outbox = outbox
        self._around = around
        self._receipts = receipts
        self._alerts = alerts
        self._pools: Pools | None = None
        known = tuple(agents)
        self._entries = {
            name: _Entry(account, Granted(name, grants, known, own_rooms.get(name, ())), around)
            for name, account in accounts.items()
        }
        self._supervisor = Supervisor("matrix", dynamic=True, around=around, on_change=log_crash)
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a session per account until cancelled. Ready at once: a homeserver may be away for days.

        Which rooms aliases named last is known by then, lest an agent's place moves over events of such a room.
        Raises what the store raises.
        """
        for name, entry in self._entries.items():
            entry.granted.replace(await self._db.read(partial(aliases.load, account=name)))
        specs = [self._spec(entry) for entry in self._entries.values()]
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._supervisor.run, specs)
                task_status.started(self._supervisor)
        finally:
            self._nursery = None

    def status(self, account: str | None = None) -> SessionStatus | None:
        """The state of one account, or of the one that operators mean when they name none."""
        entry = self._entries.get(account) if account is not None else self._default()
        return entry.status if entry is not None else None

    def reports(self) -> list[AccountStanding]:
        """The state of all accounts."""
        return [entry.status.report(sorted(entry.rooms_missing())) for entry in self._entries.values()]

    async def until_joined(self, account: str, rooms: Iterable[str]) -> None:
        """Until the account is in these rooms, ids or aliases, and hears all that is said there from then on.

        It only gets into rooms that are granted to an agent, or are the bridge's own, and that let it in. Raises
        matrix_not_configured.
        """
        entry, wanted = self._entry(account), tuple(rooms)
        while not all(entry.is_in(room) for room in wanted):
            await entry.granted.changed.wait()

    def room_id(self, account: str, room: str) -> str | None:
        """The id of a room given by id or alias; None for an alias that is not resolved. Raises as `until_joined`."""
        return self._entry(account).granted.id_of(room)

    def encrypted(self, account: str, room_id: str) -> bool | None:
        """Whether messages in this room must be encrypted, as far as it is known without asking."""
        return self._entry(account).rooms.encrypted(room_id)

    def account_for(self, room_id: str) -> str:
        """The account that is in this room, else the default one. Raises matrix_not_configured without any."""
        for name, entry in self._entries.items():
            if entry.rooms.joined(room_id):
                return name
        return self._entry(None).account.name

    def facts(self, account: str | None) -> Facts:
        """What can be asked of rooms and people through an account. Raises as `until_joined`."""
        return self._entry(account).facts

    def read(self, account: str, room_id: str, event_id: str) -> None:
        """An agent is done with everything in the room up to this event: the people there are to see it.

        Never waits. Does nothing for an account that is gone, or has `read_receipts` off.
        """
        entry = self._entries.get(account)
        if entry is not None and entry.account.read_receipts:
            entry.markers.note(room_id, event_id)

    def cache_counts(self) -> CacheCounts:
        """How often a question about rooms and people could be answered without asking; of all accounts."""
        return CacheCounts.of_all(entry.facts.cache.counts for entry in self._entries.values())

    async def login(self, account: str | None, user: str, password: Secret) -> SessionStatus | None:
        """Log this account in anew and restart its session; the old one goes on if that fails.

        Returns its status, or None if the homeserver takes longer than `LOGIN_ANSWER` seconds: then the login goes on
        by itself. Raises matrix_not_configured, matrix_login_failed (also for another user than the configuration
        names), unavailable.
        """
        from armorclaw.matrix.client import may_be_same

        entry = self._entry(account)
        if not may_be_same(entry.account.user, user):
            name = entry.account.name
            raise ArmorclawError(
                "matrix_login_failed",
                f"login of {user[:255]!r} to account {name!r}",
                why=f"that account is of {entry.account.user}",  # what would come back at the next start
                hint=f"log in as {entry.account.user}, or correct accounts.{name}.user and start the bridge anew",
            )
        if self._nursery is None:
            raise ArmorclawError("unavailable", "the Matrix sessions are not running")
        result: list[ArmorclawError] = []
        done = trio.Event()
        self._nursery.start_soon(self._login_in_background, entry, user, password, result, done)
        with trio.move_on_after(LOGIN_ANSWER):
            await done.wait()
            if result:
                raise result[0]
            return entry.status
        return None

    async def _login_in_background(
        self, entry: _Entry, user: str, password: Secret, result: list[ArmorclawError], done: trio.Event
    ) -> None:
        try:
            async with entry.logging_in:
                with trio.fail_after(_LOGIN_TIMEOUT):
                    await self._log_in(entry, user, password)
        except trio.TooSlowError:
            result.append(ArmorclawError("timed_out", f"login of account {entry.account.name!r}"))
        except ArmorclawError as error:
            result.append(error)
        if result:
            log.warning("login failed", account=entry.account.name, why=str(result[0]))
        done.set()

    async def _log_in(self, entry: _Entry, user: str, password: Secret) -> None:
        from armorclaw.matrix.login import log_in_anew

        fresh = await log_in_anew(self._db, entry.account, user, password, self._around.clock, self._shared_pools())
        entry.password = password
        # whole, as the homeserver writes it; the token of the configuration is an older one
        entry.account = attrs.evolve(entry.account, user=fresh.user_id, access_token=None, access_token_file=None)
        entry.status.logged_in(fresh.user_id, fresh.device_id)
        if entry.status.state is SessionState.LOGGED_OUT:
            entry.logged_in.set()
        else:
            await self._supervisor.restart(entry.account.name)

    def _spec(self, entry: _Entry) -> ChildSpec:
        async def run(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
            task_status.started()
            while True:
                entry.logged_in = trio.Event()
                try:
                    await self._session(entry).run()
                except ArmorclawError as error:
                    if error.name != "matrix_login_failed":
                        raise
                    await self._call_for_login(entry, error)
                    await entry.logged_in.wait()

        return ChildSpec(entry.account.name, run, restart=Restart.PERMANENT, backoff=_BACKOFF, start_timeout=math.inf)

    def _session(self, entry: _Entry) -> Session:
        from armorclaw.matrix.session import Services, Session

        return Session(
            entry.account,
            Services(
                self._db, self._journal, self._outbox, self._around, self._shared_pools(), receipts=self._receipts
            ),
            rooms=entry.rooms,
            granted=entry.granted,
            status=entry.status,
            facts=entry.facts,
            markers=entry.markers,
            password=lambda: entry.password or entry.account.find_password(),
            token=entry.account.find_access_token,
        )

    def _shared_pools(self) -> Pools:
        from armorclaw.matrix.pools import Pools

        if self._pools is None:
            self._pools = Pools(len(self._entries))
        return self._pools

    async def _call_for_login(self, entry: _Entry, error: ArmorclawError) -> None:
        entry.status.logged_out(error.why)
        if self._alerts is not None:
            await self._alerts.raise_alert("matrix_login_failed", "error", str(error))

    def _entry(self, account: str | None) -> _Entry:
        entry = self._default() if account is None else self._entries.get(account)
        if entry is None:
            what = "no Matrix account is configured" if account is None else f"there is no Matrix account {account!r}"
            raise ArmorclawError("matrix_not_configured", what)
        return entry

    def _default(self) -> _Entry | None:
        return self._entries.get("main") or next(iter(self._entries.values()), None)
