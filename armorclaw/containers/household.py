"""What agents ask of their fleet: where to run, what to run, who may connect, and to have things recorded."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio

from armorclaw import config
from armorclaw.containers.agent import Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.chronicle import Chronicle
from armorclaw.containers.ends import End, EndLog
from armorclaw.containers.generation import Generation
from armorclaw.containers.lifetime import Lifetimes
from armorclaw.containers.peers import only_from
from armorclaw.containers.recipe import spec_of
from armorclaw.containers.resources.usage import Reading
from armorclaw.containers.resources.watch import Resources
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.secrets import secrets_payload
from armorclaw.containers.services import Door, Services
from armorclaw.containers.spec import ContainerSpec
from armorclaw.containers.survivors import Survivors
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Severity
from armorclaw.log import get_logger
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import PeerCredentials, serve_unix
from armorclaw.supervision import Supervisor

log = get_logger(__name__)

LAUNCHES = max(2, len(os.sched_getaffinity(0)))
"""Agents of one runtime that are being made or start up at once: as many as there are processors. Engines do hardly
more side by side, and many agents that end together leave the others their share of the machine."""


class Household:
    """Implements `house.House` of what the fleet has."""

    def __init__(
        self,
        services: Services,
        runtimes: Runtimes,
        supervisor: Supervisor,
        survivors: Survivors,
        lifetimes: Lifetimes,
        agents: Callable[[], list[Agent]],
    ) -> None:
        self.around = services.around
        self.chronicle = Chronicle()
        self.ends = EndLog(services.db)
        self.resources = Resources(agents, services.around, self.note, self.alert, services.state_dir)
        self._services = services
        self._runtimes = runtimes
        self._supervisor = supervisor
        self._survivors = survivors
        self._lifetimes = lifetimes
        self._launching: dict[str, trio.CapacityLimiter] = {}  # by kind of runtime

    @property
    def is_closing(self) -> bool:
        return self._supervisor.is_closing

    @property
    def is_handing_over(self) -> bool:
        return self._supervisor.is_closing and not self._services.is_closing()

    # -- to run

    async def runtime_for(self, declared: config.Agent) -> Runtime:
        runtime = await self._runtimes.choose(declared)
        await self._survivors.look(runtime)
        return runtime

    async def spec_for(self, declared: config.Agent, runtime: Runtime, socket: AgentSocket) -> ContainerSpec:
        services = self._services
        return await spec_of(declared, runtime, socket, instance=services.instance, state_dir=services.state_dir)

    async def secrets_for(self, declared: config.Agent) -> bytearray:
        keystore = self._services.keystore
        return secrets_payload([await keystore.get(key, by=f"agent {declared.name}") for key in declared.keys])

    def launching(self, runtime: Runtime) -> AbstractAsyncContextManager[object]:
        return self._launching.setdefault(runtime.kind, trio.CapacityLimiter(LAUNCHES))

    async def listen(
        self,
        agent: Agent,
        generation: Generation,
        listener: trio.SocketListener,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Serve the agent's sockets for one generation: only processes inside its container are let in."""
        services, running = self._services, generation.running
        allow = only_from(running)
        self._lifetimes.begin(agent, self._survivors.age_of(running.id) if generation.adopted else 0.0)
        self._survivors.ours[agent.name] = running.id
        async with trio.open_nursery() as nursery:
            for door in services.doors:
                if door.wanted(agent.declared):
                    await nursery.start(self._open, door, agent, allow)
            await serve_unix(
                listener,
                services.registry,
                role=Role.AGENT,
                agent=agent.name,
                allow=allow,
                around=self.around,
                admission=services.limits.listener(Role.AGENT, agent=agent.name),
                path=agent.socket.path,
                task_status=task_status,
            )

    async def _open(
        self,
        door: Door,
        agent: Agent,
        allow: Callable[[PeerCredentials], bool],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        async with agent.socket.listen_also(door.name) as listener:
            await door.serve(agent.name, agent.declared, listener, allow, task_status=task_status)

    # -- to know

    async def until_work(self, agent: Agent) -> None:
        await self._lifetimes.until_work(agent)

    def unsettled(self, agent: Agent) -> tuple[int, float | None]:
        return self._services.work.unsettled(agent.name)

    def reading_now(self, agent: Agent) -> Reading | None:
        return self.resources.read_now(agent)

    def last_reading(self, agent: Agent) -> Reading | None:
        return self.resources.last(agent.name)

    # -- to tell

    def soon(self, record: Callable[[], Awaitable[object]]) -> None:
        self.chronicle.add(record)

    async def note(self, agent: Agent, kind: str, **facts: object) -> None:
        """Record a change as an event. A store that fails is no reason to end an agent: the log says it."""
        log.info(kind, agent=agent.name, **facts)
        if kind in ("agent.started", "agent.adopted"):
            self.resources.look_soon()
        await self._record(kind, {"generation": agent.generations, **facts}, agent.name)

    def note_engine(self, runtime: Runtime, kind: str, **facts: object) -> None:
        """Have recorded what became of an engine, which is about no single agent."""
        log.warning(kind, engine=runtime.kind, **facts)
        self.soon(partial(self._record, kind, {"engine": runtime.kind, **facts}, None))

    async def _record(self, kind: str, facts: dict[str, object], agent: str | None) -> None:
        try:
            await self._services.note(kind, facts, agent=agent)
        except ArmorclawError as error:
            log.error("change of an agent not recorded", agent=agent, kind=kind, why=str(error))

    async def alert(self, name: str, severity: Severity, text: str, *, agent: Agent, **fields: object) -> None:
        await self._services.alerts.raise_alert(name, severity, text, agent=agent.name, **fields)

    async def keep_end(self, agent: Agent, end: End) -> None:
        try:
            await self.ends.keep(agent.name, end)
        except ArmorclawError as error:
            log.error("end of an agent not kept", agent=agent.name, why=str(error))
