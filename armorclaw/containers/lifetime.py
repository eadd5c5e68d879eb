"""How long agents run: those whose time is over are stopped, the idle are put to sleep, and woken for work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager

import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.ends import Cause
from armorclaw.containers.services import Work
from armorclaw.containers.states import State
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

TICK = 0.5
"""Seconds between two looks at all agents: how exactly their times are kept."""

WAKE_PATIENCE = 3.5
"""Seconds that a call waits for a sleeping agent's session; the caller gives up after 4 to 5."""

Stop = Callable[[Agent, Cause, str], Awaitable[object]]


class Lifetimes:
    """One task keeps the times of all agents.

    Asleep, an agent has no container and its place in the journal is kept. Work for it is an event that it has not
    acknowledged, whether it was given to it before or not: so none can come too late to keep it awake and too early
    to wake it.
    """

    def __init__(self, agents: Callable[[], Sequence[Agent]], work: Work, stop: Stop) -> None:
        self._agents = agents
        self._work = work
        self._stop = stop
        self._begun: dict[str, float] = {}  # Trio's time from which the lifetime counts
        self._since: dict[str, float] = {}  # when its container began to run
        self._asked: Counter[str] = Counter()  # calls of others to it that are under way
        self._bells: dict[str, trio.Event] = {}  # of those that sleep or are about to: set to wake
        self._busy_until: dict[str, float] = {}  # events waited for it: not looked for again before
        self._ending: set[str] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for agent in self._agents():
                    ended = await self._due(agent)
                    if ended is not None:
                        nursery.start_soon(self._end, agent, *ended)
                await trio.sleep(TICK)

    # -- what the fleet tells

    def begin(self, agent: Agent, age: float = 0.0) -> None:
        """Its container runs; `age` is for how many seconds an adopted one has."""
        now = trio.current_time()
        self._since[agent.name] = now
        self._begun.setdefault(agent.name, now - age)
        self._bells.pop(agent.name, None)

    def renew(self, agent: Agent) -> None:
        """It is started by hand, or stopped: its lifetime is over or begins anew, and it does not sleep any more."""
        self._begun.pop(agent.name, None)
        self._bells.pop(agent.name, None)

    def forget(self, agent: Agent) -> None:
        """Nobody knows it any more."""
        for kept in (self._begun, self._since, self._bells, self._busy_until):
            kept.pop(agent.name, None)

    def is_asleep(self, agent: Agent) -> bool:
        """Whether it sleeps, or is on its way there."""
        return agent.name in self._bells and agent.wanted

    # -- sleeping and waking

    async def until_work(self, agent: Agent) -> None:
        """Until a sleeping agent is needed: an event waits for it, or `wake` was called since it was put to sleep."""
        bell = self._bells.setdefault(agent.name, trio.Event())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ring_for_work, agent, bell)
            await bell.wait()
            nursery.cancel_scope.cancel(reason="it is woken")

    async def _ring_for_work(self, agent: Agent, bell: trio.Event) -> None:
        await self._work.until_work(agent.name)
        bell.set()

    def wake(self, agent: Agent) -> None:
        """Somebody needs it: one that is on its way to sleep is woken when it is there."""
        bell = self._bells.get(agent.name)
        if bell is not None:
            bell.set()

    @contextmanager
    def asking(self, agent: Agent) -> Iterator[None]:
        """A call to it is under way: it is not idle meanwhile."""
        self._asked[agent.name] += 1
        try:
            yield
        finally:
            self._asked[agent.name] -= 1
            if not self._asked[agent.name]:
                del self._asked[agent.name]
            agent.worked()

    async def until_awake(self, agent: Agent) -> None:
        """Wake it if it sleeps, and wait for its session, or for WAKE_PATIENCE."""
        if not self.is_asleep(agent):
            return
        self.wake(agent)
        with trio.move_on_after(WAKE_PATIENCE):
            while agent.wanted and (self.is_asleep(agent) or not _has_session(agent)):
                await agent.progress.wait()

    # -- inside

    async def _due(self, agent: Agent) -> tuple[Cause, str] | None:
        """Why it is to end now."""
        declared, now = agent.declared, trio.current_time()
        if agent.name in self._ending or not agent.wanted:
            return None
        begun = self._begun.get(agent.name)
        if declared.lifetime and begun is not None and now - begun >= declared.lifetime:
            return "lifetime", f"its lifetime of {declared.lifetime:g} s is over"
        if not declared.idle_timeout or not self._is_idle(agent, now):
            return None
        try:
            waits = await self._work.has_work(agent.name)
        except ArmorclawError as error:
            log.warning("cannot tell whether an agent is idle", agent=agent.name, why=str(error))
            waits = True
        if waits:
            self._busy_until[agent.name] = now + min(declared.idle_timeout, 60.0)
        if waits or not self._is_idle(agent, trio.current_time()):
            return None
        return "idle", f"no work for {declared.idle_timeout:g} s"

    def _is_idle(self, agent: Agent, now: float) -> bool:
        serves = agent.state is State.READY or (agent.state is State.RUNNING and not agent.declared.ready_timeout)
        if not serves or agent.name in self._asked:
            return False
        if now < self._busy_until.get(agent.name, 0.0) or self._work.unsettled(agent.name)[0]:
            return False
        return now - max(agent.last_work, self._since.get(agent.name, now)) >= agent.declared.idle_timeout

    async def _end(self, agent: Agent, cause: Cause, why: str) -> None:
        self._ending.add(agent.name)
        try:
            if cause == "idle" and agent.declared.on_idle == "sleep":
                self._bells[agent.name] = trio.Event()
                agent.sleep(why)
            else:
                await self._stop(agent, cause, why)
        except ArmorclawError as error:
            log.error("agent not stopped", agent=agent.name, why=str(error))
        finally:
            self._ending.discard(agent.name)


def _has_session(agent: Agent) -> bool:
    return agent.generation is not None and agent.generation.session is not None
