"""The database as everyone else sees it: closures go in, results come out, and what was answered stays.

async with Database.open(path, key) as db:
    await db.write(lambda c: c.execute("INSERT INTO …"), durable=True)
    rows = await db.read(lambda c: c.execute("SELECT …").fetchall())
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar, cast

import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.store.aside import SetAside, last_set_aside
from armorclaw.store.ballast import Ballast, storage_full
from armorclaw.store.connection import Connection, Error, disk_full, storage_error
from armorclaw.store.lane import Job, Lane, Reading, Writing, unavailable
from armorclaw.store.lock import only_process
from armorclaw.store.opening import Opening
from armorclaw.store.schema import MIGRATIONS, Migration

T = TypeVar("T")

_CLOCK = Clock()


class Database:
    """One SQLCipher file, one thread that writes, one that reads.

    `key` is the 32 raw bytes, or a function that gives them: it is called under the lock each time `run` opens the
    file, and may raise. A closure gets the connection inside a transaction that is ours to end: it executes its
    statements, one each (`executescript` would commit), returns plain values rather than cursors, and is quick.
    """

    def __init__(
        self,
        path: Path,
        key: Callable[[], bytes] | bytes,
        *,
        migrations: Sequence[Migration] = MIGRATIONS,
        clock: Clock = _CLOCK,
    ) -> None:
        self.path = path
        self._key = key
        self._migrations = migrations
        self._thread = trio.CapacityLimiter(1)  # ours alone: blocked threads elsewhere cannot hold up the store
        self._writing: Writing | None = None
        self._reading: Reading | None = None
        self._clock = clock
        self._ballast = Ballast(path)
        self._aside: SetAside | None = None
        self._suspect = False  # the last run ended on damage

    def __repr__(self) -> str:
        return f"<Database {self.path} {'running' if self.running else 'not running'}>"

    @property
    def running(self) -> bool:
        """Whether calls are taken; otherwise they raise `unavailable`."""
        return self._writing is not None

    @property
    def full(self) -> bool:
        """Whether the disk is full: writes that add to what is stored are refused until there is room again."""
        return self._ballast.full

    @property
    def on_full(self) -> Callable[[bool], object] | None:
        """Called on Trio's thread with True when the disk was found full, with False when it has room again.

        It must not raise. Full from the start on is told when `run` begins to serve.
        """
        return self._ballast.on_full

    @on_full.setter
    def on_full(self, listener: Callable[[bool], object] | None) -> None:
        self._ballast.on_full = listener

    @property
    def set_aside(self) -> SetAside | None:
        """The last damaged file in whose place another was begun, as long as it lies where it was moved to."""
        aside = self._aside
        return aside if aside is not None and aside.path.exists() else None

    async def run(self, *, task_status: trio.TaskStatus[Database] = trio.TASK_STATUS_IGNORED) -> None:
        """Locks, opens, checks and migrates the file, reports itself started, and serves until cancelled.

        A file that is damaged is set aside, which `set_aside` tells, and a new one begun. When cancelled it answers
        everything that was handed over, then closes. Raises `already_running`, `storage_newer`, `storage_corrupt`
        (the key does not fit) or `storage_failed` at the start; `storage_failed` or `storage_corrupt` later if the
        disk fails, after which it may be run again: that opens and checks anew.
        """
        if self.running:
            raise RuntimeError(f"{self!r} is running already")
        with only_process(self.path):
            connections = await trio.to_thread.run_sync(self._open, limiter=self._thread)
            try:
                lanes = (Writing(connections[0], self.path, self._ballast), Reading(connections[1], self.path))
                await self._serve(lanes, task_status)
            finally:
                with trio.CancelScope(shield=True):  # bounded by one WAL checkpoint
                    await trio.to_thread.run_sync(_close, connections, limiter=self._thread)

    async def write(
        self,
        work: Callable[[Connection], T],
        *,
        durable: bool = False,
        grows: bool = False,
        then: Callable[[T], object] | None = None,
    ) -> T:
        """Runs `work` in the next commit and returns its result once that commit is done.

        Survives kill -9; with `durable` also a power cut. What `work` raises comes out here, and takes back its own
        changes only. `then` gets the result on the Trio thread: in commit order, before this call returns, and even
        if this call was cancelled meanwhile; it must not raise. Cancelling never takes back a write that was handed
        over. Raises `unavailable`, `storage_failed`, `storage_corrupt`; after a failed sync the write may turn up
        all the same when the file is opened again, so whoever repeats it must do so under the same id.

        With `grows` it adds to what is stored, and is refused while the disk is full: `storage_full`. Everything
        else may still be written then, from room that was kept back; when that is used up too, it raises
        `storage_full` as well. A disk that fills up in the middle has `work` run a second time, after its first
        changes were taken back, so it changes nothing but the database.
        """
        if self._writing is None:
            raise unavailable()
        if grows and self._ballast.full:
            raise storage_full()
        return cast(T, await self._writing.do(Job(work, durable=durable, grows=grows, then=then)))

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
                nursery.start_soon(self._ballast.run)
                self._writing, self._reading = lanes
                task_status.started(self)
        finally:
            self._writing = self._reading = None
            self._suspect = any(lane.failure is not None and lane.failure.name == "storage_corrupt" for lane in lanes)
        _raise_failure(lanes)

    def _open(self) -> tuple[Connection, Connection]:
        """Both connections, the file checked and migrated; on a thread."""
        try:
            try:
                connections = self._connect()
            except (Error, OSError) as error:
                if not (_no_room(error, self.path) and self._ballast.give_up()):
                    raise
                connections = self._connect()
        except (Error, OSError) as error:
            raise self._cannot_open(error) from error
        self._ballast.look()
        return connections

    def _connect(self) -> tuple[Connection, Connection]:
        key = self._key() if callable(self._key) else self._key
        opening = Opening(self.path, self._migrations)
        writer, reader, aside = opening.connect(key, thorough=self._suspect, now_ms=self._clock.now_ms())
        self._suspect = False
        self._aside = aside or self._aside or last_set_aside(self.path)
        return writer, reader

    def _cannot_open(self, error: Error | OSError) -> ArmorclawError:
        known = storage_error(error, self.path, doing="open")
        return known or ArmorclawError("storage_failed", f"cannot open the database {self.path}", why=str(error))


def _no_room(error: Error | OSError, path: Path) -> bool:
    return error.errno == errno.ENOSPC if isinstance(error, OSError) else disk_full(error, path)


def _close(connections: Sequence[Connection]) -> None:
    for connection in reversed(connections):
        connection.close()


def _raise_failure(lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        if lane.failure is not None:
            raise lane.failure
