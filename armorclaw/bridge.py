"""The composition root: from a configuration to a running tree of children. Only this module knows everybody.

bridge (rest for one: started top to bottom, stopped bottom to top)
├─ store       the database and its writer thread
├─ features    (one for one)
│  ├─ lag          watches the event loop
│  ├─ retention    deletes what is old
│  ├─ grants       before the first sync; then keeps where they begin
│  ├─ guide        tells people where no agent answers
│  ├─ orders       carries out what people order in a chat, if anybody may
│  ├─ matrix       one session per account
│  ├─ alerts       tells the admin room, if there is one
│  ├─ notices      tells of dead letters and of the store
│  ├─ quotas       records who used them up
│  ├─ reports      records what agents say of their progress
│  └─ containers   one generation per agent
└─ listeners   (one for one)
   ├─ socket       bridge.sock, for operators
   └─ observers    observer.sock, if there is a group of them
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any

import attrs
import trio

from armorclaw._version import __version__
from armorclaw.agent.events import Event as EventSeen
from armorclaw.attached import AttachedAgent
from armorclaw.attaching import Attaching
from armorclaw.calls.methods import register as register_calls
from armorclaw.clock import Surroundings
from armorclaw.config import AgentQuota, Config, configs_root
from armorclaw.configs.library import Configs
from armorclaw.configs.methods import register as register_configs
from armorclaw.containers.fleet import Fleet
from armorclaw.containers.methods import register as register_containers
from armorclaw.containers.reports import Reports
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.services import Services
from armorclaw.delivery.admin_room import AdminRoom
from armorclaw.delivery.methods import register as register_delivery
from armorclaw.delivery.outbox import Outbox
from armorclaw.drain import Drain
from armorclaw.egress.door import EgressDoor
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.events.durable.dead_letters import DeadLetters
from armorclaw.events.durable.reading import Seen
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.keeping.retention import Retention
from armorclaw.events.methods import register as register_events
from armorclaw.events.methods import start_of
from armorclaw.events.publishing import register as register_publishing
from armorclaw.events.severity import severity_of
from armorclaw.events.stream import EventStream, Readers
from armorclaw.events.subscriptions import MAIN, Subscriptions
from armorclaw.events.work import AgentWork
from armorclaw.folders import make_folders
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.beginnings import Beginnings, Declared
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.limits import Limits, budgets
from armorclaw.guard.methods import register as register_guard
from armorclaw.guard.quotas import Quotas
from armorclaw.health import health, store_reasons
from armorclaw.lag import LoopLag
from armorclaw.listeners import Listeners
from armorclaw.log import get_logger
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.chat.carrying_out import CarryingOut
from armorclaw.matrix.chat.console import Console
from armorclaw.matrix.chat.hands import Hands, Rooms
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.media.transfers import Transfers
from armorclaw.matrix.media_methods import MediaMethods
from armorclaw.matrix.methods import MatrixMethods
from armorclaw.matrix.routing.methods import PolicyMethods
from armorclaw.matrix.routing.service import Routing
from armorclaw.matrix.trust.methods import register as register_trust
from armorclaw.metrics import (
    Metrics,
    of_agents,
    of_bridge,
    of_delivery,
    of_egress,
    of_events,
    of_guard,
    of_loop,
    of_matrix,
    of_routing,
    of_store,
)
from armorclaw.notices import Notices
from armorclaw.rpc.caller import OnProgress
from armorclaw.rpc.discover import register as register_discover
from armorclaw.rpc.local import LocalStream, call_local, stream_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.shapes import BridgeStatus, Health, MetricsText
from armorclaw.store import Connection, Database
from armorclaw.store.keyfile import load_or_create_key
from armorclaw.supervision import (
    ChildSpec,
    ChildStartFailed,
    RestartLimitExceeded,
    Strategy,
    Supervisor,
    log_crash,
    root_of,
)
from armorclaw.typed import Methods

log = get_logger(__name__)


class Bridge:
    """Everything put together. Open one with `open_bridge`; `run` is for the composition only."""

    def __init__(self, config: Config, around: Surroundings) -> None:
        self.config = config
        self.around = around
        where = config.bridge
        self.instance = hashlib.sha256(str(where.state_dir.absolute()).encode()).hexdigest()[:12]
        key = partial(load_or_create_key, where.key_file, where.database)
        self.database = Database(where.database, key, clock=around.clock)
        self.audit = AuditLog(around)
        self.journal = Journal(self.database, around.clock)
        self.grants = Grants(lambda: self.journal.known or 0)
        self._beginnings = Beginnings(self.database, self.grants)
        self.alerts = Alerts(self._record_alert, self.audit)
        self.keystore = KeyStore(self.database, self.audit, around)
        self.dead_letters = DeadLetters(self.database, self.journal, around.clock)
        self.subscriptions = Subscriptions(self.database, self.journal, around, config.events, self.dead_letters)
        self.notices = Notices(self.alerts, self.database)
        self.subscriptions.on_work = self._agent_worked
        self.subscriptions.on_dead = self.notices.on_dead
        self.subscriptions.on_read = self._agent_read
        self.outbox = Outbox(self.database, self.audit, self.journal, around, config.delivery, self.alerts)
        self.configs = Configs(configs_root(where.state_dir), self.database, self.audit)
        self.registry = Registry()
        self.quotas = Quotas(
            self._quota_of, note=self._note, alerts=self.alerts, stop=self._stop_for_quota, clock=around.clock
        )
        self.limits = Limits(around.clock, budgets(config.limits), self.quotas)
        self.routing = Routing(
            config.access,
            config.routes,
            config.agents,
            db=self.database,
            outbox=self.outbox,
            grants=self.grants,
            clock=around.clock,
        )
        self.accounts = Accounts(
            config.accounts,
            db=self.database,
            journal=self.journal,
            outbox=self.outbox,
            grants=self.grants,
            alerts=self.alerts,
            around=around,
            receipts=self.outbox.receipts,
            vault=Vault(where.state_dir / "matrix", key, around.clock),
            routing=self.routing,
            keystore=self.keystore,
            own_rooms={config.alerts.account: [config.alerts.room]} if config.alerts.room else {},
        )
        self.admin_room = AdminRoom(config.alerts, self.subscriptions, self.outbox, self.accounts, around)
        self.runtimes = Runtimes(where.engine_socket, where.state_dir / "logs", around.clock)
        self.egress = EgressDoor(self.database, self.audit, self._note, around, worked=self._agent_worked)
        self.fleet = Fleet(
            self.runtimes,
            Services(
                instance=self.instance,
                state_dir=where.state_dir,
                runtime_dir=where.runtime_dir,
                uid_base=where.uid_base,
                db=self.database,
                audit=self.audit,
                alerts=self.alerts,
                keystore=self.keystore,
                grants=self.grants,
                work=AgentWork(self.subscriptions, self.grants),
                note=self._note,
                registry=self.registry,
                limits=self.limits,
                around=around,
                is_closing=lambda: self._root.is_closing,
                doors=(self.egress,),
            ),
        )
        self.console = Console(
            CarryingOut(
                Hands(
                    offers=lambda method: self.registry.get(method) is not None,
                    call=self.call,
                    stream=self.stream,
                    secrets_of=self._secrets_of,
                ),
                self.routing.table,
            ),
            Rooms(
                standing=self.routing.standing,
                in_room=self.routing.in_room,
                may_command=self.routing.policy.may_command,
                is_private=self._is_for_operators,
            ),
            subscriptions=self.subscriptions,
            journal=self.journal,
            outbox=self.outbox,
            note=self._note,
            clock=around.clock,
        )
        self.lag = LoopLag(where.lag_alarm_ms / 1000, self._tell_lag)
        self.metrics = Metrics(
            [
                of_bridge(lambda: around.clock.monotonic() - self._started_at),
                of_agents(self.fleet.agents, self.fleet.resources.last),
                of_guard(self.limits, self.alerts),
                of_egress(self.egress.counts),
                of_events(self.subscriptions),
                of_delivery(self.outbox),
                of_matrix(
                    self.accounts.reports,
                    self.accounts.decrypt_failures,
                    self.accounts.encryption_counts,
                    self.accounts.cache_counts,
                ),
                of_routing(self.routing.counts),
                of_store(self.database),
                of_loop(self.lag),
            ]
        )
        self.reports = Reports(
            find=self.fleet.find,
            journal=self.journal,
            audit=self.audit,
            alerts=self.alerts,
            quotas=self.quotas,
            severity=config.alerts.severity,
            clock=around.clock,
        )
        self._root = Supervisor("bridge", strategy=Strategy.REST_FOR_ONE, around=around, on_change=log_crash)
        self._attaching = Attaching(
            config,
            self.registry,
            self.subscriptions,
            grants=self.grants,
            beginnings=self._beginnings,
            keystore=self.keystore,
            quotas=self.quotas,
        )
        self._drain = Drain(self.registry, self.subscriptions, self.outbox)
        self._readers = Readers()
        self._started_at = 0.0
        self._register_methods()

    def __repr__(self) -> str:
        return f"<Bridge {self.instance} at {self.config.bridge.socket}>"

    # -- running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then everything stops in reverse order. Raises what the start raised, or gave_up."""
        self._started_at = self.around.clock.monotonic()
        make_folders(self.config.bridge)
        features = Supervisor("features", around=self.around, on_change=log_crash)
        listeners = Supervisor("listeners", around=self.around, on_change=log_crash)
        contained = {name: each for name, each in self.config.agents.items() if each.runtime != "attached"}
        settle_idle = self.subscriptions.settle_idle
        retention = Retention(self.database, self.around, self.config.events, settle_idle, self.journal)
        feature_children = [
            ChildSpec("lag", self.lag.run),
            ChildSpec("retention", retention.run),
            ChildSpec("grants", self._grant_declared),
            ChildSpec("guide", self.routing.run),
            *([ChildSpec("orders", self.console.run)] if self.config.access.commands else []),
            _branch("matrix", self.accounts.run),
            *([ChildSpec("alerts", self.admin_room.run)] if self.config.alerts.room else []),
            ChildSpec("notices", self.notices.run),
            ChildSpec("quotas", self.quotas.run),
            ChildSpec("reports", self.reports.run),
            _branch("containers", partial(self.fleet.run, contained)),
        ]
        sockets = Listeners(self.config, self.registry, self.limits, self.around, admit=self._drain.check).children()
        children = (
            ChildSpec("store", self.database.run),
            _branch("features", partial(features.run, feature_children)),
            _branch("listeners", partial(listeners.run, sockets)),
        )
        try:
            await self._root.run(children, task_status=task_status)
        except ChildStartFailed as error:
            raise root_of(error) from error
        except RestartLimitExceeded as error:
            raise ArmorclawError("gave_up", f"the bridge gave up on {error.child}", why=str(error)) from error
        finally:
            await self.fleet.clear()

    async def _grant_declared(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Before the first sync: what it brings for rooms that nobody is granted is not kept."""
        await self.journal.head()  # from here on it is known: see `EventStream`, `Grants`
        await self.routing.load()
        await self.accounts.load()
        declared = []
        for agent in self.config.agents.values():
            await self.subscriptions.ensure(agent.name, MAIN)
            rooms = self.routing.table.granted_by_name(agent.name)
            beyond = self.accounts.beyond_names(agent.account, agent.name, rooms)
            declared.append(Declared(agent.name, agent.account, rooms, beyond))
        await self._beginnings.grant(declared)
        task_status.started()
        await self._beginnings.run()

    # -- for programs that embed it

    async def call(self, method: str, /, **params: Any) -> Any:
        """Call a method of the wire as the operator, without a socket. Raises what the method raises."""
        return await call_local(self.registry, method, params, role=Role.OPERATOR)

    def stream(
        self, method: str, /, *, on_progress: OnProgress | None = None, **params: Any
    ) -> AbstractAsyncContextManager[LocalStream]:
        """Call a method that streams, likewise, for the length of the block."""
        return stream_local(self.registry, method, params, role=Role.OPERATOR, on_progress=on_progress)

    @property
    def methods(self) -> Methods:
        """All methods with their types: `(await bridge.methods.health()).reasons`."""
        return Methods(self)

    def attach(self, name: str, *, rooms: Sequence[str] = (), account: str = "main") -> AttachedAgent:
        """An agent inside this program, with the API it would have in a container; start its `run` in a nursery.

        One that is declared with runtime "attached" has the rooms of its declaration, and misses nothing while the
        program is down. Any other is granted `rooms` while it runs: what is said while it does not may be lost to it.
        Raises invalid_params for an odd name or room, matrix_not_configured for an unknown account; `run` raises
        conflict when there is an agent of that name.
        """
        return self._attaching.attach(name, rooms, account)

    def events(
        self,
        *,
        types: Sequence[str] = (),
        rooms: Sequence[str] = (),
        senders: Sequence[str] = (),
        agents: Sequence[str] = (),
        severities: Sequence[str] = (),
        name: str | None = None,
        from_: str | int | datetime = "now",
    ) -> EventStream[EventSeen]:
        """Everything that happens, as far as it fits: `async for event in bridge.events(types=["m.room.message"])`.

        From now on, behind the event of a number, or from a time on (one with its zone, or RFC 3339). With a `name`
        the bridge remembers how far its reader got, over restarts of this program: see `EventStream`. Patterns may
        have `*`. Events that are kept nowhere (`events.publish` with `ephemeral`) are not among them. Raises
        invalid_params for an odd name or pattern.
        """
        given = from_.isoformat() if isinstance(from_, datetime) else from_
        return EventStream(
            self.journal,
            matching=EventFilter(*map(tuple, (types, rooms, senders, agents, severities))),
            start=partial(start_of, self.subscriptions, given),
            cursor=None if name is None else self.subscriptions.cursor("", name),
            readers=self._readers,
            clock=self.around.clock,
            make=lambda event, redelivered: EventSeen({**event.plain(), "redelivered": redelivered}),
        )

    async def drain(self, seconds: float | None = None) -> bool:
        """Accept nothing more, and finish what was accepted: for at most `drain_s`, or so many seconds.

        Whether all was finished. What was not is lost to nobody: events come again, messages are on disk. There is
        no way back; leave the block of `open_bridge` afterwards.
        """
        return not await self._drain.run(self.config.bridge.drain_s if seconds is None else seconds)

    async def until_connected(self) -> None:
        """Until every account's session is connected; what is wrong meanwhile is in `status`."""
        for name in self.config.accounts:
            status = self.accounts.status(name)
            assert status is not None, "every account of the configuration has one"
            await status.until(lambda status=status: status.connected)  # type: ignore[misc]

    async def until_joined(self, rooms: Sequence[str], *, account: str = "main") -> None:
        """Until the account is in these rooms: what was said there before is not for its agents.

        It gets into rooms that are granted to an agent and that let it in; for others this waits forever.
        """
        await self.accounts.until_joined(account, rooms)

    # -- its own methods, and the glue between features

    def status(self) -> BridgeStatus:
        """How everything stands now."""
        standings = self.fleet.standings()
        ids = [standing.container_id for standing in standings if standing.container_id]
        return BridgeStatus(
            version=__version__,
            state="draining" if self._drain.begun else "running",
            socket=str(self.config.bridge.socket),
            containers=len(ids),
            container_ids=ids,
            uptime_s=int(self.around.clock.monotonic() - self._started_at),
            accounts=self.accounts.reports(),
            agents=standings,
        )

    def health(self, *, of: str | None = None) -> Health:
        """ "healthy", or "degraded" with the reasons; `of` an agent, with those alone that are its own affair."""
        status = self.status()
        accounts = {self.grants.account_of(of)} if of is not None else set(self.config.accounts)
        return health(
            [agent for agent in status.agents if of in (None, agent.name)],
            [account for account in status.accounts if account.account in accounts],
            store_reasons(self.database) if of is None else (),
        )

    def _register_methods(self) -> None:
        everyone = {Role.OPERATOR, Role.OBSERVER, Role.AGENT}

        @self.registry.method("status", result=BridgeStatus, roles=everyone - {Role.AGENT}, doc="How the bridge is.")
        def _status(call: Any, params: Any) -> BridgeStatus:
            status = self.status()
            return attrs.evolve(status, socket="") if call.role is Role.OBSERVER else status

        @self.registry.method("health", result=Health, roles=everyone, doc="Whether all is well.")
        def _health(call: Any, params: Any) -> Health:
            return self.health(of=call.agent)

        @self.registry.method("metrics", result=MetricsText, roles=everyone - {Role.AGENT})
        async def _metrics(call: Any, params: Any) -> MetricsText:
            """All figures for monitoring, as Prometheus reads them. docs/operations.md has what each means."""
            return await self.metrics.text()

        register_guard(self.registry, self.keystore)
        register_configs(self.registry, self.configs)
        register_delivery(self.registry, self.outbox)
        register_calls(self.registry)
        register_discover(self.registry)
        register_events(self.registry, self.subscriptions, self.grants)
        register_publishing(self.registry, self.subscriptions, self.journal, self.around.clock)
        MatrixMethods(self.accounts, self.outbox, self.subscriptions, self.grants).register(self.registry)
        transfers = Transfers(self.quotas, self.config.media.max_size)
        register_trust(self.registry, self.accounts, self.keystore)
        MediaMethods(self.accounts, self.grants, self.journal, transfers).register(self.registry)
        PolicyMethods(self.routing, self.accounts, self.journal).register(self.registry)
        register_containers(self.registry, self.fleet, self._attaching.running)
        self.reports.register(self.registry)

    async def _record_alert(
        self,
        type: str,  # noqa: A002 - the word of the wire
        content: Mapping[str, Any],
        *,
        agent: str | None,
        also: Any,
    ) -> None:
        await self.journal.record([self._event(type, content, agent)], also=also, durable=True, grows=False)

    async def _tell_lag(self, facts: Mapping[str, object]) -> None:
        """An event without an audit record: it is about nobody, and there may be many."""
        await self.journal.record([self._event("bridge.lag", facts)])

    async def _secrets_of(self, agent: str) -> list[str]:
        known, found = self.fleet.find(agent), []
        for key in () if known is None else known.declared.keys:
            try:
                found.append((await self.keystore.get(key, by="orders")).token)
            except ArmorclawError as error:
                if error.name != "key_not_found":
                    raise
        return found

    def _is_for_operators(self, account: str, room_id: str) -> bool:
        """Whether it is the room in which alerts are told."""
        alerts = self.config.alerts
        return bool(alerts.room) and (account, room_id) == (
            alerts.account,
            self.accounts.room_id(account, alerts.room),
        )

    def _quota_of(self, agent: str) -> AgentQuota:
        known = self.fleet.find(agent)
        declared = known.declared if known is not None else self.config.agents.get(agent)
        return AgentQuota() if declared is None else declared.quota

    def _agent_worked(self, agent: str) -> None:
        if known := self.fleet.find(agent):
            known.worked()

    def _agent_read(self, seen: Seen | Event) -> None:
        if seen.account and seen.room_id and seen.event_id:
            self.accounts.read(seen.account, seen.room_id, seen.event_id)

    def _stop_for_quota(self, agent: str, why: str) -> None:
        known, attached = self.fleet.find(agent), self._attaching.running.get(agent)
        if known is not None:
            known.end("quota", why, restart=False)
        elif attached is not None:
            attached.stop()

    async def _note(self, type: str, content: Mapping[str, object], *, agent: str | None) -> None:  # noqa: A002
        def also(db: Connection) -> None:
            self.audit.append(db, type, agent=agent, **content)

        # how agents end is wanted on a full disk too; what they could do often there is not
        await self.journal.record([self._event(type, content, agent)], also=also, grows=type != "agent.state")

    def _event(self, type: str, content: Mapping[str, Any], agent: str | None = None) -> Event:  # noqa: A002
        severity = severity_of(type, content)
        return Event.make(type, content, at_ms=self.around.clock.now_ms(), agent=agent, severity=severity)


def _branch(name: str, run: Callable[..., Awaitable[object]]) -> ChildSpec:
    """A child that has children of its own: it takes as long as they take, each of which has its own limits."""
    return ChildSpec(name, run, start_timeout=math.inf, grace=math.inf)


@asynccontextmanager
async def open_bridge(config: Config, *, around: Surroundings | None = None) -> AsyncIterator[Bridge]:
    """A bridge that runs for the length of a block, in any Trio program; nothing process-wide is changed.

    Leaving the block stops everything in reverse order. Raises what keeps it from starting: config_invalid,
    already_running, storage_…, and gave_up when a part of it cannot be kept running.
    """
    bridge = Bridge(config, around or Surroundings())
    with one_error():
        async with trio.open_nursery() as nursery:
            await nursery.start(bridge.run)
            yield bridge
            nursery.cancel_scope.cancel(reason="the bridge is closed")
