"""`containers.stats`: what agents use, read again and again for one who asks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.containers.agent import Agent
from armorclaw.containers.shapes import AgentStats, StatsEnd
from armorclaw.containers.usage import Usage
from armorclaw.errors import ArmorclawError

READ_PATIENCE = 3.0
"""Seconds a reading may take; an engine that takes longer tells nothing this time."""


@attrs.frozen
class _Before:
    """The reading before, of the same container."""

    container: str
    at: float
    cpu_ns: int


class Readings:
    """Reads all of `agents`, which is asked each time anew; None: it is over. Those of one time are one chunk."""

    def __init__(self, agents: Callable[[], list[Agent] | None], clock: Clock) -> None:
        self._agents = agents
        self._clock = clock
        self._before: dict[str, _Before] = {}

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
        usage, at = Usage(), trio.current_time()
        if generation is not None and agent.runs:
            with trio.move_on_after(READ_PATIENCE):
                try:
                    usage = await generation.running.usage()
                except ArmorclawError:  # the state says what is wrong
                    pass
            at = trio.current_time()
        percent = None
        before = self._before.pop(agent.name, None)
        if generation is not None and usage.cpu_ns is not None:
            container = generation.running.id
            if before is not None and before.container == container and at > before.at:
                percent = round(max(0, usage.cpu_ns - before.cpu_ns) / (at - before.at) / 10_000_000, 1)
            self._before[agent.name] = _Before(container, at, usage.cpu_ns)
        found[agent.name] = AgentStats(
            name=agent.name,
            state=agent.state.value,
            at_ms=self._clock.now_ms(),
            cpu_percent=percent,
            **attrs.asdict(usage),
        )
