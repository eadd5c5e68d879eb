from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.store.migrate import migrate
from armorclaw.store.schema import MIGRATIONS, Migration

PATH = Path("/somewhere/bridge.db")
ONE = Migration(1, "one", "CREATE TABLE a (x); INSERT INTO a VALUES (1)")
TWO = Migration(2, "two", "ALTER TABLE a ADD COLUMN y; UPDATE a SET y = 2;")


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    yield connection
    connection.close()


def version(db: sqlite3.Connection) -> int:
    return int(db.execute("PRAGMA user_version").fetchone()[0])


def test_each_runs_once_in_order(db: sqlite3.Connection) -> None:
    assert migrate(db, (ONE,), PATH) == 1
    assert migrate(db, (ONE, TWO), PATH) == 1
    assert migrate(db, (ONE, TWO), PATH) == 0
    assert db.execute("SELECT x, y FROM a").fetchall() == [(1, 2)]
    assert version(db) == 2


def test_one_that_fails_leaves_nothing(db: sqlite3.Connection) -> None:
    bad = Migration(2, "bad", "CREATE TABLE b (x); INSERT INTO nowhere VALUES (1)")
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        migrate(db, (ONE, bad), PATH)
    assert version(db) == 1
    assert not db.in_transaction
    assert [name for (name,) in db.execute("SELECT name FROM sqlite_schema")] == ["a"]


def test_a_newer_database_is_refused_untouched(db: sqlite3.Connection) -> None:
    migrate(db, (ONE, TWO), PATH)
    with pytest.raises(ArmorclawError) as caught:
        migrate(db, (ONE,), PATH)
    assert caught.value.name == "storage_newer"
    assert str(PATH) in caught.value.what
    assert "number 2" in caught.value.why
    assert version(db) == 2


@pytest.mark.parametrize("numbers", [(2,), (1, 3), (2, 1), (1, 1)])
def test_numbers_have_no_gaps(db: sqlite3.Connection, numbers: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="without gaps"):
        migrate(db, [Migration(number, "", "SELECT 1") for number in numbers], PATH)


def test_the_real_ones_run(db: sqlite3.Connection) -> None:
    assert migrate(db, MIGRATIONS, PATH) == len(MIGRATIONS)
    assert db.execute("PRAGMA foreign_key_check").fetchall() == []
