"""Pieces of a stream on one connection, each way: who waits for credit, for room, or for the next piece.

The accounting is `armorclaw.rpc.flow`; here is what it costs in tasks that wait. A piece is JSON text from end to
end: made before its sender waits, and decoded by whoever takes it, so the reader of the connection does neither.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.flow import BYTES_MAX, CHUNK_MAX, FlowError, Inflow, Outflow

if TYPE_CHECKING:
    from armorclaw.rpc.peer import Peer

_CODEC = MsgspecCodec()
_encode_into = msgspec.json.Encoder().encode_into
_UNLIMITED = 1 << 62
_LARGEST = CHUNK_MAX + 2  # with the quotation marks of a text


Piece = msgspec.Raw | bytes
"""JSON text; or bytes, of base64 that was decoded already."""


class Note(msgspec.Struct):
    """The params of any notification whose name begins with "$/"; what they must be is for its reader to see."""

    id: Any = msgspec.UNSET
    seq: Any = None
    data: msgspec.Raw = msgspec.Raw(b"")
    end: Any = False
    chunks: Any = None
    done: Any = None
    total: Any = None
    message: Any = ""


_head = re.compile(
    rb'\{"jsonrpc":"2\.0","method":"(\$/(?:chunk|upload))","params":'
    rb'\{"id":(0|[1-9][0-9]{0,14}),"seq":(0|[1-9][0-9]{0,14}),"data":"'
).match
_TAIL = b'"}}'


def bulk_of(frame: bytes | bytearray, is_wanted: Callable[[str, int], bool]) -> tuple[str, Note] | None:
    """A message with a piece of bytes as we write it, decoded in one pass: its name and params.

    None: it is anything else, perhaps no JSON, or is not wanted of this call.
    """
    head = _head(frame)
    if head is None or not frame.endswith(_TAIL):
        return None
    name, number, seq = head[1].decode("ascii"), int(head[2]), int(head[3])
    if not is_wanted(name, number):
        return None
    try:
        # faster than the decoder of JSON, and as strict: it takes no escape, which that one may
        made = msgspec.convert(str(memoryview(frame)[head.end() : -len(_TAIL)], "ascii"), bytes)
    except ValueError:
        return None
    return name, Note(id=number, seq=seq, data=cast("msgspec.Raw", made))


def head_of(name: str, number: bytes) -> bytes:
    """How a notification about the call with this id begins; members and `}}` and a newline are to follow."""
    return b'{"jsonrpc":"2.0","method":"%s","params":{"id":%s' % (name.encode("ascii"), number)


def text_of(value: Any) -> bytes:
    """A piece as JSON text, base64 of bytes. Raises `too_large`, and ValueError or TypeError for what is no JSON."""
    text = _CODEC.encode(value)
    if len(text) > _LARGEST:
        hint = "send it in several: bytes of 192 KiB, or JSON of 256 KiB each"
        raise ArmorclawError("too_large", "a piece of a stream is too large", hint=hint, limit=CHUNK_MAX)
    return text


class PiecesOut:
    """Sends pieces: `$/chunk` or `$/upload`. `room` is what the connection must have left before one is sent."""

    __slots__ = ("_flow", "_head", "_lot", "_peer", "_room", "stopped")

    def __init__(self, peer: Peer, name: str, number: bytes, room: int) -> None:
        self.stopped = False
        """Whether nobody wants any more: what is sent now is dropped."""
        self._peer = peer
        self._head = head_of(name, number) + b',"seq":'
        self._room = room
        self._flow = Outflow()
        self._lot = trio.lowlevel.ParkingLot()

    async def send(self, value: Any) -> None:
        """Send one, as soon as the other side allows it and the connection has room. Raises as `text_of` does."""
        peer, flow = self._peer, self._flow
        seq = flow.seq
        frame = self._frame(seq, value)  # in the time in which the last one is taken
        await trio.lowlevel.checkpoint()
        while not self.stopped:
            if flow.credit <= 0:
                await self._lot.park()
            elif peer.room() < self._room:
                await peer.wait_room(self._room)
            else:
                if flow.take() != seq:  # another task was faster
                    frame = self._frame(flow.seq - 1, value)
                peer.push(frame)
                return

    def _frame(self, seq: int, value: Any) -> bytes:
        head = b'%s%d,"data":' % (self._head, seq)
        if type(value) is not bytes or len(value) > BYTES_MAX:
            return b"%s%s}}\n" % (head, text_of(value))
        frame = bytearray(head)  # grown in place: less is copied, and less memory asked for
        _encode_into(value, frame, len(head))
        frame += b"}}\n"
        return cast("bytes", frame)

    def end(self) -> None:
        """Say that no more will come; that costs no credit."""
        if not self.stopped:
            self._peer.push(b'%s%d,"end":true}}\n' % (self._head, self._flow.seq))
            self.stopped = True

    def grant(self, note: Note) -> None:
        """The other side allows more. Raises FlowError."""
        self._flow.grant(note.chunks)
        self._lot.unpark_all()

    def unlimited(self) -> None:
        """The other side can grant no more: from now on only the connection's room counts."""
        self._flow.credit = _UNLIMITED
        self._lot.unpark_all()

    def stop(self) -> None:
        self.stopped = True
        self._lot.unpark_all()


class PiecesIn:
    """Pieces that came and wait to be taken, a window of them at most; `name` is what grants more."""

    __slots__ = ("_flow", "_head", "_lot", "_peer", "_pieces", "ended", "is_cut")

    def __init__(self, peer: Peer, name: str, number: bytes) -> None:
        self.ended = False
        """Whether no more will come."""
        self.is_cut = False
        """Whether that is before the proper end."""
        self._peer = peer
        self._head = head_of(name, number) + b',"chunks":'
        self._flow = Inflow()
        self._lot = trio.lowlevel.ParkingLot()
        self._pieces: deque[Piece] = deque()

    def put(self, note: Note) -> None:
        """One came. Raises FlowError."""
        if self.ended:
            raise FlowError("a piece came after the last")
        piece: Piece = note.data
        size = memoryview(piece).nbytes
        if size > (BYTES_MAX if type(piece) is bytes else _LARGEST):
            raise FlowError(f"a piece is larger than {CHUNK_MAX} bytes of JSON")
        if note.end is True:
            self.ended = True
        elif note.end is not None and note.end is not False:  # to wait for an end that was meant would be for ever
            raise FlowError("end is true or false")
        if size:
            self._flow.received(note.seq)
            self._pieces.append(piece)
        elif self.ended:
            self._flow.ended(note.seq)
        else:
            raise FlowError("a piece has no data")
        self._lot.unpark_all()

    def end(self) -> None:
        """No more is wanted, or will come."""
        self.ended = True
        self._lot.unpark_all()

    def cut(self) -> None:
        """No more can come; that is no proper end."""
        self.is_cut = not self.ended
        self.end()

    def wake(self) -> None:
        """Have whoever waits in `next` call its `look`."""
        self._lot.unpark_all()

    async def next(self, look: Callable[[], object] | None = None) -> Piece | None:
        """The next one, None behind the last. `look` is called whenever there may be something to see."""
        await trio.lowlevel.checkpoint()
        while True:
            if look is not None:
                look()
            if self._pieces:
                break
            if self.ended:
                return None
            await self._lot.park()
        piece = self._pieces.popleft()
        granted = self._flow.consumed()
        if granted and not self.ended:
            self._peer.push(b"%s%d}}\n" % (self._head, granted))
        return piece
