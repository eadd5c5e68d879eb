"""Frames of engines taken apart at every border; what is kept of a log that is removed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.engines.logs import WORDS_BYTES, EngineLog, LastWords, LogFrames, before_tail, joined
from armorclaw.containers.printed import PIECE_BYTES, LogPiece, LogWanted

NAMES = {1: "stdout", 2: "stderr"}
PIECES = st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(min_size=1, max_size=40)), max_size=8)
SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def frame(kind: int, text: bytes) -> bytes:
    return bytes([kind, 0, 0, 0]) + len(text).to_bytes(4, "big") + text


def cut(wire: bytes, sizes: list[int]) -> list[bytes]:
    at = 0
    chunks: list[bytes] = []
    while at < len(wire):
        size = sizes[len(chunks) % len(sizes)]
        chunks.append(wire[at : at + size])
        at += size
    return chunks


@given(PIECES, SIZES, st.booleans())
def test_frames_do_not_depend_on_chunk_borders(
    pieces: list[tuple[int, bytes]], sizes: list[int], stamped: bool
) -> None:
    stamp = b"2026-11-22T20:53:40.%03d371418Z "
    texts = [(kind, (stamp % number if stamped else b"") + text) for number, (kind, text) in enumerate(pieces)]
    frames = LogFrames(stamped=stamped)
    seen = [piece for chunk in cut(b"".join(frame(*each) for each in texts), sizes) for piece in frames.feed(chunk)]
    for kind, name in NAMES.items():
        text = b"".join(piece.data for piece in seen if piece.stream == name)
        assert text == b"".join(text for other, text in pieces if other == kind)
    times = {piece.at_ms for piece in seen}
    assert times == ({1795380820000 + number for number in range(len(pieces))} if stamped else {None} & times)


@given(st.lists(st.binary(max_size=60), max_size=5), SIZES)
def test_frames_stand_anything(chunks: list[bytes], sizes: list[int]) -> None:
    frames = LogFrames(stamped=True)
    for chunk in chunks:
        for piece in cut(chunk, sizes):
            list(frames.feed(piece))


def test_an_empty_frame_is_no_piece() -> None:
    assert list(LogFrames().feed(frame(1, b"") + frame(2, b"x"))) == [LogPiece("stderr", None, b"x")]
    assert list(LogFrames(stamped=True).feed(frame(1, b"") + frame(2, b"2026-11-22T20:53:40Z x"))) == [
        LogPiece("stderr", 1795380820000, b"x")
    ]


@pytest.mark.parametrize(
    ("stamp", "at_ms"),
    [
        (b"2026-11-22T20:53:40Z ", 1795380820000),  # Podman
        (b"2026-11-22T20:53:40.5Z ", 1795380820500),
        (b"2026-11-22T20:53:40.123456789Z ", 1795380820123),
        (b"2026-11-22T20:53:40+00:00 ", 1795380820000),
    ],
)
def test_times(stamp: bytes, at_ms: int) -> None:
    assert list(LogFrames(stamped=True).feed(frame(1, stamp + b"a b"))) == [LogPiece("stdout", at_ms, b"a b")]


@pytest.mark.parametrize("text", [b"no time at all", b"x" * 100, b"2026-11-22T20:53:40+02:00 x", b"short"])
def test_what_is_no_time_is_text(text: bytes) -> None:
    (piece,) = LogFrames(stamped=True).feed(frame(1, text))
    assert (piece.at_ms, piece.data) == (None, text)


@given(
    st.lists(st.tuples(st.sampled_from(["stdout", "stderr"]), st.integers(0, 1), st.integers(0, 3)), max_size=20),
    st.integers(1, 4),
)
def test_joined(given: list[tuple[str, int, int]], scale: int) -> None:
    pieces = [LogPiece(s, at, bytes([n]) * (size * scale * 9000)) for n, (s, at, size) in enumerate(given)]
    made = list(joined(pieces))
    assert all(len(piece.data) <= PIECE_BYTES for piece in made)
    assert b"".join(p.data for p in made) == b"".join(p.data for p in pieces)
    for stream in ("stdout", "stderr"):
        assert b"".join(p.data for p in made if p.stream == stream) == b"".join(
            p.data for p in pieces if p.stream == stream
        )


@given(
    st.lists(st.binary(max_size=20).map(lambda data: data.replace(b"\x00", b"\n")), max_size=10),
    SIZES,
    st.integers(0, 12),
)
async def test_the_last_lines_of_a_log_that_is_read_whole(texts: list[bytes], sizes: list[int], tail: int) -> None:
    wire = cut(b"".join(frame(1, text) for text in texts), sizes)

    def log(skip: int = 0) -> EngineLog:
        chunks = iter([*wire, b""])

        async def read() -> bytes:
            return next(chunks)

        return EngineLog(read, LogWanted(), skip=skip)

    printed = b"".join(texts)
    lines = [line + b"\n" for line in printed.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    lines = lines if lines[-1] else lines[:-1]
    skip = await before_tail(log(), tail)
    found = b"".join([piece.data async for piece in log(skip)])
    assert found == b"".join(lines[max(0, len(lines) - tail) :])


# -- last words


def words(*lines: bytes) -> LastWords:
    made = LastWords()
    for number, line in enumerate(lines):
        made.add(LogPiece("stdout", 1000 + number, line))
    return made


async def said(kept: LastWords, **wanted: object) -> tuple[bytes, bool | None]:
    reader = kept.read(LogWanted(**wanted))  # type: ignore[arg-type]
    return b"".join([piece.data async for piece in reader]), reader.truncated


async def test_last_words() -> None:
    kept = words(b"a\n", b"b\n", b"c...", b"...c\n", b"d")
    assert await said(kept, tail=None) == (b"a\nb\nc......c\nd", False)
    assert await said(kept, tail=0) == (b"", False)
    assert await said(kept, tail=1) == (b"d", False)
    assert await said(kept, tail=2) == (b"c......c\nd", False)
    assert await said(kept, tail=9) == (b"a\nb\nc......c\nd", False)
    assert await said(kept, since_ms=1001) == (b"b\nc......c\nd", False)
    assert await said(words(), tail=5) == (b"", False)
    assert [piece.at_ms async for piece in kept.read(LogWanted())] == [None]
    assert [piece.at_ms async for piece in kept.read(LogWanted(timestamps=True))] == [1000, 1001, 1002, 1003, 1004]


async def test_last_words_are_bounded() -> None:
    kept = words(*[b"%07d\n" % number for number in range(WORDS_BYTES // 4)])
    text, truncated = await said(kept, tail=None)
    assert (len(text), truncated) == (WORDS_BYTES, True)
    assert text.endswith(b"%07d\n" % (WORDS_BYTES // 4 - 1))
    assert (await said(kept, tail=3))[1] is False
