"""The store without its thread, for tests of what stands on it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import TypeVar

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.store import Connection
from armorclaw.store.schema import MIGRATIONS

T = TypeVar("T")


class InlineDatabase:
    """The store's interface over plain SQLite, on Trio's own thread: quick, and right with an autojump clock.

    Set `down` to have it answer as the real one does while it restarts.
    """

    def __init__(self) -> None:
        self.conn = sqlite3.connect(":memory:", isolation_level=None)
        self.conn.execute("PRAGMA foreign_keys = ON")
        for migration in MIGRATIONS:
            self.conn.executescript(migration.sql)
        self.down = False
        self.reads = 0
        self.writes = 0
        self.durable = 0
        self.point: Callable[[str], object] = lambda name: None
        """Called before and after each commit; raises to have the process end there."""

    def close(self) -> None:
        self.conn.close()

    async def write(
        self,
        work: Callable[[Connection], T],
        *,
        durable: bool = False,
        grows: bool = False,
        then: Callable[[T], object] | None = None,
    ) -> T:
        await trio.lowlevel.checkpoint()
        self._check()
        self.writes += 1
        self.durable += durable
        self.point("before commit")
        self.conn.execute("BEGIN")
        try:
            result = work(self.conn)
        except BaseException:
            self.conn.execute("ROLLBACK")
            raise
        self.conn.execute("COMMIT")
        self.point("after commit")
        if then is not None:
            then(result)
        await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        self._check()
        self.reads += 1
        result = work(self.conn)
        await trio.lowlevel.checkpoint()
        return result

    def _check(self) -> None:
        if self.down:
            raise ArmorclawError("unavailable", "the store is not running")
