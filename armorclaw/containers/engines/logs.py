"""The log of a container as an engine sends it, taken apart without I/O, and the reader that does the I/O."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from datetime import UTC, datetime

import attrs
import trio

from armorclaw.containers.printed import PIECE_BYTES, LogPiece, LogWanted

WORDS_BYTES = 64 * 1024
"""Kept in memory for each agent, of the log of its last container."""

_STREAMS = {1: "stdout", 2: "stderr"}
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:00) ")
_STAMP_BYTES = 40  # whatever begins a frame and is longer is no time


class LogFrames:
    """Takes apart the log stream of a container without a terminal.

    Each frame is [stream, 0, 0, 0][length, 4 bytes big-endian][bytes]; chunks may end anywhere in one. What has
    come of a frame is given at once, so nothing is held back but an incomplete head. With `stamped`, the bytes of
    each frame begin with when it was written, in UTC, and a space, which belong to the head.
    """

    def __init__(self, *, stamped: bool = False) -> None:
        self._stamped = stamped
        self._head = b""
        self._stamp: bytes | None = None  # being read
        self._stream = 0
        self._at_ms: int | None = None
        self._left = 0

    def feed(self, chunk: bytes) -> Iterator[LogPiece]:
        """The pieces that `chunk` completes or continues."""
        at = 0
        while at < len(chunk):
            if self._left == 0:
                at = self._read_head(chunk, at)
                continue
            data = chunk[at : at + self._left]
            at += len(data)
            self._left -= len(data)
            if self._stamp is not None:
                data = self._read_stamp(self._stamp + data)
            if data:
                yield LogPiece(_STREAMS.get(self._stream, "stdout"), self._at_ms, data)

    def _read_head(self, chunk: bytes, at: int) -> int:
        need = 8 - len(self._head)
        self._head += chunk[at : at + need]
        if len(self._head) == 8:
            self._stream, self._left = self._head[0], int.from_bytes(self._head[4:], "big")
            self._head, self._at_ms = b"", None
            self._stamp = b"" if self._stamped and self._left else None
        return at + need

    def _read_stamp(self, data: bytes) -> bytes:
        """What follows the time; nothing while it is incomplete."""
        if b" " not in data and len(data) < _STAMP_BYTES and self._left:
            self._stamp = data
            return b""
        self._stamp = None
        found = _STAMP.match(data)
        if found is None:
            return data
        seconds = datetime.strptime(found[1].decode(), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC).timestamp()
        self._at_ms = int(seconds) * 1000 + int((found[2] or b"0").ljust(9, b"0")[:3])
        return data[found.end() :]


class EngineLog:
    """Reads one log: a `LogReader` over an answer's body. Engines tell nobody what they have thrown away."""

    truncated = None

    def __init__(self, read: Callable[[], Awaitable[bytes]], wanted: LogWanted, *, skip: int = 0) -> None:
        """Over what `read` gives, b"" at the end; the first `skip` bytes of what was printed are left out."""
        self._read = read
        self._skip = skip
        self._frames = LogFrames(stamped=wanted.timestamps)
        self._ready: deque[LogPiece] = deque()

    def __aiter__(self) -> EngineLog:
        return self

    async def __anext__(self) -> LogPiece:
        while not self._ready:
            chunk = await self._read()
            if not chunk:
                raise StopAsyncIteration
            self._ready.extend(joined(self._late_part(self._frames.feed(chunk))))
        return self._ready.popleft()

    def _late_part(self, pieces: Iterable[LogPiece]) -> Iterator[LogPiece]:
        for piece in pieces:
            data = piece.data[self._skip :]
            self._skip -= len(piece.data) - len(data)
            if data:
                yield attrs.evolve(piece, data=data)


async def before_tail(reader: EngineLog, tail: int) -> int:
    """How many bytes come before the last `tail` lines of what is read."""
    starts: deque[int] = deque(maxlen=tail)  # of the last lines
    size, is_start = 0, True
    async for piece in reader:
        place = 0
        while place < len(piece.data):
            if is_start:
                starts.append(size + place)
            end = piece.data.find(b"\n", place)
            is_start = end >= 0
            place = end + 1 if is_start else len(piece.data)
        size += len(piece.data)
    return starts[0] if starts else size


class LastWords:
    """The end of a log whose container is removed: at most `WORDS_BYTES` of it, with the times."""

    def __init__(self) -> None:
        self._pieces: deque[LogPiece] = deque()
        self._size = 0
        self._cut = False

    def add(self, piece: LogPiece) -> None:
        """What came next in the log; the oldest makes room."""
        self._pieces.append(piece)
        self._size += len(piece.data)
        while self._size > WORDS_BYTES:
            self._size -= len(self._pieces.popleft().data)
            self._cut = True

    def read(self, wanted: LogWanted) -> LastWordsLog:
        """As the engine would have answered; the first line may lack its beginning."""
        pieces = [piece for piece in self._pieces if _is_late(piece, wanted)]
        cut = self._cut and len(pieces) == len(self._pieces)
        if wanted.tail is not None:
            first, lines = len(pieces), 0
            for place in reversed(range(len(pieces))):
                lines += _ends_line(pieces[place]) or place == len(pieces) - 1
                if lines > wanted.tail:
                    break
                first = place
            cut = cut and first == 0
            pieces = pieces[first:]
        if not wanted.timestamps:
            pieces = [attrs.evolve(piece, at_ms=None) for piece in pieces]
        return LastWordsLog(joined(pieces), cut)


class LastWordsLog:
    """A `LogReader` over what is in memory."""

    def __init__(self, pieces: Iterator[LogPiece], truncated: bool) -> None:
        self._pieces = pieces
        self.truncated: bool | None = truncated

    def __aiter__(self) -> LastWordsLog:
        return self

    async def __anext__(self) -> LogPiece:
        await trio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


def joined(pieces: Iterable[LogPiece]) -> Iterator[LogPiece]:
    """The same bytes in as few pieces as there can be, none longer than PIECE_BYTES."""
    first: LogPiece | None = None
    data = bytearray()
    for piece in pieces:
        if first is not None and (piece.stream, piece.at_ms) != (first.stream, first.at_ms):
            yield attrs.evolve(first, data=bytes(data))
            data.clear()
        first = piece
        data += piece.data
        while len(data) > PIECE_BYTES:
            yield attrs.evolve(first, data=bytes(data[:PIECE_BYTES]))
            del data[:PIECE_BYTES]
    if first is not None:
        yield attrs.evolve(first, data=bytes(data))


def _is_late(piece: LogPiece, wanted: LogWanted) -> bool:
    return wanted.since_ms is None or piece.at_ms is None or piece.at_ms >= wanted.since_ms


def _ends_line(piece: LogPiece) -> bool:
    return piece.data.endswith(b"\n")
