"""Two files that hold the end of what was printed, and readers that follow it."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.clock import Clock
from armorclaw.containers.local import log_file
from armorclaw.containers.local.log_file import FileLog, LogFile
from armorclaw.containers.printed import LogPiece, LogWanted


@pytest.fixture(autouse=True)
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_sync(function: Any, *args: Any, **_: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


class Time:
    """A clock of the test's own."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.clock = Clock(wall=lambda: self.seconds)


def opened(path: Path, *, limit: int = 1000, clock: Clock | None = None) -> LogFile:
    log = LogFile(path, limit, clock)
    log.open()
    return log


async def everything(log: LogFile, **wanted: Any) -> list[LogPiece]:
    return [piece async for piece in FileLog(log, LogWanted(**{"tail": None, **wanted}))]


def text(pieces: list[LogPiece]) -> bytes:
    return b"".join(piece.data for piece in pieces)


PRINTED = st.binary(max_size=60).map(lambda data: data.replace(b"\x00", b"\n"))


@given(
    limit=st.integers(1, 50),
    writes=st.lists(PRINTED, max_size=8),
    tail=st.integers(0, 9),
    reopen=st.sampled_from(["never", "generation", "bridge"]),
    read_at_once=st.integers(1, 40),
)
def test_two_files_hold_the_end(
    tmp_path_factory: pytest.TempPathFactory,
    limit: int,
    writes: list[bytes],
    tail: int,
    reopen: str,
    read_at_once: int,
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.log"
    log = opened(path, limit=limit)
    for data in writes:
        log.write(data)
        if reopen != "never":
            log.close()
            log = LogFile(path, limit) if reopen == "bridge" else log
            log.open()
    log.close()
    printed = b"".join(writes)
    sizes = [each.stat().st_size for each in sorted(path.parent.iterdir())]
    assert len(sizes) <= 2
    assert all(size <= limit for size in sizes)
    kept = log.end - log.oldest
    assert kept == sum(sizes) >= min(len(printed), limit)
    assert log.has_lost or kept == len(printed)
    # read it all, in pieces of any size
    place, found = log.oldest, b""
    while place < log.end:
        part = log.read(place, read_at_once)
        assert part.lost == 0
        found += part.data
        place = part.place + len(part.data)
    assert found == printed[len(printed) - kept :]
    # and the last lines, against splitlines of the same
    lines = found.splitlines(keepends=True) if b"\r" not in found else None
    if lines is not None and not any(odd in found for odd in (b"\x0b", b"\x0c", b"\x1c", b"\x1d", b"\x1e", b"\x85")):
        wanted = b"".join(lines[max(0, len(lines) - tail) :])
        assert found[log.find(tail, None) - log.oldest :] == wanted


@given(st.lists(st.sampled_from(["write", "wait", "generation"]), max_size=30), st.integers(0, 31_000))
def test_since_misses_nothing(tmp_path_factory: pytest.TempPathFactory, steps: list[str], since: int) -> None:
    """What is given was written no earlier than the exactness before then, and nothing later is missing."""
    time = Time()
    log = opened(tmp_path_factory.mktemp("log") / "a.log", limit=10_000, clock=time.clock)
    written: list[tuple[int, bytes]] = []
    for number, step in enumerate(steps):
        if step == "write":
            data = b"%03d\n" % number
            log.write(data)
            written.append((time.clock.now_ms(), data))
            time.seconds += 0.03
        elif step == "wait":
            time.seconds += 1
        else:
            log.close()
            log.open()
    log.close()
    since_ms = 1_000_000 + since
    part = b""
    place = log.find(None, since_ms)
    while place < log.end:
        found = log.read(place, 1000)
        part += found.data
        place = found.place + len(found.data)
    late = b"".join(data for at_ms, data in written if at_ms >= since_ms)
    lenient = b"".join(data for at_ms, data in written if at_ms > since_ms - 2 * log_file.MARK_MS)
    assert part.endswith(late)
    assert lenient.endswith(part)


def test_for_its_owner_alone(tmp_path: Path) -> None:
    opened(tmp_path / "logs" / "a.log").close()
    assert stat.S_IMODE((tmp_path / "logs" / "a.log").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "logs").stat().st_mode) == 0o700


async def test_asking_makes_nothing(tmp_path: Path) -> None:
    assert await everything(LogFile(tmp_path / "logs" / "a.log")) == []
    assert os.listdir(tmp_path) == []


async def test_what_an_earlier_bridge_left(tmp_path: Path) -> None:
    opened(tmp_path / "a.log").close()
    (tmp_path / "a.log").write_bytes(b"old\n")
    os.utime(tmp_path / "a.log", (900, 900))
    time = Time()
    log = opened(tmp_path / "a.log", clock=time.clock)
    log.write(b"new\n")
    log.close()
    old, said, new = await everything(log, timestamps=True)
    assert (old.data, old.at_ms) == (b"old\n", None)
    assert (said.stream, said.at_ms) == ("bridge", 1_000_000)
    assert (new.data, new.at_ms) == (b"new\n", 1_000_000)
    assert text(await everything(log, since_ms=901_000)) == b"new\n"
    assert text(await everything(log, since_ms=899_000)).startswith(b"old\n")


async def test_truncated(tmp_path: Path) -> None:
    log = opened(tmp_path / "a.log", limit=10)
    log.write(b"1234567\n" * 2)
    for wanted, truncated in ((LogWanted(tail=None), False), (LogWanted(tail=5), False)):
        reader = FileLog(log, wanted)
        assert text([piece async for piece in reader]) == b"1234567\n" * 2
        assert reader.truncated is truncated
    log.write(b"7654321\n" * 2)
    for wanted, truncated in ((LogWanted(tail=None), True), (LogWanted(tail=5), True), (LogWanted(tail=1), False)):
        reader = FileLog(log, wanted)
        assert text([piece async for piece in reader]).endswith(b"7654321\n")
        assert reader.truncated is truncated
    log.close()


# -- following


class Follower:
    def __init__(self, log: LogFile, nursery: trio.Nursery, **wanted: Any) -> None:
        self.pieces: list[LogPiece] = []
        self.reader = FileLog(log, LogWanted(follow=True, **wanted))
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run)

    async def _run(self) -> None:
        with self.scope:
            async for piece in self.reader:
                self.pieces.append(piece)

    async def text(self) -> bytes:
        await trio.testing.wait_all_tasks_blocked()
        return text(self.pieces)


async def test_follow_over_generations(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    log = opened(tmp_path / "a.log")
    log.write(b"before\n")
    async with trio.open_nursery() as nursery:
        one, two = Follower(log, nursery, tail=0), Follower(log, nursery, tail=None)
        assert (await one.text(), await two.text()) == (b"", b"before\n")
        log.write(b"now\n")
        log.wake()
        assert (await one.text(), await two.text()) == (b"now\n", b"before\nnow\n")
        log.close()
        log.open()
        log.wake()
        assert await one.text() == b"now\nstarted again\n"  # at once, though it has printed nothing yet
        log.write(b"and again\n")
        log.wake()
        assert await one.text() == b"now\nstarted again\nand again\n"
        assert trio.current_time() == 0  # nobody polls
        nursery.cancel_scope.cancel(reason="the test is over")
    log.close()


async def test_one_who_is_too_slow_is_told_so(tmp_path: Path) -> None:
    log = opened(tmp_path / "a.log", limit=10)
    log.write(b"12345\n")
    reader = FileLog(log, LogWanted(tail=None, follow=True))
    assert (await anext(reader)).data == b"12345\n"
    log.write(b"x" * 100)
    said, first, second = [await anext(reader) for _ in range(3)]
    assert (said.stream, said.data) == ("bridge", b"84 bytes are not kept any more\n")
    assert first.data + second.data == b"x" * 16
    assert reader.truncated is True
    log.close()


async def test_a_file_that_somebody_removed(tmp_path: Path) -> None:
    log = opened(tmp_path / "a.log")
    log.write(b"gone\n")
    reader = FileLog(log, LogWanted(tail=None, follow=True))
    os.unlink(tmp_path / "a.log")
    assert (await anext(reader)).data == b"5 bytes are not kept any more\n"
    log.close()
    log.open()
    log.write(b"new\n")
    assert [(await anext(reader)).data for _ in range(2)] == [b"started again\n", b"new\n"]
    log.close()
