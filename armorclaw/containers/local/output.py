"""What an agent prints, on its way from a pipe into a `LogFile`.

Engines keep logs of their own; for the sandbox and plain processes the bridge reads their output from a pipe. One
chunk per agent is in memory, the files hold its last 1 to 2 MiB, and an agent that prints without end is slowed down
by its own full pipe.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from armorclaw.containers.local.log_file import LogFile, disk
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

BYTES_PER_SECOND = 4 * 1024 * 1024
"""No agent's chatter is read faster, so that it cannot eat the bridge's processor time."""

TAIL_BYTES = 2000
"""Kept in memory, to say why something could not start."""

DRAIN_SECONDS = 1.0
"""After the agent's end, for what still lies in the pipe, should something that survived it hold the other end."""


class Output:
    """The bridge's end of what one child prints; made by `captured`."""

    def __init__(self, reader: int, writer: int, file: LogFile | None) -> None:
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

    async def _keep(self, file: LogFile, chunk: bytes) -> bool:
        try:
            await trio.to_thread.run_sync(file.write, chunk, limiter=disk)
        except OSError as error:
            log.warning("agent output is lost", file=str(file.path), why=error.strerror)
            return False
        finally:
            file.wake()
        return True

    def _finish(self) -> None:
        self.handed_over()
        self._reading.deadline = trio.current_time() + DRAIN_SECONDS


@asynccontextmanager
async def captured(file: LogFile | None) -> AsyncIterator[Output]:
    """Append what a child prints to its log (None: keep its last line only) until the block is left.

    A disk that refuses later on costs the output, never the agent: that is said once and the rest is thrown away.
    Raises `storage_failed` if the log cannot be opened.
    """
    if file is not None:
        try:
            await trio.to_thread.run_sync(file.open, limiter=disk)
        except OSError as error:
            raise ArmorclawError(
                "storage_failed", f"{file.path} cannot be opened", why=error.strerror or ""
            ) from error
        file.wake()
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
