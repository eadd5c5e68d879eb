"""What an agent prints, kept in two files of bounded size.

Engines keep logs of their own; for the sandbox and plain processes the bridge reads their output from a pipe. One
chunk per agent is in memory, the files hold its last 1 to 2 MiB, and an agent that prints without end is slowed down
by its own full pipe.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

FILE_BYTES = 1024 * 1024
"""Size at which NAME.log becomes NAME.log.1, in place of the one before."""

BYTES_PER_SECOND = 4 * 1024 * 1024
"""No agent's chatter is read faster, so that it cannot eat the bridge's processor time."""

TAIL_BYTES = 2000
"""Kept in memory, to say why something could not start."""

DRAIN_SECONDS = 1.0
"""After the agent's end, for what still lies in the pipe, should something that survived it hold the other end."""

_disk = trio.CapacityLimiter(4)
"""Threads that write logs at once, over all agents: a slow disk must not take the threads that others need."""


class RotatingFile:
    """`path` and `path`.1, each of at most `limit` bytes, for their owner alone; blocking, for a worker thread."""

    def __init__(self, path: Path, limit: int = FILE_BYTES) -> None:
        self.path = path
        self._limit = limit
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append, beginning a new file where the limit is reached. Raises OSError."""
        view = memoryview(data)
        while view:
            if self._size >= self._limit:
                self._rotate()
            written = os.write(self._fd, view[: self._limit - self._size])
            self._size += written
            view = view[written:]

    def close(self) -> None:
        os.close(self._fd)

    def _rotate(self) -> None:
        os.replace(self.path, _previous(self.path))
        fd = self._open()
        os.close(self._fd)
        self._fd, self._size = fd, 0

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.path, flags, 0o600)


def read_tail(path: Path, limit: int) -> bytes:
    """The last `limit` bytes that `RotatingFile(path)` holds over its two files; empty if there is none. Blocking."""
    found = b""
    for part in (path, _previous(path)):
        missing = limit - len(found)
        if missing <= 0:
            break
        try:
            with part.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - missing))
                found = file.read(missing) + found
        except FileNotFoundError:
            continue
    return found


def _previous(path: Path) -> Path:
    return path.with_name(path.name + ".1")


class Output:
    """The bridge's end of what one child prints; made by `captured`."""

    def __init__(self, reader: int, writer: int, file: RotatingFile | None) -> None:
        self._stream = trio.lowlevel.FdStream(reader)
        self._writer = writer
        self._file = file
        self._tail = b""
        self._ended = trio.Event()
        # Shielded, as the last words of an agent that is being cancelled are worth having; its end is a deadline.
        self._reading = trio.CancelScope(shield=True)

    @property
    def fd(self) -> int:
        """For the child to write to, until `handed_over`."""
        return self._writer

    def handed_over(self) -> None:
        """The child has its own copy of `fd`: ours is closed, so that its end can be seen."""
        if self._writer >= 0:
            os.close(self._writer)
            self._writer = -1

    async def last_line(self) -> str:
        """The last line printed, of at most 2,000 bytes, once everyone who could print has ended (at most 1 s)."""
        with trio.move_on_after(DRAIN_SECONDS):
            await self._ended.wait()
        lines = self._tail.decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    async def _read(self) -> None:
        lost = self._file is None
        with self._reading:
            async with self._stream:
                async for chunk in self._stream:
                    self._tail = (self._tail + chunk)[-TAIL_BYTES:]
                    if self._file is not None and not lost:
                        lost = not await self._keep(self._file, bytes(chunk))
                    await trio.sleep(len(chunk) / BYTES_PER_SECOND)
        self._ended.set()

    async def _keep(self, file: RotatingFile, chunk: bytes) -> bool:
        try:
            await trio.to_thread.run_sync(file.write, chunk, limiter=_disk)
        except OSError as error:
            log.warning("agent output is lost", file=str(file.path), why=error.strerror)
            return False
        return True

    def _finish(self) -> None:
        self.handed_over()
        self._reading.deadline = trio.current_time() + DRAIN_SECONDS


@asynccontextmanager
async def captured(path: Path | None) -> AsyncIterator[Output]:
    """Append what a child prints to the files at `path` (None: keep its last line only) until the block is left.

    A disk that refuses later on costs the output, never the agent: that is said once and the rest is thrown away.
    Raises `storage_failed` if the log cannot be opened.
    """
    file = None
    if path is not None:
        try:
            file = await trio.to_thread.run_sync(RotatingFile, path, limiter=_disk)
        except OSError as error:
            raise ArmorclawError("storage_failed", f"{path} cannot be opened", why=error.strerror or "") from error
    try:
        reader, writer = os.pipe2(os.O_CLOEXEC)
        output = Output(reader, writer, file)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output._read)
            try:
                yield output
            except BaseException as error:  # noqa: BLE001  # raised again below, not wrapped by the nursery
                failure = error
            finally:
                output._finish()
        if failure is not None:
            raise failure
    finally:
        if file is not None:
            file.close()
