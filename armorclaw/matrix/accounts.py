"""The feature: every configured Matrix account as a supervised session, and logins while the bridge runs.

mautrix is imported when the first session starts, not before: it costs 300 ms and 15 MiB.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.config import AccessSection, Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.receipts import Receipts
from armorclaw.errors import ArmorclawError
from armorclaw.events.journal import Journal
from armorclaw.guard.grants import Grants
from armorclaw.log import get_logger
from armorclaw.matrix.cache import CacheCounts
from armorclaw.matrix.entry import Entry, KeyReader
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.rooms import RoomState
from armorclaw.matrix.routing.service import Routing
from armorclaw.matrix.services import Services
from armorclaw.matrix.shapes import AccountStanding
from armorclaw.matrix.status import SessionState, SessionStatus, login_command
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.store import Database
from armorclaw.structure import Secret
from armorclaw.supervision.backoff import Backoff
from armorclaw.supervision.changes import log_crash
from armorclaw.supervision.spec import ChildSpec, Restart
from armorclaw.supervision.supervisor import Supervisor

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.vault import Vault
    from armorclaw.matrix.pools import Pools
    from armorclaw.matrix.session import Session

log = get_logger(__name__)

LOGIN_ANSWER = 3.5
"""Seconds after which matrix.login answers `logging_in`; its clients give up after 5."""

_LOGIN_TIMEOUT = 60.0
_NAMED = 20  # accounts in a hint
_BACKOFF = Backoff(max_in_row=None, max_per_hour=None)  # a session is never given up; its pauses grow to a minute


class AlertPort(Protocol):
    """Where a session that needs a person says so."""

    async def raise_alert(self, name: str, severity: Any, text: str, *, agent: str | None = None) -> None: ...


class Accounts:
    """All accounts. Grants are followed from now on.

    `own_rooms`, by account, are those that the bridge itself wants to be in. Without `routing` everybody is heard in
    rooms that are granted by name, as with an empty configuration. `receipts` hears what becomes of our
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
        vault: Vault | None = None,
        routing: Routing | None = None,
        keystore: KeyReader | None = None,
        own_rooms: Mapping[str, Iterable[str]] = MappingProxyType({}),
    ) -> None:
        self._services = Services(db, journal, outbox, around, self._alert, receipts, vault)
        self._alerts = alerts
        self._pools: Pools | None = None
        if routing is None:
            routing = Routing(AccessSection(), (), {}, db=db, outbox=outbox, grants=grants, clock=around.clock)
        self._entries = {
            name: Entry(account, grants, routing, around, own=own_rooms.get(name, ()), keystore=keystore)
            for name, account in accounts.items()
        }
        self._supervisor = Supervisor("matrix", dynamic=True, around=around, on_change=log_crash)
        self._nursery: trio.Nursery | None = None

    async def load(self) -> None:
        """Read how the rooms of all accounts stood last. Raises what the store raises."""
        for entry in self._entries.values():
            await entry.load(self._services.db)

    def beyond_names(self, account: str, agent: str, names: Iterable[str]) -> frozenset[str]:
        """What an agent is granted beside these rooms, ids and aliases: by what is known of the account's rooms."""
        entry = self._entries.get(account)
        return frozenset() if entry is None else entry.granted.beyond_names(agent, names)

    async def run(self, *, task_status: trio.TaskStatus[Supervisor] = trio.TASK_STATUS_IGNORED) -> None:
        """Run a session per account until cancelled. Ready at once: a homeserver may be away for days.

        Which rooms aliases named last is known by then, lest an agent's place moves over events of such a room.
        Raises what the store raises.
        """
        await self.load()
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
        waiting = self._services.outbox.lengths()
        return [entry.report(waiting.get(name, 0)) for name, entry in self._entries.items()]

    def decrypt_failures(self) -> dict[str, int]:
        """Messages that could not be read since the bridge was started, by account."""
        return {name: entry.status.failures for name, entry in self._entries.items()}

    def encryption_counts(self) -> dict[str, Mapping[str, int]]:
        """What `Encryption` counts, by account."""
        return {name: entry.status.encryption_counts for name, entry in self._entries.items()}

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

    def trust(self, account: str | None) -> TrustPort:
        """Verification, devices and the recovery key of an account. Raises as `until_joined`."""
        return self._entry(account).trust

    def read(self, account: str, room_id: str, event_id: str) -> None:
        """An agent is done with everything in the room up to this event: the people there are to see it.

        Never waits. Does nothing for an account that is gone, or has `read_receipts` off.
        """
        entry = self._entries.get(account)
        if entry is not None and entry.account.read_receipts:
            entry.markers.note(room_id, event_id)

    def typing(self, account: str, room_id: str, agent: str, seconds: float) -> None:
        """An agent writes in a room, for so long at most; 0 for no more. Never waits. Raises as `until_joined`."""
        self._entry(account).typists.note(room_id, agent, seconds)

    def names(self) -> list[str]:
        """Of all accounts."""
        return list(self._entries)

    def rooms(self, account: str) -> Mapping[str, RoomState]:
        """All rooms that are known of an account, by id. Raises as `until_joined`."""
        return self._entry(account).rooms.all()

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
        self, entry: Entry, user: str, password: Secret, result: list[ArmorclawError], done: trio.Event
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

    async def _log_in(self, entry: Entry, user: str, password: Secret) -> None:
        from armorclaw.matrix.relogin import log_in_anew

        services = self._services
        fresh = await log_in_anew(
            services.db, entry.account, user, password, services.around, self._shared_pools(), services.vault
        )
        entry.password = password
        # whole, as the homeserver writes it; the token of the configuration is an older one
        entry.account = attrs.evolve(entry.account, user=fresh.user_id, access_token=None, access_token_file=None)
        entry.status.logged_in(fresh.user_id, fresh.device_id)
        if entry.status.state is SessionState.LOGGED_OUT:
            entry.logged_in.set()
        else:
            await self._supervisor.restart(entry.account.name)

    def _spec(self, entry: Entry) -> ChildSpec:
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

    def _session(self, entry: Entry) -> Session:
        from armorclaw.matrix.session import Session

        return Session(entry, self._services, self._shared_pools())

    def _shared_pools(self) -> Pools:
        from armorclaw.matrix.pools import Pools

        if self._pools is None:
            self._pools = Pools(len(self._entries))
        return self._pools

    async def _call_for_login(self, entry: Entry, error: ArmorclawError) -> None:
        entry.status.logged_out(error.why)
        await self._alert("matrix_login_failed", "error", f"{error}; log it in: {login_command(entry.account)}")

    async def _alert(self, name: str, severity: Literal["info", "warning", "error"], text: str) -> None:
        if self._alerts is not None:
            await self._alerts.raise_alert(name, severity, text)

    def _entry(self, account: str | None) -> Entry:
        entry = self._default() if account is None else self._entries.get(account)
        if entry is None:
            what = "no Matrix account is configured" if account is None else f"there is no Matrix account {account!r}"
            raise ArmorclawError("matrix_not_configured", what, hint=self._hint())
        return entry

    def _hint(self) -> str:
        """For whoever named an account that is not there; '' if there is none at all."""
        names, more = list(self._entries)[:_NAMED], len(self._entries) - _NAMED
        if not names:
            return ""
        return f"the accounts are {', '.join(names)}" + (f" and {more} more" if more > 0 else "")

    def _default(self) -> Entry | None:
        return self._entries.get("main") or next(iter(self._entries.values()), None)
