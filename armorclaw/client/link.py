"""The connection of a client to its bridge, made again whenever it ends."""

from __future__ import annotations

import math
import socket
from random import Random

import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.denied import why_denied
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role

OPEN_TIMEOUT = 5.0
"""Seconds that one attempt may take: a bridge whose backlog is full answers nobody."""


BUSY = 0.05
"""Seconds until it is asked again."""

STABLE = 1.0
"""Seconds after which a connection counts: a bridge that takes and drops them is as good as away."""


class Link:
    """Keeps a connection to the bridge at `path` up; when it has been away for `reconnect` seconds, gives it up."""

    def __init__(self, path: str, registry: Registry, around: Surroundings, *, reconnect: float) -> None:
        self._path = path
        self._registry = registry
        self._around = around
        self._reconnect = reconnect
        self._peer: Peer | None = None
        self._served_at = -math.inf
        self._given_up: ArmorclawError | None = None
        self._changed = trio.Event()

    async def run(self, stream: trio.SocketStream) -> None:
        """From this connection on, until cancelled or given up."""
        connected: trio.SocketStream | None = stream
        while connected is not None:
            peer = Peer(connected, self._registry, role=Role.OPERATOR, around=self._around)
            begun = trio.current_time()
            async with trio.open_nursery() as nursery:
                await nursery.start(peer.serve)
                self._publish(peer)
            self._publish(None)
            if connected is stream or trio.current_time() - begun >= STABLE:
                self._served_at = trio.current_time()
            connected = await self._connect_again()

    async def peer(self, deadline: float = math.inf) -> Peer:
        """The connection, to be used before anything else is awaited; waits for it. Raises `unavailable`."""
        with trio.move_on_at(deadline):
            while self._peer is None or not self._peer.hears:
                if self._given_up is not None:
                    raise self._given_up
                await self._changed.wait()
            return self._peer
        raise ArmorclawError("unavailable", f"the bridge at {self._path} is away")

    def _publish(self, peer: Peer | None) -> None:
        self._peer = peer
        self._changed.set()
        self._changed = trio.Event()

    async def _connect_again(self) -> trio.SocketStream | None:
        why = "the connection has ended"
        while (away := trio.current_time() - self._served_at) < self._reconnect:
            await trio.sleep(pause(away, self._around.random))
            try:
                return await open_socket(self._path, OPEN_TIMEOUT)
            except ArmorclawError as error:
                why = str(error)
        self._given_up = ArmorclawError("unavailable", f"the bridge at {self._path} is gone", why=why)
        self._publish(None)
        return None


def pause(away: float, random: Random) -> float:
    """Seconds until the next attempt, `away` seconds after the connection ended.

    Ten times a second at first, because a bridge that restarts is back within a second or two; later less, down to
    every two seconds or so, scattered, as there may be many clients.
    """
    return 0.1 if away < 10.0 else min(2.0, away / 20.0) * random.uniform(0.5, 1.5)


async def open_socket(path: str, timeout: float) -> trio.SocketStream:
    """Raises `daemon_unreachable`, `socket_denied`, and `timed_out` after `timeout` seconds."""
    with trio.move_on_after(timeout):
        while True:
            await trio.lowlevel.checkpoint()
            try:
                return _open_now(path)
            except BlockingIOError:  # its backlog is full
                await trio.sleep(BUSY)
            except PermissionError:
                why, hint = why_denied(path)
                raise ArmorclawError("socket_denied", f"cannot connect to {path}", why=why, hint=hint) from None
            except OSError as error:
                why = error.strerror or str(error)
                raise ArmorclawError("daemon_unreachable", f"no bridge listens at {path}", why=why) from None
    raise ArmorclawError("timed_out", f"the bridge at {path} accepts no connection")


def _open_now(path: str) -> trio.SocketStream:
    """Connecting to a Unix socket needs no waiting: it is done, or refused, at once."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(path)
        return trio.SocketStream(trio.socket.from_stdlib_socket(sock))
    except BaseException:
        sock.close()
        raise
