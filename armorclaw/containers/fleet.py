"""All agents in containers: declared, started, adopted, stopped. The feature that the bridge starts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import attrs
import structlog
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent import STOP_GRACE, Agent, Standing, State
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.generation import Generation
from armorclaw.containers.peers import only_from
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.secrets import secrets_payload
from armorclaw.containers.snapshot import snapshot_code, snapshot_library
from armorclaw.containers.spec import ContainerSpec, Limits, Mount
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.unix import serve_unix
from armorclaw.store import Connection, Database
from armorclaw.supervision import Backoff, ChildChange, ChildSpec, ChildState, Supervisor

log = structlog.get_logger(__name__)

LIBRARY = "/opt/armorclaw"
"""Where the agent library appears inside."""

CODE = "/agent"
"""Where an agent's own code appears inside."""

START_PATIENCE = 3.5
"""Seconds `start` and `stop` wait before they answer with how far things are; their clients give up after 4 to 5."""

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
    around: Surroundings


class Fleet:
    """The agents, by name, each a child of one dynamic supervisor."""

    def __init__(self, runtimes: Runtimes, services: Services) -> None:
        self.around = services.around
        self.supervisor = Supervisor("containers", dynamic=True, around=services.around, on_change=self._on_change)
        self._runtimes = runtimes
        self._services = services
        self._agents: dict[str, Agent] = {}
        self._nursery: trio.Nursery | None = None
        self._failed: dict[str, str] = {}

    # -- for the bridge and its methods

    def get(self, name: str) -> Agent:
        """The agent of that name, or whose container has that id. Raises container_not_found."""
        if agent := self._agents.get(name):
            return agent
        for agent in self._agents.values():
            if agent.generation is not None and agent.generation.running.id == name:
                return agent
        raise ArmorclawError("container_not_found", f"there is no agent {name[:80]!r}")

    def standings(self) -> list[Standing]:
        """How every agent stands, by name."""
        grants = self._services.grants
        return [
            Standing.of(agent, sorted(grants.rooms_of(name)), self.state_of)
            for name, agent in sorted(self._agents.items())
        ]

    def rooms_of(self, agent: Agent) -> list[str]:
        """The rooms it is granted."""
        return sorted(self._services.grants.rooms_of(agent.name))

    def state_of(self, agent: Agent) -> str:
        """The agent's state; what its supervisor decided (given up) comes before what it saw itself."""
        return "failed" if agent.name in self._failed else agent.state.value

    async def declare(self, declared: config.Agent) -> Agent:
        """Make an agent known and grant it its rooms; it does not start yet. Raises queue_full, path_too_long."""
        if len(self._agents) >= MAX_AGENTS and declared.name not in self._agents:
            raise ArmorclawError("queue_full", f"there are {MAX_AGENTS} agents already")
        services = self._services
        socket = AgentSocket(services.runtime_dir, declared.name, await self._uid_of(declared))
        await services.cursors.ensure(declared.name, "main")
        services.grants.set(declared.name, declared.account, declared.rooms)
        agent = Agent(declared, socket, self)
        self._agents[declared.name] = agent
        return agent

    async def start(self, agent: Agent) -> None:
        """Start it, unless it runs, and wait until its container runs, or for START_PATIENCE.

        Raises what kept it from starting.
        """
        await self._mark(agent.name, stopped=False)
        self._failed.pop(agent.name, None)
        known = {child.name for child in self.supervisor.snapshot().children}
        before = agent.generations
        agent.trouble = None
        if agent.name not in known:
            await self.supervisor.add(self._child(agent), wait=False)
        elif agent.generation is None:
            await self.supervisor.restart(agent.name)
        with trio.move_on_after(START_PATIENCE):
            while agent.state not in (State.RUNNING, State.READY) or agent.generations == before == 0:
                if agent.trouble is not None:
                    raise agent.trouble
                await agent.progress.wait()

    async def stop(self, agent: Agent) -> bool:
        """Stop it, and keep it stopped over restarts. Returns whether it has stopped within START_PATIENCE."""
        await self._mark(agent.name, stopped=True)
        if self._nursery is None:
            raise ArmorclawError("unavailable", "the containers are restarting")
        done = trio.Event()

        async def stop() -> None:
            try:
                await self.supervisor.stop(agent.name)
            finally:
                done.set()

        # it goes on in the fleet's nursery when the caller stops waiting
        self._nursery.start_soon(stop)
        with trio.move_on_after(START_PATIENCE):
            await done.wait()
        return done.is_set()

    async def run(
        self, declared: Mapping[str, config.Agent], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Adopt what an earlier life left, start what is declared, and keep it running until cancelled."""
        async with trio.open_nursery() as outer:
            await outer.start(self._runtimes.run)
            try:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    await nursery.start(self.supervisor.run)
                    await self._begin(declared)
                    task_status.started()
            finally:
                self._nursery = None
                self._runtimes.close()

    async def _begin(self, declared: Mapping[str, config.Agent]) -> None:
        stopped = await self._services.db.read(_stopped)
        for each in declared.values():
            await self.declare(each)
        await self._find_survivors()
        for name in declared:
            if name not in stopped:
                await self.supervisor.add(self._child(self._agents[name]), wait=False)

    async def _find_survivors(self) -> None:
        """Give every container of this installation to its agent, or remove it: no orphan is left."""
        for runtime in await self._runtimes.every_engine():
            for found in await runtime.survivors(self._services.instance):
                agent = self._agents.get(found.name)
                if agent is None or agent.survivor is not None or not found.running:
                    log.info("removing a container that nobody declares", container=found.id[:12], agent=found.name)
                    await runtime.discard(found)
                else:
                    agent.survivor = found

    def _child(self, agent: Agent) -> ChildSpec:
        return ChildSpec(
            agent.name,
            agent.run,
            backoff=Backoff(),
            start_timeout=agent.declared.ready_timeout + 60.0,
            grace=STOP_GRACE,
            ask_stop=agent.ask_stop,
        )

    def _on_change(self, change: ChildChange) -> None:
        if change.state is ChildState.FAILED:
            self._failed[change.child] = change.reason
            log.error("agent given up", agent=change.child, why=change.reason)
        else:
            self._failed.pop(change.child, None)

    async def _mark(self, name: str, *, stopped: bool) -> None:
        def work(db: Connection) -> None:
            db.execute("UPDATE agents SET stopped = ? WHERE name = ?", (int(stopped), name))
            self._services.audit.append(db, "agent_stopped" if stopped else "agent_wanted", agent=name)

        await self._services.db.write(work, durable=True)

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
        return await self._runtimes.choose(declared)

    async def spec_for(self, declared: config.Agent, runtime: Runtime, socket: AgentSocket) -> ContainerSpec:
        """What is to run, down to the id of the image and the hash of the code: its digest changes when any does."""
        services = self._services
        library = await trio.to_thread.run_sync(snapshot_library, services.state_dir)
        mounts = [Mount(library, LIBRARY)]
        command = declared.command
        if declared.code is not None:
            code = await trio.to_thread.run_sync(snapshot_code, declared.code, services.state_dir)
            mounts.append(Mount(code, CODE))
            main = f"{CODE}/{declared.code.name if declared.code.is_file() else 'main.py'}"
            command = command or ("python3", main)
        limits = declared.limits
        return ContainerSpec(
            instance=services.instance,
            name=declared.name,
            image=None if declared.image is None else await runtime.check_image(declared.image),
            command=command,
            env=environment(declared, socket.inside),
            uid=socket.uid,
            gid=socket.uid,
            socket_dir=socket.directory,
            mounts=tuple(mounts),
            limits=Limits(limits.memory, limits.cpus, limits.pids, limits.files, limits.tmp),
        )

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
            path=agent.socket.path,
            task_status=task_status,
        )

    async def note(self, agent: Agent, kind: str, **facts: object) -> None:
        log.info(kind, agent=agent.name, **facts)
        await self._services.note(kind, {**facts, "generation": agent.generations}, agent=agent.name)


def environment(declared: config.Agent, socket: str) -> dict[str, str]:
    """The variables an agent finds, as docs/agent.md lists them. None of them is a secret."""
    room = next((room for room in declared.rooms if room.startswith("!")), None)
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",  # noqa: S108 - its own
        "LANG": "C.UTF-8",
        "PYTHONPATH": LIBRARY,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **declared.env,
        "ARMORCLAW_AGENT": declared.name,
        "ARMORCLAW_SOCKET": socket,
        "ARMORCLAW_BRIDGE_SOCKET": socket,
        **({"ARMORCLAW_MATRIX_ROOM": room} if room else {}),
    }


def _stopped(db: Connection) -> set[str]:
    return {name for (name,) in db.execute("SELECT name FROM agents WHERE stopped")}
