"""One agent over its generations: what it is to run, what runs now, and why the last one ended."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Protocol

import attrs
import structlog
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.generation import Generation, GenerationEndedError
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.spec import ContainerSpec, Exit, Found
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call

log = structlog.get_logger(__name__)

STOP_GRACE = 4.5
"""Seconds a container has to end after it was asked to; then it is killed. Its handlers get 4."""

ENGINE_RETRY = (0.1, 2.0)
"""Seconds between attempts to learn what became of a container whose engine was lost: the first, the most."""


class State(enum.StrEnum):
    """What an agent is, as clients read it."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    SUSPECT = "suspect"
    UNKNOWN = "unknown"
    RESTARTING = "restarting"


class House(Protocol):
    """What one agent needs of the fleet it belongs to."""

    around: Surroundings

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
    async def note(self, agent: Agent, kind: str, **facts: object) -> None: ...


class Agent:
    """A declared agent. `run` is one generation and what its supervisor restarts."""

    def __init__(self, declared: config.Agent, socket: AgentSocket, house: House) -> None:
        self.declared = declared
        self.name = declared.name
        self.socket = socket
        self.generation: Generation | None = None
        self.generations = 0
        self.last_end = ""
        self.survivor: Found | None = None
        self.trouble: ArmorclawError | GenerationEndedError | None = None
        self.progress = trio.Event()
        self._house = house
        self._state = State.STOPPED

    def __repr__(self) -> str:
        return f"<Agent {self.name} {self.state} generation {self.generations}>"

    @property
    def state(self) -> State:
        generation = self.generation
        if generation is None or self._state is not State.RUNNING:
            return self._state
        if generation.is_ready:
            return State.READY
        return State.SUSPECT if generation.is_suspect else State.RUNNING

    def moved(self, state: State) -> None:
        """Take the next state and wake whoever waits for progress."""
        self._state = state
        self._changed()

    def _changed(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One generation, from its container to its removal.

        Ready is when the agent says so, or, for one of which that is not demanded, when its container runs. Returns
        when it was asked to stop; raises GenerationEndedError when it ended otherwise, and what preparing raises.
        """
        self.moved(State.STARTING)
        try:
            # it listens first: a container is made around the directory of the socket, and may connect at once
            async with self.socket.listen() as listener, self._container() as (running, grant, adopted):
                await self._live(listener, running, grant, adopted, task_status)
        except (ArmorclawError, GenerationEndedError) as error:
            self.trouble = error
            self.last_end = str(error)
            self.moved(State.RESTARTING)
            raise
        except BaseException:
            self.moved(State.STOPPED)
            raise
        self.moved(State.STOPPED)

    @asynccontextmanager
    async def _container(self) -> AsyncIterator[tuple[Running, SecretGrant, bool]]:
        """The survivor of an earlier bridge if it is still what is declared, else a new container."""
        house = self._house
        runtime = await house.runtime_for(self.declared)
        spec = await house.spec_for(self.declared, runtime, self.socket)
        payload = await house.secrets_for(self.declared)
        found, self.survivor = self.survivor, None
        if found is not None and found.running and found.digest == spec.digest():
            async with runtime.adopt(found) as running:
                yield running, SecretGrant.taken_before(payload), True
            return
        if found is not None:
            await runtime.discard(found)
        async with runtime.launch(spec) as running:
            yield running, SecretGrant(payload), False

    async def _live(
        self,
        listener: trio.SocketListener,
        running: Running,
        grant: SecretGrant,
        adopted: bool,
        task_status: trio.TaskStatus[None],
    ) -> None:
        house = self._house
        self.generations += 1
        try:
            async with trio.open_nursery() as nursery:
                now = house.around.clock.now_ms()
                generation = Generation(self.generations, running, grant, adopted, now, nursery, self._changed)
                self.generation = generation
                await nursery.start(partial(house.listen, self, generation, listener))
                if not adopted:
                    await running.start()
                self.moved(State.RUNNING)
                await house.note(self, "agent.adopted" if adopted else "agent.started", container=running.id)
                nursery.start_soon(self._watch_end, generation)
                if await self._is_ready_in_time(generation):
                    task_status.started()
        finally:
            grant.revoke()
            self.generation = None
        self.last_end = generation.end or ""
        await house.note(self, "agent.ended", container=running.id, why=self.last_end)
        if not generation.stopping:
            raise GenerationEndedError(self.last_end)

    async def _is_ready_in_time(self, generation: Generation) -> bool:
        patience = self.declared.ready_timeout
        if patience:
            with trio.move_on_after(patience) as waiting:
                await generation.ready.wait()
            if waiting.cancelled_caught:
                generation.finish(f"not ready within {patience:g} s")
                return False
        return True

    async def _watch_end(self, generation: Generation) -> None:
        """The container's end is the generation's. Losing the engine is not: the agent may well live on."""
        pause, longest = ENGINE_RETRY
        while True:
            try:
                end: Exit = await generation.running.wait()
            except ArmorclawError as error:
                if error.name != "engine_unreachable":
                    generation.finish(str(error))
                    return
                if self._state is not State.UNKNOWN:
                    log.warning("engine lost; its containers may live on", agent=self.name, why=str(error))
                    self.moved(State.UNKNOWN)
                await trio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                generation.finish(end.text)
                return

    def ask_stop(self) -> None:
        """For the supervisor: the polite half of stopping."""
        if self.generation is not None:
            self.generation.ask_stop(STOP_GRACE)

    # -- what the agent itself asks, over its socket

    def take_secrets(self, call: Call, via: str) -> dict[str, object]:
        """The keys granted to it, once per generation. Raises secrets_taken the second time."""
        generation = self._living()
        if via == "inline":
            return {"secrets": generation.grant.take_inline()}
        fd, size = generation.grant.take_fd()
        call.attach_fd(fd)
        return {"size": size, "fds": 1}

    def become_ready(self, call: Call, fingerprint: str | None) -> None:
        """`call`'s connection is the session. A fingerprint of other secrets than are granted now ends the generation."""
        generation = self._living()
        if fingerprint is not None and not generation.grant.confirms(fingerprint):
            generation.finish("its secrets are not those granted now")
            return
        generation.open_session(call.peer)

    def _living(self) -> Generation:
        if self.generation is None:
            raise ArmorclawError("unavailable", f"agent {self.name} is between two starts")
        return self.generation


@attrs.frozen
class Standing:
    """How an agent stands, for status and lists."""

    name: str
    state: str
    runtime: str
    image: str | None
    container_id: str | None
    generation: int
    since_ms: int | None
    ready: bool
    last_end: str
    rooms: list[str]
    account: str

    @classmethod
    def of(cls, agent: Agent, rooms: list[str], state: Callable[[Agent], str]) -> Standing:
        generation = agent.generation
        return cls(
            name=agent.name,
            state=state(agent),
            runtime=agent.declared.runtime,
            image=agent.declared.image,
            container_id=generation.running.id if generation else None,
            generation=agent.generations,
            since_ms=generation.since_ms if generation else None,
            ready=generation.is_ready if generation else False,
            last_end=agent.last_end,
            rooms=rooms,
            account=agent.declared.account,
        )
