"""The processes that `push` measures: `python -m tests.bench._push_sides product|floor|lax|passing|bare PORT FOLDER`.

The first three take a /sync answer from 127.0.0.1:PORT, write it down, and give an `event` frame to whoever has
connected to FOLDER/agent.sock. One is the bridge with nothing left out, one the least that any program could do, and
one that with a commit as the bridge makes it here: it survives kill -9, and after a power cut the homeserver is asked
again.

The others give what comes on one connection of FOLDER/agent.sock to another, and write nothing down: the bridge with
events that are ephemeral, and bare Trio.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import sqlcipher3.dbapi2 as sqlite
import trio

from armorclaw.bridge import Bridge
from armorclaw.cli.process import set_up_logging
from armorclaw.clock import Surroundings
from armorclaw.config import Account, BridgeSection, Config
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from armorclaw.structure import Secret

AGENT = "probe"
ROOM = "!room:stand-in"
USER = "@bridge:stand-in"


async def product(port: int, folder: Path) -> None:
    """A bridge whose homeserver is the stand-in, and a socket as its agents have one."""
    account = Account(homeserver=f"http://127.0.0.1:{port}", user=USER, access_token=Secret("token"))
    where = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")
    around = Surroundings()
    bridge = Bridge(Config(bridge=where, accounts={"main": account}), around)
    bridge.grants.set(AGENT, "main", [ROOM])
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.run)
        listener = bind_unix(folder / "agent.sock")
        await nursery.start(
            partial(serve_unix, listener, bridge.registry, role=Role.AGENT, agent=AGENT, around=around)
        )
        await bridge.until_connected()
        print("ready", flush=True)


async def floor(port: int, folder: Path, *, synchronous: str = "FULL") -> None:
    """Bare Trio: receive, one commit (with FULL, it is on disk when it returns), send."""
    database = sqlite.connect(str(folder / "floor.db"), isolation_level=None, check_same_thread=False)
    database.execute(f"PRAGMA key = \"x'{'5e' * 32}'\"")
    database.execute("PRAGMA journal_mode = WAL")
    database.execute(f"PRAGMA synchronous = {synchronous}")
    database.execute("CREATE TABLE received (seq INTEGER PRIMARY KEY, content BLOB NOT NULL)")

    def commit(content: bytes) -> None:
        database.execute("INSERT INTO received (content) VALUES (?)", (content,))

    tcp = await trio.open_tcp_stream("127.0.0.1", port)
    tcp.setsockopt(trio.socket.IPPROTO_TCP, trio.socket.TCP_NODELAY, 1)
    listener = bind_unix(folder / "agent.sock")
    print("ready", flush=True)
    unix = await listener.accept()
    frame = await _line(unix)
    while answer := await _line(tcp):
        await trio.to_thread.run_sync(commit, answer)
        await unix.send_all(frame)


async def passing(port: int, folder: Path) -> None:
    """A bridge that knows no homeserver, and a socket as operators have one."""
    around = Surroundings()
    bridge = Bridge(Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")), around)
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.run)
        listener = bind_unix(folder / "agent.sock")
        await nursery.start(partial(serve_unix, listener, bridge.registry, role=Role.OPERATOR, around=around))
        print("ready", flush=True)


async def bare(port: int, folder: Path) -> None:
    """From the first connection to the second, which begins with what each of them is sent for every message."""
    listener = bind_unix(folder / "agent.sock")
    print("ready", flush=True)
    publisher = await listener.accept()
    subscriber = await listener.accept()
    answer, frame = (await _line(subscriber)).splitlines(keepends=True)
    while await _line(publisher):
        await publisher.send_all(answer)
        await subscriber.send_all(frame)


async def _line(stream: trio.SocketStream) -> bytes:
    """What comes up to the newline at the end of a message, which is always alone; empty when no more will come."""
    data = b""
    while not data.endswith(b"\n"):
        more = await stream.receive_some()
        if not more:
            return b""
        data += more
    return data


if __name__ == "__main__":
    set_up_logging(logging.WARNING)
    sides: dict[str, Callable[[int, Path], Awaitable[None]]] = {
        "product": product,
        "floor": floor,
        "lax": partial(floor, synchronous="NORMAL"),
        "passing": passing,
        "bare": bare,
    }
    trio.run(sides[sys.argv[1]], int(sys.argv[2]), Path(sys.argv[3]))
