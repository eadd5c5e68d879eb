"""`containers.stats`: what agents use, read again and again for one who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.containers.agent import Agent
from armorclaw.containers.resources.history import Peaks
from armorclaw.containers.resources.usage import Reading, Usage
from armorclaw.containers.resources.watch import Resources
from armorclaw.containers.runtime import Running
from armorclaw.containers.shapes import AgentStats, StatsEnd
from armorclaw.containers.states import State
from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger

log = get_logger(__name__)

READ_PATIENCE = 3.0
"""Seconds a reading may take; an engine that takes longer tells nothing this time."""


HISTORY_CHUNK = 100
"""Readings in one chunk of history, about 35 kB."""


@attrs.frozen
class _Before:
    """The reading before, of the same container."""

    container: str
    at: float
    cpu_ns: int


class Readings:
    """Reads all of `agents`, which is asked each time anew; None: it is over. Those of one time are one chunk.

    The kernel's accounts that `resources` has open are read where there are any; else the container is asked.
    """

    def __init__(self, agents: Callable[[], list[Agent] | None], clock: Clock, resources: Resources) -> None:
        self._agents = agents
        self._clock = clock
        self._resources = resources
        self._before: dict[str, _Before] = {}

    async def tell_history(self, send: Callable[[list[AgentStats]], Awaitable[None]]) -> None:
        """The readings of the last ten minutes, agent by agent."""
        for agent in self._agents() or []:
            past = self._resources.history(agent.name)
            for first in range(0, len(past), HISTORY_CHUNK):
                chunk = past[first : first + HISTORY_CHUNK]
                await send([_told(agent.name, State.RUNNING.value, reading, Peaks()) for reading in chunk])

    async def tell(
        self, interval: float, count: int | None, send: Callable[[list[AgentStats]], Awaitable[None]]
    ) -> StatsEnd:
        """One reading each `interval` seconds, the first at once; what a slow reader misses is left out."""
        done, due = 0, trio.current_time()
        while count is None or done < count:
            await trio.sleep_until(due)
            agents = self._agents()
            if agents is None:
                break
            await send(await self._read(agents))
            done += 1
            due = max(due + interval, trio.current_time())
        return StatsEnd(done)

    async def _read(self, agents: list[Agent]) -> list[AgentStats]:
        found: dict[str, AgentStats] = {}
        async with trio.open_nursery() as nursery:
            for agent in agents:
                nursery.start_soon(self._read_one, agent, found)
        self._before = {name: before for name, before in self._before.items() if name in found}
        return [found[agent.name] for agent in agents]

    async def _read_one(self, agent: Agent, found: dict[str, AgentStats]) -> None:
        generation = agent.generation
        at = trio.current_time()
        reading = Reading(at, self._clock.now_ms(), "")
        if generation is not None and agent.runs:
            if self._resources.reads(agent.name):
                reading = self._resources.read_now(agent) or reading
            else:
                reading = await self._ask(generation.running, agent.name)
        percent, usage = reading.cpu_percent, reading.usage
        before = self._before.pop(agent.name, None)
        if generation is not None and usage.cpu_ns is not None:
            container = generation.running.id
            if before is not None and before.container == container and reading.at > before.at:
                percent = round(max(0, usage.cpu_ns - before.cpu_ns) / (reading.at - before.at) / 10_000_000, 1)
            self._before[agent.name] = _Before(container, reading.at, usage.cpu_ns)
        peaks = self._resources.peaks(agent.name) if agent.runs else Peaks()
        found[agent.name] = _told(agent.name, agent.state.value, attrs.evolve(reading, cpu_percent=percent), peaks)

    async def _ask(self, running: Running, agent: str) -> Reading:
        usage = Usage()
        with trio.move_on_after(READ_PATIENCE):
            try:
                usage = await running.usage()
            except ArmorclawError:  # the state says what is wrong
                pass
            except Exception as error:  # noqa: BLE001 - strange figures of one are no reason to tell none of others
                log.debug("figures of an agent are not known", agent=agent, trace=trace(error))
        last = self._resources.last(agent)
        data = None if last is None else last.data_bytes
        return Reading(trio.current_time(), self._clock.now_ms(), running.id, usage, data_bytes=data)


def _told(name: str, state: str, reading: Reading, peaks: Peaks) -> AgentStats:
    return AgentStats(
        name=name,
        state=state,
        at_ms=reading.at_ms,
        cpu_percent=reading.cpu_percent,
        throttled_ns=reading.throttled_ns,
        oom_kills=reading.oom_kills,
        tmp_bytes=reading.tmp_bytes,
        data_bytes=reading.data_bytes,
        cpu_peak_percent=peaks.cpu_percent,
        memory_peak_bytes=peaks.memory_bytes,
        pids_peak=peaks.pids,
        **attrs.asdict(reading.usage),
    )
