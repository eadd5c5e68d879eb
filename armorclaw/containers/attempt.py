"""One attempt to have an agent run: its socket, its container, made or adopted, its life, and its removal."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from armorclaw.containers.ends import Reason
from armorclaw.containers.generation import Generation
from armorclaw.containers.health import in_time
from armorclaw.containers.house import House
from armorclaw.containers.launch import Launch
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.spec import ContainerSpec
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.log import get_logger
from armorclaw.supervision import in_words

if TYPE_CHECKING:
    from armorclaw.containers.agent import Agent

log = get_logger(__name__)

ENGINE_RETRY = (0.1, 2.0)
"""Seconds between attempts to reach a lost engine: the first, the most."""

SETTLING = 1.0
"""Seconds for which an agent that starts up keeps its turn, unless it is ready before: starting up takes more of the
machine than making its container, and others are not to suffer from many that do."""


@attrs.frozen
class _Made:
    """A container that is there, perhaps not running yet."""

    runtime: Runtime
    running: Running
    digest: str
    grant: SecretGrant
    adopted: bool


class Attempt:
    """Lives one generation. `ready` is called when the agent is, at most once."""

    def __init__(self, agent: Agent, house: House, launch: Launch, ready: Callable[[], None]) -> None:
        self._agent = agent
        self._house = house
        self._launch = launch
        self._ready = ready
        self._declared = agent.declared
        self._socket = agent.socket
        self._lost_to: Runtime | None = None  # where a container may live on that could not be removed
        self._handed_over = False
        self._runs_since = 0.0

    async def run(self) -> Reason:
        """From the socket to the removal of the container; why it ended, or was ended.

        Raises what keeps it from running; however it is left, secrets are overwritten, and the container and its
        socket are gone, unless they are handed over.
        """
        # it listens first: a container is made around the directory of the socket, and may connect at once
        listener = self._socket.listen()
        try:
            async with listener, self._container() as made:
                return await self._live(listener, made)
        finally:
            if self._lost_to is not None:  # a container may live on that has it mounted
                self._house.leave_socket(self._lost_to, self._socket)
            elif not self._handed_over:
                self._remove_socket()

    @asynccontextmanager
    async def _container(self) -> AsyncIterator[_Made]:
        """The survivor of an earlier bridge if it is still what is declared, else a new container."""
        house, agent = self._house, self._agent
        try:
            runtime = await house.runtime_for(self._declared)
            spec = await house.spec_for(self._declared, runtime, self._socket)
        except BaseException as error:
            if not is_engine_lost(error):
                await agent.discard_survivor()
            raise
        async with AsyncExitStack() as stack:
            running = await self._adopt(runtime, spec, stack)
            payload = await house.secrets_for(self._declared)
            adopted = running is not None
            grant = SecretGrant.taken_before(payload) if adopted else SecretGrant(payload)
            stack.callback(grant.revoke)
            if running is None:
                async with house.launching(runtime):
                    running = await stack.enter_async_context(runtime.launch(spec))
            yield _Made(runtime, running, spec.digest(), grant, adopted)

    async def _adopt(self, runtime: Runtime, spec: ContainerSpec, stack: AsyncExitStack) -> Running | None:
        """What survived, if it is what would be launched; anything else is removed."""
        agent = self._agent
        survivor = agent.survivor
        if survivor is None:
            return None
        if survivor.runtime is not runtime or survivor.found.digest != spec.digest():
            await agent.discard_survivor()
            return None
        try:
            running = await stack.enter_async_context(runtime.adopt(survivor.found))
        except ArmorclawError as error:
            if error.name != "container_not_found":
                raise
            running = None
        agent.survivor = None
        return running

    async def _live(self, listener: trio.SocketListener, made: _Made) -> Reason:
        agent, house, running = self._agent, self._house, made.running
        began = trio.current_time()
        crash: Exception | None = None
        generation: Generation | None = None
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    generation = self._new_generation(made, nursery)
                    await nursery.start(partial(house.listen, agent, generation, listener))
                    if made.adopted:
                        self._begin(generation)
                    else:
                        async with house.launching(made.runtime):
                            await running.start()
                            self._begin(generation)
                            with trio.move_on_after(min(SETTLING, self._declared.ready_timeout)):
                                await generation.ready.wait()
                    if await self._is_ready_in_time(generation):
                        self._ready()
        except Exception as error:
            crash = error
            raise
        finally:
            made.grant.revoke()
            reason = self._end(generation, crash, trio.current_time() - began)
        return reason

    def _begin(self, generation: Generation) -> None:
        """Its container runs."""
        self._runs_since = trio.current_time()
        agent, nursery = self._agent, generation.nursery
        self._launch.settle()
        generation.tell(Fact.RUNS)
        nursery.start_soon(self._watch_end, generation)
        nursery.start_soon(agent.heartbeat_of(generation).run)
        agent.tell("agent.adopted" if generation.adopted else "agent.started", container=generation.running.id)

    def _new_generation(self, made: _Made, nursery: trio.Nursery) -> Generation:
        agent, house = self._agent, self._house
        agent.generations += 1
        agent.generation = Generation(
            agent.generations,
            made.runtime,
            made.running,
            made.digest,
            made.grant,
            made.adopted,
            house.around.clock.now_ms(),
            nursery,
            agent.learn,
            self._declared.health.reconnect,
            partial(house.reading_now, agent),
        )
        return agent.generation

    def _end(self, generation: Generation | None, crash: Exception | None, ran: float) -> Reason:
        """Say and keep why it ended, unless its container stays for another life of the bridge."""
        agent = self._agent
        if generation is None:
            return Reason("bridge", "never came to be")
        agent.generation = None
        if generation.engine_lost:
            self._lost_to = generation.runtime
        reason = generation.reason
        if reason is None and crash is None and agent.hands_over(generation):
            self._handed_over = True
            generation.running.release()
            return Reason("bridge", "handed over")
        if reason is None:
            if crash is None:
                reason = generation.ordered or agent.ordered
            else:
                reason = Reason("engine" if isinstance(crash, ArmorclawError) else "bridge", words(crash))
                agent.learn(Fact.EXITED, reason.text)
        elif generation.stopping:  # it ended because it was told to
            order = generation.ordered or agent.ordered
            text = order.text if _heeded(reason) else f"{order.text}, {reason.text}"
            reason = Reason(order.cause, text, reason.exit)
        agent.ended(generation, reason, ran)
        return reason

    async def _is_ready_in_time(self, generation: Generation) -> bool:
        """Whether the agent has said it is ready; at once true for one of which that is not demanded (0).

        One that was adopted has said so long ago, and has but to come back.
        """
        patience = self._declared.ready_timeout
        if not patience:
            return True
        if generation.adopted:
            await generation.await_session()
            return generation.reason is None
        left = self._runs_since + patience - trio.current_time()
        while not await in_time(generation.ready, left):
            if not generation.engine_lost:  # else it could not be removed
                generation.finish("never ready", f"not ready within {patience:g} s")
                return False
            left = patience
        return generation.reason is None

    async def _watch_end(self, generation: Generation) -> None:
        """The container's end is the generation's. Losing the engine is not: the agent may well live on."""
        pause, longest = ENGINE_RETRY
        while True:
            try:
                end = await generation.running.wait()
            except ArmorclawError as error:
                if not is_engine_lost(error):
                    generation.finish("engine", str(error))
                    return
                generation.lose_engine(str(error))
            else:
                generation.exited(end)
                return
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
            if await _answers(generation.runtime):  # what became of the container, the next wait tells
                generation.have_engine_back()

    def _remove_socket(self) -> None:
        socket = self._socket
        try:
            socket.remove()
        except OSError as error:
            log.error("socket not removed", agent=self._agent.name, path=str(socket.path), why=error.strerror)


def _heeded(reason: Reason) -> bool:
    """Whether one that was asked to end did as it should."""
    return reason.exit is not None and (reason.exit.code == 0 or reason.exit.signal == signal.SIGTERM)


async def _answers(runtime: Runtime) -> bool:
    try:
        await runtime.ping()
    except ArmorclawError as error:
        return not is_engine_lost(error)
    return True


def is_engine_lost(error: BaseException) -> bool:
    """Whether this says nothing of the agent, but that its engine cannot be reached."""
    return isinstance(error, ArmorclawError) and error.name == "engine_unreachable"


def words(error: Exception) -> str:
    """An error in one line for people."""
    return str(error) if isinstance(error, ArmorclawError) else in_words(error)
