"""The outbox: what it accepted is on disk with its transaction id, and is sent once, as others see it."""

from __future__ import annotations

import secrets
from collections import Counter

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.delivery.sender import EXPIRED, Sender
from armorclaw.delivery.transport import Transport
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

__all__ = ["Delivery", "Outbox", "Outgoing"]

log = get_logger(__name__)

ACCOUNT_LIMIT = 10_000
"""Queued messages of one account: what a homeserver that is away for hours may cost, in rows."""

AGENT_LIMIT = 1_000
"""Queued messages of one agent, so that a babbling one does not use up its account."""

# ruff: noqa: S608 - the statements below are put together from constants
_COLUMNS = (
    "delivery_id, txn_id, account, agent, room_id, type, state, created_ms, event_id, reason, attempts,"
    " settled_ms, seq"
)
_INSERT = (
    "INSERT INTO outbox (delivery_id, txn_id, account, agent, idempotency_key, room_id, type, content, state,"
    " created_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued', ?)"
)
_BY_ID = f"SELECT {_COLUMNS} FROM outbox WHERE delivery_id = ?"
_BY_KEY = f"SELECT {_COLUMNS} FROM outbox WHERE agent = ? AND idempotency_key = ?"
_QUEUED = f"SELECT {_COLUMNS} FROM outbox WHERE state = 'queued' ORDER BY seq"
_CONTENT = "SELECT content FROM outbox WHERE seq = ? AND state = 'queued'"
_ATTEMPTED = "UPDATE outbox SET attempts = ?, reason = ? WHERE seq = ? AND state = 'queued'"
_REQUEUE = (
    "UPDATE outbox SET state = 'queued', content = ?, reason = NULL, attempts = 0, settled_ms = NULL, created_ms = ?"
    " WHERE seq = ?"
)
_SETTLE = (
    "UPDATE outbox SET state = ?, event_id = ?, reason = ?, attempts = ?, settled_ms = ?, content = x''"
    " WHERE seq = ? AND state = 'queued'"
)


class Outbox:
    """Accepts messages at any time; sends those of an account while somebody calls `serve` for it.

    What is queued is known here without its content, as of the last commit; the store has the rest.
    """

    def __init__(self, db: Database, audit: AuditLog, around: Surroundings) -> None:
        self._db = db
        self._audit = audit
        self._around = around
        self._queued: dict[str, Delivery] = {}  # by delivery id, in order of acceptance
        self._per_account: Counter[str] = Counter()
        self._per_agent: Counter[str] = Counter()
        self._loaded = False
        self._loading = trio.Lock()
        self._waiting: dict[str, trio.lowlevel.ParkingLot] = {}
        self._senders: dict[str, Sender] = {}

    async def enqueue(self, out: Outgoing) -> Delivery:
        """Accepts a message: when this returns, it and its transaction id survive a power cut.

        With an idempotency key that the agent has used before, returns that delivery as it is now; one that the
        homeserver refused is tried again, for whoever asks again has reason to hope. Raises
        `queue_full` and what the store raises; cancelled, the message may or may not be accepted, which the same key
        tells.
        """
        await self._load()
        if self._full(out):
            return await self._earlier(out)
        delivery = Delivery(
            delivery_id=f"d_{secrets.token_urlsafe(12)}",
            txn_id=f"ac_{secrets.token_urlsafe(18)}",
            account=out.account,
            agent=out.agent,
            room_id=out.room_id,
            type=out.type,
            state="queued",
            created_ms=self._around.clock.now_ms(),
        )

        def work(conn: Connection) -> Delivery:
            if out.idempotency_key is not None:
                row = conn.execute(_BY_KEY, (out.agent, out.idempotency_key)).fetchone()
                if row is not None:
                    return self._again(conn, Delivery(*row), out)
            return self._insert(conn, delivery, out)

        def then(stored: Delivery) -> None:
            if stored.state == "queued" and stored.delivery_id not in self._queued:
                self._accepted(stored, out.content)

        return await self._db.write(work, durable=True, then=then)

    async def status(self, delivery_id: str) -> Delivery:
        """What became of a message so far. Raises `not_found`."""
        await self._load()
        queued = self._queued.get(delivery_id)
        if queued is not None:
            return queued
        row = await self._db.read(lambda conn: conn.execute(_BY_ID, (delivery_id,)).fetchone())
        if row is None:
            raise ArmorclawError("not_found", f"delivery {delivery_id[:80]!r}")
        return Delivery(*row)

    async def settled(self, delivery_id: str, timeout: float) -> Delivery:
        """Waits until a message is sent or failed, at most `timeout` seconds; returns what became of it so far.

        Raises `not_found`.
        """
        await self._load()
        with trio.move_on_after(timeout):
            while delivery_id in self._queued:
                await self._waiting.setdefault(delivery_id, trio.lowlevel.ParkingLot()).park()
        return await self.status(delivery_id)

    async def serve(
        self, account: str, transport: Transport, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Sends the account's messages through `transport` until cancelled: oldest first, in order within a room.

        A message that cannot be sent now holds up its own room only. Whatever is queued when this ends is sent by
        the next call, under the same transaction ids. Raises what the store raises at the start; later it waits for
        the store to come back.
        """
        await self._load()
        if account in self._senders:
            raise ArmorclawError("conflict", f"account {account!r}", why="its messages are being sent already")
        sender = self._senders[account] = Sender(transport, self, self._around)
        try:
            await sender.run(
                lambda: [one for one in self._queued.values() if one.account == account], task_status=task_status
            )
        finally:
            del self._senders[account]

    def hurry(self, account: str) -> None:
        """The homeserver is back: tries again now what waits for a time that nobody told us."""
        sender = self._senders.get(account)
        if sender is not None:
            sender.hurry()

    # --- what the sender needs ---

    async def content(self, delivery: Delivery) -> bytes | None:
        """The body of a message; None if it is queued no more, since an earlier sender settled it after all."""
        row = await self._db.read(lambda conn: conn.execute(_CONTENT, (delivery.seq,)).fetchone())
        return None if row is None else row[0]

    async def attempted(self, delivery: Delivery) -> None:
        """Keeps the count and the reason of an attempt that must be repeated."""
        row = (delivery.attempts, delivery.reason, delivery.seq)
        await self._db.write(lambda conn: conn.execute(_ATTEMPTED, row), then=lambda _: self._note(delivery))

    async def settle(self, delivery: Delivery) -> None:
        """Keeps the end of a message, sent or failed, without its body.

        Need not survive a power cut: sent again under the same transaction id, it is the same event.
        """
        d = attrs.evolve(delivery, settled_ms=self._around.clock.now_ms())
        row = (d.state, d.event_id, d.reason, d.attempts, d.settled_ms, d.seq)

        def work(conn: Connection) -> None:
            conn.execute(_SETTLE, row)
            if d.state == "failed":
                self._audit.append(
                    conn,
                    "message.failed",
                    delivery_id=d.delivery_id,
                    account=d.account,
                    agent=d.agent,
                    room_id=d.room_id,
                )

        await self._db.write(work, then=lambda _: self._settled(d))

    # --- memory follows the commits ---

    async def _load(self) -> None:
        if self._loaded:
            return
        async with self._loading:
            if not self._loaded:
                rows = await self._db.read(lambda conn: [Delivery(*row) for row in conn.execute(_QUEUED)])
                for delivery in rows:
                    self._count(delivery, 1)
                    self._queued[delivery.delivery_id] = delivery
                self._loaded = True

    def _insert(self, conn: Connection, delivery: Delivery, out: Outgoing) -> Delivery:
        d = delivery
        row = (d.delivery_id, d.txn_id, d.account, d.agent, out.idempotency_key, d.room_id, d.type, out.content)
        seq = conn.execute(_INSERT, (*row, d.created_ms)).lastrowid
        assert seq is not None
        self._audit.append(
            conn, "message.accepted", delivery_id=d.delivery_id, account=d.account, agent=d.agent, room_id=d.room_id
        )
        return attrs.evolve(delivery, seq=seq)

    def _again(self, conn: Connection, earlier: Delivery, out: Outgoing) -> Delivery:
        """Queue what the homeserver refused once more; what may have reached it after all stays as it is."""
        if earlier.state != "failed" or (earlier.reason or "").startswith(EXPIRED):
            return earlier
        again = attrs.evolve(
            earlier, state="queued", reason=None, attempts=0, settled_ms=None, created_ms=self._around.clock.now_ms()
        )
        conn.execute(_REQUEUE, (out.content, again.created_ms, again.seq))
        return again

    def _accepted(self, delivery: Delivery, content: bytes) -> None:
        self._count(delivery, 1)
        self._queued[delivery.delivery_id] = delivery
        sender = self._senders.get(delivery.account)
        if sender is not None:
            sender.add(delivery, content)

    def _note(self, delivery: Delivery) -> None:
        if delivery.delivery_id in self._queued:
            self._queued[delivery.delivery_id] = delivery

    def _settled(self, delivery: Delivery) -> None:
        if self._queued.pop(delivery.delivery_id, None) is not None:
            self._count(delivery, -1)
        lot = self._waiting.pop(delivery.delivery_id, None)
        if lot is not None:
            lot.unpark_all()
        if delivery.state == "failed":
            log.warning("message failed", delivery_id=delivery.delivery_id, why=delivery.reason)

    def _count(self, delivery: Delivery, by: int) -> None:
        self._per_account[delivery.account] += by
        self._per_agent[delivery.agent] += by

    def _full(self, out: Outgoing) -> bool:
        """By what is committed: those on their way to the store at this moment, bounded by its queue, come on top."""
        limited = out.agent != "" and self._per_agent[out.agent] >= AGENT_LIMIT
        return limited or self._per_account[out.account] >= ACCOUNT_LIMIT

    async def _earlier(self, out: Outgoing) -> Delivery:
        """With a full queue, a message that was accepted before still has its answer."""
        if out.idempotency_key is not None:
            key = (out.agent, out.idempotency_key)
            row = await self._db.read(lambda conn: conn.execute(_BY_KEY, key).fetchone())
            if row is not None:
                return Delivery(*row)
        whose, limit = f"agent {out.agent!r}", AGENT_LIMIT
        if self._per_account[out.account] >= ACCOUNT_LIMIT:
            whose, limit = f"account {out.account!r}", ACCOUNT_LIMIT
        why = f"{limit} messages of {whose} are waiting to be sent"
        raise ArmorclawError("queue_full", f"message to {out.room_id} not accepted", why=why)
