"""One request and its answer, from the first byte of the head to what may follow on the connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager

import attrs
import h11
import trio

from armorclaw.web.chunks import Chunks
from armorclaw.web.head import HEAD_LIMIT, Form, Head, HeadScanner
from armorclaw.web.messages import Headers, HttpError, Request, Response

READ_SIZE = 64 * 1024
"""Bytes read or written at a time."""

PIPELINE_LIMIT = 16 * 1024
"""Bytes a client may send ahead while its request is being answered; who sends more is cut off."""

LINGER = 1.0
"""Seconds, and LINGER_BYTES, that are still read from a client that was refused: else what it goes on sending would
reset the connection before it has read why."""

LINGER_BYTES = 4 * 1024 * 1024


@attrs.frozen(kw_only=True)
class WebLimits:
    """Seconds and sizes for the connections of one listener.

    `idle` is how long a connection may send nothing between two requests, `head` and `body` how long those may take
    as a whole, `write` how long each piece of an answer may wait for a client that does not read. A body over
    `body_size` bytes is refused, unless who reads it allows more. What is over `connections` is told so and closed,
    if none has ended within `room` seconds.
    """

    idle: float = 60.0
    head: float = 10.0
    body: float = 60.0
    write: float = 30.0
    body_size: int = 1024 * 1024
    connections: int = 64
    room: float = 0.0


class GoneError(Exception):
    """The client is not there any more, or does not read: nothing can be answered."""


class Inbox:
    """What came on a stream and is not used yet."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.data = bytearray()

    async def more(self) -> bool:
        """Wait for more; False at the end of the stream, or when it broke."""
        try:
            came = await self.stream.receive_some(READ_SIZE)
        except trio.BrokenResourceError:
            return False
        self.data += came
        return bool(came)


Send = Callable[[bytes], Awaitable[None]]


class Exchange:
    """One request, for the handler that answers it: by what it returns, by `streaming`, or by `take_over`.

    From the moment the whole request is read the client is watched: when it goes away, the handler is cancelled.
    """

    def __init__(self, inbox: Inbox, limits: WebLimits, accepts: Collection[Form]) -> None:
        self.request = Request("", "", ())
        self.form = Form.ORIGIN
        self._inbox = inbox
        self._limits = limits
        self._accepts = accepts
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        self._head: Head | None = None
        self._chunks: Chunks | None = None
        self._left = 0  # bytes of the body to come, if it is not in chunks
        self._whole = False  # the body was read
        self._nursery: trio.Nursery | None = None
        self._watching = trio.CancelScope()
        self._unwatched: trio.Event | None = None

    def __repr__(self) -> str:
        return f"<Exchange {self.request.method} {self.request.target}>"

    # -- for the server

    async def begin(self) -> bool:
        """Read the head; False if the client had nothing more to ask. Raises HttpError."""
        inbox, scanner = self._inbox, HeadScanner()
        with trio.move_on_after(self._limits.head if inbox.data else self._limits.idle) as patience:
            while (head := scanner.scan(inbox.data)) is None:
                is_first = not inbox.data
                if not await inbox.more():
                    return False
                if is_first:
                    patience.deadline = trio.current_time() + self._limits.head
            self._start(head)
            return True
        if not inbox.data:
            return False
        raise HttpError(408, f"the head took over {self._limits.head:g} s")

    def _start(self, head: Head) -> None:
        del self._inbox.data[: len(head.raw)]
        self._h11.receive_data(head.raw)
        try:
            event = self._h11.next_event()
        except h11.RemoteProtocolError as error:
            raise HttpError(400, "not a request of HTTP/1.1") from error
        assert isinstance(event, h11.Request), event
        self._head, self.form = head, head.form
        self._chunks = Chunks() if head.length is None else None
        self._left = head.length or 0
        headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers)
        self.request = Request(head.method, head.target, headers)
        if head.form not in self._accepts:
            if head.form is Form.AUTHORITY:
                raise HttpError(405, "nothing can be connected to here")
            raise HttpError(400, "the target is no path")
        if head.length == 0:
            self._finish_body()

    async def run(self, handle: Callable[[Exchange], Awaitable[Response | None]]) -> None:
        """Have it answered. Raises what the handler raises, in groups, and GoneError if the client went away."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._whole:
                self._watch()
            response = await handle(self)
            if response is not None:
                await self.answer(response)
            nursery.cancel_scope.cancel(reason="answered")
            return
        raise GoneError

    async def refuse(self, response: Response) -> None:
        """Answer, unless an answer has begun: that one ends in the middle. Raises GoneError."""
        if self._h11.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            await self.answer(response)

    async def finish(self) -> bool:
        """Whether another request may follow on the same connection.

        If not, and the client has more to send, read on for a moment, so that it can read the answer.
        """
        goes_on = self._whole and self._h11.our_state is h11.DONE
        is_answered = self._h11.our_state in (h11.DONE, h11.MUST_CLOSE)
        if is_answered and not goes_on and (self._inbox.data or not self._whole):
            await self._linger()
        return goes_on

    async def answer(self, response: Response) -> None:
        """Send all of it. Raises GoneError."""
        close = response.close or not self._whole or (self._head is not None and self._head.is_old)
        headers = [*response.headers, ("content-length", str(len(response.body)))]
        if response.status in (204, 304):
            headers.pop()
        if close:
            headers.append(("connection", "close"))
        data = self._say(response.status, headers, response.phrase)
        if response.body and self.request.method != "HEAD":
            data += self._h11.send(h11.Data(data=response.body)) or b""
        await self._send(data + (self._h11.send(h11.EndOfMessage()) or b""))

    # -- for handlers

    async def body(self, limit: int | None = None) -> bytes:
        """All of the body, of at most `limit` bytes (else that of the listener). Once. Raises HttpError."""
        most = self._limits.body_size if limit is None else limit
        if self._left > most:
            raise HttpError(413, f"the body is over {most} bytes")
        if self._whole:
            return b""
        with trio.move_on_after(self._limits.body):
            return await self._read_body(most)
        raise HttpError(408, f"the body took over {self._limits.body:g} s")

    async def _read_body(self, most: int) -> bytes:
        if self._h11.they_are_waiting_for_100_continue:
            await self._send(self._h11.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        body = bytearray()
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                await self._feed()
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise HttpError(413, f"the body is over {most} bytes")
            else:
                assert isinstance(event, h11.EndOfMessage), event
                self._whole = True
                self._watch()
                return bytes(body)

    async def _feed(self) -> None:
        """What came of the body, and nothing that follows it, goes to h11."""
        data = self._inbox.data
        if not data and not await self._inbox.more():
            raise GoneError
        piece = bytes(data[:READ_SIZE])
        if self._chunks is None:
            size = min(len(piece), self._left)
            self._left -= size
        else:
            size = self._chunks.feed(piece)
        self._h11.receive_data(piece[:size])
        del data[:size]

    @asynccontextmanager
    async def streaming(self, status: int = 200, headers: Headers = ()) -> AsyncIterator[Send]:
        """Answer in pieces, for the length of the block: `await send(piece)`. The first one goes out with the head.

        If the block raises, the connection is cut, so that nobody takes what was sent for the whole. `send` raises
        GoneError.
        """
        waiting = self._say(status, [*headers, *([] if self._whole else [("connection", "close")])])

        async def send(piece: bytes) -> None:
            nonlocal waiting
            data = self._h11.send(h11.Data(data=piece)) if piece and self.request.method != "HEAD" else b""
            data, waiting = waiting + (data or b""), b""
            await self._send(data)

        yield send
        await self._send(waiting + (self._h11.send(h11.EndOfMessage()) or b""))

    async def take_over(
        self, status: int = 200, headers: Headers = (), reason: str = ""
    ) -> tuple[trio.abc.Stream, bytes]:
        """The stream itself, for what is no HTTP any more, and what the client has sent ahead of the answer.

        For a CONNECT (2xx), or an upgrade (101). The stream is closed when the handler returns. Raises GoneError.
        """
        if self._unwatched is not None:
            self._watching.cancel(reason="the connection is taken over")
            await self._unwatched.wait()
        phrase = Response(status, reason=reason).phrase
        await self._send(self._say(status, list(headers), phrase))
        early = bytes(self._inbox.data)
        self._inbox.data.clear()
        return self._inbox.stream, early

    # -- inside

    def _finish_body(self) -> None:
        event = self._h11.next_event()
        assert isinstance(event, h11.EndOfMessage), event
        self._whole = True

    def _watch(self) -> None:
        assert self._nursery is not None, "handlers run in one"
        self._unwatched = trio.Event()
        self._nursery.start_soon(self._watch_client, self._nursery, self._unwatched, name="watch the client")

    async def _watch_client(self, nursery: trio.Nursery, unwatched: trio.Event) -> None:
        """Until the client goes away, or sends more than it may: then nobody waits for the answer."""
        with self._watching:
            while len(self._inbox.data) <= PIPELINE_LIMIT and await self._inbox.more():
                pass
            nursery.cancel_scope.cancel(reason="the client is gone")
        unwatched.set()

    def _say(self, status: int, headers: list[tuple[str, str]], phrase: str = "") -> bytes:
        pairs = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers]
        reason = (phrase or Response(status).phrase).encode("ascii")
        if status < 200:
            return self._h11.send(h11.InformationalResponse(status_code=status, headers=pairs, reason=reason)) or b""
        return self._h11.send(h11.Response(status_code=status, headers=pairs, reason=reason)) or b""

    async def _send(self, data: bytes) -> None:
        """In pieces, so that the deadline is for a client that does not read, not for a long answer."""
        for at in range(0, len(data), READ_SIZE):
            with trio.move_on_after(self._limits.write) as patience:
                try:
                    await self._inbox.stream.send_all(data[at : at + READ_SIZE])
                except trio.BrokenResourceError as error:
                    raise GoneError from error
            if patience.cancelled_caught:
                raise GoneError

    async def _linger(self) -> None:
        stream, left = self._inbox.stream, LINGER_BYTES
        with trio.move_on_after(LINGER):
            try:
                if isinstance(stream, trio.abc.HalfCloseableStream):
                    await stream.send_eof()
                while left > 0 and (data := await stream.receive_some(READ_SIZE)):
                    left -= len(data)
            except trio.BrokenResourceError:
                pass
