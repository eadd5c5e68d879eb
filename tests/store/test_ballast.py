"""Room that is kept back: when it is given up, what may be written then, and when it is there again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlcipher3
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from armorclaw.errors import ArmorclawError
from armorclaw.store import Connection, Database, ballast
from armorclaw.store.ballast import BALLAST_BYTES, LOW_BYTES, MARGIN_BYTES, Ballast
from armorclaw.store.schema import Migration
from tests.store.test_lane import append, bodies, held

KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT)"),)


class Disk:
    """As much room as a test says; the ballast does not change it."""

    def __init__(self) -> None:
        self.free = 1 << 40


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    made = Disk()
    monkeypatch.setattr(Ballast, "_free", lambda _: made.free)
    monkeypatch.setattr(ballast, "LOOK_SECONDS", 0.01)
    return made


class Told:
    """What `on_full` was called with, and a way to wait for the next word."""

    def __init__(self) -> None:
        self.all: list[bool] = []
        self._news = trio.Event()

    def __call__(self, full: bool) -> None:
        self.all.append(full)
        self._news.set()
        self._news = trio.Event()

    async def until(self, wanted: list[bool]) -> None:
        with trio.fail_after(10):
            while self.all != wanted:
                await self._news.wait()


def no_room(times: int, disk: Disk) -> Callable[[Connection], str]:
    """A closure during which the disk gets full and SQLite finds out, so many times."""
    left = [times]

    def work(_: Connection) -> str:
        if left[0]:
            left[0] -= 1
            disk.free = 0
            error = sqlcipher3.OperationalError("database or disk is full")
            error.sqlite_errorcode, error.sqlite_errorname = 13, "SQLITE_FULL"
            raise error
        return "went through"

    return work


def test_the_file_takes_up_the_room_it_keeps(path: Path) -> None:
    kept = Ballast(path)
    assert kept.look() is False
    found = kept.path.stat()
    assert found.st_size == BALLAST_BYTES
    assert found.st_blocks * 512 >= BALLAST_BYTES
    assert found.st_mode & 0o777 == 0o600


def test_a_half_made_file_is_made_anew(path: Path) -> None:
    kept = Ballast(path)
    kept.path.write_bytes(b"half")
    assert kept.look() is False
    assert kept.path.stat().st_size == BALLAST_BYTES


def test_it_is_made_only_where_there_is_room_besides(path: Path, disk: Disk) -> None:
    kept = Ballast(path)
    disk.free = BALLAST_BYTES + MARGIN_BYTES - 1
    assert kept.look() is True
    assert not kept.path.exists()
    disk.free += 1
    assert kept.look() is True  # there is a file to give up again, but little besides
    assert kept.path.exists()
    disk.free = LOW_BYTES
    assert kept.look() is False


def test_little_room_counts_as_full_until_it_is_looked_at_again(path: Path, disk: Disk) -> None:
    kept = Ballast(path)
    kept.look()
    with structlog.testing.capture_logs() as logs:
        assert not kept.low()
        disk.free = LOW_BYTES - 1
        assert kept.low()
        assert kept.low()
        disk.free = LOW_BYTES
        assert kept.low()
    assert len(logs) == 1
    assert kept.path.exists()  # still to be given up
    assert not kept.look()
    assert not kept.low()


def test_there_is_one_file_to_give_up(path: Path, disk: Disk) -> None:
    kept = Ballast(path)
    kept.look()
    with structlog.testing.capture_logs():
        assert kept.give_up()
        assert not kept.give_up()
    assert kept.full


def test_a_folder_that_takes_no_file_counts_as_full(path: Path) -> None:
    kept = Ballast(path.parent / "missing" / "bridge.db")
    with structlog.testing.capture_logs():
        assert kept.look() is True


async def test_with_little_room_what_grows_is_refused_and_the_rest_is_written(path: Path, disk: Disk) -> None:
    told = Told()
    async with Database.open(path, KEY, migrations=TABLE) as db:
        db.on_full = told
        await db.write(append("before"), grows=True)
        assert not db.full
        disk.free = LOW_BYTES - 1
        with structlog.testing.capture_logs():
            for _ in range(2):  # found out by the thread that writes, then known
                with pytest.raises(ArmorclawError) as caught:
                    await db.write(append("refused"), grows=True)
                assert caught.value.name == "storage_full"
                assert caught.value.kind.retryable
                assert caught.value.data["retry_after"] == ballast.LOOK_SECONDS
                assert db.full
            await db.write(append("an end"))
            await told.until([True])
            disk.free = LOW_BYTES
            await told.until([True, False])
        assert not db.full
        await db.write(append("after"), grows=True)
        assert await db.read(bodies) == ["before", "an end", "after"]


async def test_the_second_time_is_told_like_the_first(path: Path, disk: Disk) -> None:
    told = Told()
    async with Database.open(path, KEY, migrations=TABLE) as db:
        db.on_full = told
        with structlog.testing.capture_logs():
            for n in (1, 2, 3):
                disk.free = 0
                with pytest.raises(ArmorclawError):
                    await db.write(append("refused"), grows=True)
                await told.until([True, False] * (n - 1) + [True])
                disk.free = LOW_BYTES
                await told.until([True, False] * n)


async def test_full_from_the_start_on_is_told(path: Path, disk: Disk) -> None:
    disk.free = 0
    db, told = Database(path, KEY, migrations=TABLE), Told()
    db.on_full = told
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        assert db.full
        await told.until([True])
        with pytest.raises(ArmorclawError):
            await db.write(append("refused"), grows=True)
        disk.free = LOW_BYTES
        await told.until([True, False])
        nursery.cancel_scope.cancel()


async def test_room_that_came_while_the_store_restarted_is_told(path: Path, disk: Disk) -> None:
    db, told = Database(path, KEY, migrations=TABLE), Told()
    db.on_full = told
    for n in (1, 2):  # the second time it is said of the first, and is full once more
        async with trio.open_nursery() as nursery:
            await nursery.start(db.run)
            await told.until([True, False] * (n - 1))
            disk.free = 0
            with structlog.testing.capture_logs(), pytest.raises(ArmorclawError):
                await db.write(append("refused"), grows=True)
            await told.until([True, False] * (n - 1) + [True])
            nursery.cancel_scope.cancel()
        disk.free = LOW_BYTES


async def test_when_sqlite_finds_no_room_the_group_goes_through_without_what_grows(path: Path, disk: Disk) -> None:
    results: dict[str, object] = {}
    told: list[object] = []

    async def write(name: str, work: Callable[[Connection], object]) -> None:
        try:
            results[name] = await db.write(work, grows=name == "grows", then=told.append)
        except (ArmorclawError, KeyError) as error:
            results[name] = error.name if isinstance(error, ArmorclawError) else "KeyError"

    def bad(_: Connection) -> None:
        raise KeyError("closure")

    works: dict[str, Callable[[Connection], object]] = {
        "first": append("first"),
        "bad": bad,
        "no room": no_room(1, disk),
        "grows": append("grows"),
        "last": append("last"),
    }
    async with Database.open(path, KEY, migrations=TABLE) as db:
        kept = trio.Path(f"{path}.ballast")
        assert await kept.exists()
        with structlog.testing.capture_logs():
            async with trio.open_nursery() as nursery:
                async with held(db):
                    for name, work in works.items():
                        nursery.start_soon(write, name, work)
                        await wait_all_tasks_blocked()
        went = {"first": 1, "no room": "went through", "last": 2}
        assert results == {"bad": "KeyError", "grows": "storage_full", **went}
        assert told == list(went.values())  # each once
        assert not await kept.exists()
        assert await db.read(bodies) == ["first", "last"]


async def test_when_that_is_used_up_too_everyone_is_told_to_come_again(path: Path, disk: Disk) -> None:
    async with Database.open(path, KEY, migrations=TABLE) as db:
        with structlog.testing.capture_logs():
            with pytest.raises(ArmorclawError) as caught:
                await db.write(no_room(2, disk))
            assert caught.value.name == "storage_full"
            assert caught.value.data["retry_after"] == ballast.LOOK_SECONDS
        assert db.running
        await db.write(append("the next"))
        assert await db.read(bodies) == ["the next"]


async def test_a_log_index_that_cannot_grow_ends_nothing(
    path: Path, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armorclaw.store.connection._is_full", lambda _: True)

    def shm(_: Connection) -> None:
        error = sqlcipher3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = 10 | 19 << 8, "SQLITE_IOERR_SHMSIZE"
        raise error

    async with Database.open(path, KEY, migrations=TABLE) as db:
        with structlog.testing.capture_logs():
            for _ in range(2):
                with pytest.raises(ArmorclawError) as caught:
                    await db.write(shm)
                assert caught.value.name == "storage_full"
        await db.write(append("the next"))
        assert db.running
