"""Opening, refusing to open, closing, and the plain use of the database."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.store import Connection, Database, IntegrityError
from armorclaw.store import connection as connections
from armorclaw.store.connection import open_connection
from armorclaw.store.schema import Migration

KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)"),)


def numbers(db: Connection) -> list[int]:
    return [n for (n,) in db.execute("SELECT n FROM t ORDER BY n")]


def insert(n: int, body: str = "") -> Callable[[Connection], int]:
    def work(db: Connection) -> int:
        db.execute("INSERT INTO t VALUES (?, ?)", (n, body))
        return n

    return work


def make(path: Path, rows: int = 0) -> None:
    """A closed database with rows 1 to `rows`."""

    async def main() -> None:
        async with Database.open(path, KEY, migrations=TABLE) as db:
            for n in range(1, rows + 1):
                await db.write(insert(n, "x" * 1000))

    trio.run(main)


def refused(path: Path, key: bytes = KEY) -> ArmorclawError:
    """Why the database at `path` does not open."""

    async def main() -> None:
        async with Database.open(path, key, migrations=TABLE):
            pass

    with pytest.raises(ArmorclawError) as caught:
        trio.run(main)
    return caught.value


async def test_what_was_written_is_there_after_opening_again(path: Path) -> None:
    async with Database.open(path, KEY, migrations=TABLE) as db:
        assert await db.write(insert(1)) == 1
        assert await db.write(insert(2), durable=True) == 2
        assert await db.read(numbers) == [1, 2]
    async with Database.open(path, KEY, migrations=TABLE) as db:
        assert await db.read(numbers) == [1, 2]


async def test_the_default_schema_is_made_whole(path: Path) -> None:
    async with Database.open(path, KEY) as db:
        names = await db.read(lambda c: {name for (name,) in c.execute("SELECT name FROM sqlite_schema")})
    assert {"audit", "keys", "agents", "accounts", "rooms", "journal", "subscriptions", "acks", "outbox"} <= names


async def test_files_are_private_and_unreadable_without_the_key(path: Path) -> None:
    async with Database.open(path, KEY, migrations=TABLE) as db:
        await db.write(insert(1, "canary-5f1e"), durable=True)
        files = sorted(path.parent.iterdir())
        endings = ("", "-shm", "-wal", ".ballast", ".check", ".lock")
        assert [file.name for file in files] == [f"bridge.db{ending}" for ending in endings]
        for file in files:
            assert file.stat().st_mode & 0o077 == 0, file
            assert b"canary" not in file.read_bytes()
            assert b"CREATE TABLE" not in file.read_bytes()
            assert not file.read_bytes().startswith(b"SQLite format 3")


async def test_settings_of_the_connections(path: Path) -> None:
    def settings(c: Connection) -> tuple[object, ...]:
        names = ("journal_mode", "foreign_keys", "busy_timeout", "temp_store", "secure_delete", "query_only")
        return tuple(c.execute(f"PRAGMA {name}").fetchone()[0] for name in names)

    async with Database.open(path, KEY, migrations=TABLE) as db:
        assert await db.write(settings) == ("wal", 1, 2000, 2, 1, 0)
        assert await db.read(settings) == ("wal", 1, 2000, 2, 1, 1)


async def test_a_reader_cannot_write_and_sees_one_state(path: Path) -> None:
    async with Database.open(path, KEY, migrations=TABLE) as db:
        with pytest.raises(ArmorclawError, match="SQLITE_READONLY"):
            await db.read(insert(1))
        looked, go_on = trio.Event(), threading.Event()
        seen: list[list[int]] = []

        def twice(c: Connection) -> None:
            seen.append(numbers(c))
            trio.from_thread.run_sync(looked.set)
            assert go_on.wait(10)
            seen.append(numbers(c))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.read, twice)
            await looked.wait()
            await db.write(insert(1), durable=True)  # a reader holds up no writer
            go_on.set()
        assert seen == [[], []]
        assert await db.read(numbers) == [1]


async def test_calls_before_and_after_are_refused(path: Path) -> None:
    db = Database(path, KEY, migrations=TABLE)
    with pytest.raises(ArmorclawError) as caught:
        await db.write(insert(1))
    assert caught.value.name == "unavailable"
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        await db.write(insert(1))
        nursery.cancel_scope.cancel()
    with pytest.raises(ArmorclawError) as caught:
        await db.read(numbers)
    assert caught.value.name == "unavailable"


async def test_errors_in_the_block_come_out_bare(path: Path) -> None:
    async def main() -> None:
        async with Database.open(path, KEY, migrations=TABLE) as db:
            await db.write(insert(1))
            await db.write(insert(1))

    with pytest.raises(IntegrityError):
        await main()


async def test_the_same_object_serves_again(path: Path) -> None:
    db = Database(path, lambda: KEY, migrations=TABLE)
    for n in (1, 2):
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)
            await db.write(insert(n))
            nursery.cancel_scope.cancel()
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        assert await db.read(numbers) == [1, 2]
        with pytest.raises(RuntimeError, match="running already"):
            await db.run()
        nursery.cancel_scope.cancel()


def test_a_newer_schema_is_refused(path: Path) -> None:
    async def newer() -> None:
        async with Database.open(path, KEY, migrations=(*TABLE, Migration(2, "of the future", "SELECT 1"))):
            pass

    trio.run(newer)
    assert refused(path).name == "storage_newer"


def test_a_missing_directory_is_told(path: Path) -> None:
    error = refused(path.parent / "none" / "bridge.db")
    assert error.name == "storage_failed"
    assert "No such file" in error.why


async def test_what_a_crash_left_of_the_first_start_is_cleared(path: Path) -> None:
    for name in ("bridge.db.new", "bridge.db.new-wal"):
        path.with_name(name).write_bytes(b"half")
    async with Database.open(path, KEY, migrations=TABLE) as db:
        await db.write(insert(1))
    assert not path.with_name("bridge.db.new").exists()
    assert not path.with_name("bridge.db.new-wal").exists()


async def test_a_key_of_the_wrong_size_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        async with Database.open(path, b"short"):
            pass
    async with Database.open(path, KEY):  # and the lock was given back
        pass


async def test_another_program_holds_the_database(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BUSY_TIMEOUT_MS", 50)
    async with Database.open(path, KEY, migrations=TABLE) as db:
        other = open_connection(path, KEY)
        try:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(ArmorclawError) as caught:
                await db.write(insert(1))
            assert caught.value.name == "storage_failed"
            assert caught.value.kind.retryable
            assert "another process" in caught.value.why
            other.execute("ROLLBACK")
        finally:
            other.close()
        await db.write(insert(2))
        assert await db.read(numbers) == [2]


async def test_cancelled_while_it_opens(path: Path) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def slow_key() -> bytes:
        asked.set()
        assert go_on.wait(10)
        return KEY

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(Database(path, slow_key, migrations=TABLE).run)
            await trio.to_thread.run_sync(asked.wait)
            scope.cancel()
            go_on.set()
    assert scope.cancelled_caught
    async with Database.open(path, KEY, migrations=TABLE) as db:  # neither lock nor connection was left behind
        await db.write(insert(1))
