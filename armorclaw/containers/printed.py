"""What agents print, on its way to whoever reads it: plain values that every runtime shares."""

from __future__ import annotations

from typing import Protocol, Self

import attrs

PIECE_BYTES = 32 * 1024
"""A piece has no more; as JSON in ASCII, where a byte may become six, that is still below what a chunk may hold."""

OURS = "bridge"
"""The stream of what the bridge says in between; no agent writes to it."""

STARTED_AGAIN = "started again\n"
"""What it says there where the output of another container of the agent begins."""


@attrs.frozen
class LogWanted:
    """What of it is wanted: the last `tail` lines (None: all that is kept) of those since `since_ms`.

    With `follow` also what comes from then on. With `timestamps` each piece says when it was written, if that is
    known.
    """

    tail: int | None = 100
    since_ms: int | None = None
    follow: bool = False
    timestamps: bool = False


@attrs.frozen
class LogPiece:
    """Some bytes in the order they were written; a piece may end within a line, or within a letter."""

    stream: str  # "stdout", "stderr"; "output" where the two are one; "bridge"
    at_ms: int | None
    data: bytes


class LogReader(Protocol):
    """The pieces, oldest first; nothing is read ahead of who asks for the next."""

    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> LogPiece: ...

    @property
    def truncated(self) -> bool | None:
        """Whether something that was wanted may not be kept any more; None where that cannot be told."""
        ...
