"""The head of a request, looked at byte by byte before h11 sees it.

h11 forgives much: lines that end in a bare LF, folded headers, equal Content-Lengths that come twice, both lengths at
once. Whatever two readers may take differently is refused here, as that is how requests are smuggled past one of them
(RFC 9112, sections 2.2, 5.2, 6.1 and 11.2). Nothing is normalised.
"""

from __future__ import annotations

import enum
import re

import attrs

from armorclaw.web.messages import HttpError

HEAD_LIMIT = 16 * 1024
"""Bytes of a head, its empty line included; more is 431."""

HEADER_LIMIT = 100
"""Lines of headers; more is 431."""

_REQUEST_LINE = re.compile(rb"([A-Z]{1,16}) ([\x21-\x7e]+) HTTP/([0-9]\.[0-9])")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):(.*)")
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\r(?=[^\n])")
_LENGTH = re.compile(rb"[0-9]{1,15}")
_AUTHORITY = re.compile(rb"(?:[A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,64}\]):[0-9]{1,5}")


class Form(enum.Enum):
    """The forms of a request's target (RFC 9112, section 3.2) that can be accepted; "*" never is."""

    ORIGIN = "/path?query"
    ABSOLUTE = "http://host/path"
    AUTHORITY = "host:port"  # of CONNECT, and of nothing else


@attrs.frozen
class Head:
    """A head that nobody can take for another one. `length` is that of the body, None if it comes in chunks."""

    raw: bytes = attrs.field(repr=False)
    method: str
    target: str
    form: Form
    length: int | None
    is_old: bool
    """Whether it is HTTP/1.0: only a CONNECT may be, as Python's own client sent it until 3.12."""


class HeadScanner:
    """Scans one head as it comes, each byte once. The answer depends on the bytes, not on how they were split."""

    def __init__(self) -> None:
        self._seen = 0  # bytes looked at
        self._line = 0  # where the current line begins
        self._lines = 0
        self._method = self._target = b""
        self._form = Form.ORIGIN
        self._is_old = False
        self._length: int | None = 0
        self._has_length = self._has_host = False

    def scan(self, data: bytearray) -> Head | None:
        """The head at the beginning of `data`: all that has come, and more each time. None: it goes on.

        Raises HttpError.
        """
        while True:
            end = data.find(b"\n", self._seen, HEAD_LIMIT)
            checked = data[max(self._line, self._seen - 1) : HEAD_LIMIT if end < 0 else end + 1]
            if _CONTROL.search(checked):
                raise HttpError(400, "a control character in the head")
            if end < 0:
                self._seen = min(len(data), HEAD_LIMIT)
                if len(data) >= HEAD_LIMIT:
                    raise HttpError(431, f"the head is over {HEAD_LIMIT} bytes")
                return None
            line = bytes(data[self._line : end + 1])
            if not line.endswith(b"\r\n"):
                raise HttpError(400, "a line of the head ends in a bare LF")
            self._seen = self._line = end + 1
            if line == b"\r\n" and self._lines:
                return self._done(bytes(data[: end + 1]))
            self._take(line[:-2])
            self._lines += 1

    def _take(self, line: bytes) -> None:
        if not self._lines:
            self._take_request_line(line)
            return
        if self._lines > HEADER_LIMIT:
            raise HttpError(431, f"more than {HEADER_LIMIT} headers")
        header = _HEADER.fullmatch(line)  # a folded line begins with white space, which is no name
        if header is None:
            raise HttpError(400, "a line of the head is no header")
        name, value = header[1].lower(), header[2].strip(b" \t")
        if name == b"host":
            if self._has_host:
                raise HttpError(400, "more than one Host")
            self._has_host = True
        elif name in (b"content-length", b"transfer-encoding"):
            self._take_length(name, value)
        elif name == b"expect" and value.lower() != b"100-continue":
            raise HttpError(417, "nothing but 100-continue can be expected")

    def _take_request_line(self, line: bytes) -> None:
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise HttpError(400, "not a request line of HTTP/1.1")
        self._method, self._target, version = match.groups()
        is_connect = self._method == b"CONNECT"
        self._is_old = version == b"1.0" and is_connect
        if version != b"1.1" and not self._is_old:
            raise HttpError(505, "only HTTP/1.1 is spoken here")
        self._form = _form_of(self._target, is_connect)

    def _take_length(self, name: bytes, value: bytes) -> None:
        if self._has_length:
            raise HttpError(400, "more than one Content-Length or Transfer-Encoding")
        self._has_length = True
        if self._method == b"CONNECT":
            raise HttpError(400, "a CONNECT has no body")
        if name == b"content-length":
            if not _LENGTH.fullmatch(value):
                raise HttpError(400, "a Content-Length that is no number")
            self._length = int(value)
        elif value.lower() == b"chunked":
            self._length = None
        else:
            raise HttpError(400, "a Transfer-Encoding other than chunked")

    def _done(self, raw: bytes) -> Head:
        if not self._has_host and not self._is_old:
            raise HttpError(400, "no Host")
        method, target = self._method.decode(), self._target.decode()
        return Head(raw, method, target, self._form, self._length, self._is_old)


def _form_of(target: bytes, is_connect: bool) -> Form:
    if is_connect:
        if _AUTHORITY.fullmatch(target):
            return Form.AUTHORITY
        raise HttpError(400, "the target of a CONNECT is host:port")
    if b"#" not in target:
        if target.startswith(b"/") and not target.startswith(b"//"):
            return Form.ORIGIN
        if target.lower().startswith((b"http://", b"https://")):
            return Form.ABSOLUTE
    raise HttpError(400, "the target is no path")
