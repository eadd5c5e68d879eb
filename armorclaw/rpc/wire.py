"""What a peer needs of a byte stream: wait for bytes, and send without waiting.

Two kinds: a Unix or TCP socket, used directly, because a send that need not wait should cost one system call and no
turn of the event loop; and any other Trio stream, which can only be written by waiting.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Sequence
from typing import Protocol

import trio

READ_SIZE = 64 * 1024
"""Bytes taken at a time: what one connection may make the others wait for."""

_LINGER = 1.0  # seconds to let the other side read the last error before its unread bytes cause a reset
_CLOSED_BY_PEER = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


class Wire(Protocol):
    """A stream of bytes, half-closeable. Methods raise trio.BrokenResourceError when the other side is gone."""

    passes_fds: bool

    async def read(self) -> bytes:
        """What has come; empty when the other side will send no more."""
        ...

    def send_now(self, data: bytes, fds: Sequence[int] = ()) -> int:
        """How many of these bytes went out at once, perhaps none. Descriptors go with the first byte."""
        ...

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> int:
        """Wait until at least one byte went out; how many did."""
        ...

    def gone(self) -> bool:
        """Whether the other side no longer reads either."""
        ...

    async def finish(self) -> None:
        """Close our direction and let the other side read what we said last."""
        ...

    async def aclose(self) -> None:
        """Close at once, without waiting for anything."""
        ...


class SocketWire:
    """The socket of a Trio stream, taken over: the stream must not be used any more.

    Descriptors that the other side passes are dropped by the kernel, as nothing here asks for them.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        family = stream.socket.family
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self.passes_fds = family == socket.AF_UNIX

    async def read(self) -> bytes:
        while True:
            await trio.lowlevel.wait_readable(self._socket)
            try:
                return self._socket.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except OSError as error:
                raise trio.BrokenResourceError("the other side is gone") from error

    def send_now(self, data: bytes, fds: Sequence[int] = ()) -> int:
        try:
            if fds:
                return socket.send_fds(self._socket, [data], list(fds))
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except _CLOSED_BY_PEER as error:
            raise trio.BrokenResourceError("the other side is gone") from error

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> int:
        while True:
            await trio.lowlevel.wait_writable(self._socket)
            sent = self.send_now(data, fds)
            if sent:
                return sent

    def gone(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, 0)  # errors and hang-ups only
        return bool(poll.poll(0))

    async def finish(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            return
        with trio.move_on_after(_LINGER):
            try:
                while await self.read():
                    pass
            except trio.BrokenResourceError:
                pass

    async def aclose(self) -> None:
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()


class StreamWire:
    """Any Trio stream. Nothing goes out at once: the peer's drain task writes."""

    passes_fds = False

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream

    async def read(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(READ_SIZE))
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError("the stream was closed") from error

    def send_now(self, data: bytes, fds: Sequence[int] = ()) -> int:
        return 0

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> int:
        try:
            await self._stream.send_all(data)
        except trio.ClosedResourceError as error:
            raise trio.BrokenResourceError("the stream was closed") from error
        return len(data)

    def gone(self) -> bool:
        return False

    async def finish(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


def wire_for(stream: trio.abc.Stream) -> Wire:
    return SocketWire(stream) if isinstance(stream, trio.SocketStream) else StreamWire(stream)
