"""A Unix socket to the bridge that never blocks and keeps the file descriptors that arrive."""

from __future__ import annotations

import array
import os
import socket
from typing import Optional

from armorclaw.agent.errors import path_too_long
from armorclaw.agent.secrets import close_all

_READ = 65_536  # bytes asked for at once
_MAX_FDS = 4  # per read; the bridge passes one in the life of a connection
_ROOM = 256 * 1024  # bytes not sent beyond which no stream adds to them
_MAX_PATH = 107  # sockaddr_un.sun_path less its final NUL: <linux/un.h>


class Connection:
    """One connection. Both drivers use it: they wait until it is readable or writable, each in its own way."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        # bounded by the calls that can be open at once, each a frame of 1 MiB at most; streams wait for `has_room`
        self._unsent = bytearray()

    @classmethod
    def open(cls, path: str) -> Connection:
        """Connect. Raises OSError when nobody listens there or its backlog is full, AgentError when it never can."""
        if len(os.fsencode(path)) > _MAX_PATH:
            raise path_too_long(path, f"the path of a Unix socket has at most {_MAX_PATH} bytes")
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            sock.setblocking(False)
            sock.connect(path)  # on a Unix socket this ends at once
        except BaseException:
            sock.close()
            raise
        return cls(sock)

    def fileno(self) -> int:
        return self._sock.fileno()

    def read(self) -> Optional[tuple[bytes, list[int]]]:
        """Bytes and descriptors that are there now; None when there are none yet, empty bytes at the end.

        Always recvmsg, because a plain recv drops descriptors without a word. Raises OSError when the connection
        broke or the kernel had to drop a descriptor.
        """
        fds = array.array("i")
        try:
            data, ancillary, flags, _ = self._sock.recvmsg(
                _READ, socket.CMSG_LEN(_MAX_FDS * fds.itemsize), socket.MSG_CMSG_CLOEXEC
            )
        except (BlockingIOError, InterruptedError):
            return None
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        if flags & socket.MSG_CTRUNC:
            close_all(list(fds))
            raise OSError("a file descriptor from the bridge was lost: is the limit of open files too low?")
        return data, list(fds)

    def write(self, data: bytes) -> None:
        """Send now what the socket takes and keep the rest for `flush`. Raises OSError when the connection broke."""
        self._unsent += data
        self.flush()

    def flush(self) -> None:
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                return
            del self._unsent[:sent]

    @property
    def wants_write(self) -> bool:
        """Whether `flush` has to be called again once the socket is writable."""
        return bool(self._unsent)

    @property
    def has_room(self) -> bool:
        """Whether more may be written that could as well wait."""
        return len(self._unsent) < _ROOM

    def close(self) -> None:
        self._sock.close()


def retry_after(away: float) -> float:
    """Seconds until the next attempt to connect, `away` seconds after the bridge last served us.

    Ten times a second at first, because a bridge that restarts is back within a second or two; later less, down to
    every two seconds. There is one agent per socket, so there is no herd to scatter and no need of jitter.
    """
    return 0.1 if away < 10.0 else min(2.0, away / 20.0)
