"""`agent.call`: what an agent offers to others, asked over its session; pieces and progress pass through.

Credit holds from end to end: a piece is taken from the agent when the caller has room for it, so a caller that stops
stops the agent. Whoever gives up cancels the agent's handler. What an agent says is cut, and said to be its words.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Self

import msgspec

from armorclaw.containers.agent import Agent
from armorclaw.containers.shapes import AgentCall
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.caller import OnProgress
from armorclaw.rpc.failure import printable
from armorclaw.rpc.stream import Stream

_ABOUT_THE_METHOD = ("invalid_params", "method_not_found")
_ABOUT_THE_CALL = ("cancelled", "conflict", "not_found", "queue_full", "rate_limited", "timed_out", "too_large")
_ITS_TO_SAY = frozenset({*_ABOUT_THE_METHOD, *_ABOUT_THE_CALL, "remote_failed", "unavailable"})
"""Errors that mean of an agent what they mean of the bridge; any other name would pass its failure off as ours."""


class Answer:
    """A call of an agent that is under way: its pieces by `async for`, then its `result`.

    Both raise what the agent answers with, as its words, and `unavailable` when it goes.
    """

    def __init__(self, agent: str, stream: Stream) -> None:
        self._agent = agent
        self._stream = stream

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        with _said_by(self._agent):
            return await anext(self._stream)

    async def result(self) -> Any:
        with _said_by(self._agent):
            return await self._stream.result()


@asynccontextmanager
async def asked(
    agent: Agent, method: str, params: Any = None, *, on_progress: OnProgress | None = None, chunk: Any = Any
) -> AsyncIterator[Answer]:
    """Call a method of an agent; leaving the block before it is answered cancels it. Raises `unavailable`."""
    if params is None:
        params = {}
    request = {"method": method, "params": params}
    async with agent.session.stream("agent.call", request, on_progress=on_progress, chunk=chunk) as stream:
        yield Answer(agent.name, stream)


async def relay(agent: Agent, call: Call, params: AgentCall) -> Any:
    """Have an agent answer a call of somebody else."""

    def on_progress(done: float, total: float | None, message: str) -> None:
        call.progress(done, total, printable(message))

    async with asked(agent, params.method, params.params, on_progress=on_progress, chunk=msgspec.Raw) as answer:
        async for piece in answer:
            await call.send(piece)
        return await answer.result()


@contextmanager
def _said_by(agent: str) -> Iterator[None]:
    try:
        yield
    except ArmorclawError as error:
        is_known = error.name in _ITS_TO_SAY
        raise ArmorclawError(
            error.name if is_known else "remote_failed",
            f"agent {agent}: {error.what}",
            why=error.why,
            hint=f"the methods of agent {agent} are its own" if error.name in _ABOUT_THE_METHOD else "",
            agent=agent,
            remote={"name": error.name, **error.data},
        ) from None
