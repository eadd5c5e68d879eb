"""The servers that `rpc` measures: `python -m tests.bench._rpc_sides product|uvloop|asyncio|naive SOCKET`.

All answer `echo` with the params. The product reads them into an attrs class after it has looked up the method for
the role of the caller, and counted the call against its limits; its `forward` sends them back unread. The others do
the least one would write: whoever calls may, and what comes is believed.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import attrs
import msgspec
import orjson
import trio
import uvloop

from armorclaw.cli.process import set_up_logging
from armorclaw.clock import Surroundings
from armorclaw.guard.limits import Budget, Limits
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.call import Call
from armorclaw.rpc.codec import Text
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.unix import Gate, bind_unix, serve_unix

PLENTY = Rate(1e9, 1e9)
"""What is counted against it is counted all the same."""


@attrs.frozen
class Message:
    room_id: str
    body: str
    count: int = 1


async def product(path: str) -> None:
    registry = Registry()

    @registry.method("echo", params=Message, result=Message, roles=[Role.OPERATOR])
    def echo(call: Call, params: Message) -> Message:
        return params

    @registry.method("forward", raw=True, roles=[Role.OPERATOR])
    def forward(call: Call, params: Text) -> msgspec.Raw:
        return msgspec.Raw(params)

    around = Surroundings()
    limits = Limits(around.clock, {Role.OPERATOR: Budget(PLENTY, PLENTY, PLENTY, PLENTY)})
    await serve_unix(
        bind_unix(path),
        registry,
        role=Role.OPERATOR,
        around=around,
        gate=Gate(per_uid=10_000, total=10_000),
        admission=limits.listener(Role.OPERATOR),
    )


def answer(line: bytes) -> bytes:
    request = orjson.loads(line)
    method: Callable[[Any], Any] = METHODS[request["method"]]
    return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": method(request["params"])}) + b"\n"


METHODS: dict[str, Callable[[Any], Any]] = {"echo": lambda params: params, "forward": lambda params: params}


class Echo(asyncio.Protocol):
    """All lines of a read answered with one write."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._held = b""

    def data_received(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        if lines:
            self._transport.write(b"".join([answer(line) for line in lines]))


async def plain(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(Echo, path)
    await server.serve_forever()


async def naive(path: str) -> None:
    """Trio as one writes it first: a task per request, a channel to a writer, a deadline for each step."""

    async def serve(stream: trio.SocketStream) -> None:
        outbox, answers = trio.open_memory_channel[bytes](64)

        async def write() -> None:
            async for data in answers:
                with trio.move_on_after(5):
                    await stream.send_all(data)

        async def call(line: bytes) -> None:
            with trio.move_on_after(30):
                await trio.lowlevel.checkpoint()
                await outbox.send(answer(line))

        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(write)
                held = bytearray()
                async for data in stream:
                    held += data
                    while (end := held.find(b"\n")) >= 0:
                        nursery.start_soon(call, bytes(held[:end]))
                        del held[: end + 1]
                nursery.cancel_scope.cancel(reason="the client has gone")
        except* trio.BrokenResourceError:
            pass

    await trio.serve_listeners(serve, [bind_unix(path)])


if __name__ == "__main__":
    set_up_logging(logging.ERROR)
    kind, socket = sys.argv[1:]
    Path(socket).unlink(missing_ok=True)
    runners: dict[str, Callable[[], object]] = {
        "product": partial(trio.run, product, socket),
        "naive": partial(trio.run, naive, socket),
        "asyncio": lambda: asyncio.run(plain(socket)),
        "uvloop": lambda: uvloop.run(plain(socket)),
    }
    runners[kind]()
