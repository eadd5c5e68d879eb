"""An account's crypto file: SQLCipher on Trio's own thread, for us and, as mautrix's Database, for its store.

Statements run where they are called: with WAL and without a sync a commit costs tens of microseconds, less than a
thread does, and nothing else runs in between, so a cancelled task leaves either all of a transaction or nothing. What
waits for the disk runs in a thread: `sync`, `checkpoint`, opening and closing.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from mautrix.util.logging import TraceLogger
from yarl import URL

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.matrix.crypto.upstream import async_db
from armorclaw.store.connection import Connection, Error, open_connection, storage_error
from armorclaw.store.folder import sync_directory

if TYPE_CHECKING:
    from sqlite3 import Cursor, Row
else:
    from sqlcipher3.dbapi2 import Cursor, Row

CACHE_KIB = 256
"""Pages that SQLite keeps in memory for each account; its own figure is 2 MiB."""

CROWDED = 512
"""Rows changed after which the log, of about a page for each, is moved into the file."""

T = TypeVar("T")

_POSITION = re.compile(r"\$(\d+)")


class CryptoDatabase(async_db.Database):
    """Raises KeysLost when the file turns out to be damaged, storage_failed or storage_full for the disk's troubles.

    `on_rollback` are called when a transaction came to nothing, for what is kept in memory.
    """

    scheme = async_db.Scheme.SQLITE

    def __init__(self, path: Path, key: bytes, connection: Connection) -> None:
        super().__init__(URL.build(scheme="sqlite", path=str(path)), upgrade_table=None, log=quiet_log())
        self.path = path
        self.on_rollback: list[Callable[[], object]] = []
        self._key = key
        self.connection = connection
        """For what has a transaction of its own, such as migrations; on whatever thread alone uses it then."""
        self.crowded = trio.Event()
        """Set when it is time for a `checkpoint`."""
        self._moved = 0
        self._synced = -1
        self._disk = trio.CapacityLimiter(1)
        self._beside: Connection | None = None
        self._beside_lock = threading.Lock()
        self._lookers = trio.CapacityLimiter(1)  # of its own: a sync is not to wait for who looks
        connection.row_factory = Row

    @staticmethod
    def connect(path: Path, key: bytes) -> Connection:
        """A connection as this class wants it; on a thread. Raises SQLite's own errors."""
        connection = open_connection(path, key)
        try:
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
            connection.execute("PRAGMA wal_autocheckpoint = 0")  # it would be the loop that waits for the disk
        except BaseException:
            connection.close()
            raise
        return connection

    def run(self, sql: str, *args: Any) -> Cursor:
        """One statement."""
        try:
            cursor = self.connection.execute(sql, args)
        except Error as error:
            raise self._failure(error) from error
        if self.connection.total_changes - self._moved >= CROWDED:
            self.crowded.set()
        return cursor

    def run_many(self, sql: str, rows: Iterable[tuple[Any, ...]]) -> None:
        """One statement for each row."""
        try:
            self.connection.executemany(sql, rows)
        except Error as error:
            raise self._failure(error) from error

    def one(self, sql: str, *args: Any) -> Row | None:
        """The first row of a query."""
        try:
            row: Row | None = self.connection.execute(sql, args).fetchone()
        except Error as error:
            raise self._failure(error) from error
        return row

    def all(self, sql: str, *args: Any) -> list[Row]:
        """All rows of a query."""
        try:
            return self.connection.execute(sql, args).fetchall()
        except Error as error:
            raise self._failure(error) from error

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block or nothing of it; inside another one it is part of that. Nothing in it may wait."""
        if self._in_transaction():
            yield
            return
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        except BaseException:
            with suppress(Error):  # of a file that is damaged; what matters is what was raised before
                if self._in_transaction():  # SQLite may have rolled back by itself
                    self.connection.execute("ROLLBACK")
            for forget in self.on_rollback:
                forget()
            raise

    def _in_transaction(self) -> bool:
        return self.connection.in_transaction

    async def sync(self) -> None:
        """Until everything committed so far outlasts a power cut. Raises storage_failed."""
        changes = self.connection.total_changes
        if changes == self._synced:
            return
        # the log is only ever synced by us: SQLite syncs it when it is moved into the file
        work = partial(_sync, self.path, self._synced < 0)
        try:
            await trio.to_thread.run_sync(work, limiter=self._disk, abandon_on_cancel=True)
        except OSError as error:
            why = error.strerror or ""
            raise ArmorclawError("storage_failed", "the file of the keys cannot be synced", why=why) from error
        self._synced = changes

    async def checkpoint(self) -> None:
        """Moves the log into the file, on a connection of its own: ours goes on meanwhile. Raises SQLite's errors."""
        self._moved, self.crowded = self.connection.total_changes, trio.Event()
        await trio.to_thread.run_sync(self._checkpoint, limiter=self._disk, abandon_on_cancel=True)

    def _checkpoint(self) -> None:
        self._aside(lambda connection: connection.execute("PRAGMA wal_checkpoint(PASSIVE)"))

    async def look(self, read: Callable[[Connection], T]) -> T:
        """What takes longer to read, in a thread, on a connection of its own. Raises as the rest of this class."""
        return await trio.to_thread.run_sync(self._look, read, limiter=self._lookers, abandon_on_cancel=True)

    def _look(self, read: Callable[[Connection], T]) -> T:
        try:
            return self._aside(read)
        except Error as error:
            raise self._failure(error) from error

    def _aside(self, work: Callable[[Connection], T]) -> T:
        """In a thread, on a connection of its own; `close` cuts it short."""
        with self._beside_lock:
            self._beside = connection = open_connection(self.path, self._key)
            try:
                return work(connection)
            finally:
                self._beside = None
                connection.close()

    def close(self) -> None:
        """On a thread; the log goes into the file. Nobody else has it open then: another may take its place."""
        while not self._beside_lock.acquire(timeout=0.05):
            if (beside := self._beside) is not None:
                with suppress(Error):  # it has just come to its end
                    beside.interrupt()
        try:
            self.connection.close()
        finally:
            self._beside_lock.release()

    def _failure(self, error: Error) -> Exception:
        known = storage_error(error, self.path, doing="use")
        if known is None:
            return error
        return KeysLost(known.why) if known.name == "storage_corrupt" else known

    # -- what mautrix asks for --

    async def stop(self) -> None:
        """Not for us: whoever opened the file closes it."""

    @asynccontextmanager
    async def acquire(self) -> AsyncIterator[Any]:
        """There is one connection, and nothing waits while it is used."""
        yield _Statements(self)

    acquire_direct = acquire

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        return await _Statements(self).execute(query, *args)

    async def executemany(self, query: str, *args: Any, timeout: float | None = None) -> str:
        return await _Statements(self).executemany(query, *args)

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Row]:
        return await _Statements(self).fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Row | None:
        return await _Statements(self).fetchrow(query, *args)

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        return await _Statements(self).fetchval(query, *args, column=column)


class _Statements:
    """mautrix's connection."""

    scheme = async_db.Scheme.SQLITE

    def __init__(self, db: CryptoDatabase) -> None:
        self._db = db

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:
        count = self._db.run(_positional(query), *map(_adapted, args)).rowcount
        return f"{query.split(None, 1)[0]} {count}"

    async def executemany(self, query: str, rows: Iterable[Any], timeout: float | None = None) -> str:
        self._db.run_many(_positional(query), (tuple(map(_adapted, row)) for row in rows))
        return ""

    async def fetch(self, query: str, *args: Any, timeout: float | None = None) -> list[Row]:
        return self._db.all(_positional(query), *map(_adapted, args))

    async def fetchrow(self, query: str, *args: Any, timeout: float | None = None) -> Row | None:
        return self._db.one(_positional(query), *map(_adapted, args))

    async def fetchval(self, query: str, *args: Any, column: int = 0, timeout: float | None = None) -> Any:
        row = self._db.one(_positional(query), *map(_adapted, args))
        return None if row is None else row[column]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        with self._db.transaction():
            yield


def quiet_log() -> TraceLogger:
    """mautrix warns of every device that is not cross-signed; what matters of that is in the words of `Trust`."""
    log = TraceLogger("mautrix", logging.ERROR)
    log.parent = logging.getLogger()
    return log


@lru_cache(maxsize=128)
def _positional(query: str) -> str:
    return _POSITION.sub(r"?\1", query)


def _adapted(value: Any) -> Any:
    return value.isoformat(" ") if isinstance(value, datetime) else value


def _sync(path: Path, first: bool) -> None:
    """The log; the first time its name, too."""
    try:
        fd = os.open(f"{path}-wal", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    if first:
        sync_directory(path.parent)
