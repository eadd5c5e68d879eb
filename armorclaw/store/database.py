"""The database as everyone else sees it: closures go in, results come out, and what was answered stays.

async with Database.open(path, key) as db:
    await db.write(lambda c: c.execute("INSERT INTO …"), durable=True)
    rows = await db.read(lambda c: c.execute("SELECT …").fetchall())
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import trio

from armorclaw.errors import ArmorclawError, one_error
from armorclaw.store.connection import Connection, Error, open_connection, storage_error
from armorclaw.store.lane import Job, Lane, Reading, Writing, unavailable
from armorclaw.store.lock import only_process
from armorclaw.store.migrate import migrate
from armorclaw.store.schema import MIGRATIONS, Migration

T = TypeVar("T")


class Database:
    """One SQLCipher file, one thread that writes, one that reads.

    `key` is the 32 raw bytes, or a function that gives them: it is called under the lock each time `run` opens the
    file, and may raise. A closure gets the connection inside a transaction that is ours to end: it executes its
    statements, one each (`executescript` would commit), returns plain values rather than cursors, and is quick.
    """

    def __init__(
        self, path: Path, key: Callable[[], bytes] | bytes, *, migrations: Sequence[Migration] = MIGRATIONS
    ) -> None:
        self.path = path
        self._key = key
        self._migrations = migrations
        self._thread = trio.CapacityLimiter(1)  # ours alone: blocked threads elsewhere cannot hold up the store
        self._writing: Writing | None = None
        self._reading: Reading | None = None

    def __repr__(self) -> str:
        return f"<Database {self.path} {'running' if self.running else 'not running'}>"

    @property
    def running(self) -> bool:
        """Whether calls are taken; otherwise they raise `unavailable`."""
        return self._writing is not None

    async def run(self, *, task_status: trio.TaskStatus[Database] = trio.TASK_STATUS_IGNORED) -> None:
        """Locks, opens, checks and migrates the file, reports itself started, and serves until cancelled.

        When cancelled it answers everything that was handed over, then closes. Raises `already_running`,
        `storage_newer`, `storage_corrupt` or `storage_failed` at the start; `storage_failed` or `storage_corrupt`
        later if the disk fails, after which it may be run again: that opens and checks anew.
        """
        if self.running:
            raise RuntimeError(f"{self!r} is running already")
        with only_process(self.path):
            connections = await trio.to_thread.run_sync(self._open, limiter=self._thread)
            try:
                lanes = (Writing(connections[0], self.path), Reading(connections[1], self.path))
                await self._serve(lanes, task_status)
            finally:
                with trio.CancelScope(shield=True):  # bounded by one WAL checkpoint
                    await trio.to_thread.run_sync(_close, connections, limiter=self._thread)

    async def write(
        self,
        work: Callable[[Connection], T],
        *,
        durable: bool = False,
        then: Callable[[T], object] | None = None,
    ) -> T:
        """Runs `work` in the next commit and returns its result once that commit is done.

        Survives kill -9; with `durable` also a power cut. What `work` raises comes out here, and takes back its own
        changes only. `then` gets the result on the Trio thread: in commit order, before this call returns, and even
        if this call was cancelled meanwhile; it must not raise. Cancelling never takes back a write that was handed
        over. Raises `unavailable`, `storage_failed`, `storage_corrupt`; after a failed sync the write may turn up
        all the same when the file is opened again, so whoever repeats it must do so under the same id.
        """
        if self._writing is None:
            raise unavailable()
        return cast(T, await self._writing.do(Job(work, durable=durable, then=then)))

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Runs `work` on one unchanging state of the database, which has every write that returned before.

        Never waits for a disk sync. Errors as `write`.
        """
        if self._reading is None:
            raise unavailable()
        return cast(T, await self._reading.do(Job(work)))

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: Path, key: Callable[[], bytes] | bytes, *, migrations: Sequence[Migration] = MIGRATIONS
    ) -> AsyncIterator[Database]:
        """A database that runs for the length of a block: for tests and for tools that do one thing."""
        with one_error():
            async with trio.open_nursery() as nursery:
                yield await nursery.start(cls(path, key, migrations=migrations).run)
                nursery.cancel_scope.cancel(reason="done with the database")

    async def _serve(self, lanes: tuple[Writing, Reading], task_status: trio.TaskStatus[Database]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                for lane in lanes:
                    await nursery.start(lane.run, nursery.cancel_scope)
                self._writing, self._reading = lanes
                task_status.started(self)
        finally:
            self._writing = self._reading = None
        _raise_failure(lanes)

    def _open(self) -> tuple[Connection, Connection]:
        """Both connections, the file checked and migrated; on a thread."""
        try:
            key = self._key() if callable(self._key) else self._key
            if not self.path.exists():
                self._create(key)
            elif self.path.stat().st_size == 0:  # SQLite would take it for a new one
                raise ArmorclawError(
                    "storage_corrupt",
                    f"the database {self.path} is empty",
                    why="the file has 0 bytes, and we never leave it so",
                    hint=f"restore it from a backup, or remove {self.path} to begin anew",
                )
            writer = open_connection(self.path, key)
            try:
                self._check(writer)
                # After a failed sync nobody knows which pages of the old log are on disk: move all of it into the
                # database and begin a new log, lest an acknowledged commit stand behind a page that is not there.
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                migrate(writer, self._migrations, self.path)
                return writer, open_connection(self.path, key, read_only=True)
            except BaseException:
                writer.close()
                raise
        except (Error, OSError) as error:
            raise self._cannot_open(error) from error

    def _create(self, key: bytes) -> None:
        """Makes the file aside and moves it into place whole, so that an empty or half-made one is always damage."""
        log_file = Path(f"{self.path}-wal")
        if log_file.exists():
            raise ArmorclawError(
                "storage_corrupt",
                f"the database {self.path} is missing",
                why=f"its log {log_file} is there",
                hint=f"restore {self.path} from a backup, or move the log away to begin anew",
            )
        draft = Path(f"{self.path}.new")
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        connection = open_connection(draft, key)
        try:
            migrate(connection, self._migrations, self.path)
            connection.execute("PRAGMA journal_mode = DELETE")  # everything into the one file, or an error
        finally:
            connection.close()
        draft.rename(self.path)
        sync_directory(self.path.parent)

    def _check(self, connection: Connection) -> None:
        (found,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise ArmorclawError(
                "storage_corrupt",
                f"the database {self.path} is damaged",
                why=found,
                hint=f"move {self.path} (with -wal and -shm) away and restore it from a backup",
            )

    def _cannot_open(self, error: Error | OSError) -> ArmorclawError:
        known = storage_error(error, self.path, doing="open")
        return known or ArmorclawError("storage_failed", f"cannot open the database {self.path}", why=str(error))


def sync_directory(path: Path) -> None:
    """Makes the names in a directory survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _close(connections: Sequence[Connection]) -> None:
    for connection in reversed(connections):
        connection.close()


def _raise_failure(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        if lane.failure is not None:
            raise lane.failure
