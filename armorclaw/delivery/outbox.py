"""The outbox: what it accepted is on disk with its transaction id, and is sent once, as others see it."""

from __future__ import annotations

import secrets
from collections import Counter

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery.message import Delivery, Outgoing, State
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
    "UPDATE outbox SET state = 'queued', content = ?, reason = NULL, attempts = 0, settled_ms = NULL, created_ms = ?,"
    " seq = ? WHERE seq = ?"
)
_SETTLE = (
    "UPDATE outbox SET state = ?1, event_id = ?2, reason = ?3, attempts = ?4, settled_ms = ?5,"
    " content = iif(?1 = 'failed', content, x'') WHERE seq = ?6 AND state = 'queued'"
)
_LATEST = (
    f"SELECT {_COLUMNS} FROM outbox WHERE (?1 IS NULL OR agent = ?1) AND (?2 IS NULL OR state = ?2)"
    " AND (?3 IS NULL OR room_id = ?3) ORDER BY seq DESC LIMIT ?4"
)


def no_delivery(delivery_id: str) -> ArmorclawError:
    """That it is not known, or not to be known to who asks."""
    hint = "armorclaw outbox ls, or delivery.list, shows those there are"
    return ArmorclawError("not_found", f"there is no delivery {delivery_id[:80]!r}", hint=hint)


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
        self._cancelling: dict[str, trio.Event] = {}
        self._senders: dict[str, Sender] = {}

    async def enqueue(self, out: Outgoing) -> Delivery:
        """Accepts a message: when this returns, it and its transaction id survive a power cut.

        With an idempotency key that the agent has used before, returns that delivery as it is now; one that the
        homeserver refused is tried again, for whoever asks again has reason to hope. Raises
        `queue_full` and what the store raises; cancelled, the message may or may not be accepted, which the same key
        tells.
        """
        await self._load()
        if self._full(out.account, out.agent):
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
            raise no_delivery(delivery_id)
        return Delivery(*row)

    async def latest(
        self, limit: int, *, agent: str | None = None, state: State | None = None, room_id: str | None = None
    ) -> list[Delivery]:
        """The last messages that were accepted, the newest first; `agent` "" is the operator, None is all."""
        row = (agent, state, room_id, limit)
        return await self._db.read(lambda conn: [Delivery(*found) for found in conn.execute(_LATEST, row)])

    async def retry(self, delivery_id: str, *, by: str) -> Delivery:
        """Queue a failed message once more, under its transaction id; one that waits is tried at once.

        Raises not_found, queue_full, and conflict for one that was sent, taken back, or may have been seen.
        """
        earlier = await self.status(delivery_id)
        if earlier.state == "queued":
            self.hurry(earlier.account)
            return earlier
        if self._full(earlier.account, earlier.agent):
            raise self._queue_full(earlier.account, earlier.agent, earlier.room_id)

        def work(conn: Connection) -> tuple[Delivery, bytes]:
            known = Delivery(*conn.execute(_BY_ID, (delivery_id,)).fetchone())
            (content,) = conn.execute("SELECT content FROM outbox WHERE seq = ?", (known.seq,)).fetchone()
            if known.state != "failed":
                raise _conflict(known, f"it is {known.state}")
            if not _may_try_again(known) or not content:
                raise _conflict(known, known.reason or "", "look into the room, and send it anew if it is not there")
            self._audit.append(conn, "message.retried", delivery_id=delivery_id, by=by)
            return self._requeue(conn, known, content), content

        def then(queued: tuple[Delivery, bytes]) -> None:
            self._accepted(*queued)

        again, _ = await self._db.write(work, durable=True, then=then)
        return again

    async def cancel(self, delivery_id: str, *, by: str) -> Delivery:
        """Take back a message that was certainly not sent; it never will be.

        Raises not_found, and conflict for one that is sent or failed, or in doubt.
        """
        settled = await self.status(delivery_id)
        delivery = self._queued.get(delivery_id)
        if delivery is None:
            raise _conflict(settled, f"it is {settled.state}")
        if delivery.in_doubt or delivery_id in self._cancelling:
            raise _conflict(delivery, "an attempt is under way, or may have reached the homeserver")
        d = attrs.evolve(delivery, state="cancelled", reason=None, settled_ms=self._around.clock.now_ms())

        def work(conn: Connection) -> None:
            conn.execute(_SETTLE, (d.state, None, None, d.attempts, d.settled_ms, d.seq))
            self._audit.append(conn, "message.cancelled", delivery_id=delivery_id, agent=d.agent, by=by)

        self._cancelling[delivery_id] = trio.Event()
        try:
            with trio.CancelScope(shield=True):  # its sender waits for what comes of it; the store always answers
                await self._db.write(work, durable=True, then=lambda _: self._settled(d))
        finally:
            self._cancelling.pop(delivery_id).set()
        return d

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

    async def begin(self, delivery: Delivery) -> bool:
        """Whether to make the attempt: not if it was taken back, which is waited for if it is being tried."""
        while (cancelling := self._cancelling.get(delivery.delivery_id)) is not None:
            await cancelling.wait()
        self._note(delivery)
        return delivery.delivery_id in self._queued

    async def attempted(self, delivery: Delivery) -> None:
        """Keeps the count and the reason of an attempt that must be repeated."""
        row = (delivery.attempts, delivery.reason, delivery.seq)
        await self._db.write(lambda conn: conn.execute(_ATTEMPTED, row), then=lambda _: self._note(delivery))

    async def settle(self, delivery: Delivery) -> None:
        """Keeps the end of a message, and its body only if it failed: then somebody may want it tried again.

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
                rooms: set[tuple[str, str]] = set()
                for row in rows:
                    # of each room the first may have been under way when the bridge before this one ended
                    room = (row.account, row.room_id)
                    delivery = attrs.evolve(row, in_doubt=row.attempts > 0 or room not in rooms)
                    rooms.add(room)
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
        return self._requeue(conn, earlier, out.content) if _may_try_again(earlier) else earlier

    def _requeue(self, conn: Connection, earlier: Delivery, content: bytes) -> Delivery:
        """At the end of its room's queue, and so with a new place in the order."""
        (last,) = conn.execute("SELECT max(seq) FROM outbox").fetchone()
        again = attrs.evolve(
            earlier,
            state="queued",
            reason=None,
            attempts=0,
            settled_ms=None,
            created_ms=self._around.clock.now_ms(),
            seq=last + 1,
        )
        conn.execute(_REQUEUE, (content, again.created_ms, again.seq, earlier.seq))
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

    def _full(self, account: str, agent: str) -> bool:
        """By what is committed: those on their way to the store at this moment, bounded by its queue, come on top."""
        limited = agent != "" and self._per_agent[agent] >= AGENT_LIMIT
        return limited or self._per_account[account] >= ACCOUNT_LIMIT

    async def _earlier(self, out: Outgoing) -> Delivery:
        """With a full queue, a message that was accepted before still has its answer."""
        if out.idempotency_key is not None:
            key = (out.agent, out.idempotency_key)
            row = await self._db.read(lambda conn: conn.execute(_BY_KEY, key).fetchone())
            if row is not None:
                return Delivery(*row)
        raise self._queue_full(out.account, out.agent, out.room_id)

    def _queue_full(self, account: str, agent: str, room_id: str) -> ArmorclawError:
        whose, limit = f"agent {agent!r}", AGENT_LIMIT
        if self._per_account[account] >= ACCOUNT_LIMIT:
            whose, limit = f"account {account!r}", ACCOUNT_LIMIT
        why = f"{limit} messages of {whose} are waiting to be sent"
        return ArmorclawError("queue_full", f"message to {room_id} not accepted", why=why)


def _may_try_again(delivery: Delivery) -> bool:
    """Whether it failed without having been seen: not if attempts went on for a day, when one may have arrived."""
    return delivery.state == "failed" and not (delivery.reason or "").startswith(EXPIRED)


def _conflict(delivery: Delivery, why: str, hint: str = "") -> ArmorclawError:
    return ArmorclawError("conflict", f"delivery {delivery.delivery_id}", why=why, hint=hint, state=delivery.state)
