"""The door of an agent that may connect to hosts: a Unix socket beside its own, with a proxy behind it."""

from __future__ import annotations

from collections.abc import Callable

import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.egress.addresses import Resolve, Resolver
from armorclaw.egress.ledger import RECORD_PATIENCE, Ledger, Notes, Refusals
from armorclaw.egress.proxy import MAX_TUNNELS, Proxy
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.limits import Bucket
from armorclaw.hosts import HostPattern
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.unix import PeerCredentials
from armorclaw.store import Database
from armorclaw.web.exchange import WebLimits
from armorclaw.web.head import Form
from armorclaw.web.server import serve_http

CONNECTIONS = 64
"""Of one agent at once; one more is told so and closed."""

ACCEPTS = Rate(20, 200)
"""New connections of one agent, each of which may be recorded twice; more wait to be accepted."""

# those who end are still recorded, while the agent has begun the next
_LIMITS = WebLimits(
    idle=30.0, head=10.0, write=10.0, body_size=0, connections=CONNECTIONS, room=RECORD_PATIENCE + 0.5
)


class EgressDoor:
    """For all agents; `serve` is called for each generation of those that want it (`containers.services.Door`)."""

    name = config.EGRESS

    def __init__(
        self,
        db: Database,
        audit: AuditLog,
        note: Notes,
        around: Surroundings,
        *,
        resolve: Resolve | None = None,
        worked: Callable[[str], object] | None = None,
    ) -> None:
        """`worked` is told the name of an agent whenever bytes of it go through."""
        self._ledger = Ledger(db, audit, note, around.clock)
        self._resolve = resolve or Resolver()
        self._tunnels = trio.Semaphore(MAX_TUNNELS)
        self._worked = worked

    def wanted(self, declared: config.Agent) -> bool:
        return bool(declared.egress)

    def counts(self) -> dict[tuple[str, str], tuple[int, int]]:
        """Connections and bytes since the bridge began, by agent and what became of them: opened, refused, failed."""
        found: dict[tuple[str, str], tuple[int, int]] = {}
        for name, counts in self._ledger.counts.items():
            found[name, "opened"] = (counts.opened, counts.bytes)
            found[name, "refused"] = (counts.refused, 0)
            found[name, "failed"] = (counts.failed, 0)
        return found

    async def serve(
        self,
        agent: str,
        declared: config.Agent,
        listener: trio.SocketListener,
        allow: Callable[[PeerCredentials], bool],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Until cancelled. Only whom `allow` lets in is read from; all connections end with it, and are recorded."""
        refusals = Refusals(agent, self._ledger)
        patterns = [HostPattern.parse(text) for text in declared.egress]
        proxy = Proxy(agent, patterns, self._ledger, refusals, self._resolve, self._tunnels, self._worked)
        accepts, clock = Bucket(ACCEPTS), self._ledger.clock
        async with trio.open_nursery() as nursery:
            nursery.start_soon(refusals.run, name=f"egress refusals of {agent}")
            await serve_http(
                listener,
                proxy.handle,
                name=f"egress of {agent}",
                limits=_LIMITS,
                accepts=frozenset(Form),
                allow=allow,
                pause=lambda: accepts.charge(clock.monotonic(), 1),
                task_status=task_status,
            )
