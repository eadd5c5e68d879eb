"""The processes that `stream` measures: `python -m tests.bench._stream_sides product|bare serve|use SOCKET`.

`serve` listens at the socket; `use` connects to it, reads a line `down COUNT` or `up COUNT` from stdin, carries so
many pieces, and answers with the seconds it took; its stdin closed, it ends both directions and answers with what
arrived. Down comes to the user, up goes to the server. In the product each direction is one streaming call from
first to last piece; bare is the same bytes through `send_all` and `receive_some` of Trio, with nothing around them.
"""

from __future__ import annotations

import random
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.rpc.call import Call
from armorclaw.rpc.flow import BYTES_MAX
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from armorclaw.rpc.stream import Stream
from armorclaw.rpc.unix import bind_unix, serve_unix

PIECE = random.Random(5).randbytes(BYTES_MAX)


@attrs.frozen
class Pieces:
    count: int


@attrs.frozen
class Arrived:
    size: int


class User(Protocol):
    async def down(self, count: int) -> None: ...
    async def up(self, count: int) -> None: ...
    async def end(self) -> int:
        """Bytes that arrived at the server."""
        ...


def registry() -> Registry:
    made = Registry()

    @made.method("down", chunk=bytes, roles=[Role.OPERATOR])
    async def down(call: Call, params: NoParams) -> None:
        while True:
            await call.send(PIECE)

    @made.method("up", upload=bytes, result=Arrived, roles=[Role.OPERATOR])
    async def up(call: Call, params: NoParams) -> Arrived:
        size = 0
        async for piece in call.uploads():
            size += len(piece)
        return Arrived(size)

    return made


async def serve_product(path: Path) -> None:
    listener = bind_unix(path)
    print("ready", flush=True)
    await serve_unix(listener, registry(), role=Role.OPERATOR, around=Surroundings())


async def serve_bare(path: Path) -> None:
    listener = bind_unix(path)
    print("ready", flush=True)
    down, up = await listener.accept(), await listener.accept()
    async with trio.open_nursery() as nursery:

        @nursery.start_soon
        async def send() -> None:
            try:
                while True:
                    await down.send_all(PIECE)
            except trio.BrokenResourceError:
                pass

        size = 0
        while data := await up.receive_some():
            size += len(data)
        await up.send_all(b"%d" % size)
        nursery.cancel_scope.cancel()


class Product:
    def __init__(self, down: Stream, up: Stream) -> None:
        self._down = down
        self._up = up

    async def down(self, count: int) -> None:
        for _ in range(count):
            assert len(await self._down.__anext__()) == BYTES_MAX

    async def up(self, count: int) -> None:
        for _ in range(count):
            await self._up.send(PIECE)

    async def end(self) -> int:
        assert await self._down.__anext__() == PIECE
        await self._up.end()
        size: int = (await self._up.result())["size"]
        return size


class Bare:
    def __init__(self, down: trio.SocketStream, up: trio.SocketStream) -> None:
        self._down = down
        self._up = up

    async def down(self, count: int) -> None:
        left = count * BYTES_MAX
        while left > 0:
            left -= len(await self._down.receive_some())

    async def up(self, count: int) -> None:
        for _ in range(count):
            await self._up.send_all(PIECE)

    async def end(self) -> int:
        await self._up.send_eof()
        return int(await self._up.receive_some())


async def use(kind: str, path: Path) -> None:
    async with AsyncExitStack() as stack:
        user: User
        if kind == "bare":
            user = Bare(await trio.open_unix_socket(path), await trio.open_unix_socket(path))
        else:
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            connection = await trio.open_unix_socket(path)
            peer = Peer(connection, Registry(), role=Role.OPERATOR, around=Surroundings())
            await nursery.start(peer.serve)
            down = await stack.enter_async_context(peer.stream("down", chunk=bytes))
            user = Product(down, await stack.enter_async_context(peer.stream("up")))
        print("ready", flush=True)
        while line := await trio.to_thread.run_sync(sys.stdin.readline):
            way, count = line.split()
            began = time.perf_counter()
            await (user.down if way == "down" else user.up)(int(count))
            print(time.perf_counter() - began, flush=True)
        print(await user.end(), flush=True)


if __name__ == "__main__":
    kind, what, path = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    if what == "use":
        trio.run(use, kind, path)
    else:
        trio.run(serve_product if kind == "product" else serve_bare, path)
