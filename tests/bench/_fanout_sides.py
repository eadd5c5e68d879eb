"""The servers that `fanout` measures: `python -m tests.bench._fanout_sides product|trio|uvloop SOCKET FOLDER`.

Each gives what is published on one connection to all that have subscribed, and answers the publisher. One is the
bridge with nothing left out but the limits, which would not let anybody publish so much; the other is the least one
would write.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import orjson
import trio
import uvloop

from armorclaw.bridge import Bridge
from armorclaw.cli.process import set_up_logging
from armorclaw.clock import Surroundings
from armorclaw.config import BridgeSection, Config
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import Gate, bind_unix, serve_unix


async def product(path: str, folder: Path) -> None:
    where = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")
    around = Surroundings()
    bridge = Bridge(Config(bridge=where), around)
    gate = Gate(per_uid=10_000, total=10_000)
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.run)
        await serve_unix(bind_unix(path), bridge.registry, role=Role.OPERATOR, around=around, gate=gate)


class ToAll(asyncio.Protocol):
    """Writes each event that comes to everybody."""

    everybody: set[asyncio.WriteTransport] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self._held = b""

    def connection_lost(self, error: Exception | None) -> None:
        self.everybody.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        *lines, self._held = (self._held + data).split(b"\n")
        for line in lines:
            request = orjson.loads(line)
            if request["method"] == "events.subscribe":
                self.everybody.add(self._transport)
            else:
                frame = event(request["params"])
                for transport in self.everybody:
                    transport.write(frame)
            self._transport.write(orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}}) + b"\n")


def event(params: dict[str, Any]) -> bytes:
    """As long as the bridge's."""
    told = {"subscription": "#100", "redelivered": 0, "seq": 0, "id": "0123456789abcdef", "type": params["type"]}
    more = {"at_ms": 1_700_000_000_000, "content": params["content"]}
    return orjson.dumps({"jsonrpc": "2.0", "method": "event", "params": told | more}) + b"\n"


async def bare(path: str) -> None:
    """The same on Trio, with nothing around it: a task for each connection, and to everybody one system call."""
    everybody: set[int] = set()  # descriptors; with one that is gone nothing is lost here

    async def serve(stream: trio.SocketStream) -> None:
        held, own = b"", stream.socket.fileno()
        with suppress(trio.BrokenResourceError):
            while data := await stream.receive_some():
                *lines, held = (held + data).split(b"\n")
                for line in lines:
                    request = orjson.loads(line)
                    if request["method"] == "events.subscribe":
                        everybody.add(own)
                    else:
                        frame = event(request["params"])
                        for each in everybody:
                            with suppress(OSError):
                                os.write(each, frame)
                    answer = orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {}})
                    await stream.send_all(answer + b"\n")
        everybody.discard(own)

    await trio.serve_listeners(serve, [bind_unix(path)])


async def plain(path: str) -> None:
    server = await asyncio.get_running_loop().create_unix_server(ToAll, path, backlog=1024)
    await server.serve_forever()


if __name__ == "__main__":
    set_up_logging(logging.ERROR)
    kind, socket, folder = sys.argv[1:]
    runners: dict[str, Callable[[], object]] = {
        "product": partial(trio.run, product, socket, Path(folder)),
        "trio": partial(trio.run, bare, socket),
        "uvloop": lambda: uvloop.run(plain(socket)),
    }
    runners[kind]()
