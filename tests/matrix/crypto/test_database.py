"""The crypto file at work: transactions that are whole, a log that is bounded, and what mautrix asks of it."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import assert_no_checkpoints

from armorclaw.matrix.crypto.database import CROWDED, CryptoDatabase
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.store.connection import Connection, Error


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[CryptoDatabase]:
    made = await trio.to_thread.run_sync(lambda: Vault(tmp_path, lambda: bytes(32)).open("main", expected=False))
    made.run("CREATE TABLE t (x INTEGER PRIMARY KEY, y)")
    yield made
    made.close()


def count(db: CryptoDatabase) -> int:
    return int(db.all("SELECT count(*) FROM t")[0][0])


async def test_all_of_a_transaction_or_nothing(db: CryptoDatabase) -> None:
    forgotten: list[str] = []
    db.on_rollback.append(lambda: forgotten.append("cache"))

    def fail() -> None:
        with db.transaction():
            db.run("INSERT INTO t VALUES (1, 1)")
            with db.transaction():
                db.run("INSERT INTO t VALUES (2, 2)")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert count(db) == 0
    assert forgotten == ["cache"]
    with db.transaction():
        db.run("INSERT INTO t VALUES (1, 1)")
    assert count(db) == 1
    assert forgotten == ["cache"]


async def test_a_statement_that_fails_spares_the_rest(db: CryptoDatabase) -> None:
    with db.transaction():
        db.run("INSERT INTO t VALUES (1, 1)")
        with pytest.raises(Error):
            db.run("INSERT INTO t VALUES (1, 2)")
    assert count(db) == 1


async def test_who_looks_when_it_is_closed_lets_go_of_the_file_first(db: CryptoDatabase) -> None:
    """Else it would take away the log of the file that comes in its place."""
    looks, left = threading.Event(), threading.Event()

    def look(connection: Connection) -> None:
        looks.set()
        try:
            connection.execute(
                "WITH RECURSIVE n(x) AS (VALUES (1) UNION ALL SELECT x + 1 FROM n) SELECT max(x) FROM n"
            )
        finally:
            left.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.look, look)
        await trio.to_thread.run_sync(looks.wait)
        nursery.cancel_scope.cancel()
    assert not left.is_set()
    with trio.fail_after(5):
        await trio.to_thread.run_sync(db.close)
    assert left.is_set()


async def test_nothing_waits_in_a_transaction(db: CryptoDatabase) -> None:
    with assert_no_checkpoints():
        async with db.acquire() as connection, connection.transaction():
            await connection.execute("INSERT INTO t VALUES ($1, $2)", 1, "one")
            await db.execute("INSERT INTO t VALUES ($1, $2)", 2, "two")
    assert count(db) == 2


async def test_it_is_the_database_that_mautrix_wants(db: CryptoDatabase) -> None:
    at = datetime(2026, 1, 2, 3, 4, 5)
    assert await db.execute("INSERT INTO t VALUES ($2, $1)", at, 1) == "INSERT 1"
    await db.executemany("INSERT INTO t VALUES ($1, $2)", [(2, "b"), (3, "c")])
    assert await db.fetchval("SELECT y FROM t WHERE x = $1", 1) == "2026-01-02 03:04:05"
    assert [row["x"] for row in await db.fetch("SELECT x FROM t ORDER BY x")] == [1, 2, 3]
    row = await db.fetchrow("SELECT x, y FROM t WHERE x = $1", 2)
    assert row is not None
    assert (row["x"], row[1]) == (2, "b")
    assert await db.fetchrow("SELECT x FROM t WHERE x = 9") is None
    assert await db.fetchval("SELECT x FROM t WHERE x = 9") is None
    assert await db.execute("DELETE FROM t WHERE x > $1", 1) == "DELETE 2"


async def test_the_log_is_moved_into_the_file_while_we_go_on(db: CryptoDatabase) -> None:
    crowded = db.crowded
    for number in range(CROWDED):
        assert not crowded.is_set()
        db.run("INSERT INTO t VALUES (?, ?)", number, os.urandom(3000))
    assert crowded.is_set()
    size = os.stat(f"{db.path}-wal").st_size
    await db.checkpoint()
    assert not db.crowded.is_set()
    for number in range(CROWDED):
        db.run("UPDATE t SET y = ? WHERE x = ?", os.urandom(3000), number)
    assert os.stat(f"{db.path}-wal").st_size <= 2 * size


async def test_a_sync_is_made_when_there_is_something_to_sync(
    db: CryptoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    monkeypatch.setattr("armorclaw.matrix.crypto.database._sync", lambda *told: synced.append(told))
    await db.sync()
    await db.sync()
    assert synced == [(db.path, True)]
    db.run("INSERT INTO t VALUES (1, 1)")
    await db.sync()
    assert synced[1:] == [(db.path, False)]


async def test_a_disk_that_hangs_holds_up_nobody_who_leaves(
    db: CryptoDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = trio.Event()

    def hang(*args: Any) -> None:
        trio.from_thread.run(go.wait)

    monkeypatch.setattr("armorclaw.matrix.crypto.database._sync", hang)
    db.run("INSERT INTO t VALUES (1, 1)")
    with trio.move_on_after(0.05) as scope:
        await db.sync()
    assert scope.cancelled_caught
    go.set()
    monkeypatch.undo()
    await db.sync()
