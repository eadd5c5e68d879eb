from __future__ import annotations

import json
import math
import time
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.rpc.framing import (
    INVALID_REQUEST,
    MAX_DEPTH,
    MAX_FRAME,
    PARSE_ERROR,
    FrameError,
    Frames,
    is_shallow,
)

WHITE = " \t\r\n"

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=8), inner, max_size=6),
    max_leaves=25,
)


@st.composite
def json_text(draw: st.DrawFn) -> str:
    """One value, written in one of the ways clients write it."""
    value = draw(values)
    indent = draw(st.sampled_from([None, None, 0, 2]))
    separators = draw(st.sampled_from([None, (",", ":"), (" , ", " : ")]))
    return json.dumps(value, indent=indent, separators=separators, ensure_ascii=draw(st.booleans()))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Values one after the other; white space between them where JSON needs it, and otherwise at will."""
    texts = draw(st.lists(json_text(), max_size=5))
    out = draw(st.text(WHITE, max_size=3))
    for text in texts:
        out += text
        least = 0 if text[-1] in '}]"' else 1
        out += draw(st.text(WHITE, min_size=least, max_size=3))
    return out.encode("utf-8", "surrogatepass")


def reference(stream: bytes) -> list[Any]:
    """A plain decoder: one value after the other from the whole text."""
    text = stream.decode("utf-8", "surrogatepass")
    decode = json.JSONDecoder().raw_decode
    found: list[Any] = []
    pos = 0
    while True:
        while pos < len(text) and text[pos] in WHITE:
            pos += 1
        if pos == len(text):
            return found
        value, pos = decode(text, pos)
        found.append(value)


def cut(stream: bytes, *places: int) -> list[bytes]:
    edges = [0, *sorted(places), len(stream)]
    return [stream[a:b] for a, b in pairwise(edges)]


def frames_of(*pieces: bytes, **limits: int) -> list[bytes | FrameError]:
    frames = Frames(**limits)
    found = [frame for piece in pieces for frame in frames.feed(piece)] + frames.eof()
    return [frame if isinstance(frame, FrameError) else bytes(frame) for frame in found]


def decoded(frames: list[bytes | FrameError]) -> list[Any]:
    assert not [frame for frame in frames if isinstance(frame, FrameError)]
    return [json.loads(frame.decode("utf-8", "surrogatepass")) for frame in frames if isinstance(frame, bytes)]


@given(streams(), st.data())
def test_any_split_of_any_stream_gives_the_values_of_a_plain_decoder(stream: bytes, data: st.DataObject) -> None:
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    assert decoded(frames_of(*cut(stream, *places))) == reference(stream)


@given(
    st.one_of(streams(), st.binary(max_size=80), st.text('{}[]",:\\ntru1e-.\n \x00é', max_size=60).map(str.encode))
)
def test_wrong_or_right_every_byte_alone_gives_what_the_whole_gives(stream: bytes) -> None:
    whole = frames_of(stream, max_frame=50, max_depth=4)
    assert frames_of(*cut(stream, *range(len(stream))), max_frame=50, max_depth=4) == whole


@given(values)
def test_a_frame_has_no_white_space_around_it(value: Any) -> None:
    text = json.dumps(value).encode()
    assert frames_of(b" \r\n\t" + text + b"\n \n") == [text]


PARSE = "parse error"
REQUEST = '{"jsonrpc":"2.0","id":1,"method":"status"}'
PRETTY = json.dumps(json.loads(REQUEST), indent=2)

# §8.2 of the notes, A and B: what each stream is cut into; PARSE for one parse error
VECTORS: list[tuple[str, bytes, list[bytes | str]]] = [
    ("empty", b"", []),
    ("newlines", b"\n" * 50, []),
    ("white space", b" \t\n", []),
    ("half a frame", REQUEST[:20].encode(), [PARSE]),
    ("carriage returns", f"{REQUEST}\r\n{REQUEST}\r\n".encode(), [REQUEST.encode()] * 2),
    ("NUL between frames", f"{REQUEST}\n\x00\n{REQUEST}\n".encode(), [REQUEST.encode(), PARSE, REQUEST.encode()]),
    ("no newline", REQUEST.encode(), [REQUEST.encode()]),
    ("two without newline", (REQUEST * 2).encode(), [REQUEST.encode()] * 2),
    ("pretty", PRETTY.encode(), [PRETTY.encode()]),
    ("pretty, twice", (PRETTY + PRETTY).encode(), [PRETTY.encode()] * 2),
    ("64 in one write", f"{REQUEST}\n".encode() * 64, [REQUEST.encode()] * 64),
    ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", [PARSE, PARSE]),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", [PARSE]),
    ("LSP", f"Content-Length: 42\r\n\r\n{REQUEST}".encode(), [PARSE, REQUEST.encode()]),
    ("byte order mark", b"\xef\xbb\xbf" + f"{REQUEST}\n{REQUEST}".encode(), [PARSE, REQUEST.encode()]),
    ("an opening brace", b"{", [PARSE]),
    ("a closing brace", b"}", [PARSE]),
    ("many opening brackets", b"[" * 100_000, [PARSE]),
    ("many objects", b'{"a":' * 1000, [PARSE]),
    ("comma before bracket", b"[1,]\n" + REQUEST.encode(), [PARSE, REQUEST.encode()]),
    ("comma before brace", b'{"a":1,}\n', [PARSE]),
    ("single quotes", b"{'a':1}\n", [PARSE]),
    ("comment", b"/**/{}\n", [PARSE]),
    ("leading zero", b"01\n", [PARSE]),
    ("plus", b"+1\n", [PARSE]),
    ("leading point", b".5\n", [PARSE]),
    ("hexadecimal", b"0x1\n", [PARSE]),
    ("NaN", b"NaN\n", [PARSE]),
    ("minus infinity", b"-Infinity\n", [PARSE]),
    ("large exponent", b"1e400\n", [b"1e400"]),  # JSON all right: the codec refuses it
    ("minus zero", b"-0", [b"-0"]),
    ("value and rubbish", b"{} x {}\n{}", [b"{}", PARSE, b"{}"]),
    ("NUL in a string", b'"\x00"', [b'"\x00"']),  # delimited all right: the codec refuses it
    ("newline in a string", b'{"a":"\n"}\n', [PARSE, PARSE]),
    ("5,000 digits", b"1" * 5000 + b"\n", [b"1" * 5000]),
    ("wrong bracket", b'{"a":[1}\n{}', [PARSE, b"{}"]),
    ("two values in one", b'{"a":1 2}\n{}', [PARSE, b"{}"]),
    ("no colon", b'{"a" 1}\n{}', [PARSE, b"{}"]),
    ("number as name", b"{1:1}\n{}", [PARSE, b"{}"]),
    ("word", b"nul\n", [PARSE]),
    ("word in two", b"tr ue\n", [PARSE]),
    ("scalars", b'1 true "a"null\n', [b"1", b"true", b'"a"', b"null"]),
    ("number against brace", b"1{}\n{}", [PARSE, b"{}"]),
    ("quote in a string", rb'{"a":"\"}"}', [rb'{"a":"\"}"}']),
    ("backslash at the end of a string", rb'{"a":"\\"}{}', [rb'{"a":"\\"}', b"{}"]),
    ("escaped newline", b'"\\\n"\n{}', [PARSE, PARSE, b"{}"]),
    ("an error mid-line", b"}{}\n{}", [PARSE, b"{}"]),
]


def named(frames: list[bytes | FrameError]) -> list[bytes | str]:
    for frame in frames:
        assert not isinstance(frame, FrameError) or (frame.code == PARSE_ERROR and not frame.fatal)
    return [PARSE if isinstance(frame, FrameError) else frame for frame in frames]


@pytest.mark.parametrize("stream, expected", [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_vector_at_every_split(stream: bytes, expected: list[bytes | str]) -> None:
    assert named(frames_of(stream)) == expected
    for place in range(min(len(stream), 300)):
        assert named(frames_of(*cut(stream, place))) == expected


def test_a_value_is_complete_at_its_last_byte() -> None:
    frames = Frames()
    assert frames.feed(PRETTY[:-1].encode()) == []
    assert frames.pending
    assert frames.feed(b"}") == [PRETTY.encode()]
    assert not frames.pending


def test_a_number_is_complete_only_when_something_follows() -> None:
    frames = Frames()
    assert frames.feed(b"12") == []
    assert frames.pending
    assert frames.feed(b"3 ") == [b"123"]


@pytest.mark.parametrize("step", [1000, 4096, 10**7])
def test_a_value_of_the_largest_size_passes_and_one_byte_more_does_not(step: int) -> None:
    text = b'{"a":"' + b"x" * (MAX_FRAME - 8) + b'"}'
    assert len(text) == MAX_FRAME
    fitting = [text[i : i + step] for i in range(0, len(text), step)]
    assert frames_of(*fitting) == [text]
    text = b'{"a":"' + b"x" * (MAX_FRAME - 7) + b'"}'
    frames = Frames()
    found = [frame for i in range(0, len(text), step) for frame in frames.feed(text[i : i + step])]
    [error] = found
    assert isinstance(error, FrameError)
    assert (error.code, error.fatal, error.limit) == (INVALID_REQUEST, True, MAX_FRAME)
    assert not frames.pending
    assert frames.feed(b"{}\n") == []
    assert frames.eof() == []


def test_a_bad_line_of_any_length_costs_one_error_and_no_memory() -> None:
    frames = Frames()
    assert len(frames.feed(b"?")) == 1
    for _ in range(40):
        assert frames.feed(b"x" * 65536) == []
    assert frames.pending
    assert not frames._held
    assert frames.feed(b"\n{}") == [b"{}"]


def test_depth() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert frames_of(deepest) == [deepest]
    error, *rest = frames_of(b'{"a":' + deepest + b"}\n{}")
    assert isinstance(error, FrameError)
    assert (error.code, error.fatal, error.limit) == (PARSE_ERROR, False, MAX_DEPTH)
    assert rest == [b"{}"]


def test_the_deadline_gives_the_stream_up() -> None:
    frames = Frames()
    frames.feed(b'{"a":')
    [error] = frames.expire()
    assert isinstance(error, FrameError)
    assert error.fatal
    assert frames.feed(b"1}") == []


def test_the_deadline_on_a_bad_line_says_nothing_twice() -> None:
    frames = Frames()
    assert len(frames.feed(b"GET")) == 1
    assert frames.pending
    assert frames.expire() == []


HOSTILE = {
    "a string": b'{"a":"' + b"x" * (MAX_FRAME - 100),
    "escapes": b'"' + b"\\n" * (MAX_FRAME // 2 - 10),
    "quotes": b'"' + b'\\"' * (MAX_FRAME // 2 - 10),
    "integers": b"[" + b"1," * (MAX_FRAME // 2 - 10),
    "arrays": b"[" + b"[]," * (MAX_FRAME // 3 - 10),
    "deep arrays": b"[" + b"[[[[]]]]," * (MAX_FRAME // 9 - 10),
    "members": b"{" + b'"":1,' * (MAX_FRAME // 5 - 10),
    "spaces": b"[" + b" " * (MAX_FRAME - 100),
    "integers at the bottom": b"[" * 63 + b"1," * (MAX_FRAME // 2 - 100),
    "words at the bottom": b"[" * 64 + b" null ," * (MAX_FRAME // 7 - 100),
    "rows one longer than an expression": b"[" + (b"[" + b"1," * 64 + b"1],") * (MAX_FRAME // 132 - 10),
    "digits": b"1" * (MAX_FRAME - 100),
}


ATTEMPTS = 12
"""One must hold, as the neighbours may change between two measurements that are compared."""


def spent_on(text: bytes, step: int) -> float:
    """CPU seconds for the beginning of a frame, in reads of so many bytes."""
    frames = Frames()
    before = time.thread_time()
    for i in range(0, len(text), step):
        assert frames.feed(text[i : i + step]) == []
    return time.thread_time() - before


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_time_grows_with_the_bytes_and_not_with_the_reads(text: bytes) -> None:
    """In reads of 4 KiB, 1 MiB of the worst takes no more than a few times what 64 KiB reads take."""
    fewest = most = math.inf
    for _ in range(ATTEMPTS):
        large, small = (spent_on(text, step) for step in (65536, 4096))
        fewest, most = min(fewest, large), min(most, small / (large + 0.02))
        if most < 5 and fewest < 4.0:
            break
    assert most < 5
    assert fewest < 4.0


@pytest.mark.parametrize("unit", [b"1,", b" -1 ,", b"null,", b'"",', b"[],"])
def test_what_lies_deep_costs_no_more_than_what_does_not(unit: bytes) -> None:
    """Each in a step of Python of its own would take five times as long and more."""
    units = unit * (256 * 1024 // len(unit))
    ratio = math.inf
    for _ in range(ATTEMPTS):
        flat, deep = (spent_on(b"[" * depth + units, 4096) for depth in (1, 63))
        ratio = min(ratio, deep / (flat + 0.002))
        if ratio < 2.5:
            break
    assert ratio < 2.5


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


@given(values, st.integers(0, 6))
def test_shallow_is_what_is_no_deeper(value: Any, depth: int) -> None:
    for text in (json.dumps(value), json.dumps(value, indent=1, ensure_ascii=False)):
        assert is_shallow(text.encode("utf-8", "surrogatepass"), depth) == (depth_of(value) <= depth)


def test_shallow_in_a_long_text() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    many = b'["' + b"x" * 5000 + rb'[\"[",' + b"{}," * 100
    assert is_shallow(many + deepest[1:-1] + b"]")
    assert not is_shallow(many + deepest + b"]")
