"""One batch: its bounds, and that only the beginning of the journal goes, whatever the clock has done."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.events.journal import Journal
from armorclaw.events.keeping import pruning
from armorclaw.events.keeping.pruning import BATCH_BYTES, DAY_MS, DELETE_ROWS, ERASE_ROWS, ROW_BYTES
from armorclaw.store.schema import MIGRATIONS

NOW = 1000 * DAY_MS
KEEP = 30 * DAY_MS
OLD, FRESH, FUTURE = NOW - KEEP - 1, NOW - KEEP, NOW + DAY_MS + 1


def store(path: Path | str = ":memory:") -> sqlite3.Connection:
    conn = sqlite3.connect(path, isolation_level=None)
    conn.execute("PRAGMA foreign_keys = ON")
    for migration in MIGRATIONS:
        conn.executescript(migration.sql)
    return conn


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    conn = store()
    yield conn
    conn.close()


def add(conn: sqlite3.Connection, *stored: int, room: str | None = "!r:x", size: int = 10) -> None:
    sql = (
        "INSERT INTO journal (id, type, at_ms, room_id, content, stored_ms)"
        " VALUES (hex(randomblob(8)), 'x', 0, ?, ?, ?)"
    )
    conn.executemany(sql, [(room, b"{" + b" " * (size - 2) + b"}", at) for at in stored])


def subscribe(conn: sqlite3.Connection, name: str, floor: int, *acks: int) -> None:
    conn.execute("INSERT INTO subscriptions (owner, name, filter, floor) VALUES ('a', ?, '{}', ?)", (name, floor))
    conn.executemany("INSERT INTO acks (owner, name, seq) VALUES ('a', ?, ?)", [(name, seq) for seq in acks])


def left(conn: sqlite3.Connection) -> list[int]:
    return [seq for (seq,) in conn.execute("SELECT seq FROM journal ORDER BY seq")]


def trim(conn: sqlite3.Connection, upto: int = 0) -> pruning.Batch:
    return pruning.trim(conn, before_ms=NOW - KEEP, now_ms=NOW, upto=upto)


@pytest.mark.parametrize(
    "stored, kept",
    [
        ([OLD, OLD, FRESH], [3]),
        ([FRESH, OLD, FRESH], [1, 2, 3]),  # the clock was behind for a while
        ([OLD, FUTURE, OLD, FRESH], [4]),  # it was ahead for a while
        ([FUTURE, OLD, FUTURE, FRESH], [3, 4]),
        ([FUTURE, FUTURE], [1, 2]),  # it was ahead until now: none of these is old
        ([NOW + DAY_MS, OLD], [1, 2]),
        ([], []),
    ],
)
def test_what_is_old_goes_from_the_beginning(conn: sqlite3.Connection, stored: list[int], kept: list[int]) -> None:
    add(conn, *stored)
    freed = trim(conn).freed
    assert left(conn) == kept
    assert [seq for seq, _ in freed] == [seq for seq in range(1, len(stored) + 1) if seq not in kept]
    assert Journal.trimmed(conn) == (freed[-1][0] if freed else 0)
    assert trim(conn).freed == []


def test_what_is_beyond_the_size_goes_however_new(conn: sqlite3.Connection) -> None:
    add(conn, FUTURE, FRESH, FRESH, FRESH, size=12)
    assert trim(conn, upto=3).freed == [(seq, 12 + ROW_BYTES) for seq in (1, 2, 3)]
    assert left(conn) == [4]


def test_a_batch_has_bounds(conn: sqlite3.Connection) -> None:
    add(conn, *[OLD] * (DELETE_ROWS + 1))
    assert len(trim(conn).freed) == DELETE_ROWS
    add(conn, *[OLD] * 3, size=BATCH_BYTES + 1)
    assert [len(trim(conn).freed) for _ in range(4)] == [2, 1, 1, 0]


def test_erasing_is_bounded_and_spares_what_it_must(conn: sqlite3.Connection) -> None:
    add(conn, *[NOW] * 3)
    add(conn, NOW, room=None)
    add(conn, *[NOW] * (ERASE_ROWS + 5), size=20)
    subscribe(conn, "main", 10**9)
    conn.execute("INSERT INTO dead_letters VALUES ('a', 'main', 2, 0, 1, 1, 'x', 0)")
    assert pruning.erase(conn, 0).freed == []
    assert pruning.erase(conn, 4).freed == [(1, 8), (3, 8)]
    assert len(pruning.erase(conn, 10**9).freed) == ERASE_ROWS
    assert len(pruning.erase(conn, 10**9).freed) == 5
    whole = conn.execute("SELECT seq FROM journal WHERE NOT erased").fetchall()
    assert whole == [(2,), (4,)], "a dead letter, and what is not of a room"
    assert conn.execute("SELECT DISTINCT content FROM journal WHERE erased").fetchall() == [(b"{}",)]
    conn.execute("DELETE FROM dead_letters")
    assert pruning.erase(conn, 10**9).freed == [(2, 8)]


def test_no_trace_of_a_body_is_left_in_the_file(tmp_path: Path) -> None:
    """In a file without a cipher, which would hide what is still there."""
    path = tmp_path / "plain.db"
    conn = store(path)
    conn.execute("PRAGMA secure_delete = ON")
    sql = "INSERT INTO journal (id, type, at_ms, room_id, content, stored_ms) VALUES (?, 'x', 0, '!r:x', ?, ?)"
    for number in range(30):
        conn.execute(sql, (str(number), b'{"body":"sesame%b"}' % (b"." * number * 500), OLD if number < 10 else NOW))
    assert path.read_bytes().count(b"sesame") == 30
    assert len(pruning.erase(conn, 20).freed) == 20
    assert path.read_bytes().count(b"sesame") == 10
    add(conn, NOW)
    trim(conn, upto=25)
    assert path.read_bytes().count(b"sesame") == 5
    conn.close()


def test_erasing_looks_up_what_is_due(conn: sqlite3.Connection) -> None:
    plan = conn.execute(f"EXPLAIN QUERY PLAN {pruning._BODIES}", (9,)).fetchall()
    assert any("journal_bodies" in str(row) for row in plan), "else each look would read the whole journal"


def test_what_somebody_was_not_done_with_is_counted(conn: sqlite3.Connection) -> None:
    add(conn, *[OLD] * 6)
    add(conn, FRESH)
    assert trim(conn).unacknowledged == 0, "nobody has subscribed"
    conn.execute("DELETE FROM journal")
    add(conn, *[OLD] * 6)  # 8 to 13
    subscribe(conn, "a", 9, 11, 12)
    subscribe(conn, "b", 10, 12)
    subscribe(conn, "c", 99)
    assert trim(conn).unacknowledged == 3  # 10 and 13 for a, 11 and 13 for b


def test_a_look_notes_the_lowest_floor_once(conn: sqlite3.Connection) -> None:
    def marks() -> list[tuple[int, int]]:
        return conn.execute("SELECT at_ms, floor FROM marks ORDER BY at_ms").fetchall()

    add(conn, *[NOW] * 5)
    pruning.mark(conn, 100)
    assert marks() == [(100, 5)], "without subscribers everything is settled"
    subscribe(conn, "a", 3)
    subscribe(conn, "b", 2)
    pruning.mark(conn, 100)
    assert marks() == [(100, 2)]
    pruning.mark(conn, 110)
    assert marks() == [(100, 2)]
    conn.execute("UPDATE subscriptions SET floor = 4")
    pruning.mark(conn, 120)
    assert marks() == [(100, 2), (120, 4)]
    pruning.mark(conn, 110)
    assert marks() == [(100, 2), (110, 4)], "the clock was set back"


def test_settled_is_what_was_settled_all_the_time(conn: sqlite3.Connection) -> None:
    conn.executemany("INSERT INTO marks VALUES (?, ?)", [(10, 5), (20, 9), (30, 4), (40, 12)])
    assert pruning.settled_since(conn, 9) == 0
    assert pruning.settled_since(conn, 15) == 4, "somebody began further back at 30"
    assert pruning.settled_since(conn, 35) == 4
    assert conn.execute("SELECT at_ms FROM marks").fetchall() == [(30,), (40,)]
    assert pruning.settled_since(conn, 40) == 12


@pytest.mark.parametrize(
    "state, settled, kept",
    [
        ("queued", None, True),
        ("unknown", None, True),
        ("unknown", OLD, True),
        *((state, OLD, False) for state in ("sent", "delivered", "read", "failed", "cancelled")),
        ("read", FRESH, True),
    ],
)
def test_settled_messages_go_and_others_stay(
    conn: sqlite3.Connection, state: str, settled: int | None, kept: bool
) -> None:
    message(conn, state, OLD, settled)
    assert pruning.sweep(conn, NOW - KEEP) == (0 if kept else 1)
    assert conn.execute("SELECT count(*) FROM outbox").fetchone() == (int(kept),)


def test_messages_go_in_batches_and_new_ones_are_not_looked_at(conn: sqlite3.Connection) -> None:
    message(conn, "queued", OLD, None)
    for _ in range(DELETE_ROWS + 1):
        message(conn, "read", OLD, OLD)
    message(conn, "queued", FRESH, None)
    message(conn, "read", OLD, OLD)  # cannot be, with a clock that goes forward
    assert [pruning.sweep(conn, NOW - KEEP) for _ in range(3)] == [DELETE_ROWS, 1, 0]
    assert conn.execute("SELECT count(*) FROM outbox").fetchone() == (3,)


def message(conn: sqlite3.Connection, state: str, created: int, settled: int | None) -> None:
    conn.execute(
        "INSERT INTO outbox"
        " (delivery_id, txn_id, account, agent, room_id, type, content, state, created_ms, settled_ms)"
        " VALUES (hex(randomblob(8)), hex(randomblob(8)), 'main', 'a', '!r:h', 'x', '{}', ?, ?, ?)",
        (state, created, settled),
    )


@pytest.mark.parametrize("kept, trimmed", [([], 0), ([1, 2], 0), ([4, 7], 3)])
def test_a_store_of_an_older_version_knows_what_it_has_deleted(kept: list[int], trimmed: int) -> None:
    conn = sqlite3.connect(":memory:", isolation_level=None)
    older = [migration for migration in MIGRATIONS if "CREATE TABLE trimmed" not in migration.sql]
    (newer,) = [migration for migration in MIGRATIONS if migration not in older]
    for migration in older[: newer.number - 1]:
        conn.executescript(migration.sql)
    sql = "INSERT INTO journal (seq, id, type, at_ms, content, stored_ms) VALUES (?, ?, 'x', 0, '{}', 0)"
    conn.executemany(sql, [(seq, str(seq)) for seq in kept])
    conn.executescript(newer.sql)
    assert Journal.trimmed(conn) == trimmed
    conn.close()


@given(st.lists(st.sampled_from([OLD, FRESH, FUTURE]), max_size=12), st.integers(0, 14))
def test_only_a_beginning_ever_goes(stored: list[int], upto: int) -> None:
    conn = store()
    try:
        add(conn, *stored)
        kept = list(range(1, len(stored) + 1))
        trim(conn, upto)
        remaining = left(conn)
        assert remaining == kept[len(kept) - len(remaining) :]
        assert all(seq > upto for seq in remaining)
        gone = stored[: len(stored) - len(remaining)]
        # what went by its age was old, or stood before something old
        assert FRESH not in gone[upto:]
        assert not gone[upto:] or gone[-1] == OLD
    finally:
        conn.close()
