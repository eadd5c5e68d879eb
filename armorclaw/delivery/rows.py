"""The outbox's rows: every statement on them, within transactions of the caller. Memory is no business of this."""

from __future__ import annotations

import attrs

from armorclaw.delivery.message import Delivery, Outgoing, State
from armorclaw.store import Connection

PAGE = 1_000
"""Rows of what waits that are read at a time, so that a long queue holds up neither the store nor the event loop."""

# ruff: noqa: S608 - the statements below are put together from constants
_COLUMNS = (
    "delivery_id, txn_id, account, agent, room_id, type, state, created_ms, event_id, reason, attempts,"
    " settled_ms, seq, idempotency_key, tried_ms, device_id, refers"
)
_IS_WAITING = "state IN ('queued', 'unknown')"
_INSERT = (
    "INSERT INTO outbox (delivery_id, txn_id, account, agent, idempotency_key, room_id, type, content, state,"
    " created_ms, device_id, refers) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?, ?, ?)"
)
_BY_ID = f"SELECT {_COLUMNS} FROM outbox WHERE delivery_id = ?"
_BY_KEY = f"SELECT {_COLUMNS} FROM outbox WHERE agent = ? AND idempotency_key = ?"
_BY_TXN = f"SELECT {_COLUMNS} FROM outbox WHERE txn_id = ?"
_BY_EVENT = f"SELECT {_COLUMNS} FROM outbox WHERE account = ? AND event_id = ?"
_WAITING = f"SELECT {_COLUMNS} FROM outbox WHERE {_IS_WAITING} AND account = ? AND seq > ? ORDER BY seq LIMIT {PAGE}"
_CONTENT = f"SELECT content FROM outbox WHERE seq = ? AND {_IS_WAITING}"
_ATTEMPTED = (
    "UPDATE outbox SET state = ?, attempts = ?, reason = ?, tried_ms = ?, device_id = ?"
    f" WHERE seq = ? AND {_IS_WAITING}"
)
_CLAIM = f"UPDATE outbox SET device_id = ? WHERE seq = ? AND {_IS_WAITING}"
_REQUEUE = (
    "UPDATE outbox SET state = ?, content = ?, reason = NULL, attempts = 0, settled_ms = NULL, created_ms = ?,"
    " tried_ms = ?, device_id = ?, seq = ? WHERE seq = ?"
)
_SETTLE = (
    "UPDATE outbox SET state = ?1, event_id = ?2, reason = ?3, attempts = ?4, settled_ms = ?5, tried_ms = ?6,"
    f" content = iif(?1 = 'failed', content, x'') WHERE seq = ?7 AND {_IS_WAITING}"
)
_CAME_BACK = (
    "UPDATE outbox SET state = 'delivered', event_id = ?, reason = NULL, attempts = max(attempts, 1),"
    " settled_ms = coalesce(settled_ms, ?), content = x'' WHERE seq = ?"
)
_UNREAD = (
    f"SELECT {_COLUMNS} FROM outbox WHERE account = ? AND room_id = ? AND state = 'delivered' AND place <= ?"
    " ORDER BY place"
)
_LATEST = (
    f"SELECT {_COLUMNS} FROM outbox WHERE (?1 IS NULL OR agent = ?1) AND (?2 IS NULL OR state = ?2)"
    " AND (?3 IS NULL OR room_id = ?3) ORDER BY seq DESC LIMIT ?4"
)


def insert(conn: Connection, delivery: Delivery, content: bytes) -> Delivery:
    """A new row; returns the delivery with its place in the order."""
    d = delivery
    row = (d.delivery_id, d.txn_id, d.account, d.agent, d.idempotency_key, d.room_id, d.type, content)
    seq = conn.execute(_INSERT, (*row, d.created_ms, d.device_id, d.refers)).lastrowid
    assert seq is not None
    return attrs.evolve(delivery, seq=seq)


def by_id(conn: Connection, delivery_id: str) -> Delivery | None:
    return _one(conn, _BY_ID, (delivery_id,))


def by_key(conn: Connection, agent: str, key: str) -> Delivery | None:
    return _one(conn, _BY_KEY, (agent, key))


def by_txn(conn: Connection, txn_id: str) -> Delivery | None:
    return _one(conn, _BY_TXN, (txn_id,))


def by_event(conn: Connection, account: str, event_id: str) -> Delivery | None:
    return _one(conn, _BY_EVENT, (account, event_id))


def earlier(conn: Connection, out: Outgoing) -> Delivery | None:
    """The delivery of the same agent and key, if there is one."""
    return None if out.idempotency_key is None else by_key(conn, out.agent, out.idempotency_key)


def waiting(conn: Connection, account: str, after: int) -> list[Delivery]:
    """What waits of an account behind `after`, in order, at most `PAGE`."""
    return [Delivery(*row) for row in conn.execute(_WAITING, (account, after))]


def latest(
    conn: Connection, limit: int, agent: str | None, state: State | None, room_id: str | None
) -> list[Delivery]:
    return [Delivery(*row) for row in conn.execute(_LATEST, (agent, state, room_id, limit))]


def content(conn: Connection, seq: int) -> bytes | None:
    """The body of a message that waits; None if it does so no more."""
    row = conn.execute(_CONTENT, (seq,)).fetchone()
    return None if row is None else row[0]


def body(conn: Connection, seq: int) -> bytes:
    """The body of a message in whatever state; empty once it was sent."""
    (found,) = conn.execute("SELECT content FROM outbox WHERE seq = ?", (seq,)).fetchone()
    return bytes(found)


def attempted(conn: Connection, delivery: Delivery) -> bool:
    """Keeps what is known after an attempt that must be repeated; whether the message has become `unknown` by it."""
    d = delivery
    before = conn.execute("SELECT state FROM outbox WHERE seq = ?", (d.seq,)).fetchone()
    conn.execute(_ATTEMPTED, (d.state, d.attempts, d.reason, d.tried_ms, d.device_id, d.seq))
    return before == ("queued",) and d.state == "unknown"


def claim(conn: Connection, device_id: str, seqs: list[int]) -> None:
    """Writes down which device is about to send these."""
    conn.executemany(_CLAIM, [(device_id, seq) for seq in seqs])


def requeue(conn: Connection, again: Delivery, content: bytes) -> Delivery:
    """At the end of its room's queue, and so with a new place in the order, which no row has ever had."""
    (last,) = conn.execute("SELECT seq FROM sqlite_sequence WHERE name = 'outbox'").fetchone()
    row = (again.state, content, again.created_ms, again.tried_ms, again.device_id, last + 1, again.seq)
    conn.execute(_REQUEUE, row)
    conn.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = 'outbox'", (last + 1,))
    return attrs.evolve(again, seq=last + 1)


def settle(conn: Connection, delivery: Delivery) -> bool:
    """Keeps the end of a message that waits, and its body only if it failed; whether it did wait."""
    d = delivery
    row = (d.state, d.event_id, d.reason, d.attempts, d.settled_ms, d.tried_ms, d.seq)
    return conn.execute(_SETTLE, row).rowcount == 1


def came_back(conn: Connection, delivery: Delivery, event_id: str, now_ms: int) -> Delivery:
    """The message was seen in the room, whatever was thought of it before."""
    conn.execute(_CAME_BACK, (event_id, now_ms, delivery.seq))
    return attrs.evolve(delivery, state="delivered", event_id=event_id, reason=None)


def put_in_place(conn: Connection, account: str, event_id: str, place: int) -> None:
    """Where in the timeline a message of ours stands, in numbers of the journal."""
    sql = "UPDATE outbox SET place = ? WHERE account = ? AND event_id = ? AND place IS NULL"
    conn.execute(sql, (place, account, event_id))


def place_of(conn: Connection, account: str, event_id: str) -> int | None:
    """Where an event stands in the timeline, ours or another's; None if that is not known (yet)."""
    sql = (
        "SELECT place FROM outbox WHERE account = ?1 AND event_id = ?2"
        " UNION ALL SELECT seq FROM journal WHERE account = ?1 AND event_id = ?2"
    )
    row = conn.execute(sql, (account, event_id)).fetchone()
    return None if row is None else row[0]


def read_up_to(conn: Connection, account: str, room_id: str, place: int) -> list[Delivery]:
    """Marks what was delivered up to a place as read; returns that, in order."""
    found = [Delivery(*row) for row in conn.execute(_UNREAD, (account, room_id, place))]
    conn.executemany("UPDATE outbox SET state = 'read' WHERE seq = ?", [(each.seq,) for each in found])
    return [attrs.evolve(each, state="read") for each in found]


def _one(conn: Connection, sql: str, row: tuple[object, ...]) -> Delivery | None:
    found = conn.execute(sql, row).fetchone()
    return None if found is None else Delivery(*found)
