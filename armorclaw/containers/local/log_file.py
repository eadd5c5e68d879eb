"""What one agent prints, kept in two files of bounded size, and read while it grows.

Only this bridge writes here, so whoever follows is woken by the write: nothing polls.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.containers.printed import OURS, PIECE_BYTES, STARTED_AGAIN, LogPiece, LogWanted

FILE_BYTES = 1024 * 1024
"""Size at which NAME.log becomes NAME.log.1, in place of the one before."""

MARK_MS = 100
"""How exactly it is known when something was written."""

MARKS = 4096
"""Times that are remembered; of what is older, the time is not known any more."""

SCAN_BYTES = 64 * 1024
"""Read at once when lines are counted from the end."""

disk = trio.CapacityLimiter(4)
"""Threads that read and write logs at once, over all agents: a slow disk must not take those that others need."""


@attrs.frozen
class _Mark:
    """What lies from `place` on was written at `at_ms` or later; `start` is the generation's number if one begins."""

    place: int
    at_ms: int
    start: int = 0


@attrs.frozen
class _Part:
    """Some bytes as they lie together: `place` is their first, `lost` how many before it had to be passed over."""

    place: int
    data: bytes
    at_ms: int | None
    lost: int


class LogFile:
    """`path` and `path`.1, each of at most `limit` bytes, for their owner alone: one agent's, over its generations.

    Bytes have places that never change while this object lives: from `oldest`, the first that is kept, to `end`.
    What opens, writes, reads or searches blocks: it is for worker threads, any number at once.
    """

    def __init__(self, path: Path, limit: int = FILE_BYTES, clock: Clock | None = None) -> None:
        """Nothing is made yet, and what an earlier bridge left is the beginning."""
        self.path = path
        self._limit = limit
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._fd = -1
        self._grown = trio.Event()
        self._marks: deque[_Mark] = deque(maxlen=MARKS)
        self._starts = 0
        self.oldest = 0
        self._border = _size(self._previous)  # the place of the first byte of `path`
        self.end = self._border + _size(path)
        self.has_lost = self._border > 0
        """Whether anything may have been thrown away so far."""
        self._left_at_ms = _changed_ms(path)

    # -- writing

    def open(self) -> None:
        """A generation begins. Raises OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._lock:
            self._fd = self._open()
            size = os.fstat(self._fd).st_size
            if size != self.end - self._border:  # somebody tidied up
                self.oldest = self._border = self.end
                self.end += size
            self._starts += 1
            self._marks.append(_Mark(self.end, self._clock.now_ms(), self._starts))

    def write(self, data: bytes) -> None:
        """Append, beginning a new file where the limit is reached. Raises OSError."""
        view = memoryview(data)
        with self._lock:
            now = self._clock.now_ms()
            if abs(now - self._marks[-1].at_ms) >= MARK_MS:
                self._marks.append(_Mark(self.end, now))
            while view:
                if self.end - self._border >= self._limit:
                    self._rotate()
                written = os.write(self._fd, view[: self._limit - (self.end - self._border)])
                self.end += written
                view = view[written:]

    def close(self) -> None:
        """The generation has ended."""
        os.close(self._fd)

    def wake(self) -> None:
        """Tell readers that it has grown; on the Trio thread."""
        self._grown.set()
        self._grown = trio.Event()

    # -- reading

    async def grown(self) -> None:
        """Until there may be more to read."""
        await self._grown.wait()

    def read(self, place: int, limit: int, *, timed: bool = False) -> _Part:
        """At most `limit` bytes from there on, or from the oldest kept, of one generation; `timed`: of one time."""
        with self._lock:
            begin = max(place, self.oldest)
            in_previous = begin < self._border
            path, first = (self._previous, self.oldest) if in_previous else (self.path, self._border)
            last = self._border if in_previous else self.end
            at_ms = None
            for mark in self._marks:
                if mark.place <= begin:
                    at_ms = mark.at_ms
                elif timed or mark.start:
                    last = min(last, mark.place)
                    break
            data = b""
            with suppress(FileNotFoundError), path.open("rb") as file:
                file.seek(begin - first)
                data = file.read(min(limit, last - begin))
            if not data:
                begin = last  # somebody tidied up
            return _Part(begin, data, at_ms, begin - place)

    def find(self, tail: int | None, since_ms: int | None) -> int:
        """Where the last `tail` lines of those since then begin; what is of unknown age counts as late enough."""
        with self._lock:
            first, end = self._since(since_ms), self.end
        if tail is None or tail == 0:
            return first if tail is None else end
        for place, data in self._backwards(first, end):
            at = len(data) - (place + len(data) == end and data.endswith(b"\n"))
            while (at := data.rfind(b"\n", 0, at)) >= 0:
                tail -= 1
                if tail == 0:
                    return place + at + 1
        return first

    def _backwards(self, first: int, end: int) -> Iterator[tuple[int, bytes]]:
        while end > first:
            with self._lock:
                if end <= self.oldest:  # thrown away meanwhile
                    return
                begin = max(first, end - SCAN_BYTES, self._border if end > self._border else self.oldest)
                file_at = self._border if begin >= self._border else self.oldest
                path = self.path if begin >= self._border else self._previous
                data = b""
                with suppress(FileNotFoundError), path.open("rb") as file:
                    file.seek(begin - file_at)
                    data = file.read(end - begin)
            yield begin, data
            end = begin

    def _since(self, since_ms: int | None) -> int:
        marks = self._marks
        if since_ms is None or since_ms <= self._left_at_ms:
            return self.oldest
        if len(marks) == MARKS and since_ms <= marks[0].at_ms:
            return self.oldest
        late = (mark.place for mark in marks if mark.at_ms > since_ms - MARK_MS)
        return max(self.oldest, next(late, self.end))

    def last_start(self, place: int) -> _Mark | None:
        """The last generation that began there or before."""
        with self._lock:
            return next((mark for mark in reversed(self._marks) if mark.start and mark.place <= place), None)

    # -- files

    @property
    def _previous(self) -> Path:
        return self.path.with_name(self.path.name + ".1")

    def _rotate(self) -> None:
        os.replace(self.path, self._previous)
        fd = self._open()
        os.close(self._fd)
        self._fd = fd
        self.has_lost = self.has_lost or self.oldest < self._border
        self.oldest, self._border = self._border, self.end

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o600)


class FileLog:
    """Reads a `LogFile`: a `LogReader` that goes on over generations; with `follow` it never ends by itself.

    Where a new generation began, and where the agent was faster than the reader, it says so.
    """

    def __init__(self, log: LogFile, wanted: LogWanted) -> None:
        self._log = log
        self._wanted = wanted
        self._place = -1
        self._until = 0
        self._start = 0  # the last generation that was said to begin
        self.truncated: bool | None = False

    def __aiter__(self) -> FileLog:
        return self

    async def __anext__(self) -> LogPiece:
        log, wanted = self._log, self._wanted
        if self._place < 0:
            await self._begin()
        while self._place >= (log.end if wanted.follow else self._until):
            if (note := self._new_start()) is not None:
                return note
            if not wanted.follow:
                raise StopAsyncIteration
            await log.grown()
        if (note := self._new_start()) is not None:
            return note
        read = partial(log.read, self._place, PIECE_BYTES, timed=wanted.timestamps)
        part = await trio.to_thread.run_sync(read, limiter=disk)
        self._place = part.place
        if part.lost:
            self.truncated = True
            return self._note(f"{part.lost} bytes are not kept any more\n", part.at_ms)
        self._place += len(part.data)
        return LogPiece("output", part.at_ms if wanted.timestamps else None, part.data)

    async def _begin(self) -> None:
        log, wanted = self._log, self._wanted
        self._until = log.end
        self._place = await trio.to_thread.run_sync(log.find, wanted.tail, wanted.since_ms, limiter=disk)
        self.truncated = self._place == log.oldest and log.has_lost
        start = log.last_start(self._place)
        self._start = 0 if start is None else start.start

    def _new_start(self) -> LogPiece | None:
        start = self._log.last_start(self._place)
        if start is None or start.start <= self._start:
            return None
        self._start = start.start
        return self._note(STARTED_AGAIN, start.at_ms)

    def _note(self, text: str, at_ms: int | None) -> LogPiece:
        return LogPiece(OURS, at_ms if self._wanted.timestamps else None, text.encode())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # not there, or not for us
        return 0


def _changed_ms(path: Path) -> int:
    try:
        return int(path.stat().st_mtime * 1000)
    except OSError:  # not there, or not for us
        return 0
