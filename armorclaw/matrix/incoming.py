"""The body of an answer that is read as it comes in."""

from __future__ import annotations

import httpx
import trio

_CLOSE_TIMEOUT = 0.02  # seconds


class Incoming:
    """Of one answer; `TrioHTTPAPI.open` makes it, and says what is raised. Nothing is unpacked."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._pieces = response.aiter_raw()
        length = response.headers.get("content-length", "")
        self.length = int(length) if length.isascii() and length.isdecimal() and len(length) < 20 else None
        """Bytes in all, None if nobody said."""

    @property
    def is_packed(self) -> bool:
        """Whether it is not the thing itself, though that was asked for."""
        return str(self._response.headers.get("content-encoding", "identity")).lower() != "identity"

    async def next(self) -> bytes | None:
        """What came next, up to 64 KiB; None at the end."""
        return await anext(self._pieces, None)

    async def start(self, most: int) -> bytes:
        """Its first bytes, not many more than `most`."""
        body = bytearray()
        while len(body) < most and (piece := await self.next()) is not None:
            body += piece
        return bytes(body)

    async def close(self) -> None:
        """Give up what was not read: then its connection is closed, too."""
        with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):  # a socket is closed, and nobody's answer waited for
            await self._response.aclose()
            try:
                async for _ in self._pieces:  # it ends by itself now; left half-way it would litter
                    pass
            except (httpx.RequestError, httpx.StreamError):
                pass
