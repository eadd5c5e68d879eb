"""Order, grouping, cancellation and failure of what is handed to the writing thread."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlcipher3
import structlog
import trio
from trio.testing import wait_all_tasks_blocked

from armorclaw.errors import ArmorclawError
from armorclaw.store import Connection, Database, IntegrityError, lane
from armorclaw.store.schema import Migration

KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY AUTOINCREMENT, body TEXT)"),)


def append(body: object) -> Callable[[Connection], int]:
    def work(db: Connection) -> int:
        n = db.execute("INSERT INTO t (body) VALUES (?)", (str(body),)).lastrowid
        assert n is not None
        return n

    return work


def bodies(db: Connection) -> list[str]:
    return [body for (body,) in db.execute("SELECT body FROM t ORDER BY n")]


@pytest.fixture
async def db(path: Path) -> AsyncIterator[Database]:
    async with Database.open(path, KEY, migrations=TABLE) as database:
        yield database


@asynccontextmanager
async def held(db: Database) -> AsyncIterator[None]:
    """The writing thread is busy in a closure while the block runs, so whatever is written there waits."""
    busy, go_on = trio.Event(), threading.Event()

    def hold(_: Connection) -> None:
        trio.from_thread.run_sync(busy.set)
        assert go_on.wait(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.write, hold)
        await busy.wait()
        try:
            yield
        finally:
            go_on.set()


@pytest.mark.mission("R.4")
async def test_writers_share_commits_and_order_is_kept(db: Database) -> None:
    statements: list[str] = []
    await db.write(lambda c: c.set_trace_callback(statements.append))
    told: list[int] = []
    resumed: list[int] = []

    async def writer(durable: bool) -> None:
        n = await db.write(append("x"), durable=durable, then=told.append)
        assert n in told  # the listeners hear first
        resumed.append(n)

    async with trio.open_nursery() as nursery:
        async with held(db):
            for i in range(100):
                nursery.start_soon(writer, i % 2 == 0)
            await wait_all_tasks_blocked()
            statements.clear()
    assert told == list(range(1, 101))  # numbers grow in commit order, and so are told
    assert sorted(resumed) == told
    assert statements.count("COMMIT") == 2  # the one that held, and one for a hundred
    assert statements.count("PRAGMA synchronous = FULL") == 1


async def test_only_durable_groups_are_synced(db: Database) -> None:
    statements: list[str] = []
    await db.write(lambda c: c.set_trace_callback(statements.append))
    level = "PRAGMA synchronous"
    for durable in (True, True, False, False, True):
        await db.write(append("x"), durable=durable)
    assert [s[-6:].strip("= ") for s in statements if s.startswith(level)] == ["FULL", "NORMAL", "FULL"]


async def test_what_raises_is_rolled_back_alone(db: Database) -> None:
    told: list[object] = []
    errors: list[BaseException] = []

    def half(c: Connection) -> None:
        c.execute("INSERT INTO t (body) VALUES ('half')")
        raise KeyError("closure")

    async def failing(work: Callable[[Connection], object]) -> None:
        try:
            await db.write(work, then=told.append)
        except (KeyError, IntegrityError) as error:
            errors.append(error)

    async with trio.open_nursery() as nursery:
        async with held(db):
            nursery.start_soon(db.write, append("before"))
            await wait_all_tasks_blocked()
            nursery.start_soon(failing, half)
            nursery.start_soon(failing, lambda c: c.execute("INSERT INTO t VALUES (1, 'x'), (1, 'y')"))
            await wait_all_tasks_blocked()
            nursery.start_soon(db.write, append("after"))
            await wait_all_tasks_blocked()
    assert {type(error) for error in errors} == {KeyError, IntegrityError}
    assert told == []
    assert await db.read(bodies) == ["before", "after"]


async def test_a_closure_may_not_end_the_transaction(db: Database) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await db.write(lambda c: c.execute("COMMIT"))
    assert caught.value.name == "storage_failed"
    assert "no such savepoint" in caught.value.why
    await db.write(append("next"))
    assert await db.read(bodies) == ["next"]


async def test_cancelled_before_it_is_handed_over(db: Database) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await db.write(append("never"))
    assert scope.cancelled_caught
    assert await db.read(bodies) == []


async def test_cancelled_while_it_waits_in_the_queue(db: Database) -> None:
    told: list[int] = []
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            async with held(db):
                nursery.start_soon(lambda: db.write(append("stays"), then=told.append))
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
                await wait_all_tasks_blocked()
    assert not scope.cancelled_caught
    await db.write(append("later"), then=told.append)
    assert told == [1, 2]
    assert await db.read(bodies) == ["stays", "later"]


async def test_cancelled_while_its_closure_runs(db: Database) -> None:
    told: list[str] = []
    running, go_on = trio.Event(), threading.Event()

    def slow(c: Connection) -> str:
        trio.from_thread.run_sync(running.set)
        assert go_on.wait(10)
        append("slow")(c)
        return "slow"

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: db.write(slow, then=told.append))
        await running.wait()
        nursery.cancel_scope.cancel()
    go_on.set()
    await db.write(append("next"))
    assert told == ["slow"]
    assert await db.read(bodies) == ["slow", "next"]


async def test_a_full_queue_makes_callers_wait(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "MAX_WAITING", 3)
    async with Database.open(path, KEY, migrations=TABLE) as db:
        async with trio.open_nursery() as nursery:
            async with held(db):
                for name in ("a", "b", "c"):  # the first two fill the queue
                    nursery.start_soon(db.write, append(name))
                    await wait_all_tasks_blocked()
                async with trio.open_nursery() as late:
                    late.start_soon(db.write, append("cancelled"))
                    await wait_all_tasks_blocked()
                    late.cancel_scope.cancel()
        assert await db.read(bodies) == ["a", "b", "c"]


async def test_stopping_answers_everything_that_was_handed_over(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lane, "MAX_WAITING", 3)
    stopping = Database(path, KEY, migrations=TABLE)
    answers: list[str] = []

    async def writer(name: str) -> None:
        try:
            await stopping.write(append(name))
        except ArmorclawError as error:
            answers.append(f"{name}: {error.name}")
        else:
            answers.append(f"{name}: written")

    async with trio.open_nursery() as writers:
        async with trio.open_nursery() as nursery:
            await nursery.start(stopping.run)
            holding = trio.Event()
            go_on = threading.Event()
            writers.start_soon(stopping.write, lambda _: (trio.from_thread.run_sync(holding.set), go_on.wait(10)))
            await holding.wait()
            for name in ("a", "b", "too late", "too late too"):
                writers.start_soon(writer, name)
                await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await wait_all_tasks_blocked()
            go_on.set()
    assert sorted(answers) == ["a: written", "b: written", "too late too: unavailable", "too late: unavailable"]
    async with Database.open(path, KEY, migrations=TABLE) as again:
        assert await again.read(bodies) == ["a", "b"]


async def test_a_listener_that_fails_breaks_nothing_else(db: Database) -> None:
    def bad(_: int) -> None:
        raise ZeroDivisionError("listener")

    with structlog.testing.capture_logs() as logs, pytest.raises(ZeroDivisionError):
        await db.write(append("kept"), then=bad)
    assert logs[0]["log_level"] == "error"
    assert await db.read(bodies) == ["kept"]


async def test_an_abandoned_read_is_skipped(db: Database) -> None:
    ran: list[str] = []
    busy, go_on = trio.Event(), threading.Event()

    def hold(_: Connection) -> None:
        trio.from_thread.run_sync(busy.set)
        assert go_on.wait(10)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(db.read, hold)
        await busy.wait()
        async with trio.open_nursery() as inner:
            inner.start_soon(db.read, lambda _: ran.append("abandoned"))
            await wait_all_tasks_blocked()
            inner.cancel_scope.cancel()
        go_on.set()
    await db.read(lambda _: ran.append("next"))
    assert ran == ["next"]


def disk_error(_: Connection) -> None:
    error = sqlcipher3.OperationalError("disk I/O error")
    error.sqlite_errorcode, error.sqlite_errorname = 1034, "SQLITE_IOERR_FSYNC"
    raise error


@pytest.mark.parametrize("reading", [False, True])
async def test_a_disk_error_ends_the_run_and_the_next_one_goes_on(path: Path, reading: bool) -> None:
    db = Database(path, KEY, migrations=TABLE)
    outcome: list[str] = []
    answers: list[str] = []

    async def run(*, task_status: trio.TaskStatus[Database]) -> None:
        try:
            await db.run(task_status=task_status)
        except ArmorclawError as error:
            outcome.append(error.name)

    async def failing(work: Callable[[Connection], object]) -> None:
        with pytest.raises(ArmorclawError) as caught:
            await (db.read if reading else db.write)(work)
        answers.append(f"{caught.value.name}: {caught.value.why}")

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(run)
            await db.write(append("acknowledged"))
            async with trio.open_nursery() as callers:
                if reading:
                    callers.start_soon(failing, disk_error)
                else:
                    async with held(db):
                        callers.start_soon(failing, append("before, same group"))
                        callers.start_soon(failing, disk_error)
                        callers.start_soon(failing, append("after, same group"))
                        await wait_all_tasks_blocked()
    assert outcome == ["storage_failed"]
    assert set(answers) == {"storage_failed: the disk reports an error (SQLITE_IOERR_FSYNC)"}
    assert len(answers) == (1 if reading else 3)
    assert [entry["event"] for entry in logs] == ["the store failed"]
    assert not db.running
    with pytest.raises(ArmorclawError, match="not running"):
        await db.write(append("while down"))
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        await db.write(append("again"))
        assert await db.read(bodies) == ["acknowledged", "again"]
        nursery.cancel_scope.cancel()
