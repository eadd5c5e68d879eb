"""What an earlier life of the bridge, or of the agents' supervisor, left in engines: adopted, or removed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from armorclaw.clock import Surroundings
from armorclaw.containers.agent import Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.house import Survivor
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.spec import Found
from armorclaw.containers.states import AT_REST, State
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

LOOK_PAUSES = (1.0, 60.0)
"""Seconds until an engine that did not answer is asked again for what was left there: the first, the most."""


class Survivors:
    """Looks through each engine before anything is launched there, and again whenever it was away.

    No orphan is left: a container that carries our label and that nobody holds is its agent's, or goes. An engine
    that is down is asked again until it answers, whether an agent needs it or not.
    """

    def __init__(self, runtimes: Runtimes, instance: str, agents: Mapping[str, Agent], around: Surroundings) -> None:
        self.ours: dict[str, str] = {}
        """By agent, the container that this very bridge ran last: left by its supervisor, not by another bridge."""
        self.sockets: dict[str, tuple[Runtime, AgentSocket]] = {}
        """By agent, those left with an engine that was lost when their agents ended."""
        self.on_look: Callable[[Runtime], None] = lambda runtime: None
        """Called when an engine was looked through for the first time."""
        self._runtimes = runtimes
        self._instance = instance
        self._agents = agents
        self._around = around
        self._made_ms: dict[str, int] = {}  # by container, of those to adopt
        self._looked: list[Runtime] = []
        self._looking: dict[int, trio.Lock] = {}  # by identity; each runtime is kept until `forget`

    def age_of(self, container: str) -> float:
        """How many seconds ago an adopted container was made; 0 if that is not known."""
        made = self._made_ms.get(container)
        return 0.0 if made is None else max(0.0, (self._around.clock.now_ms() - made) / 1000)

    def forget(self) -> None:
        """All runtimes are closed: the next ones are to be looked through again."""
        self._looked.clear()
        self._looking.clear()
        self._made_ms.clear()

    async def look_at(self, kind: str) -> None:
        """Look through the engine of that kind, as soon as it answers."""
        pause, longest = LOOK_PAUSES
        while True:
            try:
                await self.look(await self._runtimes.get(kind))
                return
            except ArmorclawError as error:
                quiet = error.name == "engine_unreachable"  # most hosts have one engine, or none
                (log.debug if quiet else log.error)("cannot look for earlier containers", engine=kind, why=str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, longest)

    async def look(self, runtime: Runtime) -> None:
        """The first look: before anything is launched there, so that what is found is from an earlier life."""
        if not runtime.survives:
            return
        async with self._looking.setdefault(id(runtime), trio.Lock()):
            if any(runtime is one for one in self._looked):
                return
            for found in await runtime.survivors(self._instance):
                agent = self._agents.get(found.name)
                if agent is not None and self._may_adopt(agent, runtime, found):
                    agent.survivor = Survivor(runtime, found)
                    if found.made_ms is not None:
                        self._made_ms[found.id] = found.made_ms
                else:
                    await _discard(runtime, found)
            self._looked.append(runtime)
        self.on_look(runtime)

    async def look_again(self, runtime: Runtime) -> None:
        """After the engine was away: what could not be removed meanwhile goes. What is being launched is let be."""
        for found in await runtime.survivors(self._instance):
            agent = self._agents.get(found.name)
            if agent is not None and agent.survivor is not None and agent.survivor.found.id == found.id:
                continue
            if agent is None or _has_another(agent, found) or _rests(agent):
                await _discard(runtime, found)
        for name, (where, socket) in list(self.sockets.items()):
            if where is runtime:
                del self.sockets[name]
                agent = self._agents.get(name)
                if agent is None or _rests(agent):  # else its next life has it, and removes it
                    _remove(socket)

    def _may_adopt(self, agent: Agent, runtime: Runtime, found: Found) -> bool:
        left_here = self.ours.get(agent.name) == found.id
        free = agent.wanted and agent.survivor is None and agent.generation is None
        wished = left_here or agent.declared.on_restart == "adopt"
        return free and wished and found.running and self._runtimes.may_be_for(agent.declared, runtime)


def _has_another(agent: Agent, found: Found) -> bool:
    # it may have been given this very one since the engine was asked
    return agent.generation is not None and agent.generation.running.id != found.id


def _rests(agent: Agent) -> bool:
    # one that is to be started again removes by itself what is in its way, and may be about to
    return agent.state in AT_REST and agent.state is not State.RESTARTING


def _remove(socket: AgentSocket) -> None:
    try:
        socket.remove()
    except OSError as error:
        log.error("socket not removed", agent=socket.name, path=str(socket.path), why=error.strerror)


async def _discard(runtime: Runtime, found: Found) -> None:
    log.info("removing a container that is nobody's", container=found.id[:12], agent=found.name)
    try:
        await runtime.discard(found)
    except ArmorclawError as error:
        log.error("container not removed", container=found.id[:12], why=str(error))


async def discard_all(runtimes: Runtimes, instance: str) -> None:
    """Remove every container of this installation, from all engines that answer; nobody may hold one."""
    for runtime in await runtimes.every_engine():
        try:
            for found in await runtime.survivors(instance):
                await _discard(runtime, found)
        except ArmorclawError as error:
            log.error("cannot look for containers", runtime=runtime.kind, why=str(error))
