"""One connection to a server of ours, over memory and with a clock that jumps; and what was answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import attrs
import trio
import trio.testing

from armorclaw.web.exchange import Exchange, WebLimits
from armorclaw.web.head import Form
from armorclaw.web.messages import Response
from armorclaw.web.server import PATHS_ONLY, Handler, serve_stream

QUIET = 2.5
"""Seconds without a byte until a connection counts as open: more than a refusal lingers, less than any limit."""


@attrs.frozen
class Answer:
    """All that came back, and whether the server closed the connection."""

    raw: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        return [int(each) for each in re.findall(rb"(?:^|(?<=\n))HTTP/1\.1 ([0-9]{3})", self.raw)]


async def echo(exchange: Exchange) -> Response:
    """Says what it was asked."""
    body = await exchange.body()
    return Response.plain(200, f"{exchange.request.method} {exchange.request.path} {len(body)}\n")


async def converse(
    pieces: Sequence[bytes],
    handler: Handler = echo,
    *,
    limits: WebLimits | None = None,
    accepts: Collection[Form] = PATHS_ONLY,
    quiet: float = QUIET,
    then: Callable[[trio.StapledStream[Any, Any]], Any] | None = None,
) -> Answer:
    """Send the pieces, one after the other has been read, and hear what comes."""
    ours, theirs = trio.testing.memory_stream_pair()
    came = bytearray()
    closed = False

    async def hear() -> None:
        nonlocal closed
        while True:
            with trio.move_on_after(quiet) as patience:
                data = await ours.receive_some()
            if patience.cancelled_caught:
                return
            if not data:
                closed = True
                return
            came.extend(data)

    async def say() -> None:
        try:
            for piece in pieces:
                await ours.send_all(piece)
                await trio.testing.wait_all_tasks_blocked()
            if then is not None:
                await then(ours)
        except trio.BrokenResourceError:
            pass  # it was refused before all was said

    async with trio.open_nursery() as server:
        server.start_soon(lambda: serve_stream(theirs, handler, limits=limits, accepts=accepts))
        async with trio.open_nursery() as client:
            client.start_soon(say)
            client.start_soon(hear)
        server.cancel_scope.cancel(reason="the client has heard enough")
    return Answer(bytes(came), closed)


def talk(pieces: Sequence[bytes], handler: Handler = echo, **more: Any) -> Answer:
    """The same, for tests that are not async."""

    async def main() -> Answer:
        return await converse(pieces, handler, **more)

    return trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
