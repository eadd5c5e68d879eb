"""`containers.logs`: what an agent printed and prints, over its generations, to one reader at the reader's pace.

Nothing is read ahead. For each reader there is at most what its connection and the engine's hold, however long a line
is and however slow the reader.
"""

from __future__ import annotations

import codecs
from collections.abc import Awaitable, Callable
from typing import Any, cast

import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.generation import Generation
from armorclaw.containers.printed import OURS, STARTED_AGAIN, LogPiece, LogWanted
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.shapes import LogChunk, LogsEnd
from armorclaw.errors import ArmorclawError, one_error

END_PATIENCE = 15.0
"""Seconds from the end of a container's log to that of its generation; after that the engine has lost the log."""

HANG_UP_PATIENCE = 2.0
"""The same where the engine hung up: it may do so when a container is removed."""

Send = Callable[[LogChunk], Awaitable[None]]


async def tell(agent: Agent, wanted: LogWanted, send: Send) -> LogsEnd:
    """Send what is wanted. With `follow` this ends when the agent is removed, and by cancellation.

    Raises `engine_unreachable` when the engine is lost, `engine_refused`, `runtime_missing`.
    """
    telling = _Telling(agent, wanted, send)
    await telling.run()
    return LogsEnd(telling.lines, telling.bytes, telling.truncated)


class _Telling:
    def __init__(self, agent: Agent, wanted: LogWanted, send: Send) -> None:
        self.lines = 0
        self.bytes = 0
        self.truncated: bool | None = False
        self._agent = agent
        self._wanted = wanted
        self._send = send
        self._letters: dict[str, codecs.IncrementalDecoder] = {}
        self._in_line = False

    async def run(self) -> None:
        agent, wanted = self._agent, self._wanted
        generation = agent.generation if agent.runs else None
        seen = agent.generations - (agent.generation is not generation)  # without one that is being started
        runtime = await agent.choose_runtime() if generation is None else generation.runtime
        while True:
            await self._tell_one(runtime, generation, wanted)
            if not wanted.follow:
                break
            while not agent.removed and not (agent.runs and agent.generations > seen):
                await agent.progress.wait()
            generation = agent.generation
            if generation is None:
                break
            missed = generation.number - seen - 1
            if missed and generation.runtime is runtime:
                self.truncated = True
                await self._note(f"missed what {missed} other{'s' if missed > 1 else ''} printed\n", None)
            await self._note(STARTED_AGAIN, generation.since_ms)
            runtime, seen = generation.runtime, generation.number
            wanted = LogWanted(tail=None, follow=True, timestamps=wanted.timestamps)
        await self._flush()
        self.lines += self._in_line

    async def _tell_one(self, runtime: Runtime, generation: Generation | None, wanted: LogWanted) -> None:
        """Of one container or, where the log goes on over them, of all to come that this runtime runs."""
        container = None if generation is None else generation.running.id
        with one_error():
            async with trio.open_nursery() as nursery:
                if wanted.follow:
                    nursery.start_soon(self._end_elsewhere, runtime, nursery.cancel_scope)
                try:
                    async with runtime.logs(self._agent.name, container, wanted) as reader:
                        try:
                            async for piece in reader:
                                await self._pass_on(piece)
                        finally:
                            if reader.truncated is not False:
                                self.truncated = self.truncated or reader.truncated
                except ArmorclawError as error:
                    if error.name != "engine_unreachable" or not await self._ends(generation, HANG_UP_PATIENCE):
                        raise
                else:
                    if wanted.follow and not await self._ends(generation, END_PATIENCE):
                        raise ArmorclawError(
                            "engine_unreachable", f"the log of agent {self._agent.name} has ended early"
                        )
                nursery.cancel_scope.cancel(reason="the log has ended")

    async def _end_elsewhere(self, runtime: Runtime, scope: trio.CancelScope) -> None:
        agent = self._agent
        while not agent.removed:
            if agent.runs and agent.generation is not None and agent.generation.runtime is not runtime:
                break
            await agent.progress.wait()
        scope.cancel(reason="nothing more comes from this runtime")

    async def _ends(self, generation: Generation | None, patience: float) -> bool:
        """Whether the generation whose log has ended ends as well."""
        with trio.move_on_after(patience):
            while generation is not None and self._agent.generation is generation:
                await self._agent.progress.wait()
            return True
        return False

    async def _pass_on(self, piece: LogPiece) -> None:
        if piece.stream == OURS:
            await self._note(piece.data.decode(), piece.at_ms)
            return
        self.bytes += len(piece.data)
        self.lines += piece.data.count(b"\n")
        self._in_line = not piece.data.endswith(b"\n")
        if piece.stream not in self._letters:
            self._letters[piece.stream] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        await self._say(piece.stream, self._letters[piece.stream].decode(piece.data), piece.at_ms)

    async def _note(self, text: str, at_ms: int | None) -> None:
        await self._flush()
        await self._say(OURS, text, at_ms if self._wanted.timestamps else None)

    async def _flush(self) -> None:
        """Letters that will not become complete any more."""
        letters, self._letters = self._letters, {}
        for stream, decoder in letters.items():
            await self._say(stream, decoder.decode(b"", final=True), None)

    async def _say(self, stream: str, text: str, at_ms: int | None) -> None:
        if text:
            await self._send(LogChunk(cast(Any, stream), text, at_ms))
