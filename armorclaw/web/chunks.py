"""The chunks of a body, looked at byte by byte before h11 sees them, for the same reason as heads."""

from __future__ import annotations

import re

from armorclaw.web.messages import HttpError

# a chunk's size, with the end of the chunk before it; neither extensions nor trailers, which nobody needs
_SIZE = re.compile(rb"\r\n([0-9A-Fa-f]{1,8})\r\n")
_SIZE_SO_FAR = re.compile(rb"\r|\r\n|\r\n[0-9A-Fa-f]{1,8}\r?")


class Chunks:
    """How far one chunked body goes (RFC 9112, section 7.1)."""

    def __init__(self) -> None:
        self.done = False
        self._left = 0  # bytes of the current chunk that are yet to come
        self._line = b"\r\n"  # what came of the line between two chunks; before the first, as if there was one
        self._is_last = False

    def feed(self, data: bytes) -> int:
        """How many bytes of `data`, which follows what was fed before, belong to the body. Raises HttpError."""
        at = 0
        while at < len(data) and not self.done:
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
                at += step
            else:
                self._line += data[at : at + 1]
                at += 1
                self._take_line()
        return at

    def _take_line(self) -> None:
        if self._is_last:
            self.done = self._line == b"\r\n"
            is_right = self.done or self._line == b"\r"
        elif size := _SIZE.fullmatch(self._line):
            self._left = int(size[1], 16)
            self._is_last = not self._left
            self._line = b""
            is_right = True
        else:
            is_right = _SIZE_SO_FAR.fullmatch(self._line) is not None
        if not is_right:
            raise HttpError(400, "a chunk of the body is not written as it should be")
