"""All agents in containers: declared, started, adopted, stopped. The feature that the bridge starts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import trio

from armorclaw import config
from armorclaw.containers.agent import STOP_GRACE, Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.ends import Cause
from armorclaw.containers.engine_watch import EngineFacts, EngineWatch
from armorclaw.containers.household import Household
from armorclaw.containers.inspection import inspected
from armorclaw.containers.kept import kept
from armorclaw.containers.launch import Launch
from armorclaw.containers.lifetime import Lifetimes
from armorclaw.containers.register import Register
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.services import Services
from armorclaw.containers.shapes import Inspection, Standing
from armorclaw.containers.states import AT_REST, ENDING
from armorclaw.containers.survivors import Survivors, discard_all
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.log import get_logger
from armorclaw.supervision import ChildChange, ChildSpec, ChildState, Supervisor

log = get_logger(__name__)

START_PATIENCE = 3.5
"""Seconds `start` and `stop` wait before they answer with how far things are; their clients give up after 4 to 5."""

CLEAR_PATIENCE = 10.0
"""Seconds that the removal of containers that nobody took over may hold up the end of the bridge."""

MAX_AGENTS = 256


class Fleet:
    """The agents, by name, each a child of one dynamic supervisor.

    An agent that was declared stays known, also when `run` ends and is run again by whoever supervises it: what runs
    in an engine goes on meanwhile, and is adopted.
    """

    def __init__(self, runtimes: Runtimes, services: Services) -> None:
        self.around = services.around
        self.supervisor = Supervisor("containers", dynamic=True, around=services.around, on_change=self._on_change)
        self._runtimes = runtimes
        self._services = services
        self._agents: dict[str, Agent] = {}
        self._declaring = trio.Lock()
        self._register = Register(services.db, services.audit, services.uid_base)
        self._lifetimes = Lifetimes(self.agents, services.work, self._stop_for)
        self._survivors = Survivors(runtimes, services.instance, self._agents, services.around)
        self._survivors.on_look = self._watch
        parts = (runtimes, self.supervisor, self._survivors, self._lifetimes, self.agents)
        self.household = Household(services, *parts)
        self.resources = self.household.resources
        self._engine_facts = EngineFacts(self._agents, self.household, self._survivors)
        self._nursery: trio.Nursery | None = None  # None: not running
        self._has_left = False  # ever, containers that go on: the next run may not come as far as to adopt them

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
        name, reading = self.container_name(agent), self.resources.last(agent.name)
        rooms, peaks = self.rooms_of(agent), self.resources.peaks(agent.name)
        return inspected(agent, container_name=name, rooms=rooms, reading=reading, peaks=peaks)

    @property
    def folders(self) -> tuple[Path, Path]:
        """Where what is shown to agents lies on the host."""
        return self._services.state_dir, self._services.runtime_dir

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
            self._survivors.ours.pop(agent.name, None)
            self._services.grants.forget(agent.name)
            agent.remove()

    async def start(self, agent: Agent) -> None:
        """Start it, unless it runs, and wait until its container runs, or for START_PATIENCE.

        One that was stopped or given up starts afresh, one that is stopping starts when it has stopped, one that
        sleeps is woken. Raises what kept it from starting; it is tried again all the same.
        """
        self._check_running()
        await self._register.mark(agent, stopped=False)
        self._check_wanted(agent)
        asleep = self._lifetimes.is_asleep(agent)
        if not asleep and agent.state in AT_REST:
            self._lifetimes.renew(agent)
        launch = agent.launch
        with one_error(), trio.move_on_after(START_PATIENCE):
            async with trio.open_nursery() as nursery:
                if asleep:
                    self._lifetimes.wake(agent)
                    launch = await self._next_launch(agent, launch)
                nursery.start_soon(_end_when_settled, launch, nursery.cancel_scope)
                if asleep:
                    pass
                elif not self._is_supervised(agent):
                    await self.supervisor.add(self._child(agent), wait=False)
                elif agent.state in AT_REST or agent.state in ENDING:  # also one that pauses after a failed wake
                    await self.supervisor.restart(agent.name)  # what it waits for more than we do goes on without us
        launch.check()

    async def restart(self, agent: Agent) -> None:
        """Stop it if it runs, and start it with a clear record; wait for its container, or for START_PATIENCE.

        Raises what kept it from starting; it is tried again all the same.
        """
        self._check_running()
        await self._register.mark(agent, stopped=False)
        self._check_wanted(agent)
        self._lifetimes.renew(agent)
        launch = old = agent.launch
        with one_error(), trio.move_on_after(START_PATIENCE):
            async with trio.open_nursery() as nursery:
                if self._is_supervised(agent):
                    nursery.start_soon(self.supervisor.restart, agent.name)
                else:
                    await self.supervisor.add(self._child(agent), wait=False)
                launch = await self._next_launch(agent, old)
                await launch.settled()
                nursery.cancel_scope.cancel(reason="the restart has come to something")
        launch.check()

    async def _next_launch(self, agent: Agent, old: Launch) -> Launch:
        """That of the attempt to come: not that of the container that is to end, or has."""
        while agent.launch is old and old.taken:
            await agent.progress.wait()
        return agent.launch

    async def stop(self, agent: Agent, *, why: str = "", cause: Cause | None = None) -> bool:
        """Stop it, and keep it stopped over restarts. Returns whether it has stopped within START_PATIENCE.

        It goes on stopping when it has not. With a `cause` it is not by hand, but for something of its own.
        """
        self._check_running()
        await self._register.mark(agent, stopped=True, why=why)
        if agent.wanted:  # a start was recorded after us: it holds
            return True
        if cause is not None:
            agent.order(cause, why)
            agent.tell("agent.expired", cause=cause, why=why)
        self._lifetimes.renew(agent)
        with trio.move_on_after(START_PATIENCE) as waiting:
            if self._is_supervised(agent):
                await self.supervisor.stop(agent.name)
            await agent.discard_survivor()
        return not waiting.cancelled_caught

    @contextmanager
    def asking(self, agent: Agent) -> Iterator[None]:
        """For the length of a call to it: it is not idle meanwhile."""
        with self._lifetimes.asking(agent):
            yield

    async def until_awake(self, agent: Agent) -> None:
        """Wake it if it sleeps, and wait for its session for up to 3.5 s."""
        await self._lifetimes.until_awake(agent)

    async def run(
        self, declared: Mapping[str, config.Agent], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Adopt what an earlier life left, start what is declared, and keep it running until cancelled.

        Run again, it starts all agents it knows that are not stopped by hand, as they were described last. An engine
        that hangs holds up its own agents and nothing else.

        Resource handling: all agents are stopped at once, each with its grace; no container, socket or task is left.
        Unless the bridge goes on: then containers of engines, and their sockets, stay for the next run.
        """
        with one_error():
            async with trio.open_nursery() as outer:
                await outer.start(self._runtimes.run)
                try:
                    await outer.start(self.household.chronicle.run)
                    await self._run(declared, task_status)
                finally:
                    self._survivors.forget()
                    self._runtimes.close()
                    self.household.chronicle.close()

    async def _run(self, declared: Mapping[str, config.Agent], task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.supervisor.run)
                self._nursery = nursery
                self._keep(nursery, "what reads the use of resources", self.resources.run)
                self._keep(nursery, "what ends agents whose lifetime is over", self._lifetimes.end_the_old)
                self._keep(nursery, "what puts idle agents to sleep", self._lifetimes.end_the_idle)
                await self._begin(declared)
                for kind in self._runtimes.engine_kinds:  # what nobody declared goes: all must be declared by now
                    look = partial(self._survivors.look_at, kind)
                    self._keep(nursery, f"what looks for earlier containers in {kind}", look)
                task_status.started()
        finally:
            self._nursery = None
            self._has_left = self._has_left or self.household.is_handing_over

    async def clear(self) -> None:
        """Remove the containers that an earlier `run` left to the next, which never came: for the bridge's end."""
        if not self._has_left:
            return
        with trio.move_on_after(CLEAR_PATIENCE, shield=True), one_error():
            async with trio.open_nursery() as nursery:
                await nursery.start(self._runtimes.run)
                try:
                    await discard_all(self._runtimes, self._services.instance)
                finally:
                    self._runtimes.close()
        for agent in self.agents():
            agent.socket.remove()
        self._has_left = False

    # -- inside

    async def _begin(self, declared: Mapping[str, config.Agent]) -> None:
        stopped = await self._register.stopped()
        for name, each in declared.items():
            if name not in self._agents:
                agent = await self._declare(each)
                agent.wanted = name not in stopped
        for agent in list(self._agents.values()):
            await trio.lowlevel.checkpoint()  # all of them at once would hold up everything else
            if agent.wanted and not self._is_supervised(agent):
                await self.supervisor.add(self._child(agent), wait=False)

    async def _declare(self, declared: config.Agent) -> Agent:
        services = self._services
        async with self._declaring:
            known = self._agents.get(declared.name)
            if known is None and len(self._agents) >= MAX_AGENTS:
                raise ArmorclawError("queue_full", f"there are {MAX_AGENTS} agents already")
            socket = AgentSocket(services.runtime_dir, declared.name, await self._register.uid_of(declared))
            await services.work.ensure(declared.name, "main")
            if known is None:
                agent = Agent(declared, socket, self.household)
                await self.household.recall(agent)
                self._agents[declared.name] = agent  # known from here on, with its grants, or not at all
            else:
                agent = known
                self._check_at_rest(agent)
                agent.declared, agent.socket = declared, socket
            services.grants.set(declared.name, declared.account, declared.rooms)
            return agent

    def _child(self, agent: Agent) -> ChildSpec:
        return ChildSpec(
            agent.name,
            agent.run,
            restart=agent.restart,
            backoff=agent.backoff,
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
        if change.state is ChildState.BACKING_OFF and change.error is not None:
            hint = {"hint": change.error.hint} if isinstance(change.error, ArmorclawError) else {}
            log.warning("agent will be started again", agent=agent.name, why=change.reason, **hint)

    async def _stop_for(self, agent: Agent, cause: Cause, why: str) -> None:
        await self.stop(agent, why=why, cause=cause)

    def _watch(self, runtime: Runtime) -> None:
        """Of an engine that was looked through, follow what happens there."""
        if self._nursery is not None:
            watch = EngineWatch(runtime, self._services.instance, self._engine_facts)
            self._keep(self._nursery, f"what watches {runtime.kind}", watch.run)

    def _keep(self, nursery: trio.Nursery, name: str, run: Callable[[], Awaitable[object]]) -> None:
        nursery.start_soon(kept, name, run, self.household.alert_of_watcher, name=name)

    def _is_supervised(self, agent: Agent) -> bool:
        return self.supervisor.has(agent.name)

    def _check_running(self) -> None:
        if self._nursery is None:
            raise ArmorclawError("unavailable", "the containers are restarting")

    def _check_wanted(self, agent: Agent) -> None:
        if not agent.wanted:  # recorded after us, though it may go on before us
            raise ArmorclawError("conflict", f"agent {agent.name} was stopped while it started")

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


async def _end_when_settled(launch: Launch, scope: trio.CancelScope) -> None:
    await launch.settled()
    scope.cancel(reason="the start has come to something")
