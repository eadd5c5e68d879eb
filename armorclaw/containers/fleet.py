"""All agents in containers: declared, started, adopted, stopped. The feature that the bridge starts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol

import attrs
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent import AT_REST, STOP_GRACE, Agent, State, Survivor
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.generation import Generation
from armorclaw.containers.inspection import inspected
from armorclaw.containers.launch import Launch
from armorclaw.containers.peers import only_from
from armorclaw.containers.recipe import spec_of
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.secrets import secrets_payload
from armorclaw.containers.shapes import Inspection, Standing
from armorclaw.containers.spec import ContainerSpec, Found
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.limits import Limits
from armorclaw.log import get_logger
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.unix import serve_unix
from armorclaw.store import Connection, Database
from armorclaw.supervision import Backoff, ChildChange, ChildSpec, ChildState, Supervisor

log = get_logger(__name__)

START_PATIENCE = 3.5
"""Seconds `start` and `stop` wait before they answer with how far things are; their clients give up after 4 to 5."""

LOOK_PATIENCE = 10.0
"""Seconds the first look for what an earlier bridge left may hold up the start of agents. An engine that takes longer
is looked through when the first agent needs it."""

MAX_AGENTS = 256


class Cursors(Protocol):
    """Where an agent's place in the journal is kept, so that nothing is lost before it first subscribes."""

    async def ensure(self, owner: str, name: str) -> None: ...


class Notes(Protocol):
    """Where the changes of agents are recorded as events."""

    async def __call__(self, type: str, content: Mapping[str, object], *, agent: str | None) -> object: ...  # noqa: A002


@attrs.frozen(kw_only=True)
class Services:
    """What the fleet needs of the rest of the bridge."""

    instance: str
    state_dir: Path
    runtime_dir: Path
    uid_base: int
    db: Database
    audit: AuditLog
    keystore: KeyStore
    grants: Grants
    cursors: Cursors
    note: Notes
    registry: Registry
    limits: Limits
    around: Surroundings


class Fleet:
    """The agents, by name, each a child of one dynamic supervisor.

    An agent that was declared stays known, also when `run` ends and is run again by whoever supervises it.
    """

    def __init__(self, runtimes: Runtimes, services: Services) -> None:
        self.around = services.around
        self.supervisor = Supervisor("containers", dynamic=True, around=services.around, on_change=self._on_change)
        self._runtimes = runtimes
        self._services = services
        self._agents: dict[str, Agent] = {}
        self._declaring = trio.Lock()
        self._looking = trio.Lock()
        self._looked: list[Runtime] = []  # whose survivors were dealt with
        self._nursery: trio.Nursery | None = None  # None: not running

    # -- for the bridge and its methods

    def get(self, name: str) -> Agent:
        """The agent of that name, or whose container has that id or name. Raises container_not_found."""
        if agent := self._agents.get(name):
            return agent
        for agent in self._agents.values():
            if self.container_name(agent) == name:
                return agent
            if agent.generation is not None and agent.generation.running.id == name:
                return agent
        raise ArmorclawError("container_not_found", f"there is no agent {name[:80]!r}")

    def find(self, name: str) -> Agent | None:
        """The agent of exactly that name, if there is one."""
        return self._agents.get(name)

    def container_name(self, agent: Agent) -> str:
        """What engines call its container."""
        return f"armorclaw-{self._services.instance}-{agent.name}"

    def inspect(self, agent: Agent) -> Inspection:
        """All that is known of it."""
        children = self.supervisor.snapshot().children
        restarts = next((child.restarts for child in children if child.name == agent.name), 0)
        name, rooms = self.container_name(agent), self.rooms_of(agent)
        return inspected(agent, container_name=name, rooms=rooms, restarts=restarts)

    def agents(self) -> list[Agent]:
        """All of them, by name."""
        return [agent for _, agent in sorted(self._agents.items())]

    def standings(self) -> list[Standing]:
        """How every agent stands, by name."""
        return [agent.standing(self.rooms_of(agent)) for agent in self.agents()]

    def rooms_of(self, agent: Agent) -> list[str]:
        """The rooms it is granted."""
        return sorted(self._services.grants.rooms_of(agent.name))

    async def describe(self, declared: config.Agent) -> Agent:
        """Make a new agent known, or give one that is at rest another description; it does not start yet.

        For operators, at run time: it lasts as long as this bridge. Raises conflict (it runs; the name is another's),
        key_not_found, queue_full, path_too_long.
        """
        await self._check_keys(declared.keys)
        if declared.name not in self._agents and self._services.grants.account_of(declared.name) is not None:
            raise ArmorclawError("conflict", f"the name {declared.name} is in use", hint="choose another name")
        return await self._declare(declared)

    async def add_key(self, agent: Agent, key: str) -> None:
        """Grant one more key, from its next start on. Raises key_not_found, and conflict if it runs without it."""
        if key in agent.declared.keys:
            return
        await self._check_keys([key])
        self._check_at_rest(agent)
        agent.declared = attrs.evolve(agent.declared, keys=(*agent.declared.keys, key))

    async def forget(self, agent: Agent) -> None:
        """Undo `describe` for an agent that was new: it is stopped, and known no more."""
        agent.wanted = False
        if self._nursery is not None and self._is_supervised(agent):
            await self.supervisor.remove(agent.name)
        if self._agents.get(agent.name) is agent:
            del self._agents[agent.name]
            self._services.grants.forget(agent.name)
            agent.remove()

    async def start(self, agent: Agent) -> None:
        """Start it, unless it runs, and wait until its container runs, or for START_PATIENCE.

        One that was stopped or given up starts afresh, one that is stopping starts when it has stopped. Raises what
        kept it from starting; it is tried again all the same.
        """
        self._check_running()
        await self._mark(agent, stopped=False)
        if not agent.wanted:  # recorded after us, though it may go on before us
            raise ArmorclawError("conflict", f"agent {agent.name} was stopped while it started")
        launch = agent.launch
        with one_error(), trio.move_on_after(START_PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_end_when_settled, launch, nursery.cancel_scope)
                if not self._is_supervised(agent):
                    await self.supervisor.add(self._child(agent), wait=False)
                elif agent.state in AT_REST or agent.state is State.STOPPING:
                    await self.supervisor.restart(agent.name)  # what it waits for more than we do goes on without us
        launch.check()

    async def restart(self, agent: Agent) -> None:
        """Stop it if it runs, and start it with a clear record; wait for its container, or for START_PATIENCE.

        Raises what kept it from starting; it is tried again all the same.
        """
        self._check_running()
        await self._mark(agent, stopped=False)
        if not agent.wanted:
            raise ArmorclawError("conflict", f"agent {agent.name} was stopped while it started")
        launch = old = agent.launch
        with one_error(), trio.move_on_after(START_PATIENCE):
            async with trio.open_nursery() as nursery:
                if self._is_supervised(agent):
                    nursery.start_soon(self.supervisor.restart, agent.name)
                else:
                    await self.supervisor.add(self._child(agent), wait=False)
                while agent.launch is old and old.taken:  # that of the container that is to end
                    await agent.progress.wait()
                launch = agent.launch
                await launch.settled()
                nursery.cancel_scope.cancel(reason="the restart has come to something")
        if launch is not old or not old.taken:
            launch.check()

    async def stop(self, agent: Agent) -> bool:
        """Stop it, and keep it stopped over restarts. Returns whether it has stopped within START_PATIENCE.

        It goes on stopping when it has not.
        """
        self._check_running()
        await self._mark(agent, stopped=True)
        if agent.wanted:  # a start was recorded after us: it holds
            return True
        with trio.move_on_after(START_PATIENCE) as waiting:
            if self._is_supervised(agent):
                await self.supervisor.stop(agent.name)
            await agent.discard_survivor()
        return not waiting.cancelled_caught

    async def run(
        self, declared: Mapping[str, config.Agent], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Adopt what an earlier life left, start what is declared, and keep it running until cancelled.

        Run again, it starts all agents it knows that are not stopped by hand, as they were described last.

        Resource handling: all agents are stopped at once, each with its grace; no container, socket or task is left.
        """
        with one_error():
            async with trio.open_nursery() as outer:
                await outer.start(self._runtimes.run)
                try:
                    async with trio.open_nursery() as nursery:
                        await nursery.start(self.supervisor.run)
                        self._nursery = nursery
                        await self._begin(declared)
                        task_status.started()
                finally:
                    self._nursery = None
                    self._looked.clear()
                    self._runtimes.close()

    # -- inside

    async def _begin(self, declared: Mapping[str, config.Agent]) -> None:
        stopped = await self._services.db.read(_stopped)
        for name, each in declared.items():
            if name not in self._agents:
                agent = await self._declare(each)
                agent.wanted = name not in stopped
        with trio.move_on_after(LOOK_PATIENCE) as looking:
            for runtime in await self._runtimes.every_engine():
                try:
                    await self._look_through(runtime)
                except ArmorclawError as error:
                    log.error("cannot look for earlier containers", runtime=runtime.kind, why=str(error))
        if looking.cancelled_caught:
            log.error("cannot look for earlier containers", why=f"an engine took over {LOOK_PATIENCE:g} s")
        for agent in list(self._agents.values()):
            if agent.wanted and not self._is_supervised(agent):
                await self.supervisor.add(self._child(agent), wait=False)

    async def _declare(self, declared: config.Agent) -> Agent:
        services = self._services
        async with self._declaring:
            known = self._agents.get(declared.name)
            if known is None and len(self._agents) >= MAX_AGENTS:
                raise ArmorclawError("queue_full", f"there are {MAX_AGENTS} agents already")
            socket = AgentSocket(services.runtime_dir, declared.name, await self._uid_of(declared))
            await services.cursors.ensure(declared.name, "main")
            if known is None:
                agent = self._agents[declared.name] = Agent(declared, socket, self)
            else:
                agent = known
                self._check_at_rest(agent)
                agent.declared, agent.socket = declared, socket
            services.grants.set(declared.name, declared.account, declared.rooms)
            return agent

    async def _look_through(self, runtime: Runtime) -> None:
        """Give every container of this installation to its agent, or remove it: no orphan is left.

        Once for each engine, before anything is launched there: what is found is from an earlier life of the bridge.
        """
        if not runtime.survives:
            return
        async with self._looking:
            if any(runtime is one for one in self._looked):
                return
            for found in await runtime.survivors(self._services.instance):
                agent = self._agents.get(found.name)
                free = agent is not None and agent.wanted and agent.survivor is None and agent.generation is None
                if agent is not None and free and found.running:
                    agent.survivor = Survivor(runtime, found)
                else:
                    await _discard(runtime, found)
            self._looked.append(runtime)

    def _child(self, agent: Agent) -> ChildSpec:
        return ChildSpec(
            agent.name,
            agent.run,
            backoff=Backoff(),
            # The agent bounds it, step by step: engines and sandboxes have deadlines of their own, and then there is
            # its ready_timeout. The wait for an engine that is away has none.
            start_timeout=float("inf"),
            grace=STOP_GRACE,
            ask_stop=agent.ask_stop,
        )

    def _on_change(self, change: ChildChange) -> None:
        agent = self._agents.get(change.child)
        if agent is None:
            return
        agent.told(change)
        if change.state is ChildState.FAILED:
            log.error("agent given up", agent=agent.name, why=change.reason)
            if self._nursery is not None:
                self._nursery.start_soon(partial(self.note, agent, "agent.failed", why=agent.last_end))
        elif change.state is ChildState.BACKING_OFF and change.error is not None:
            hint = {"hint": change.error.hint} if isinstance(change.error, ArmorclawError) else {}
            log.warning("agent will be started again", agent=agent.name, why=change.reason, **hint)

    def _is_supervised(self, agent: Agent) -> bool:
        return any(child.name == agent.name for child in self.supervisor.snapshot().children)

    def _check_running(self) -> None:
        if self._nursery is None:
            raise ArmorclawError("unavailable", "the containers are restarting")

    def _check_at_rest(self, agent: Agent) -> None:
        if agent.state not in AT_REST:
            raise ArmorclawError("conflict", f"agent {agent.name} is {agent.state}", hint="stop it first")

    async def _check_keys(self, keys: Collection[str]) -> None:
        """Before anything depends on them; that one expires later is another matter."""
        if keys:
            known = {info.id for info in await self._services.keystore.list()}
            for key in keys:
                if key not in known:
                    raise ArmorclawError("key_not_found", f"there is no key {key[:80]!r}")

    async def _mark(self, agent: Agent, *, stopped: bool) -> None:
        def work(db: Connection) -> None:
            db.execute("UPDATE agents SET stopped = ? WHERE name = ?", (int(stopped), agent.name))
            self._services.audit.append(db, "agent_stopped" if stopped else "agent_wanted", agent=agent.name)

        def then(_: None) -> None:
            agent.wanted = not stopped

        await self._services.db.write(work, durable=True, then=then)

    async def _uid_of(self, declared: config.Agent) -> int:
        """Its own uid, kept with its name, so that agents cannot touch each other's processes or files."""

        def work(db: Connection) -> int:
            row = db.execute("SELECT number FROM agents WHERE name = ?", (declared.name,)).fetchone()
            if row is None:
                (number,) = db.execute("SELECT coalesce(max(number) + 1, 0) FROM agents").fetchone()
                db.execute("INSERT INTO agents (name, number) VALUES (?, ?)", (declared.name, number))
                return int(number)
            return int(row[0])

        number = await self._services.db.write(work)
        return declared.uid if declared.uid is not None else self._services.uid_base + number

    # -- what an agent needs of its house

    async def runtime_for(self, declared: config.Agent) -> Runtime:
        runtime = await self._runtimes.choose(declared)
        await self._look_through(runtime)
        return runtime

    async def spec_for(self, declared: config.Agent, runtime: Runtime, socket: AgentSocket) -> ContainerSpec:
        services = self._services
        return await spec_of(declared, runtime, socket, instance=services.instance, state_dir=services.state_dir)

    async def secrets_for(self, declared: config.Agent) -> bytearray:
        keystore = self._services.keystore
        return secrets_payload([await keystore.get(key, by=f"agent {declared.name}") for key in declared.keys])

    async def listen(
        self,
        agent: Agent,
        generation: Generation,
        listener: trio.SocketListener,
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Serve the agent's socket for one generation: only processes inside its container are let in."""
        await serve_unix(
            listener,
            self._services.registry,
            role=Role.AGENT,
            agent=agent.name,
            allow=only_from(generation.running),
            around=self.around,
            admission=self._services.limits.listener(Role.AGENT, agent=agent.name),
            path=agent.socket.path,
            task_status=task_status,
        )

    async def note(self, agent: Agent, kind: str, **facts: object) -> None:
        """Record a change as an event. A store that fails is no reason to end an agent: the log says it."""
        log.info(kind, agent=agent.name, **facts)
        try:
            await self._services.note(kind, {**facts, "generation": agent.generations}, agent=agent.name)
        except ArmorclawError as error:
            log.error("change of an agent not recorded", agent=agent.name, kind=kind, why=str(error))


async def _end_when_settled(launch: Launch, scope: trio.CancelScope) -> None:
    await launch.settled()
    scope.cancel(reason="the start has come to something")


async def _discard(runtime: Runtime, found: Found) -> None:
    log.info("removing a container that is nobody's", container=found.id[:12], agent=found.name)
    try:
        await runtime.discard(found)
    except ArmorclawError as error:
        log.error("container not removed", container=found.id[:12], why=str(error))


def _stopped(db: Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM agents WHERE stopped")}
