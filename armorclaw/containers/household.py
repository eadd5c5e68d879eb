"""What agents ask of their fleet: where to run, what to run, who may connect, and to have things recorded."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import cast

import trio

from armorclaw import config
from armorclaw.containers.agent import Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.chronicle import Chronicle
from armorclaw.containers.ends import Begun, End, EndLog, without_paths
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
from armorclaw.containers.snapshot import Library
from armorclaw.containers.spec import ContainerSpec
from armorclaw.containers.states import State
from armorclaw.containers.survivors import Survivors
from armorclaw.guard.alerts import Severity
from armorclaw.log import get_logger
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import PeerCredentials, serve_unix
from armorclaw.supervision import Supervisor

log = get_logger(__name__)

LAUNCHES = max(2, len(os.sched_getaffinity(0)))
"""Agents of one runtime that are being made or start up at once: as many as there are processors. Engines do hardly
more side by side, and many agents that end together leave the others their share of the machine."""

LASTING = frozenset({"agent.ended", "agent.failed"})
"""Events for which the chronicle has room of its own, as it has for alerts and ends."""

_OF_SESSION = frozenset({State.READY.value, State.SUSPECT.value, State.STALLED.value})


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
        self.resources = Resources(agents, services.around, self.tell, self.alert, services.state_dir)
        self._services = services
        self._runtimes = runtimes
        self._supervisor = supervisor
        self._survivors = survivors
        self._lifetimes = lifetimes
        self._library = Library(services.state_dir)
        self._begun: dict[str, Begun] = {}  # by agent, what has no end yet
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
        library = await self._library.there()
        instance, state_dir = services.instance, services.state_dir
        return await spec_of(declared, runtime, socket, instance=instance, state_dir=state_dir, library=library)

    async def secrets_for(self, declared: config.Agent) -> bytearray:
        keystore = self._services.keystore
        return secrets_payload([await keystore.get(key, by=f"agent {declared.name}") for key in declared.keys])

    def leave_socket(self, runtime: Runtime, socket: AgentSocket) -> None:
        self._survivors.sockets[socket.name] = runtime, socket

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
        self._begin(agent, generation)
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

    def hurry(self, agent: Agent) -> None:
        self._supervisor.hurry(agent.name)

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

    def tell(self, agent: Agent, kind: str, **facts: object) -> None:
        """Log a change, and have it recorded as an event, in order, without waiting.

        How sessions come and go is the agent's own doing: of what waits for the store to be recorded, such changes
        in a row become one, that says how many are `left_out`.
        """
        log.info(kind, agent=agent.name, **facts)
        if kind in ("agent.started", "agent.adopted"):
            self.resources.look_soon()
        facts = {"generation": agent.generations, **facts}
        if _is_of_session(kind, facts):
            last = self.chronicle.last(agent.name)
            if last is not None and last.facts.get("generation") == facts["generation"]:
                left_out = cast(int, last.facts.get("left_out", 0)) + 1
                last.facts.update(to=facts["to"], why=facts["why"], left_out=left_out)
                return
            self._add(agent, kind, facts, may_change=True)
        else:
            self._add(agent, kind, facts, may_change=False)

    def _add(self, agent: Agent, kind: str, facts: dict[str, object], *, may_change: bool) -> None:
        record = partial(self._services.note, kind, facts, agent=agent.name)
        self.chronicle.add(record, agent=agent.name, lasting=kind in LASTING, facts=facts if may_change else None)

    def note_engine(self, runtime: Runtime, kind: str, **facts: object) -> None:
        """Have recorded what became of an engine, which is about no single agent."""
        log.warning(kind, engine=runtime.kind, **facts)
        if isinstance(why := facts.get("why"), str):
            facts["why"] = without_paths(why)
        self.chronicle.add(partial(self._services.note, kind, {"engine": runtime.kind, **facts}, agent=None))

    def alert(self, name: str, severity: Severity, text: str, *, agent: Agent, **fields: object) -> None:
        record = self._services.alerts.say(name, severity, text, agent=agent.name, **fields)
        self.chronicle.add(record, agent=agent.name, lasting=True)

    def alert_of_watcher(self, text: str) -> None:
        """Have a person told that something that watches over all agents failed."""
        self.chronicle.add(self._services.alerts.say("watcher_failed", "error", text), lasting=True)

    # -- to keep how each generation ended

    async def recall(self, agent: Agent) -> None:
        """What the store has of an agent's ends; raises what the store raises.

        One that ran when the bridge ended without a word ended with it, unless it may be adopted: see `listen`.
        """
        agent.remember(await self.ends.of(agent.name))
        begun = await self.ends.unfinished(agent.name)
        if begun is not None:
            self._begun[agent.name] = begun
            if not begun.survives or agent.declared.on_restart != "adopt":
                self._end_begun(agent)

    def keep_end(self, agent: Agent, end: End) -> None:
        begun = self._begun.get(agent.name)
        if begun is not None and begun.container_id == end.container_id:
            del self._begun[agent.name]
        self.chronicle.add(partial(self.ends.keep, agent.name, end), agent=agent.name, lasting=True)

    def _begin(self, agent: Agent, generation: Generation) -> None:
        begun = self._begun.get(agent.name)
        if begun is not None and begun.container_id != generation.running.id:
            self._end_begun(agent)
        runtime, container = generation.runtime, generation.running.id
        begun = self._begun[agent.name] = Begun(generation.number, container, generation.since_ms, runtime.survives)
        self.chronicle.add(partial(self.ends.begin, agent.name, begun), agent=agent.name, lasting=True)

    def _end_begun(self, agent: Agent) -> None:
        """Of a generation that this bridge, or one before, left to be adopted: it was not."""
        end = self._begun[agent.name].lost(self.around.clock.now_ms())
        log.warning("agent did not outlive its bridge", agent=agent.name, container=end.container_id)
        agent.remember([end])
        self.keep_end(agent, end)


def _is_of_session(kind: str, facts: dict[str, object]) -> bool:
    return kind == "agent.state" and {facts.get("from"), facts.get("to")} <= _OF_SESSION
