"""Where one JSON value ends and the next begins, in a stream of bytes.

Sans-I/O, standard library only, Python 3.9: the bridge, its clients and the library inside containers share it.

The rule (docs/protocol.md, "Framing"):

* A scanner follows JSON's grammar, with a stack of open brackets. A value ends when the stack is empty again; a
  number, `true`, `false` or `null` outside any bracket ends at white space or at the end of the stream. So
  newline-delimited, pretty-printed and concatenated values all work, and a value without a newline is complete at
  its last byte.
* A byte that cannot follow costs one parse error, and everything up to the next newline is skipped. When the wrong
  byte is a newline (inside a string), that is the one. Behind the first line of a value it costs the stream: who
  knows which of the lines to come still belong to that value, and what is in it may be a stranger's.
* A value of more than `MAX_FRAME` bytes costs one error and the stream. Deeper than `MAX_DEPTH` is a wrong byte.
* A value cut off by the end of the stream, or by the deadline the driver keeps, costs one parse error.

What stands inside a string (escapes, control characters, UTF-8), and whether a number fits, is the codec's business.

Scanning is incremental: what was looked at is not looked at again, however the bytes arrive. Strings are passed at
the speed of `bytes.find`, long arrays and objects by compiled expressions; only brackets cost a step of Python each.
A driver that reads lines need not come here while every line decodes: such a line is one value by this rule too.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Optional, Union

PARSE_ERROR = -32700
INVALID_REQUEST = -32600

MAX_FRAME = 1 << 20
"""Bytes of one value."""

MAX_DEPTH = 64
"""Brackets open at once."""


class FrameError:
    """What the other side is to be told about bytes that made no value.

    `code` and `message` are for the error reply, `limit` is the number that was passed, if one was. After a `fatal`
    one nothing of this stream can be understood: answer, then close.
    """

    __slots__ = ("code", "fatal", "limit", "message")

    def __init__(self, code: int, message: str, *, fatal: bool = False, limit: Optional[int] = None) -> None:
        self.code = code
        self.message = message
        self.fatal = fatal
        self.limit = limit

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, FrameError):
            return NotImplemented
        return (self.code, self.message, self.fatal) == (other.code, other.message, other.fatal)

    def __hash__(self) -> int:
        return hash((self.code, self.message, self.fatal))

    def __repr__(self) -> str:
        return f"FrameError({self.code}, {self.message!r}, fatal={self.fatal})"


Frame = Union[bytes, bytearray, FrameError]


# Every repetition is bounded, or over a single class of bytes: the engine's own memory stays small. And at each place
# at most one alternative can go on, so an expression that fails has read each byte a fixed number of times.
_WS = rb"[ \t\r\n]*"
_SHORT_STRING = rb'"[^"\\\n]{0,64}(?:\\[^\n][^"\\\n]{0,64}){0,8}"'
_ATOM = rb"(?:-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|true|false|null)"


def _nested(depth: int) -> bytes:
    """The expression for a value with at most `depth` brackets around its innermost part."""
    plain = _SHORT_STRING + b"|" + _ATOM
    if depth == 0:
        return b"(?:" + plain + b")"
    inner = _nested(depth - 1) + _WS
    # after each element: a comma with another element behind it, or the end
    members = _SHORT_STRING + _WS + b":" + _WS + inner + b"(?:," + _WS + rb'(?=")|(?=\}))'
    items = inner + b"(?:," + _WS + rb"(?=[^\]])|(?=\]))"
    bracketed = rb"\{" + _WS + b"(?:" + members + rb"){0,64}\}|\[" + _WS + b"(?:" + items + rb"){0,64}\]"
    return b"(?:" + plain + b"|" + bracketed + b")"


_WHOLE = rb"-?(?:[1-9][0-9]*|0)"
_RUN_DEPTH = 2
_RUN_PAUSE = 8

_skip_white = re.compile(_WS).match
_skip_escapes = re.compile(rb'(?:\\[^\n][^"\\\n]*){0,1000}').match
_skip_word = re.compile(rb"[0-9A-Za-z+.\-]*").match
_is_atom = re.compile(_ATOM).fullmatch


def _run(head: bytes, depth: int) -> Callable[..., Optional[re.Match[bytes]]]:
    """Elements with the comma behind each, as a long array or object consists of; `head` stands before each.

    Whole numbers come first, though they are values like others: a frame can hold half a million of them. That all
    alternatives fit them costs nothing, as nothing follows that could fail and make the engine try the others.
    """
    end = _WS + b","
    elements = _WHOLE + b",|" + _WHOLE + end + b"|" + _nested(depth) + end
    return re.compile(b"(?:" + _WS + head + b"(?:" + elements + b")){0,512}").match


# the place in the tuple is how many brackets an element may open
_skip_items = tuple(_run(b"", depth) for depth in range(_RUN_DEPTH + 1))
_skip_members = tuple(_run(_SHORT_STRING + _WS + b":" + _WS, depth) for depth in range(_RUN_DEPTH + 1))

WHITE = frozenset(b" \t\r\n")
_ATOM_STARTS = frozenset(b"-0123456789tfn")
_QUOTE, _COMMA, _COLON, _OPEN_BRACE, _BRACE = b'",:{}'
_CLOSER = {ord("{"): ord("}"), ord("["): ord("]")}

# what the scanner expects next; the first two are places for a value
_VALUE, _FIRST_ITEM, _FIRST_KEY, _KEY, _AFTER_KEY, _AFTER, _IN_STRING, _IN_KEY, _IN_ATOM = range(9)
_IN_QUOTES = (_IN_STRING, _IN_KEY)
_KEYS = (_FIRST_KEY, _KEY)
_MAY_CLOSE = (_AFTER, _FIRST_ITEM, _FIRST_KEY)


class _WrongByteError(Exception):
    """The byte at `at` cannot be there."""

    def __init__(self, at: int, message: str = "this is not JSON", limit: Optional[int] = None) -> None:
        self.at = at
        self.message = message
        self.limit = limit


class Frames:
    """Cuts a stream of bytes into JSON values.

    `feed` returns what became complete: the bytes of a value (without white space around it), `FrameError` for what
    the other side did wrong. After a fatal error, or `eof`, further input is ignored.
    """

    def __init__(self, *, max_frame: int = MAX_FRAME, max_depth: int = MAX_DEPTH) -> None:
        self._max_frame = max_frame
        self._max_depth = max_depth
        self._held = bytearray()  # the value that is open, from its first byte
        self._at = 0  # how far into it we have looked
        self._expect = _VALUE
        self._atom = 0  # where in it the number or word began, while in one
        self._closers = bytearray()  # what will close the open brackets, innermost last
        self._skipping = False
        self._closed = False

    @property
    def pending(self) -> bool:
        """Whether a value is open, or a bad line is being skipped: while true, the driver's deadline runs."""
        return bool(self._held) or self._skipping

    @property
    def in_string(self) -> bool:
        """Whether the open value stands inside a string, which is passed as fast as a quotation mark is found."""
        return self._expect in _IN_QUOTES

    def feed(self, data: bytes) -> list[Frame]:
        """The values and errors that `data` completed, in order."""
        out: list[Frame] = []
        if self._closed:
            return out
        if self._held:
            rest = self._continue(data, out)
            if rest is None:
                return out
            data = rest
        pos = 0
        size = len(data)
        while pos < size and not self._closed:
            if self._skipping:
                newline = data.find(b"\n", pos)
                if newline < 0:
                    break
                self._skipping = False
                pos = newline + 1
                continue
            if data[pos] in WHITE:
                pos = skip_white(data, pos)
                continue
            pos = self._value(data, pos, out)
            if pos < 0:
                break
        return out

    def eof(self) -> list[Frame]:
        """The stream ended: the value or the error that this makes of what is still open."""
        out: list[Frame] = []
        if self._held and not self._closed:
            if self._expect == _IN_ATOM and not self._closers and _is_atom(self._held):
                out.append(bytes(self._held))
            else:
                out.append(FrameError(PARSE_ERROR, "the stream ended inside a JSON value"))
        self._close()
        return out

    def expire(self) -> list[Frame]:
        """The driver's deadline passed while `pending`; the stream is given up."""
        out: list[Frame] = []
        if self._held and not self._closed:
            out.append(FrameError(PARSE_ERROR, "a JSON value was begun and not finished in time", fatal=True))
        self._close()
        return out

    def _close(self) -> None:
        self._closed = True
        self._skipping = False
        self._reset()

    def _reset(self) -> None:
        self._held = bytearray()
        self._at = 0
        self._expect = _VALUE
        self._closers = bytearray()

    def _continue(self, data: bytes, out: list[Frame]) -> Optional[bytes]:
        """Go on with the open value; what lies behind its end, or None when there is no end yet."""
        held = self._held
        held += data
        end = self._scan(held, 0, out)
        if end < 0:
            return None
        rest = bytes(memoryview(held)[end:])
        del held[end:]  # what is left is the value, which is given away as it is
        self._reset()
        return rest

    def _value(self, data: bytes, start: int, out: list[Frame]) -> int:
        """Scan a new value at `start`; where it ends, or -1 when all was used up."""
        self._at = start
        self._expect = _VALUE
        end = self._scan(data, start, out)
        if end >= 0:
            self._reset()
        elif not self._closed:
            self._held += memoryview(data)[start:]
            self._at -= start
            self._atom -= start
        return end

    def _scan(self, buffer: Union[bytes, bytearray], start: int, out: list[Frame]) -> int:
        """Append what the value beginning at `start` turns out to be; the place to go on from, or -1 if none."""
        limit = start + self._max_frame
        size = len(buffer)
        try:
            end = self._advance(buffer, size if size < limit else limit)
        except _WrongByteError as wrong:
            # of a value over several lines, the lines still to come must not be taken for messages of their own
            spread = buffer.find(b"\n", start, wrong.at) >= 0
            out.append(FrameError(PARSE_ERROR, wrong.message, fatal=spread, limit=wrong.limit))
            if spread:
                self._close()
                return -1
            self._skipping = True
            return wrong.at
        if end >= 0:
            out.append(buffer if buffer is self._held else bytes(memoryview(buffer)[start:end]))
        elif size >= limit:
            message = "a JSON value is larger than %d bytes: send more in pieces, by $/upload" % self._max_frame
            out.append(FrameError(INVALID_REQUEST, message, fatal=True, limit=self._max_frame))
            self._close()
        return end

    def _advance(self, buf: Union[bytes, bytearray], size: int) -> int:
        """Scan on from `self._at` to `size`; the end of the value, or -1."""
        pos = self._at
        expect = self._expect
        closers = self._closers
        max_depth = self._max_depth
        pause = 0  # places at which to try no run, but of numbers and words, after one that got nowhere
        while pos < size:
            if expect in _IN_QUOTES:
                pos, ended = _string(buf, pos, size)
                if not ended:
                    break
                expect = _AFTER_KEY if expect == _IN_KEY else _AFTER
                if expect == _AFTER and not closers:
                    return pos
                continue
            if expect == _IN_ATOM:
                pos = _end(_skip_word(buf, pos, size))
                if pos == size:
                    break
                if not _is_atom(buf, self._atom, pos) or not (closers or buf[pos] in WHITE):
                    raise _WrongByteError(pos)
                if not closers:
                    return pos
                expect = _AFTER
            byte = buf[pos]
            if byte in WHITE:
                pos = _end(_skip_white(buf, pos, size))
                continue
            if expect == _AFTER and byte == _COMMA:
                expect = _KEY if closers[-1] == _BRACE else _VALUE
            elif expect == _AFTER_KEY and byte == _COLON:
                pos += 1
                expect = _VALUE
                continue
            elif expect <= _FIRST_ITEM and byte in _CLOSER:
                if len(closers) == max_depth:
                    raise _WrongByteError(pos, "nested deeper than %d" % max_depth, max_depth)
                closers.append(_CLOSER[byte])
                expect = _FIRST_KEY if byte == _OPEN_BRACE else _FIRST_ITEM
            elif expect <= _FIRST_ITEM and byte == _QUOTE:
                pos += 1
                expect = _IN_STRING
                continue
            elif expect <= _FIRST_ITEM and byte in _ATOM_STARTS:
                expect = _IN_ATOM
                self._atom = pos
                continue
            elif expect in _KEYS and byte == _QUOTE:
                pos += 1
                expect = _IN_KEY
                continue
            elif expect in _MAY_CLOSE and byte == closers[-1]:
                pos += 1
                closers.pop()
                if not closers:
                    return pos
                expect = _AFTER
                continue
            else:
                raise _WrongByteError(pos)
            # behind a comma or an opening bracket: elements, perhaps many
            pos += 1
            if pause and (pos == size or buf[pos] not in _ATOM_STARTS):
                pause -= 1
            else:
                keys = expect in _KEYS
                depth = 0 if pause else min(max_depth - len(closers), _RUN_DEPTH)
                ran = _end((_skip_members if keys else _skip_items)[depth](buf, pos, size))
                if ran > pos:
                    pos = ran
                    expect = _KEY if keys else _VALUE
                else:
                    pause = _RUN_PAUSE
        self._at = pos
        self._expect = expect
        return -1


def _string(buf: Union[bytes, bytearray], pos: int, size: int) -> tuple[int, bool]:
    """Pass a string from inside: the place behind its closing quote and True, or the place reached and False."""
    while pos < size:
        quote = buf.find(b'"', pos, size)
        stop = size if quote < 0 else quote
        if buf.find(b"\n", pos, stop) >= 0:
            raise _WrongByteError(buf.find(b"\n", pos, stop), "a newline inside a string")
        escape = buf.find(b"\\", pos, stop)
        if escape < 0:
            return (size, False) if quote < 0 else (quote + 1, True)
        pos = _end(_skip_escapes(buf, escape, size))
        if pos == escape:  # the byte behind the backslash is missing, or is a newline
            if pos + 1 < size:
                raise _WrongByteError(pos + 1, "a newline inside a string")
            return pos, False
    return pos, False


_NO_BRACKET = bytes(sorted(set(range(256)) - set(b"[]{}")))
_ONE_KIND = bytes.maketrans(b"{}", b"[]")


def is_shallow(text: bytes, depth: int = MAX_DEPTH) -> bool:
    """Whether a value, which must be valid JSON, is no deeper than that. A few ns a byte, at any depth."""
    if opens_few(text, depth):
        return True
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside_strings = b"".join(text.split(b'"')[::2])
    brackets = outside_strings.translate(_ONE_KIND, _NO_BRACKET)
    for _ in range(depth):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"")  # the innermost, everywhere
    return not brackets


def opens_few(text: bytes, depth: int = MAX_DEPTH) -> bool:
    """Whether so few brackets open in a text that none of the values in it can be deeper than that."""
    if len(text) < 4096:  # where counting is the fastest
        return text.count(b"[") + text.count(b"{") <= depth
    find = text.find
    place = -1
    turn = b"["
    for _ in range(depth + 2):  # one look more for each kind finds nothing
        place = find(turn, place + 1)
        if place < 0:
            if turn == b"{":
                return True
            turn = b"{"
    return False


def skip_white(data: bytes, pos: int) -> int:
    """The place behind the white space at `pos`."""
    return _end(_skip_white(data, pos))


def _end(match: Optional[re.Match[bytes]]) -> int:
    """Where a match ended that cannot fail, because it may be empty."""
    assert match is not None
    return match.end()
