"""The audit trail: who did what, in the transaction of what was done, each record sealed by the next.

hash = SHA-256(previous hash ‖ body), starting from 32 zero bytes. Changing, removing or moving a record breaks the
chain at that place. It shows tampering with single records; whoever can rewrite the whole table (and holds the key of
the database) can also rewrite the chain, so keep a copy of the last hash elsewhere if that matters.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import attrs

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.store import Connection

_GENESIS = bytes(32)


@attrs.frozen
class AuditRecord:
    """One record: `seq` counts from 1 without gaps, `at_ms` is milliseconds since the epoch."""

    seq: int
    at_ms: int
    kind: str
    fields: dict[str, Any]


class AuditLog:
    """Appends and checks. It holds no database: each call is part of its caller's transaction."""

    def __init__(self, around: Surroundings) -> None:
        self._clock = around.clock

    def append(self, db: Connection, kind: str, /, **fields: Any) -> int:
        """Adds a record of `kind` and returns its seq. `fields` are JSON values and hold no secrets.

        Raises `TypeError` or `ValueError` for what JSON cannot hold; `at_ms` and `kind` are taken.
        """
        body = _canonical({"at_ms": self._clock.now_ms(), "kind": kind}, fields)
        last = db.execute("SELECT hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
        sealed = _seal(last[0] if last else _GENESIS, body)
        seq = db.execute("INSERT INTO audit (hash, body) VALUES (?, ?)", (sealed, body)).lastrowid
        assert seq is not None
        return seq

    def verify(self, db: Connection) -> int:
        """Walks the whole chain and returns how many records it has.

        Raises `storage_corrupt` with `seq`, the first record that does not fit. That the last ones were not cut off
        is told by SQLite's own count of the numbers it gave.
        """
        given = db.execute("SELECT seq FROM sqlite_sequence WHERE name = 'audit'").fetchone()
        sealed, seq = _GENESIS, 0
        for found, digest, body in db.execute("SELECT seq, hash, body FROM audit ORDER BY seq"):
            seq += 1
            if found != seq:
                raise _broken(seq, f"record {seq} is missing")
            sealed = _seal(sealed, body)
            if digest != sealed:
                raise _broken(seq, f"record {seq} or its hash was changed, or one before it removed")
        if given is not None and given[0] != seq:
            raise _broken(seq + 1, f"records {seq + 1} to {given[0]} are missing")
        return seq

    def tail(self, db: Connection, n: int) -> list[AuditRecord]:
        """The last `n` records, oldest first."""
        rows = db.execute("SELECT seq, body FROM audit ORDER BY seq DESC LIMIT ?", (n,)).fetchall()
        return [_record(seq, body) for seq, body in reversed(rows)]


def _canonical(head: dict[str, Any], fields: dict[str, Any]) -> bytes:
    if taken := head.keys() & fields.keys():
        raise ValueError(f"audit fields may not be named {', '.join(sorted(taken))}")
    text = json.dumps(head | fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return text.encode("ascii")


def _seal(previous: bytes, body: bytes) -> bytes:
    return hashlib.sha256(previous + body).digest()


def _record(seq: int, body: bytes) -> AuditRecord:
    fields = json.loads(body)
    return AuditRecord(seq, fields.pop("at_ms"), fields.pop("kind"), fields)


def _broken(seq: int, why: str) -> ArmorclawError:
    return ArmorclawError(
        "storage_corrupt",
        f"the audit trail is broken at record {seq}",
        why=why,
        hint="compare it with a backup; whoever changed it had the key of the database",
        seq=seq,
    )
