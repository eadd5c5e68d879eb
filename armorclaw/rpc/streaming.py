"""What one connection has beside calls and answers: pieces, credit, progress, and calls given up by their callers.

The peer hands every notification whose name begins with "$/" to `Streams`, and asks it for the scope of each async
handler, so that its caller can cancel it. A streaming call also has a `StreamingCall`. What breaks the rules of a
stream ends that call with an error; what names a call that there is not is ignored, as it may just have ended.
(docs/protocol.md, "Streams")
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import msgspec
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.flow import FlowError
from armorclaw.rpc.jsonrpc import Notification, Request
from armorclaw.rpc.pieces import Note, Piece, PiecesIn, PiecesOut, bulk_of, head_of

if TYPE_CHECKING:
    from armorclaw.rpc.peer import Peer
    from armorclaw.rpc.registry import Method
    from armorclaw.rpc.stream import Stream

MAX_STREAMS = 8
"""Streaming calls being answered at once, for one connection."""

_BULK = 4096  # bytes of a message
_CODEC = MsgspecCodec()
_note = msgspec.json.Decoder(Note).decode
_bytes = msgspec.json.Decoder(bytes).decode
_value = msgspec.json.Decoder().decode
_ID_TYPES = (int, str, type(None))

Message = Request | Notification


class Streams:
    """The streams of one connection, and who may be cancelled. `room`: see `PiecesOut`."""

    __slots__ = ("_faults", "_late", "_peer", "_room", "_running", "calls", "made")

    def __init__(self, peer: Peer, made: Mapping[int, Stream], room: int) -> None:
        self.made = made
        """Streaming calls of ours, by number."""
        self.calls: dict[Any, StreamingCall] = {}
        """Those of the other side, by id."""
        self._peer = peer
        self._room = room
        self._running: dict[Message, trio.CancelScope] = {}  # every async handler, streaming or not
        self._faults: dict[Message, ArmorclawError] = {}  # why one of them was cancelled
        self._late: dict[Any, bytes] = {}  # progress that waits for room, the newest of each call

    def __bool__(self) -> bool:
        return bool(self.calls or self.made)

    # handlers

    def open(self, method: Method, message: Message) -> StreamingCall:
        """The call of a streaming method. Raises `invalid_request` and `queue_full`."""
        if type(message) is not Request or message.in_batch:
            hint = "send it as a request of its own, with an id"
            raise ArmorclawError("invalid_request", f"{method.name} answers with a stream", hint=hint)
        if len(self.calls) >= MAX_STREAMS:
            what = f"this connection has {MAX_STREAMS} streams already"
            raise ArmorclawError("queue_full", what, hint="end one of them, or open another connection")
        self._peer.widen()
        call = self.calls[message.id] = StreamingCall(self._peer, method, message, self, self._room)
        return call

    def scope(self, message: Message, deadline: float) -> trio.CancelScope:
        """The scope to run a handler in, for `deadline` seconds; `close` must follow."""
        scope = self._running[message] = trio.CancelScope(relative_deadline=deadline)
        return scope

    def fault(self, message: Message) -> ArmorclawError | None:
        """Why this handler was cancelled, if not by its deadline."""
        return self._faults.get(message)

    def close(self, message: Message) -> None:
        """The handler has ended."""
        self._running.pop(message, None)
        self._faults.pop(message, None)
        if self.calls and type(message) is Request:
            call = self.calls.get(message.id)
            if call is not None and call.message is message:
                del self.calls[message.id]
                self._late.pop(message.id, None)
                call.end()

    def cut(self, message: Message, error: ArmorclawError) -> None:
        """Have this handler cancelled and its call answered with the error, unless it ends by itself meanwhile."""
        self._faults.setdefault(message, error)
        self._running[message].cancel(reason=error.what)

    # the connection

    def half_closed(self) -> None:
        """The other side sends no more; it may still read."""
        for call in self.calls.values():
            call.half_closed()

    def abandon(self) -> None:
        """The other side cannot be understood any more: no stream can go on."""
        for call in list(self.calls.values()):
            self.cut(call.message, ArmorclawError("unavailable", f"{call.method} was cut short by a broken message"))

    def progress(self, number: Any, frame: bytes) -> None:
        self._late[number] = frame
        self.eased()

    def eased(self) -> None:
        """There may be room for progress that waited."""
        late = self._late
        while late and self._peer.room() > 0:
            self._peer.push(late.pop(next(iter(late))))

    def bulk(self, frame: bytes | bytearray) -> Notification | None:
        """For `Core.bulk`: a piece of a stream of bytes need not be opened as other messages are."""
        if not self or len(frame) < _BULK:
            return None
        bulk = bulk_of(frame, self._takes_bytes)
        return None if bulk is None else Notification(*bulk)

    def _takes_bytes(self, name: str, number: int) -> bool:
        stream = self.made.get(number) if name == "$/chunk" else self.calls.get(number)
        return stream is not None and stream.takes_bytes

    def take(self, message: Notification) -> bool:
        """Act on a notification whose name begins with "$/"; whether it was about any call there is."""
        if message.params is None:
            return False
        try:
            note = message.params if type(message.params) is Note else _note(message.params)
        except ValueError:
            return False
        if type(note.id) not in _ID_TYPES:
            return False
        if message.method == "$/cancelRequest":
            return self._cancel(note.id)
        act = _OURS.get(message.method)
        if act is not None:
            stream = self.made.get(note.id)
            if stream is not None:
                act(stream, note)
            return stream is not None
        action = _THEIRS.get(message.method)
        call = self.calls.get(note.id)
        if action is None or call is None:
            return False
        try:
            action(call, note)
        except FlowError as error:
            self.cut(call.message, ArmorclawError("invalid_params", f"{message.method} to {call.method}: {error}"))
        return True

    def _cancel(self, number: Any) -> bool:
        found = [each for each in self._running if type(each) is Request and each.id == number]
        for message in found:
            self.cut(message, ArmorclawError("cancelled", f"{message.method} was cancelled"))
        return bool(found)


class StreamingCall(Call):
    """A call of a streaming method."""

    __slots__ = ("_in", "_out", "_row", "_streams", "message")

    def __init__(self, peer: Peer, method: Method, message: Request, streams: Streams, room: int) -> None:
        super().__init__(peer, method.name)
        self.message = message
        self._row = method
        self._streams = streams
        self._out = PiecesOut(peer, "$/chunk", message.text, room)
        self._in = PiecesIn(peer, "$/uploadCredit", message.text)

    async def send(self, chunk: Any) -> None:
        if self._row.chunk is None:
            await super().send(chunk)
        await self._out.send(self._row.write_chunk(chunk))

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        if self._out.stopped:
            return
        members: dict[str, Any] = {"done": done}
        if total is not None:
            members["total"] = total
        if message:
            members["message"] = message
        frame = b"%s,%s}\n" % (head_of("$/progress", self.message.text), _CODEC.encode(members)[1:])
        self._streams.progress(self.message.id, frame)

    def uploads(self) -> Uploads:
        if self._row.upload is None:
            super().uploads()
        return Uploads(self._row, self._next_upload)

    async def _next_upload(self) -> Piece | None:
        piece = await self._in.next()
        if piece is None and self._in.is_cut:
            raise ArmorclawError("invalid_params", f"the upload to {self.method} was cut short")
        return piece

    # by `Streams`

    @property
    def takes_bytes(self) -> bool:
        return self._row.upload is bytes

    def credit(self, note: Note) -> None:
        self._out.grant(note)

    def upload(self, note: Note) -> None:
        if self._row.upload is None:
            raise FlowError("it takes no pieces")
        self._in.put(note)

    def half_closed(self) -> None:
        self._out.unlimited()
        self._in.cut()

    def end(self) -> None:
        self._out.stop()
        self._in.end()


class Uploads:
    """The pieces of an upload, decoded as its method says; see `Call.uploads`. `take` gives None at the end."""

    __slots__ = ("_row", "_take")

    def __init__(self, method: Method, take: Callable[[], Awaitable[Piece | None]]) -> None:
        self._row = method
        self._take = take

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        piece = await self._take()
        if piece is None:
            raise StopAsyncIteration
        if type(piece) is bytes:
            return piece
        if self._row.upload is bytes:
            try:
                return _bytes(piece)
            except ValueError as error:
                hint = "each piece is a text of its own: base64 with its padding, and no line breaks in it"
                raise ArmorclawError("invalid_params", "a piece of the upload is not base64", hint=hint) from error
        try:
            value = _value(piece)
        except ValueError as error:
            raise ArmorclawError("invalid_params", "a piece of the upload is not what it should be") from error
        return self._row.read_upload(value)


_OURS: dict[str, Callable[[Stream, Note], None]] = {
    "$/chunk": lambda stream, note: stream.chunk(note),
    "$/progress": lambda stream, note: stream.progress(note),
    "$/uploadCredit": lambda stream, note: stream.granted(note),
}
_THEIRS: dict[str, Callable[[StreamingCall, Note], None]] = {
    "$/upload": StreamingCall.upload,
    "$/credit": StreamingCall.credit,
}
