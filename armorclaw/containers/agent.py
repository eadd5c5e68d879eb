"""One agent over its generations: what it is to run, what runs now, and why the last one ended."""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Protocol

import attrs
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.generation import Generation, GenerationEndedError
from armorclaw.containers.launch import Launch
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.shapes import Standing
from armorclaw.containers.spec import ContainerSpec, Found
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.log import get_logger
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.supervision import ChildChange, ChildState, in_words

log = get_logger(__name__)

STOP_GRACE = 4.5
"""Seconds a container has to end after it was asked to; then it is killed. Its handlers get 4."""

ENGINE_RETRY = (0.1, 2.0)
"""Seconds between attempts to reach a lost engine: the first, the most."""

NOTE_PATIENCE = 1.0
"""Seconds the record of an end may take while everything is being stopped."""

DISCARD_PATIENCE = 10.0
"""Seconds the removal of a survivor that will not be adopted may take while its agent is being stopped."""


class State(enum.StrEnum):
    """What an agent is, as clients read it."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    READY = "ready"
    SUSPECT = "suspect"  # it runs, but its session broke
    UNKNOWN = "unknown"  # its engine is lost, it may run
    RESTARTING = "restarting"  # it ended, or could not start, and will be tried again
    STOPPING = "stopping"
    FAILED = "failed"  # given up; `start` tries again


RUNS = frozenset({State.RUNNING, State.READY, State.SUSPECT, State.UNKNOWN})
AT_REST = frozenset({State.STOPPED, State.RESTARTING, State.FAILED})
"""There is no container, and none is being made."""

_TOLD = {
    ChildState.STARTING: State.STARTING,
    ChildState.BACKING_OFF: State.RESTARTING,
    ChildState.STOPPING: State.STOPPING,
    ChildState.STUCK: State.STOPPING,
    ChildState.STOPPED: State.STOPPED,
    ChildState.FINISHED: State.STOPPED,
    ChildState.FAILED: State.FAILED,
}


@attrs.frozen
class Survivor:
    """A container that an earlier life of the bridge left, and where."""

    runtime: Runtime
    found: Found


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


@attrs.frozen
class _Made:
    """A container that is there, perhaps not running yet."""

    runtime: Runtime
    running: Running
    digest: str
    grant: SecretGrant
    adopted: bool


class Agent:
    """A declared agent, the same object for as long as its name is known. `run` is what its supervisor restarts.

    Where it stands is told by two: by its supervisor, through `told`, between generations and when it is to end; by
    itself while a container runs.
    """

    def __init__(self, declared: config.Agent, socket: AgentSocket, house: House) -> None:
        self.declared = declared
        """Read once at the beginning of each generation."""
        self.name = declared.name
        self.socket = socket
        self.wanted = True
        """Whether it is to run; false once stopped by hand."""
        self.generation: Generation | None = None
        self.generations = 0
        self.last_end = ""
        self.removed = False
        """Whether nobody knows it any more."""
        self.survivor: Survivor | None = None
        self.launch = Launch()
        self.progress = trio.Event()
        """Set, and replaced, at each change of `state`."""
        self._house = house
        self._state = State.STOPPED
        self._engine_lost = False

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

    @property
    def runs(self) -> bool:
        """Whether it has a container that was made to run."""
        return self.generation is not None and self.state in RUNS

    @property
    def session(self) -> Peer:
        """The connection to ask it over. Raises `unavailable`."""
        generation = self._living()
        if generation.session is None:
            raise ArmorclawError("unavailable", f"agent {self.name} has no session", why=f"it is {self.state}")
        return generation.session

    def remove(self) -> None:
        """It is known no more."""
        self.removed = True
        self._changed()

    async def choose_runtime(self) -> Runtime:
        """Where it would run. Raises `engine_unreachable`, `runtime_missing`."""
        return await self._house.runtime_for(self.declared)

    def told(self, change: ChildChange) -> None:
        """What the supervisor makes of it. That it is ready for the supervisor says nothing new."""
        state = _TOLD.get(change.state)
        if state is None:
            return
        if state is State.STOPPING and self.launch.taken:
            self.launch = Launch()  # whoever asks for a start from now on means the next one
        elif state in (State.STOPPED, State.FAILED):
            self.launch.settle(self._stopped())
            self.launch = Launch()
        self._moved(state)

    def _moved(self, state: State) -> None:
        self._state = state
        self._changed()

    def _changed(self) -> None:
        self.progress.set()
        self.progress = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One generation, from its container to its removal.

        Ready is when the agent says so, or, for one of which that is not demanded, when its container runs. An engine
        that cannot be reached, or a key that nobody has stored yet, is no fault of the agent: it is waited for,
        however long.

        Resource handling: however it ends, the container is removed, its secrets are overwritten, the socket is gone.

        Error handling: returns when it was asked to stop; raises GenerationEndedError when it ended otherwise, and
        what preparing raises.
        """
        pause, longest = ENGINE_RETRY
        while True:
            launch = self.launch
            try:
                with one_error():
                    await self._attempt(launch, task_status)
                return
            except Exception as error:
                self.last_end = _words(error)
                launch.settle(error)
                if launch.came_off or not isinstance(error, ArmorclawError) or error.name not in _WAITED_FOR:
                    raise
                if pause == ENGINE_RETRY[0]:
                    log.warning("agent waits", agent=self.name, why=str(error), hint=error.hint)
                self._moved(State.RESTARTING)
            finally:
                launch.settle(self._stopped())
                if self.launch is launch:
                    self.launch = Launch()
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
            self._moved(State.STARTING)

    async def _attempt(self, launch: Launch, task_status: trio.TaskStatus[None]) -> None:
        launch.taken = True
        self._engine_lost = False
        declared, socket = self.declared, self.socket
        # it listens first: a container is made around the directory of the socket, and may connect at once
        listener = socket.listen()
        try:
            async with listener, self._container(declared, socket) as made:
                await self._live(declared, listener, made, launch, task_status)
        finally:
            if not self._engine_lost:  # else a container may live on that has the directory mounted
                self._remove(socket)

    @asynccontextmanager
    async def _container(self, declared: config.Agent, socket: AgentSocket) -> AsyncIterator[_Made]:
        """The survivor of an earlier bridge if it is still what is declared, else a new container."""
        house = self._house
        try:
            runtime = await house.runtime_for(declared)
            spec = await house.spec_for(declared, runtime, socket)
        except BaseException as error:
            if not _is_engine_lost(error):
                await self.discard_survivor()
            raise
        async with AsyncExitStack() as stack:
            running = await self._adopt(runtime, spec, stack)
            payload = await house.secrets_for(declared)
            adopted = running is not None
            grant = SecretGrant.taken_before(payload) if adopted else SecretGrant(payload)
            stack.callback(grant.revoke)
            if running is None:
                running = await stack.enter_async_context(runtime.launch(spec))
            yield _Made(runtime, running, spec.digest(), grant, adopted)

    async def _adopt(self, runtime: Runtime, spec: ContainerSpec, stack: AsyncExitStack) -> Running | None:
        """What survived, if it is what would be launched; anything else is removed."""
        survivor = self.survivor
        if survivor is None:
            return None
        if survivor.runtime is not runtime or survivor.found.digest != spec.digest():
            await self.discard_survivor()
            return None
        try:
            running = await stack.enter_async_context(runtime.adopt(survivor.found))
        except ArmorclawError as error:
            if error.name != "container_not_found":
                raise
            running = None
        self.survivor = None
        return running

    async def discard_survivor(self) -> None:
        """Remove what an earlier bridge left of this agent; if that fails, the log says so."""
        survivor, self.survivor = self.survivor, None
        if survivor is None:
            return
        with trio.move_on_after(DISCARD_PATIENCE, shield=True) as scope:
            try:
                await survivor.runtime.discard(survivor.found)
            except ArmorclawError as error:
                log.error("container not removed", container=survivor.found.id, why=str(error))
        if scope.cancelled_caught:
            log.error("container not removed", container=survivor.found.id, why=f"not in {DISCARD_PATIENCE:g} s")

    async def _live(
        self,
        declared: config.Agent,
        listener: trio.SocketListener,
        made: _Made,
        launch: Launch,
        task_status: trio.TaskStatus[None],
    ) -> None:
        house, running = self._house, made.running
        self.generations += 1
        generation: Generation | None = None
        why = "stopped"
        try:
            async with trio.open_nursery() as nursery:
                now = house.around.clock.now_ms()
                generation = self.generation = Generation(
                    self.generations,
                    made.runtime,
                    running,
                    made.digest,
                    made.grant,
                    made.adopted,
                    now,
                    nursery,
                    self._changed,
                )
                await nursery.start(partial(house.listen, self, generation, listener))
                if not made.adopted:
                    await running.start()
                launch.settle()
                if self._state is State.STARTING:  # unless it is to end by now
                    self._moved(State.RUNNING)
                nursery.start_soon(self._watch_end, generation, made.runtime)
                await house.note(self, "agent.adopted" if made.adopted else "agent.started", container=running.id)
                if await _is_ready_in_time(generation, declared.ready_timeout):
                    task_status.started()
            why = generation.end or why
        except Exception as error:
            why = _words(error)
            raise
        finally:
            made.grant.revoke()
            self.generation = None
            self.last_end = why
            self._changed()
            with trio.move_on_after(NOTE_PATIENCE, shield=True):
                await house.note(self, "agent.ended", container=running.id, why=why)
        if not generation.stopping:
            raise GenerationEndedError(why)

    async def _watch_end(self, generation: Generation, runtime: Runtime) -> None:
        """The container's end is the generation's. Losing the engine is not: the agent may well live on."""
        pause, longest = ENGINE_RETRY
        while True:
            try:
                end = await generation.running.wait()
            except ArmorclawError as error:
                if not _is_engine_lost(error):
                    generation.finish(str(error))
                    return
                self._lose_engine(error)
            else:
                generation.finish(end.text)
                return
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
            if await _answers(runtime):  # what became of the container, the next wait tells
                self._engine_lost = False
                if self._state is State.UNKNOWN:
                    self._moved(State.RUNNING)

    def _lose_engine(self, error: ArmorclawError) -> None:
        self._engine_lost = True
        if self._state is State.RUNNING:
            log.warning("engine lost; its containers may live on", agent=self.name, why=str(error))
            self._moved(State.UNKNOWN)

    def _remove(self, socket: AgentSocket) -> None:
        try:
            socket.remove()
        except OSError as error:
            log.error("socket not removed", agent=self.name, path=str(socket.path), why=error.strerror)

    def _stopped(self) -> ArmorclawError:
        return ArmorclawError("conflict", f"agent {self.name} was stopped while it started")

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
        if not call.peer.passes_fds:  # before anything is taken
            raise ArmorclawError("invalid_request", "no descriptor can be sent here", hint='ask for them "inline"')
        fd, size = generation.grant.take_fd()
        call.attach_fd(fd)
        return {"size": size, "fds": 1}

    def become_ready(self, call: Call, fingerprint: str | None) -> None:
        """`call`'s connection is the session.

        A fingerprint of other secrets than are granted now ends the generation, for the next to take the right ones;
        raises `conflict`.
        """
        generation = self._living()
        if not isinstance(call.peer, Peer):
            raise ArmorclawError("invalid_request", "a session needs a connection of its own")
        # without a fingerprint it has not taken any: right as long as it still can, or has none to take
        without = fingerprint is None and (not generation.adopted or not self.declared.keys)
        if not without and not generation.grant.confirms(fingerprint):
            generation.finish("its secrets are not those granted now")
            raise ArmorclawError("conflict", "the secrets are not those granted now", hint="it is started again")
        generation.open_session(call.peer)

    def standing(self, rooms: list[str]) -> Standing:
        """How it stands now, granted these rooms."""
        generation = self.generation
        return Standing(
            name=self.name,
            state=self.state.value,
            runtime=self.declared.runtime,
            image=self.declared.image,
            container_id=generation.running.id if generation else None,
            generation=self.generations,
            since_ms=generation.since_ms if generation else None,
            ready=generation.is_ready if generation else False,
            last_end=self.last_end,
            rooms=rooms,
            account=self.declared.account,
        )

    def _living(self) -> Generation:
        if self.generation is None:
            raise ArmorclawError("unavailable", f"agent {self.name} is between two starts")
        return self.generation


async def _is_ready_in_time(generation: Generation, patience: float) -> bool:
    """Whether the agent has said it is ready; at once true for one of which that is not demanded (0)."""
    if patience:
        with trio.move_on_after(patience) as waiting:
            await generation.ready.wait()
        if waiting.cancelled_caught:
            generation.finish(f"not ready within {patience:g} s")
            return False
    return True


async def _answers(runtime: Runtime) -> bool:
    try:
        await runtime.check()
    except ArmorclawError as error:
        return not _is_engine_lost(error)
    return True


_WAITED_FOR = frozenset({"engine_unreachable", "key_not_found"})


def _is_engine_lost(error: BaseException) -> bool:
    return isinstance(error, ArmorclawError) and error.name == "engine_unreachable"


def _words(error: Exception) -> str:
    return str(error) if isinstance(error, (ArmorclawError, GenerationEndedError)) else in_words(error)
