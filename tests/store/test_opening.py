"""What is opened, what is refused, and what gives way to a new database."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import sqlcipher3
import structlog
import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.store import Connection, Database, SetAside
from armorclaw.store import opening as opening_module
from armorclaw.store.schema import Migration

KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)"),)
NOON = 1_795_348_800


def numbers(db: Connection) -> list[int]:
    return [n for (n,) in db.execute("SELECT n FROM t ORDER BY n")]


def insert(n: int) -> Callable[[Connection], object]:
    return lambda db: db.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 1000)).rowcount


def opened(path: Path, key: bytes = KEY, *, rows: int = 0) -> tuple[list[int], SetAside | None]:
    """What is in the database after `rows` were added, and what it says it has set aside."""

    async def main() -> tuple[list[int], SetAside | None]:
        db = Database(path, key, migrations=TABLE, clock=Clock(wall=lambda: NOON))
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)
            for n in range(1, rows + 1):
                await db.write(insert(n))
            result = await db.read(numbers), db.set_aside
            nursery.cancel_scope.cancel()
        return result

    with structlog.testing.capture_logs():
        return trio.run(main)


def refused(path: Path, key: bytes = KEY) -> ArmorclawError:
    with pytest.RaisesGroup(pytest.RaisesExc(ArmorclawError)) as caught:
        opened(path, key)
    (error,) = caught.value.exceptions
    assert isinstance(error, ArmorclawError)
    return error


def flip(path: Path, place: int) -> bytes:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    return bytes(data)


def asides(path: Path) -> list[Path]:
    return sorted(path.parent.glob("bridge.db.damaged-*"))


def test_a_sound_database_is_opened_again(path: Path) -> None:
    opened(path, rows=3)
    assert opened(path) == ([1, 2, 3], None)


@pytest.mark.parametrize("noted", [True, False])
def test_a_wrong_key_is_refused_and_nothing_moved(path: Path, capfd: pytest.CaptureFixture[str], noted: bool) -> None:
    opened(path, rows=3)
    if not noted:
        path.with_name("bridge.db.check").unlink()
    before = path.read_bytes()
    error = refused(path, bytes(32))
    assert error.name == "storage_corrupt"
    assert str(path) in error.what
    assert "key does not fit" in error.why
    assert ("two cannot be told apart" in error.why) is not noted
    assert "restore the key file" in error.hint
    assert bytes(32).hex() not in "".join(error.lines())
    assert path.read_bytes() == before
    assert not asides(path)
    assert capfd.readouterr().err == ""  # SQLCipher would write there by itself
    assert opened(path) == ([1, 2, 3], None)


@pytest.mark.parametrize("place", [0, 20, 4000, 5000, 9000, -1])
def test_a_damaged_database_gives_way_to_a_new_one(path: Path, place: int) -> None:
    opened(path, rows=20)
    data = flip(path, place)
    found, aside = opened(path)
    assert found == []
    assert aside is not None
    assert aside.path == path.with_name("bridge.db.damaged-20261122T120000Z")
    assert aside.at_ms == NOON * 1000
    assert aside.why
    assert "\n" not in aside.why
    assert aside.path.read_bytes() == data


@pytest.mark.parametrize("size", [0, 100, 4096, 10_000])
def test_a_cut_database_gives_way_too(path: Path, size: int) -> None:
    opened(path, rows=20)
    with path.open("r+b") as file:
        file.truncate(size)
    found, aside = opened(path, rows=1)
    assert found == [1]
    assert aside is not None
    assert aside.path.stat().st_size == size


def test_so_does_a_log_without_its_database(path: Path) -> None:
    path.with_name("bridge.db-wal").write_bytes(b"something")
    found, aside = opened(path)
    assert found == []
    assert aside is not None
    assert aside.path.read_bytes() == b"something"


@pytest.mark.parametrize("place", [0, 20])
def test_where_damage_may_be_a_wrong_key_nothing_is_moved(path: Path, place: int) -> None:
    opened(path, rows=20)
    path.with_name("bridge.db.check").unlink()
    data = flip(path, place)
    error = refused(path)
    assert error.name == "storage_corrupt"
    assert "two cannot be told apart" in error.why
    assert path.read_bytes() == data
    assert not asides(path)


def test_damage_behind_a_beginning_that_can_be_read_needs_no_note(path: Path) -> None:
    opened(path, rows=20)
    path.with_name("bridge.db.check").write_text("00" * 32)
    flip(path, 5000)
    assert opened(path)[1] is not None


def test_a_key_that_opens_the_file_is_noted_whatever_was_noted_before(path: Path) -> None:
    opened(path, rows=1)
    note = path.with_name("bridge.db.check")
    right = note.read_text()
    note.write_text("00" * 32)  # of the database that was here before a backup was restored
    assert opened(path) == ([1], None)
    assert note.read_text() == right


def test_it_is_told_until_somebody_takes_the_file_away(path: Path) -> None:
    opened(path, rows=20)
    flip(path, 5000)
    _, first = opened(path)
    assert first is not None
    _, again = opened(path)
    assert again is not None
    assert (again.path, again.at_ms) == (first.path, first.at_ms)
    first.path.rename(first.path.with_name("seen"))
    assert opened(path) == ([], None)


def test_the_file_taken_away_while_it_runs_is_told_no_more(path: Path) -> None:
    opened(path, rows=20)
    flip(path, 5000)

    async def main() -> None:
        async with Database.open(path, KEY, migrations=TABLE) as db:
            assert db.set_aside is not None
            db.set_aside.path.unlink()
            assert db.set_aside is None

    with structlog.testing.capture_logs():
        trio.run(main)


def test_damage_after_damage_keeps_both(path: Path) -> None:
    for _ in range(2):
        opened(path, rows=20)
        flip(path, 5000)
        opened(path)
    assert len(asides(path)) == 2


def test_a_newer_database_is_not_damaged(path: Path) -> None:
    async def newer() -> None:
        async with Database.open(path, KEY, migrations=(*TABLE, Migration(2, "of the future", "SELECT 1"))):
            pass

    trio.run(newer)
    assert refused(path).name == "storage_newer"
    assert not asides(path)


@pytest.mark.parametrize("said", ["Tree 2 page 2: btreeInitPage() returns error code 266", "error code=7"])
def test_a_disk_that_does_not_read_is_no_damage(path: Path, said: str) -> None:
    class Looked:
        def execute(self, statement: str) -> Looked:
            assert "check" in statement
            return self

        def fetchone(self) -> tuple[str]:
            return (f"*** in database main ***\n{said}",)

    with pytest.raises(ArmorclawError) as caught:
        opening_module._check(Looked(), path, thorough=False)  # type: ignore[arg-type]
    assert caught.value.name == "storage_failed"
    assert said in caught.value.why


def test_after_damage_at_run_time_everything_is_looked_at(path: Path) -> None:
    asked: list[bool] = []
    check = opening_module._check

    def noting(connection: Connection, where: Path, *, thorough: bool) -> None:
        asked.append(thorough)
        check(connection, where, thorough=thorough)

    def corrupt(_: Connection) -> None:
        error = sqlcipher3.DatabaseError("database disk image is malformed")
        error.sqlite_errorcode, error.sqlite_errorname = 11, "SQLITE_CORRUPT"
        raise error

    async def until_it_fails(db: Database) -> None:
        with one_error():
            async with trio.open_nursery() as nursery:
                await nursery.start(db.run)
                with suppress(ArmorclawError):
                    await db.read(corrupt)
                await trio.sleep_forever()

    async def main() -> None:
        db = Database(path, KEY, migrations=TABLE)
        with pytest.raises(ArmorclawError, match="damaged"):
            await until_it_fails(db)
        for _ in range(2):
            async with trio.open_nursery() as nursery:
                await nursery.start(db.run)
                assert db.set_aside is None  # nothing was found to be wrong with the file
                nursery.cancel_scope.cancel()

    with pytest.MonkeyPatch.context() as patch, structlog.testing.capture_logs():
        patch.setattr(opening_module, "_check", noting)
        trio.run(main)
    assert asked == [False, True, False]
