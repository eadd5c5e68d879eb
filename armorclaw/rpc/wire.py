"""What a peer needs of a byte stream: wait for bytes, and send without waiting.

Two kinds: a Unix or TCP socket, used directly, because a send that need not wait should cost one system call and no
turn of the event loop; and any other Trio stream, which can only be written by waiting.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from armorclaw.rpc.ears import READ_SIZE, Ears

SEND_BUFFER = 512 * 1024
"""What the system may keep of a connection with streams: a large piece and the next, so that each goes out in one
step. Without streams it keeps less, by default 208 KiB."""

# with streams: as much at a time as malloc takes from its heap (more would be mapped anew each time), and so many
# more full reads without a wait, which makes a large piece
_STREAM_READ = 120 * 1024
_IN_A_ROW = 2
_LINGER = 1.0  # seconds to let the other side read the last error before its unread bytes cause a reset


class Wire(Protocol):
    """A stream of bytes, half-closeable. Methods raise trio.BrokenResourceError when the other side is gone."""

    passes_fds: bool

    async def read(self) -> bytes:
        """What has come; empty when the other side will send no more."""
        ...

    async def listen(self, hear: Callable[[bytes], bool], answer: Callable[[], None]) -> bytes:
        """Give `hear` whatever comes, until it returns False: then those bytes. Empty at the end, as `read`.

        `answer` is called after that, to send what `hear` had to say.
        """
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

    def widen(self) -> None:
        """Prepare for streams, for the rest of the connection."""
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

    def __init__(self, stream: trio.SocketStream, ears: Ears | None = None) -> None:
        family = stream.socket.family
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._fd = self._socket.fileno()
        self._ears = ears
        self._read_size = READ_SIZE
        self._in_a_row = 0
        self._more = 0  # reads to try without waiting
        self.passes_fds = family == socket.AF_UNIX

    async def read(self) -> bytes:
        while True:
            try:
                if self._more:
                    self._more -= 1
                else:
                    await trio.lowlevel.wait_readable(self._fd)
                    self._more = self._in_a_row
                data = self._socket.recv(self._read_size)
            except BlockingIOError:
                self._more = 0
                continue
            except OSError as error:
                raise trio.BrokenResourceError("the other side is gone") from error
            if len(data) < self._read_size:
                self._more = 0
            return data

    async def listen(self, hear: Callable[[bytes], bool], answer: Callable[[], None]) -> bytes:
        if self._ears is None:
            return await _listen(self, hear, answer)
        try:
            return await self._ears.listen(self._socket, hear, answer)
        except OSError as error:
            raise trio.BrokenResourceError("the other side is gone") from error

    def send_now(self, data: bytes, fds: Sequence[int] = ()) -> int:
        try:
            if fds:
                return socket.send_fds(self._socket, [data], list(fds))
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as error:  # or the system is short of something: as bad for this one, and no matter of others
            raise trio.BrokenResourceError("the other side is gone") from error

    async def send(self, data: bytes, fds: Sequence[int] = ()) -> int:
        while True:
            try:
                await trio.lowlevel.wait_writable(self._fd)
            except OSError as error:
                raise trio.BrokenResourceError("the other side is gone") from error
            sent = self.send_now(data, fds)
            if sent:
                return sent

    def gone(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, 0)  # errors and hang-ups only
        return bool(poll.poll(0))

    def widen(self) -> None:
        self._read_size = _STREAM_READ
        self._in_a_row = _IN_A_ROW
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)

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

    async def listen(self, hear: Callable[[bytes], bool], answer: Callable[[], None]) -> bytes:
        return await _listen(self, hear, answer)

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

    def widen(self) -> None:
        pass

    async def finish(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            try:
                await self._stream.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                pass

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


async def _listen(wire: Wire, hear: Callable[[bytes], bool], answer: Callable[[], None]) -> bytes:
    while data := await wire.read():
        done = hear(data)
        answer()
        if not done:
            break
    return data


def wire_for(stream: trio.abc.Stream, ears: Ears | None = None) -> Wire:
    return SocketWire(stream, ears) if isinstance(stream, trio.SocketStream) else StreamWire(stream)
