"""What the agents need of the rest of the bridge."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import attrs
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.limits import Limits
from armorclaw.rpc.registry import Registry
from armorclaw.rpc.unix import PeerCredentials
from armorclaw.store import Database


class Work(Protocol):
    """An agent's place in the journal: kept from before it first subscribes, and whether anything waits there."""

    async def ensure(self, owner: str, name: str) -> None: ...

    def unsettled(self, owner: str) -> tuple[int, float | None]:
        """How many events are in its hands, and since when the oldest is, on Trio's clock."""
        ...

    async def has_work(self, owner: str) -> bool:
        """Whether an event waits that is worth its being awake. Raises what the store raises."""
        ...

    async def until_work(self, owner: str) -> None:
        """Until one does; one that is there already counts."""
        ...


class Notes(Protocol):
    """Where the changes of agents are recorded as events."""

    async def __call__(self, type: str, content: Mapping[str, object], *, agent: str | None) -> object: ...  # noqa: A002


class Door(Protocol):
    """Another socket of an agent, beside its own: NAME.sock in the same directory."""

    @property
    def name(self) -> str: ...

    def wanted(self, declared: config.Agent) -> bool:
        """Whether this agent is to have it."""
        ...

    async def serve(
        self,
        agent: str,
        declared: config.Agent,
        listener: trio.SocketListener,
        allow: Callable[[PeerCredentials], bool],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve it for one generation, until cancelled; `allow` tells who may come in."""
        ...


def _always() -> bool:
    return True


@attrs.frozen(kw_only=True)
class Services:
    """`is_closing` tells the end of the bridge from that of the agents alone, after which they go on."""

    instance: str
    state_dir: Path
    runtime_dir: Path
    uid_base: int
    db: Database
    audit: AuditLog
    keystore: KeyStore
    grants: Grants
    work: Work
    note: Notes
    alerts: Alerts
    registry: Registry
    limits: Limits
    around: Surroundings
    doors: Sequence[Door] = ()
    is_closing: Callable[[], bool] = _always
