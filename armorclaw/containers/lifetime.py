"""How long agents run: those whose time is over are stopped, the idle are put to sleep, and woken for work."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import attrs
import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.ends import Cause
from armorclaw.containers.services import Work
from armorclaw.containers.states import RUNS, State
from armorclaw.log import get_logger
from armorclaw.supervision import in_words

log = get_logger(__name__)

TICK = 0.5
"""Seconds between two looks at all agents: how exactly their times are kept."""

AGAIN = 5.0
"""Seconds until one that could not be stopped, for want of the store, is tried again."""

WAKE_PATIENCE = 3.5
"""Seconds that a call waits for a sleeping agent's session; the caller gives up after 4 to 5."""

Stop = Callable[[Agent, Cause, str], Awaitable[object]]


@attrs.define(eq=False)
class _Times:
    """Those of one agent, on Trio's clock."""

    begun: float | None = None
    """From when its lifetime counts."""
    since: float = math.inf
    """When its container began to run."""
    busy_until: float = 0.0
    """Events waited for it: not looked for again before."""
    again_at: float = 0.0
    """It could not be stopped: not tried again before."""
    asked: int = 0
    """Calls of others to it that are under way."""
    bell: trio.Event | None = None
    """From when it is told to sleep until it is awake, has failed or is stopped: set to wake it."""
    ending: bool = False


class Lifetimes:
    """Keeps the times of all agents.

    Asleep, an agent has no container and its place in the journal is kept. Work for it is an event that it has not
    acknowledged, whether it was given to it before or not: so none can come too late to keep it awake and too early
    to wake it.
    """

    def __init__(self, agents: Callable[[], Sequence[Agent]], work: Work, stop: Stop) -> None:
        self._agents = agents
        self._work = work
        self._stop = stop
        self._times: WeakKeyDictionary[Agent, _Times] = WeakKeyDictionary()

    async def end_the_old(self) -> None:
        """Stop those whose lifetime is over, until cancelled. The store is asked for nothing to know them."""
        async with trio.open_nursery() as nursery:
            while True:
                for agent in self._agents():
                    if self._is_over(agent):
                        why = f"its lifetime of {agent.declared.lifetime:g} s is over"
                        nursery.start_soon(self._end, agent, "lifetime", why)
                await trio.sleep(TICK)

    async def end_the_idle(self) -> None:
        """Put those to sleep, or stop them, that had no work for their `idle_timeout`; until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                for agent in self._agents():
                    if self._is_idle(agent) and not await self._has_work(agent) and self._is_idle(agent):
                        why = f"no work for {agent.declared.idle_timeout:g} s"
                        nursery.start_soon(self._end, agent, "idle", why)
                await trio.sleep(TICK)

    # -- what the fleet tells

    def begin(self, agent: Agent, age: float = 0.0) -> None:
        """Its container runs; `age` is for how many seconds an adopted one has."""
        times, now = self._of(agent), trio.current_time()
        times.since, times.bell = now, None
        if times.begun is None:
            times.begun = now - age

    def renew(self, agent: Agent) -> None:
        """It is started by hand, or stopped: its lifetime is over or begins anew, and it does not sleep any more."""
        times = self._of(agent)
        times.begun = times.bell = None

    def is_asleep(self, agent: Agent) -> bool:
        """Whether it sleeps, or is on its way there; not once it is being woken."""
        going = agent.state in (State.STOPPING, State.SLEEPING)
        return going and agent.wanted and self._of(agent).bell is not None

    # -- sleeping and waking

    async def until_work(self, agent: Agent) -> None:
        """Until a sleeping agent is needed: an event waits for it, or `wake` was called since it was put to sleep."""
        times = self._of(agent)
        bell = times.bell = trio.Event() if times.bell is None else times.bell
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._ring_for_work, agent, bell)
            await bell.wait()
            nursery.cancel_scope.cancel(reason="it is woken")

    async def _ring_for_work(self, agent: Agent, bell: trio.Event) -> None:
        await self._work.until_work(agent.name)
        bell.set()

    def wake(self, agent: Agent) -> None:
        """Somebody needs it: one that is on its way to sleep is woken when it is there."""
        bell = self._of(agent).bell
        if bell is not None:
            bell.set()

    @contextmanager
    def asking(self, agent: Agent) -> Iterator[None]:
        """A call to it is under way: it is not idle meanwhile."""
        times = self._of(agent)
        times.asked += 1
        try:
            yield
        finally:
            times.asked -= 1
            agent.worked()

    async def until_awake(self, agent: Agent) -> None:
        """Wake it if it sleeps, and wait for its session, or for WAKE_PATIENCE."""
        wakes = agent.state is State.STARTING and self._of(agent).bell is not None
        if not (wakes or self.is_asleep(agent)):
            return
        self.wake(agent)
        with trio.move_on_after(WAKE_PATIENCE):
            while agent.wanted and (self.is_asleep(agent) or not _has_session(agent)):
                await agent.progress.wait()

    # -- inside

    def _of(self, agent: Agent) -> _Times:
        return self._times.setdefault(agent, _Times())

    def _is_over(self, agent: Agent) -> bool:
        """Whether its lifetime is; of one that ended before, nothing changes, least of all that it has failed."""
        times, now = self._of(agent), trio.current_time()
        if not agent.declared.lifetime or times.begun is None or not self._may_end(agent, now):
            return False
        there = agent.state in RUNS or agent.state is State.SLEEPING
        return there and now - times.begun >= agent.declared.lifetime

    def _is_idle(self, agent: Agent) -> bool:
        times, now = self._of(agent), trio.current_time()
        serves = agent.state is State.READY or (agent.state is State.RUNNING and not agent.declared.ready_timeout)
        if not agent.declared.idle_timeout or not serves or not self._may_end(agent, now):
            return False
        if times.asked or now < times.busy_until or self._work.unsettled(agent.name)[0]:
            return False
        return now - max(agent.last_work, times.since) >= agent.declared.idle_timeout

    def _may_end(self, agent: Agent, now: float) -> bool:
        times = self._of(agent)
        return agent.wanted and not times.ending and now >= times.again_at

    async def _has_work(self, agent: Agent) -> bool:
        try:
            waits = await self._work.has_work(agent.name)
        except Exception as error:  # noqa: BLE001 - what goes wrong with one says nothing of the others
            log.warning("cannot tell whether an agent is idle", agent=agent.name, why=in_words(error))
            waits = True
        if waits:
            self._of(agent).busy_until = trio.current_time() + min(agent.declared.idle_timeout, 60.0)
        return waits

    async def _end(self, agent: Agent, cause: Cause, why: str) -> None:
        times = self._of(agent)
        still = self._is_over if cause == "lifetime" else self._is_idle
        if not still(agent):  # work came in this very moment, or it ends for another reason
            return
        times.ending = True
        try:
            if cause == "idle" and agent.declared.on_idle == "sleep":
                if agent.sleep(why):
                    times.bell = trio.Event()
            else:
                await self._stop(agent, cause, why)
        except Exception as error:  # noqa: BLE001 - whatever keeps one from being stopped does not keep the others
            log.error("agent not stopped", agent=agent.name, why=in_words(error))
            times.again_at = trio.current_time() + AGAIN
        finally:
            times.ending = False


def _has_session(agent: Agent) -> bool:
    return agent.generation is not None and agent.generation.session is not None
