"""A streaming call as its caller sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

import msgspec

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import FlowError
from armorclaw.rpc.pieces import Note, PiecesIn, PiecesOut

if TYPE_CHECKING:
    from armorclaw.rpc.caller import OnProgress
    from armorclaw.rpc.jsonrpc import Response
    from armorclaw.rpc.peer import Peer


class Stream:
    """A call whose result comes in pieces, or whose params go in pieces; `Peer.stream` makes it.

    It is an async iterator over the pieces, which raises the error answered, or `unavailable` when the connection
    ends first; `result` gives what is answered last. Progress is told to whoever waits here, the newest alone.
    """

    def __init__(
        self,
        peer: Peer,
        method: str,
        number: bytes,
        room: int,
        chunk: Any,
        on_progress: OnProgress | None,
        outcome: Callable[[str, Response | None], Any],
    ) -> None:
        self.answered = False
        self.takes_bytes = chunk is bytes
        self._told = outcome
        self._method = method
        self._in = PiecesIn(peer, "$/credit", number)
        self._out = PiecesOut(peer, "$/upload", number, room)
        self._decode = msgspec.json.Decoder(chunk).decode
        self._on_progress = on_progress
        self._news: tuple[float, float | None, str] | None = None
        self._response: Response | None = None
        self._fault: ArmorclawError | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        piece = await self._in.next(self._look)
        if piece is None:
            self._outcome()
            raise StopAsyncIteration
        if type(piece) is bytes:
            return piece
        try:
            return self._decode(piece)
        except ValueError as error:
            raise ArmorclawError("remote_failed", f"a piece of {self._method} is not what it should be") from error

    async def send(self, value: Any) -> None:
        """Send one piece of the params, base64 if it is bytes; waits until the other side allows it.

        Raises the error answered, if it did not want them all; what comes after any other answer is dropped. Raises
        `too_large` beyond `flow.BYTES_MAX` bytes, or `flow.CHUNK_MAX` bytes of JSON.
        """
        self._look()
        await self._out.send(value)
        if self._is_over:
            self._outcome()

    async def end(self) -> None:
        """Say that the params are complete."""
        self._out.end()

    async def result(self) -> Any:
        """What is answered last; pieces that nobody took are dropped. Raises the error answered."""
        while await self._in.next(self._look) is not None:
            pass
        return self._outcome()

    # by the peer

    def settle(self, response: Response | None) -> None:
        """The answer, or None when the connection has ended."""
        self._response = response
        self.answered = True
        self._in.end()
        self._out.stop()

    def chunk(self, note: Note) -> None:
        if self._is_over:
            return  # what was answered counts, or what was wrong first
        note.end = None  # of uploads alone
        try:
            self._in.put(note)
        except FlowError as error:
            self._fail(error)

    def granted(self, note: Note) -> None:
        if self._is_over:
            return
        try:
            self._out.grant(note)
        except FlowError as error:
            self._fail(error)

    def progress(self, note: Note) -> None:
        if _is_number(note.done) and (note.total is None or _is_number(note.total)) and type(note.message) is str:
            self._news = (note.done, note.total, note.message)
            self._in.wake()

    @property
    def _is_over(self) -> bool:
        return self.answered or self._fault is not None

    def _fail(self, error: FlowError) -> None:
        self._fault = ArmorclawError("remote_failed", f"{self._method} broke the rules of streams", why=str(error))
        self._in.end()
        self._out.stop()

    def _look(self) -> None:
        news, self._news = self._news, None
        if news is not None and self._on_progress is not None:
            self._on_progress(*news)

    def _outcome(self) -> Any:
        if self._fault is not None:
            raise self._fault
        return self._told(self._method, self._response)


def _is_number(value: object) -> bool:
    return type(value) is int or type(value) is float
