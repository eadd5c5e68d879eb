"""The rows themselves: what an older version left behind, and that each question has an index."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Any

import pytest

from armorclaw.delivery import rows
from armorclaw.store.schema import MIGRATIONS

World = Any  # the class of conftest.py

OLD = (
    "INSERT INTO outbox (delivery_id, txn_id, account, agent, room_id, type, content, state, reason, created_ms,"
    " attempts) VALUES (?1, ?1, 'main', '', '!a:x', 'm.room.message', x'7b7d', ?2, ?3, 1000, ?4)"
)


def test_what_an_older_version_may_have_sent_is_in_doubt() -> None:
    """It did not write down by which device, nor when; so the last device, and the earliest moment."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS[:3]:
        conn.executescript(migration.sql)
    conn.execute("INSERT INTO accounts VALUES ('main', 'https://x', '@bot:x', 'PHONE', 'token', NULL)")
    conn.execute(OLD, ("fresh", "queued", None, 0))
    conn.execute(OLD, ("tried", "queued", "502", 3))
    conn.execute(OLD, ("expired", "failed", "not sent within 24 hours: 502", 90))
    conn.execute(OLD, ("refused", "failed", "M_FORBIDDEN", 1))
    for migration in MIGRATIONS[3:]:
        conn.executescript(migration.sql)
    found = {name: rows.by_id(conn, name) for name in ("fresh", "tried", "expired", "refused")}
    told = {name: (each.device_id, each.tried_ms) for name, each in found.items() if each is not None}
    assert told == {
        "fresh": ("PHONE", None),
        "tried": ("PHONE", 1000),
        "expired": ("PHONE", 1000),
        "refused": (None, None),
    }
    conn.close()


@pytest.mark.parametrize(
    "ask",
    [
        lambda conn: rows.waiting(conn, "main", 0),
        lambda conn: rows.by_key(conn, "", "k"),
        lambda conn: rows.by_txn(conn, "ac_x"),
        lambda conn: rows.by_event(conn, "main", "$x"),
        lambda conn: rows.place_of(conn, "main", "$x"),
        lambda conn: rows.read_up_to(conn, "main", "!a:x", 1),
        lambda conn: rows.put_in_place(conn, "main", "$x", 1),
    ],
)
def test_no_question_reads_the_whole_table(world: World, ask: Callable[[sqlite3.Connection], object]) -> None:
    asked: list[str] = []
    world.db.conn.set_trace_callback(asked.append)
    ask(world.db.conn)
    world.db.conn.set_trace_callback(None)
    assert asked
    for sql in asked:
        if sql.startswith(("SELECT", "UPDATE")):
            plan = [row[3] for row in world.db.conn.execute(f"EXPLAIN QUERY PLAN {sql}")]
            assert not any(step.startswith("SCAN") for step in plan), plan
