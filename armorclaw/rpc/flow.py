"""How many pieces of a stream may be under way: accounting for both ends, without input or output.

Standard library only, Python 3.9: the bridge, its clients and the library inside containers share it.

Credit counts pieces. Both ends begin with `WINDOW`; the receiver grants as many as it has consumed, in halves of the
window, so that a reader that stops costs at most a window, and a steady one never keeps its sender waiting for a
round trip. (docs/protocol.md, "Streams")
"""

from __future__ import annotations

from typing import Any

WINDOW = 8
"""Pieces that may be under way, in each direction of each stream."""

CHUNK_MAX = 256 * 1024
"""Bytes of JSON text of one piece: the member `data` as written, less the quotation marks around a text."""

BYTES_MAX = 192 * 1024
"""Bytes of one piece that is base64 on the wire, which makes `CHUNK_MAX` of them."""

_MAX_GRANT = 1_000_000


class FlowError(ValueError):
    """The other side broke the rules of a stream; its text says which, and holds nothing the other side wrote."""


class Outflow:
    """Pieces that go out: what is still allowed, and the number of the next."""

    __slots__ = ("credit", "seq")

    def __init__(self, credit: int = WINDOW) -> None:
        self.credit = credit
        """Pieces that may go out now."""
        self.seq = 0
        """The number of the next, and of the end of an upload that has no piece in it, which costs no credit."""

    def take(self) -> int:
        """Spend one; the number of the piece. Ask `credit` first."""
        if self.credit <= 0:
            raise FlowError("no credit is left")
        self.credit -= 1
        self.seq += 1
        return self.seq - 1

    def grant(self, chunks: Any) -> None:
        """The receiver allows so many more. Raises FlowError if that is no number to grant."""
        if type(chunks) is not int or not 0 < chunks <= _MAX_GRANT:
            raise FlowError("credit is a whole number from 1 to %d" % _MAX_GRANT)
        self.credit += chunks


class Inflow:
    """Pieces that come in: which must be next, and when to grant more."""

    __slots__ = ("_allowed", "_consumed", "_next", "_window")

    def __init__(self, window: int = WINDOW) -> None:
        self._window = window
        self._allowed = window  # numbers below this one may come
        self._next = 0
        self._consumed = 0  # since credit was granted

    def received(self, seq: Any) -> None:
        """A piece with this number came. Raises FlowError if another was due, or none was allowed."""
        if type(seq) is not int or seq != self._next:
            raise FlowError("the piece with seq %d was due" % self._next)
        if seq >= self._allowed:
            raise FlowError("more pieces came than were granted, %d" % self._allowed)
        self._next = seq + 1

    def ended(self, seq: Any) -> None:
        """The end came, with this number and no piece. Raises FlowError if another was due."""
        if type(seq) is not int or seq != self._next:
            raise FlowError("the end with seq %d was due" % self._next)

    def consumed(self) -> int:
        """A piece was used up: how many to grant now, 0 for none yet."""
        self._consumed += 1
        if 2 * self._consumed < self._window:
            return 0
        granted, self._consumed = self._consumed, 0
        self._allowed += granted
        return granted
