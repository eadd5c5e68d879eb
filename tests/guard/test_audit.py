from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.clock import Clock, Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog, AuditRecord
from armorclaw.store import Connection, Database
from armorclaw.store.schema import MIGRATIONS

AUDIT = AuditLog(Surroundings(clock=Clock(wall=lambda: 1_770_000_000.5)))


def trail(records: int) -> sqlite3.Connection:
    """A plain SQLite database with an audit trail: the chain does not care about encryption."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for step in MIGRATIONS:
        db.executescript(step.sql)
    for n in range(records):
        AUDIT.append(db, "counted", n=n)
    return db


@pytest.fixture
def five() -> Iterator[sqlite3.Connection]:
    with closing(trail(5)) as connection:
        yield connection


def broken_at(db: sqlite3.Connection) -> int:
    with pytest.raises(ArmorclawError) as caught:
        AUDIT.verify(db)
    assert caught.value.name == "storage_corrupt"
    seq = caught.value.data["seq"]
    assert f"record {seq}" in caught.value.what
    assert isinstance(seq, int)
    return seq


def test_an_empty_trail_holds() -> None:
    with closing(trail(0)) as db:
        assert AUDIT.verify(db) == 0
        assert AUDIT.tail(db, 10) == []


def test_records_are_canonical_and_chained(five: sqlite3.Connection) -> None:
    assert AUDIT.append(five, "greeted", who="Zoë", answer=None, numbers=[1, 2]) == 6
    (first, body) = five.execute("SELECT hash, body FROM audit WHERE seq IN (1, 6) ORDER BY seq").fetchall()
    assert first[0] == hashlib.sha256(bytes(32) + first[1]).digest()
    assert body[1] == (b'{"answer":null,"at_ms":1770000000500,"kind":"greeted","numbers":[1,2],"who":"Zo\\u00eb"}')
    assert AUDIT.verify(five) == 6


def test_the_tail_is_oldest_first(five: sqlite3.Connection) -> None:
    assert AUDIT.tail(five, 2) == [
        AuditRecord(4, 1_770_000_000_500, "counted", {"n": 3}),
        AuditRecord(5, 1_770_000_000_500, "counted", {"n": 4}),
    ]
    assert len(AUDIT.tail(five, 99)) == 5


@given(
    seq=st.integers(1, 4), column=st.sampled_from(["hash", "body"]), place=st.integers(0, 31), bit=st.integers(0, 7)
)
def test_any_flipped_bit_is_found(seq: int, column: str, place: int, bit: int) -> None:
    with closing(trail(4)) as db:
        (value,) = db.execute(f"SELECT {column} FROM audit WHERE seq = ?", (seq,)).fetchone()
        changed = bytearray(value)
        changed[place] ^= 1 << bit
        db.execute(f"UPDATE audit SET {column} = ? WHERE seq = ?", (bytes(changed), seq))
        assert broken_at(db) == seq


@pytest.mark.parametrize(
    "tamper, seq",
    [
        ("DELETE FROM audit WHERE seq = 1", 1),
        ("DELETE FROM audit WHERE seq = 3", 3),
        ("DELETE FROM audit WHERE seq = 5", 5),
        ("DELETE FROM audit", 1),
        ("DELETE FROM audit WHERE seq = 3; UPDATE audit SET seq = seq - 1 WHERE seq > 3", 3),
        ("UPDATE audit SET seq = -seq; UPDATE audit SET seq = 6 + seq", 1),
        ("UPDATE audit SET body = (SELECT body FROM audit WHERE seq = 2) WHERE seq = 4", 4),
    ],
)
def test_removed_moved_and_repeated_records_are_found(five: sqlite3.Connection, tamper: str, seq: int) -> None:
    five.executescript(tamper)
    assert broken_at(five) == seq


@pytest.mark.parametrize("fields", [{"at_ms": 1}, {"x": float("nan")}])
def test_fields_that_are_refused(five: sqlite3.Connection, fields: dict[str, object]) -> None:
    with pytest.raises(ValueError):
        AUDIT.append(five, "odd", **fields)
    assert AUDIT.verify(five) == 5


@given(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none()))
def test_any_other_fields_come_back_as_they_were(fields: dict[str, Any]) -> None:
    with closing(trail(1)) as db:
        if fields.keys() & {"at_ms", "kind"}:
            return
        AUDIT.append(db, "any", **fields)
        assert AUDIT.tail(db, 1)[0].fields == fields
        assert AUDIT.verify(db) == 2


@pytest.mark.mission("B.audit")
@pytest.mark.mission("S.7")
async def test_in_the_transaction_of_its_cause(db: Database) -> None:
    def cause(fails: bool) -> Callable[[Connection], None]:
        def work(c: Connection) -> None:
            c.execute("INSERT INTO agents (name, number) VALUES (?, ?)", (f"fails {fails}", fails))
            AUDIT.append(c, "agent_declared", name=f"fails {fails}")
            if fails:
                raise KeyError("the cause")

        return work

    await db.write(cause(fails=False))
    with pytest.raises(KeyError):
        await db.write(cause(fails=True))
    await db.write(lambda c: AUDIT.append(c, "next"))
    assert await db.read(AUDIT.verify) == 2
    assert [record.kind for record in await db.read(lambda c: AUDIT.tail(c, 9))] == ["agent_declared", "next"]
    assert await db.read(lambda c: c.execute("SELECT name FROM agents").fetchall()) == [("fails False",)]
