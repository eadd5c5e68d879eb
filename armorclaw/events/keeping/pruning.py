"""One batch of forgetting, within a transaction: what may be erased or deleted, and what that was.

A batch is small, as everybody who writes waits for it. Nothing here is asked for by others than `Retention`.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from armorclaw.events.journal import head
from armorclaw.store import Connection

ERASE_ROWS, DELETE_ROWS = 200, 40
"""Rows changed in one transaction: a few milliseconds of the writer. Those that go take a place in each index with
them, most of which are pages of their own to be written."""

SIZE_ROWS = 2000
"""Rows looked at in one read."""

BATCH_BYTES = 256 * 1024
"""Of content in them; one event may have more."""

ROW_BYTES = 400
"""What an event takes in the database beside its content: its envelope, and its place in the indices."""

DAY_MS = 24 * 3600 * 1000

# ruff: noqa: S608 - the statements below are put together from constants
_FLOOR = "SELECT min(floor) FROM subscriptions"
_LAST_MARK = "SELECT floor FROM marks ORDER BY at_ms DESC LIMIT 1"
_FORGET_FUTURE = "DELETE FROM marks WHERE at_ms > ?"  # the clock was set back
_MARK = "INSERT INTO marks (at_ms, floor) VALUES (?, ?) ON CONFLICT DO UPDATE SET floor = excluded.floor"
_SINCE = "SELECT max(at_ms) FROM marks WHERE at_ms <= ?"
_LOWEST_SINCE = "SELECT min(floor) FROM marks WHERE at_ms >= ?"
_FORGET_OLD = "DELETE FROM marks WHERE at_ms < ?"

_BODIES = (
    "SELECT seq, length(content) FROM journal"
    " WHERE erased = 0 AND room_id IS NOT NULL AND seq <= ? AND seq NOT IN (SELECT seq FROM dead_letters)"
    f" ORDER BY seq LIMIT {ERASE_ROWS}"
)
_ERASE = "UPDATE journal SET content = CAST('{}' AS BLOB), erased = 1 WHERE seq = ?"

_OLDEST = f"SELECT seq, length(content), stored_ms FROM journal ORDER BY seq LIMIT {DELETE_ROWS}"
_UNACKNOWLEDGED = (
    "WITH late AS MATERIALIZED (SELECT owner, name, floor FROM subscriptions WHERE floor < ?1)"
    " SELECT count(*) FROM journal WHERE seq <= ?1 AND EXISTS (SELECT 1 FROM late WHERE late.floor < journal.seq"
    " AND NOT EXISTS (SELECT 1 FROM acks WHERE owner = late.owner AND name = late.name AND seq = journal.seq))"
)
_DELETE = "DELETE FROM journal WHERE seq <= ?"
_TRIMMED = "UPDATE trimmed SET seq = max(seq, ?)"

_SIZES = f"SELECT seq, length(content) FROM journal WHERE seq > ? ORDER BY seq LIMIT {SIZE_ROWS}"

_MESSAGES = "SELECT seq, state, created_ms, settled_ms, length(content) FROM outbox ORDER BY seq"
_DELETE_MESSAGE = "DELETE FROM outbox WHERE seq = ?"

_UNSETTLED = ("queued", "unknown")


@attrs.frozen
class Batch:
    """What one transaction did: the numbers of the events, and the bytes that each has given back."""

    freed: list[tuple[int, int]] = attrs.field(factory=list)
    unacknowledged: int = 0
    """Of those deleted, how many a named subscription was not done with."""


def mark(conn: Connection, now_ms: int) -> None:
    """Notes up to where every named subscription is settled now; without any, everything is.

    Only a change is noted, so a bridge where nothing happens writes nothing.
    """
    (floor,) = conn.execute(_FLOOR).fetchone()
    if floor is None:
        floor = head(conn)
    conn.execute(_FORGET_FUTURE, (now_ms,))
    last = conn.execute(_LAST_MARK).fetchone()
    if last is None or last[0] != floor:
        conn.execute(_MARK, (now_ms, floor))


def settled_since(conn: Connection, at_ms: int) -> int:
    """Up to where everything was settled at `at_ms` and has been ever since; 0 if nobody knows.

    A subscription that was begun later, further back, counts too: what it may still read is not erased. Marks that
    are not needed for that any more are deleted.
    """
    (since,) = conn.execute(_SINCE, (at_ms,)).fetchone()
    if since is None:
        return 0
    conn.execute(_FORGET_OLD, (since,))
    return int(conn.execute(_LOWEST_SINCE, (since,)).fetchone()[0])


def erase(conn: Connection, floor: int) -> Batch:
    """Takes the content of messages up to `floor`, the oldest first; dead letters keep theirs.

    What somebody may still read who has begun since `floor` was told keeps it, too.
    """
    (lowest,) = conn.execute(_FLOOR).fetchone()
    floor = floor if lowest is None else min(floor, lowest)
    freed = [(seq, length - 2) for seq, length in _bounded(conn.execute(_BODIES, (floor,)))]
    conn.executemany(_ERASE, [(seq,) for seq, _ in freed])
    return Batch(freed)


def trim(conn: Connection, *, before_ms: int, now_ms: int, upto: int) -> Batch:
    """Deletes the oldest events: those up to `upto`, and those stored before `before_ms` with nothing newer in front.

    Whatever the clock has done, only the beginning of the journal goes. An event from a future that the clock does
    not know of is as old as what is behind it.
    """
    rows, cut, size = [], 0, 0
    for seq, length, stored_ms in conn.execute(_OLDEST).fetchall():
        if seq > upto and before_ms <= stored_ms <= now_ms + DAY_MS:
            break
        if seq <= upto or stored_ms < before_ms:
            cut = seq
        rows.append((seq, length + ROW_BYTES))
        size += length
        if size > BATCH_BYTES:
            break
    if not cut:
        return Batch()
    (unacknowledged,) = conn.execute(_UNACKNOWLEDGED, (cut,)).fetchone()
    conn.execute(_DELETE, (cut,))
    conn.execute(_TRIMMED, (cut,))
    return Batch([(seq, freed) for seq, freed in rows if seq <= cut], unacknowledged)


def sizes(conn: Connection, behind: int) -> list[tuple[int, int]]:
    """The next events behind a number, and the bytes that each takes."""
    return [(seq, length + ROW_BYTES) for seq, length in conn.execute(_SIZES, (behind,))]


def sweep(conn: Connection, before_ms: int) -> int:
    """Deletes messages settled before `before_ms`; how many. Nothing accepted later was settled earlier."""
    due: list[tuple[int, int]] = []
    for seq, state, created_ms, settled_ms, length in conn.execute(_MESSAGES):
        if created_ms >= before_ms or len(due) == DELETE_ROWS:
            break
        if state not in _UNSETTLED and settled_ms is not None and settled_ms < before_ms:
            due.append((seq, length))
    gone = _bounded(due)
    conn.executemany(_DELETE_MESSAGE, [(seq,) for seq, _ in gone])
    return len(gone)


def _bounded(rows: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """As many as a batch may hold, and at least one."""
    taken, size = [], 0
    for seq, length in rows:
        taken.append((seq, length))
        size += length
        if size > BATCH_BYTES:
            break
    return taken
