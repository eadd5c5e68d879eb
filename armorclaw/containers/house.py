"""What one agent needs of the fleet it belongs to."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Protocol

import attrs
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.ends import End
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import ContainerSpec, Found
from armorclaw.guard.alerts import Severity

if TYPE_CHECKING:
    from armorclaw.containers.agent import Agent
    from armorclaw.containers.generation import Generation
    from armorclaw.containers.resources.usage import Reading


@attrs.frozen
class Survivor:
    """A container that an earlier life of the bridge left, and where."""

    runtime: Runtime
    found: Found


class House(Protocol):
    """The fleet, as its agents see it."""

    around: Surroundings

    @property
    def is_handing_over(self) -> bool:
        """All end now, but for the bridge to go on at once: containers stay, for their agents to adopt."""
        ...

    @property
    def is_closing(self) -> bool:
        """All end now."""
        ...

    async def runtime_for(self, declared: config.Agent) -> Runtime: ...
    async def spec_for(self, declared: config.Agent, runtime: Runtime, socket: AgentSocket) -> ContainerSpec: ...
    async def secrets_for(self, declared: config.Agent) -> bytearray: ...
    async def listen(
        self,
        agent: Agent,
        generation: Generation,
        listener: trio.SocketListener,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None: ...

    def leave_socket(self, runtime: Runtime, socket: AgentSocket) -> None:
        """A container may live on in a lost engine that has it mounted: it goes when that is looked at again."""
        ...

    def launching(self, runtime: Runtime) -> AbstractAsyncContextManager[object]:
        """The turn of one launch: so many that end together start a few at a time."""
        ...

    def hurry(self, agent: Agent) -> None:
        """If it waits for its next attempt, that begins now."""
        ...

    async def until_work(self, agent: Agent) -> None:
        """Until an event waits for a sleeping agent, or somebody asks for it."""
        ...

    def unsettled(self, agent: Agent) -> tuple[int, float | None]:
        """How many events are in its hands, and since when the oldest is, on Trio's clock."""
        ...

    def reading_now(self, agent: Agent) -> Reading | None:
        """What it uses this very moment, as far as that takes no waiting."""
        ...

    def last_reading(self, agent: Agent) -> Reading | None:
        """The last reading of the container that runs."""
        ...

    def tell(self, agent: Agent, kind: str, **facts: object) -> None:
        """Log a change, and have it recorded as an event, in order, without waiting."""
        ...

    def alert(self, name: str, severity: Severity, text: str, *, agent: Agent) -> None:
        """Log it, and have a person told, in order, without waiting."""
        ...

    def keep_end(self, agent: Agent, end: End) -> None:
        """Have it kept, in order, without waiting."""
        ...
