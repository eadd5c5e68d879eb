"""Room kept back on the disk: when it fills up, what was begun can still be brought to its end.

Even deleting needs room, as every change goes to SQLite's log first. So a file of no other use lies beside the
database. When the disk is full it is given up, and until there is room to make it anew nothing is taken on that adds
to what is stored.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

BALLAST_BYTES = 4 << 20
"""Size of the file: what is given up when the disk is full."""

MARGIN_BYTES = 1 << 20
"""What must be free besides before the file is made anew."""

LOW_BYTES = 8 << 20
"""With less than this free the disk counts as full, though SQLite would still find room."""

LOOK_SECONDS = 5.0
"""From one look at a full disk to the next, and what a caller that was refused is told to wait."""


class Ballast:
    """The file `<database>.ballast`, and whether the disk is full.

    Any thread may ask `full`. `on_full`, if set, is called on Trio's thread: with True when the disk was found full,
    with False when there is room again. It must not raise.
    """

    def __init__(self, database: Path) -> None:
        self.path = Path(f"{database}.ballast")
        self.full = False
        self.on_full: Callable[[bool], object] | None = None
        self._folder = database.parent
        self._changing = threading.Lock()  # one thread makes the file while another may give it up
        self._thread = trio.CapacityLimiter(1)
        self._found = trio.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        self._told = False  # what was told last

    async def run(self) -> None:
        """Until cancelled: looks every few seconds at a disk that is full, until there is room again."""
        self._token = trio.lowlevel.current_trio_token()
        if self.full:  # since before we ran
            self._found.set()
        elif self._told:  # there was room again before we ran again
            self._tell(full=False)
        while True:
            await self._found.wait()
            self._found = trio.Event()
            self._tell(full=True)
            while await trio.to_thread.run_sync(self.look, limiter=self._thread):  # noqa: ASYNC110 - disks say nothing
                await trio.sleep(LOOK_SECONDS)
            self._tell(full=False)

    # --- below: any thread ---

    def look(self) -> bool:
        """Makes the file if it is missing and there is room; whether the disk is full, as far as can be seen now."""
        with self._changing:
            self.full = not self._in_place() or self._free() < LOW_BYTES
            return self.full

    def low(self) -> bool:
        """Whether nothing may be added now: the disk is full, or has so little left that it counts as full."""
        if not self.full and self._free() < LOW_BYTES:
            self._note_full("little is left of the disk")
        return self.full

    def give_up(self) -> bool:
        """SQLite found the disk full. True if there was a file to give up, so that it may be tried once more."""
        with self._changing:
            self._note_full("the disk is full")
            try:
                self.path.unlink()
            except OSError:
                return False
            return True

    def _note_full(self, why: str) -> None:
        if self.full:
            return
        self.full = True
        log.error("nothing new is taken on", why=why, path=str(self._folder), free=self._free())
        if self._token is not None:
            try:
                self._token.run_sync_soon(lambda: self._found.set())
            except trio.RunFinishedError:
                pass  # Trio crashed around us: nobody is left to tell

    def _in_place(self) -> bool:
        try:
            if self.path.stat().st_size == BALLAST_BYTES:
                return True
        except OSError:
            pass
        if self._free() < BALLAST_BYTES + MARGIN_BYTES:
            return False
        try:
            self._make()
        except OSError as error:
            log.warning("cannot keep room back on the disk", path=str(self.path), error=error.strerror)
            self.path.unlink(missing_ok=True)
            return False
        return True

    def _make(self) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.posix_fallocate(fd, 0, BALLAST_BYTES)
            if os.fstat(fd).st_blocks * 512 < BALLAST_BYTES:  # a file system that stores zeros for nothing
                os.pwrite(fd, os.urandom(BALLAST_BYTES), 0)
        finally:
            os.close(fd)

    def _free(self) -> int:
        try:
            found = os.statvfs(self._folder)
        except OSError:
            return 0
        return found.f_bavail * found.f_frsize

    def _tell(self, *, full: bool) -> None:
        self._told = full
        if not full:
            log.info("there is room on the disk again", path=str(self._folder))
        if self.on_full is not None:
            self.on_full(full)


def storage_full(why: str = "the disk is full") -> ArmorclawError:
    """The answer to whoever would add something while the disk is full."""
    return ArmorclawError("storage_full", "nothing new can be stored", why=why, retry_after=LOOK_SECONDS)
