"""One engine, watched: when it was last heard, whether it is there, and what others do to our containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.attempt import is_engine_lost
from armorclaw.containers.household import Household
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import News
from armorclaw.containers.survivors import Survivors
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

RETRY = (0.1, 2.0)
"""Seconds between attempts to hear a lost engine again: the first, the most."""

PING_EVERY = 5.0
"""Seconds between two pings: an engine that hangs keeps its streams open and says nothing, like one at rest."""

PINGS = 2
"""Pings in a row that an engine leaves unanswered until it is lost. One may be our own absence."""


class Tell(Protocol):
    """Who hears of it."""

    def on_heard(self, runtime: Runtime) -> None:
        """It answered, or said something."""

    def on_news(self, news: News) -> None:
        """Somebody else did something to a container of ours."""

    def on_lost(self, runtime: Runtime, why: str) -> None:
        """It went away; said once."""

    async def on_back(self, runtime: Runtime) -> None:
        """It is there again: what happened meanwhile was not told."""


class EngineWatch:
    """Follows one engine's news for as long as `run` runs; losing the engine is not the death of anybody."""

    def __init__(self, runtime: Runtime, instance: str, tell: Tell) -> None:
        self._runtime = runtime
        self._instance = instance
        self._tell = tell
        self._listening = trio.CancelScope()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            nursery.start_soon(self._ping)

    async def _listen(self) -> None:
        pause, longest = RETRY
        lost = False
        while True:
            why = "it does not answer"
            try:
                with trio.CancelScope() as self._listening:
                    if lost:
                        await self._runtime.ping()  # it may take up a stream, and answer nothing else
                    async with self._runtime.news(self._instance) as news:
                        self._tell.on_heard(self._runtime)
                        if lost:
                            await self._tell.on_back(self._runtime)
                            lost, pause = False, RETRY[0]
                        async for one in news:
                            self._tell.on_heard(self._runtime)
                            self._tell.on_news(one)
                    why = "it hung up"
            except ArmorclawError as error:
                why = error.why or error.what
            if not lost:
                lost = True
                self._tell.on_lost(self._runtime, why)
            await trio.sleep(pause)
            pause = min(2 * pause, longest)

    async def _ping(self) -> None:
        missed = 0
        while True:
            try:
                await self._runtime.ping()
                missed = 0
                self._tell.on_heard(self._runtime)
            except ArmorclawError as error:
                log.debug("engine does not answer", engine=self._runtime.kind, why=str(error))
                missed = missed + 1 if is_engine_lost(error) else 0  # that it refuses them is an answer, too
                if missed >= PINGS:
                    self._listening.cancel(reason=f"the engine did not answer {missed} pings")
            await trio.sleep(PING_EVERY)


class EngineFacts:
    """What its engine's watch means to each agent."""

    def __init__(self, agents: Mapping[str, Agent], house: Household, survivors: Survivors) -> None:
        self._agents = agents
        self._house = house
        self._survivors = survivors

    def on_heard(self, runtime: Runtime) -> None:
        """See `Tell`."""
        for agent in self._agents.values():
            generation = agent.generation
            if generation is not None and generation.runtime is runtime and not generation.engine_lost:
                generation.engine_at = trio.current_time()

    def on_news(self, news: News) -> None:
        """See `Tell`."""
        agent = self._agents.get(news.agent)
        generation = None if agent is None else agent.generation
        if agent is None or generation is None or generation.running.id != news.container:
            return
        if news.what == "oom":
            generation.oom_seen = True
            agent.tell("agent.oom", container=news.container)
        else:
            agent.tell("agent.touched", container=news.container, what=news.what, detail=news.detail)

    def on_lost(self, runtime: Runtime, why: str) -> None:
        """See `Tell`. The streams of one that hangs stay open, and tell its agents nothing."""
        self._house.note_engine(runtime, "engine.lost", why=why)
        for agent in self._agents.values():
            generation = agent.generation
            if generation is not None and generation.runtime is runtime and agent.runs and agent.launch.came_off:
                generation.lose_engine(why)

    async def on_back(self, runtime: Runtime) -> None:
        """See `Tell`. What could not be removed while it was away goes now."""
        await self._survivors.look_again(runtime)
        self._house.note_engine(runtime, "engine.back")
        for agent in self._agents.values():
            generation = agent.generation
            if generation is not None and generation.runtime is runtime:
                generation.have_engine_back()
