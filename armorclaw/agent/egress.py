"""The way out of a container without network: a proxy on its loopback that is the bridge's, reached by a Unix socket.

HTTP clients know proxies by host and port, not by the path of a socket. So a port of 127.0.0.1 leads to the socket
that ARMORCLAW_EGRESS_SOCKET names, byte for byte, and the variables that clients look at name that port. What may be
reached is the bridge's to say: nothing is understood here, nothing decided.

One thread carries all connections, whatever loop the agent runs, and goes on while the agent's own code is busy. A
forked child has no such thread, and needs none: its parent's port is in its environment and serves it for as long as
the parent lives. Should it make an agent of its own, that opens a port of its own.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from typing import Optional

VARIABLE = "ARMORCLAW_EGRESS_SOCKET"

MAX_CONNECTIONS = 64
"""Open at once, as many as the bridge takes; more wait to be accepted until one ends. Each takes two descriptors, and
128 KiB when it is slow."""

_CHUNK = 65_536  # bytes read at once; nothing is read of one side while the other has not taken the last of them
_BACKLOG = 128
_PAUSE = 0.1  # seconds without accepting, when there was no descriptor left for another connection
_OURS = ("127.0.0.1", "localhost")  # never by the proxy: they are the container's own

# To a client whose connection cannot be passed on. It is a client of a proxy, so this is what it can show.
_AWAY = (
    b"HTTP/1.1 503 Bridge Unavailable\r\nConnection: close\r\nContent-Type: text/plain\r\n\r\n"
    b"the bridge is away or takes no more connections; try again\n"
)

_lock = threading.Lock()
_opened: Optional[Forwarder] = None


def open_egress() -> Optional[int]:
    """The port of 127.0.0.1 that leads out, opened by the first call; None for an agent that may not go out.

    Sets HTTPS_PROXY, NO_PROXY (what is in there stays), both in lower case as well, and NODE_USE_ENV_PROXY, for this
    process and those it starts. Call it before clients are made: they look at these when they begin. Raises OSError
    where there is no loopback.
    """
    global _opened
    path = os.environ.get(VARIABLE)
    if not path:
        return None
    with _lock:
        if _opened is None:
            _opened = Forwarder(path)
            threading.Thread(target=_opened.run, name="armorclaw-egress", daemon=True).start()
            os.environ.update(proxy_variables(_opened.port))
        return _opened.port


def proxy_variables(port: int) -> dict[str, str]:
    """What is to be set for clients to use `port`. Only https:// goes that way; for http:// there is no way."""
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    names = [name.strip() for name in spared.split(",") if name.strip()]
    names += [name for name in _OURS if name not in names]
    proxy, no_proxy = f"http://127.0.0.1:{port}", ",".join(names)
    return {
        "HTTPS_PROXY": proxy,
        "https_proxy": proxy,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "NODE_USE_ENV_PROXY": "1",
    }


def _in_forked_child() -> None:
    """Let go of what the parent's thread works with: held here as well, nothing would end when it closes it."""
    global _lock, _opened
    _lock = threading.Lock()  # the other may have been held
    if _opened is not None:
        _opened.close()
        _opened = None


os.register_at_fork(after_in_child=_in_forked_child)


class _Side:
    """One socket of a connection, and what waits to be sent on it."""

    __slots__ = ("other", "readable", "sock", "unsent", "writable")

    other: _Side

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.unsent = b""
        self.readable = True  # more may come from it
        self.writable = True  # it takes more, and has not been told that there is none


class Forwarder:
    """Passes what connects to `port` on 127.0.0.1 on to the Unix socket at `path`, both directions on their own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.port: int = self._listener.getsockname()[1]
        self._sides: set[_Side] = set()  # two for each connection
        self._accept_at = 0.0
        self._selector = selectors.DefaultSelector()

    def run(self) -> None:
        """For the one thread that has it; never returns."""
        while True:
            pause = self._watch_listener()
            for key, events in self._selector.select(pause):
                if key.data is None:
                    self._accept()
                elif key.data in self._sides:  # else the other side's turn has just ended both
                    self._pump(key.data, events)

    def close(self) -> None:
        """Close all descriptors. The selector is not told: after a fork it is the parent's as well."""
        for sock in [self._listener, *(side.sock for side in self._sides)]:
            sock.close()
        self._selector.close()

    def _watch_listener(self) -> Optional[float]:
        """Look for new connections, unless there is no room for one; seconds until that is worth another try."""
        pause = self._accept_at - time.monotonic()
        wanted = len(self._sides) < 2 * MAX_CONNECTIONS and pause <= 0
        if wanted != (self._listener in self._selector.get_map()):
            if wanted:
                self._selector.register(self._listener, selectors.EVENT_READ, None)
            else:
                self._selector.unregister(self._listener)
        return pause if pause > 0 else None

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # it is gone again
        except OSError:  # too many open files
            self._accept_at = time.monotonic() + _PAUSE
            return
        try:
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            bridge = self._reach_bridge()
        except OSError:
            client.close()
            self._accept_at = time.monotonic() + _PAUSE
            return
        near, far = _Side(client), _Side(bridge)
        near.other, far.other = far, near
        for side in (near, far):
            self._sides.add(side)
            self._selector.register(side.sock, selectors.EVENT_READ, side)

    def _reach_bridge(self) -> socket.socket:
        bridge = socket.socket(socket.AF_UNIX)
        try:
            bridge.setblocking(False)
            bridge.connect(self._path)  # on a Unix socket this ends at once
            return bridge
        except OSError:
            bridge.close()
        # In its place somebody who says so and hangs up. What the client says first is taken all the same: an answer
        # is lost when the connection is closed over what was not read.
        bridge, answering = socket.socketpair()
        with answering:
            answering.sendall(_AWAY)
        return bridge

    def _pump(self, side: _Side, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            self._send(side)
        if events & selectors.EVENT_READ and side.readable and not side.other.unsent:
            self._read(side)
        for each in (side, side.other):
            self._settle(each)

    def _read(self, side: _Side) -> None:
        other = side.other
        try:
            other.unsent = side.sock.recv(_CHUNK)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:  # it is gone, for both directions
            side.readable = side.writable = False
            side.unsent = b""
            return
        if other.unsent:
            self._send(other)
        else:
            side.readable = False

    def _send(self, side: _Side) -> None:
        try:
            sent = side.sock.send(side.unsent)
            side.unsent = side.unsent[sent:]
        except (BlockingIOError, InterruptedError):
            pass
        except OSError:  # it takes no more; what it said before may still be on its way to us
            side.writable = side.other.readable = False
            side.unsent = b""

    def _settle(self, side: _Side) -> None:
        """After something has changed: pass on an end, wait for what is of use, and let go of what is over."""
        if side not in self._sides:
            return
        other = side.other
        if side.writable and not side.unsent and not other.readable:
            side.writable = False
            with contextlib.suppress(OSError):
                side.sock.shutdown(socket.SHUT_WR)
        if not (side.writable or other.writable):
            self._end(side)
            return
        if not side.writable:
            other.readable = False  # nobody would get it
        wanted = selectors.EVENT_READ if side.readable and not other.unsent else 0
        wanted |= selectors.EVENT_WRITE if side.unsent else 0
        watched = self._selector.get_map().get(side.sock)
        if watched is None and wanted:
            self._selector.register(side.sock, wanted, side)
        elif watched is not None and not wanted:
            self._selector.unregister(side.sock)
        elif watched is not None and watched.events != wanted:
            self._selector.modify(side.sock, wanted, side)

    def _end(self, side: _Side) -> None:
        for each in (side, side.other):
            self._sides.discard(each)
            if each.sock in self._selector.get_map():
                self._selector.unregister(each.sock)
            each.sock.close()
