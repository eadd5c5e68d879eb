"""The outbox: what it accepted is on disk with its transaction id, and is sent once, as others see it."""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.config import DeliverySection
from armorclaw.delivery import rows
from armorclaw.delivery.failures import Alarm, FailureAlerts
from armorclaw.delivery.flights import Flights
from armorclaw.delivery.message import Delivery, Outgoing, State
from armorclaw.delivery.news import news_of
from armorclaw.delivery.receipts import TXN_PREFIX, Receipts
from armorclaw.delivery.sender import Sender
from armorclaw.delivery.transport import Refused, Transport
from armorclaw.delivery.waiting import Waiting
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event, ascii_json
from armorclaw.events.journal import Journal
from armorclaw.guard.audit import AuditLog
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

__all__ = ["Delivery", "Outbox", "Outgoing"]

log = get_logger(__name__)


def no_delivery(delivery_id: str) -> ArmorclawError:
    """That it is not known, or not to be known to who asks."""
    hint = "armorclaw outbox ls, or delivery.list, shows those there are"
    return ArmorclawError("not_found", f"there is no delivery {delivery_id[:80]!r}", hint=hint)


class Outbox:
    """Accepts messages at any time; sends those of an account while somebody calls `serve` for it.

    What waits is known here without its content, as of the last commit; the store has the rest. Each change of a
    message's state is an event of type `delivery` in the journal, in the same transaction. `receipts` is for syncs.
    """

    def __init__(
        self,
        db: Database,
        audit: AuditLog,
        journal: Journal,
        around: Surroundings,
        section: DeliverySection | None = None,
        alarm: Alarm | None = None,
    ) -> None:
        self.told: Counter[State] = Counter()
        """How many messages have come to each state since the start."""
        self.receipts = Receipts(around.clock, self._came_back)
        self._db = db
        self._audit = audit
        self._journal = journal
        self._around = around
        self._expire_ms = (section or DeliverySection()).expire_after_h * 3_600_000
        self._failures = FailureAlerts(alarm)
        self._waiting = Waiting()
        self._loaded: set[str] = set()
        self._loading = trio.Lock()
        self._passed: set[str] = set()  # what came back while a queue was being read
        self._cancelling: dict[str, trio.Event] = {}
        self._senders: dict[str, Sender] = {}
        self._flights = Flights()

    async def enqueue(self, out: Outgoing) -> Delivery:
        """Accepts a message: when this returns, it and its transaction id survive a power cut.

        With an idempotency key that the agent has used before, returns that delivery as it is now; one that the
        homeserver refused is tried again, for whoever asks again has reason to hope. Raises
        `queue_full` and what the store raises; cancelled, the message may or may not be accepted, which the same key
        tells.
        """
        (delivery,) = await self.enqueue_all([out])
        return delivery

    async def enqueue_all(self, outs: Sequence[Outgoing]) -> list[Delivery]:
        """Accepts several messages of one account, all or none, in this order and nothing between them. As
        `enqueue`."""
        account, agent = outs[0].account, outs[0].agent
        await self._load(account)
        if self._waiting.is_full(account, agent):
            return [await self._earlier(out) for out in outs]
        now = self._around.clock.now_ms()
        fresh = [(self._fresh(out, now), out) for out in outs]

        def work(conn: Connection) -> list[tuple[Delivery, bool]]:
            return [self._take_in(conn, delivery, out) for delivery, out in fresh]

        def then(result: list[tuple[Delivery, bool]]) -> None:
            for (stored, loaded), out in zip(result, outs, strict=True):
                if loaded and stored.waiting and stored.delivery_id not in self._waiting:
                    self._accepted(stored, out.content)

        while True:
            result = await self._db.write(work, durable=True, grows=True, then=then)
            behind = next((stored.account for stored, loaded in result if not loaded), None)
            if behind is None:
                return [stored for stored, _ in result]
            await self._load(behind)  # the key is one of another account, and what waits there comes first

    async def of_event(self, account: str, event_id: str) -> Delivery | None:
        """The message that became this event; None for an event that is none of ours, or that is long past."""
        return await self._db.read(lambda conn: rows.by_event(conn, account, event_id))

    async def status(self, delivery_id: str) -> Delivery:
        """What became of a message so far. Raises `not_found`."""
        known = self._waiting.get(delivery_id)
        if known is not None:
            return known
        found = await self._db.read(partial(rows.by_id, delivery_id=delivery_id))
        if found is None:
            raise no_delivery(delivery_id)
        if found.waiting and found.account not in self._loaded:  # whether it is in doubt only the whole queue tells
            await self._load(found.account)
            return self._waiting.get(delivery_id) or found
        return found

    async def latest(
        self, limit: int, *, agent: str | None = None, state: State | None = None, room_id: str | None = None
    ) -> list[Delivery]:
        """The last messages that were accepted, the newest first; `agent` "" is the operator, None is all."""
        return await self._db.read(lambda conn: rows.latest(conn, limit, agent, state, room_id))

    async def retry(self, delivery_id: str, *, by: str) -> Delivery:
        """Queue a failed message once more, under its transaction id; one that waits is tried at once.

        One that may have been seen is looked for in its room before it is sent again. Raises not_found, queue_full,
        and conflict for one that was sent or taken back.
        """
        earlier = await self.status(delivery_id)
        if earlier.waiting:
            self.hurry(earlier.account)
            return earlier
        await self._load(earlier.account)  # what waits there comes first
        if self._waiting.is_full(earlier.account, earlier.agent):
            raise self._waiting.refusal(earlier.account, earlier.agent, earlier.room_id)
        now, device_id = self._around.clock.now_ms(), self._device(earlier.account)

        def work(conn: Connection) -> tuple[Delivery, bytes]:
            known = rows.by_id(conn, delivery_id)
            if known is None:  # retention deleted it in this moment
                raise no_delivery(delivery_id)
            content = rows.body(conn, known.seq)
            if known.state != "failed" or not content:
                raise _conflict(known, f"it is {known.state}")
            self._audit.append(conn, "message.retried", delivery_id=delivery_id, by=by)
            return rows.requeue(conn, _anew(known, now, device_id), content), content

        again, _ = await self._db.write(work, durable=True, then=lambda queued: self._accepted(*queued))
        return again

    async def cancel(self, delivery_id: str, *, by: str) -> Delivery:
        """Take back a message that was certainly not sent; it never will be.

        Raises not_found, and conflict for one that is sent or failed, or in doubt.
        """
        settled = await self.status(delivery_id)
        delivery = self._waiting.get(delivery_id)
        if delivery is None:
            raise _conflict(settled, f"it is {settled.state}")
        if delivery.in_doubt or delivery_id in self._flights or delivery_id in self._cancelling:
            raise _conflict(delivery, "an attempt is under way, or may have reached the homeserver")
        now = self._around.clock.now_ms()
        d = attrs.evolve(delivery, state="cancelled", reason=None, settled_ms=now)

        def work(conn: Connection) -> list[Event]:
            if not rows.settle(conn, d):  # its echo was faster: an earlier attempt had arrived after all
                known = rows.by_id(conn, delivery_id) or d
                raise _conflict(known, f"it is {known.state}")
            self._audit.append(conn, "message.cancelled", delivery_id=delivery_id, agent=d.agent, by=by)
            return self._journal.append(conn, [news_of(d, now)])

        self._cancelling[delivery_id] = trio.Event()
        try:
            with trio.CancelScope(shield=True):  # its sender waits for what comes of it; the store always answers
                await self._db.write(work, durable=True, then=lambda events: self._settled(d, events))
        finally:
            self._cancelling.pop(delivery_id).set()
        return d

    async def settled(self, delivery_id: str, timeout: float) -> Delivery:
        """Waits until a message is sent or failed, at most `timeout` seconds; returns what became of it so far.

        While the outbox is held, it does not wait for what is not under way. Raises `not_found`.
        """
        await self.status(delivery_id)  # so that its queue is in memory
        with trio.move_on_after(timeout):
            while delivery_id in self._waiting and (not self._flights.held or delivery_id in self._flights):
                await self._waiting.change(delivery_id)
        return await self.status(delivery_id)

    async def serve(
        self, account: str, transport: Transport, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Sends the account's messages through `transport` until cancelled: oldest first, in order within a room.

        A message that cannot be sent now holds up its own room only. Whatever waits when this ends is sent by
        the next call, under the same transaction ids. Raises what the store raises at the start; later it waits for
        the store to come back.
        """
        await self._load(account)
        if account in self._senders:
            raise ArmorclawError("conflict", f"account {account!r}", why="its messages are being sent already")
        sender = self._senders[account] = Sender(transport, self, self._around, self._expire_ms)
        try:
            await self._claim_all(account, sender.device_id)
            await sender.run(partial(self._waiting.of, account), task_status=task_status)
        finally:
            del self._senders[account]

    def hurry(self, account: str) -> None:
        """The homeserver is back: tries again now what waits for a time that nobody told us."""
        sender = self._senders.get(account)
        if sender is not None:
            sender.hurry()

    # --- for the end of the bridge, and for figures ---

    def hold(self) -> None:
        """No new attempts begin, until `release`; what is accepted waits on disk. Attempts under way go on."""
        if not self._flights.held:
            self._flights.hold()
            self._waiting.wake()

    def release(self) -> None:
        self._flights.release()

    def in_flight(self, account: str | None = None) -> int:
        """How many attempts are under way, or what came of them is being written down; of one account, or of all."""
        return self._flights.count(account)

    async def idle(self) -> None:
        """Returns once nothing is in flight. That stays so if the outbox is held."""
        await self._flights.idle()

    def lengths(self) -> dict[str, int]:
        """How many messages wait, by account."""
        return self._waiting.lengths()

    # --- what the sender needs ---

    async def content(self, delivery: Delivery) -> bytes | None:
        """The body of a message; None if it waits no more, as an echo or an earlier sender settled it after all.

        Raises Refused for one about a message that was not sent.
        """
        found = await self._db.read(partial(rows.content, seq=delivery.seq))
        if found is None:
            self._gone(delivery)
        elif delivery.refers is not None:
            about = await self._db.read(partial(rows.by_id, delivery_id=delivery.refers))
            if about is None or about.event_id is None:
                raise Refused("the message that it is about was not sent")
            found = found.replace(ascii_json(delivery.refers), ascii_json(about.event_id))
        return found

    async def claim(self, delivery: Delivery, device_id: str) -> None:
        """Writes down which device is about to send a message."""
        await self._db.write(partial(rows.claim, device_id=device_id, seqs=[delivery.seq]))

    async def begin(self, delivery: Delivery) -> bool:
        """Whether to make the attempt: not if it was taken back, which is waited for if it is being tried."""
        delivery_id = delivery.delivery_id
        while self._flights.held or delivery_id in self._cancelling:
            await self._flights.released()
            if (cancelling := self._cancelling.get(delivery_id)) is not None:
                await cancelling.wait()
        if not self._waiting.has(delivery):
            return False
        self._flights.begin(delivery_id, delivery.account)
        return True

    def note(self, delivery: Delivery) -> None:
        self._waiting.note(delivery)

    def end(self, delivery: Delivery) -> None:
        self._flights.end(delivery.delivery_id)
        if self._flights.held:
            self._waiting.wake()

    async def claimed(self, account: str, event_id: str) -> bool:
        return await self._db.read(lambda conn: rows.by_event(conn, account, event_id)) is not None

    async def attempted(self, delivery: Delivery) -> bool:
        """Keeps the count and the reason of an attempt that must be repeated, and whether it may have arrived.

        False if it is not to be repeated: the message came back meanwhile.
        """

        def work(conn: Connection) -> list[Event]:
            turned = rows.attempted(conn, delivery)
            return self._journal.append(conn, [news_of(delivery, self._around.clock.now_ms())]) if turned else []

        def then(events: list[Event]) -> None:
            self._tell(events, "unknown")
            self._waiting.note(delivery)

        await self._db.write(work, then=then)
        return self._waiting.has(delivery)

    async def settle(self, delivery: Delivery) -> None:
        """Keeps the end of a message, and its body only if it failed: then somebody may want it tried again.

        Need not survive a power cut: sent again under the same transaction id, it is the same event.
        """
        now = self._around.clock.now_ms()
        d = attrs.evolve(delivery, settled_ms=now)

        def work(conn: Connection) -> tuple[Delivery, list[Event]]:
            came_back = d.state == "sent" and self.receipts.strayed(d.account, d.event_id or "")
            known = attrs.evolve(d, state="delivered") if came_back else d
            if not rows.settle(conn, known):
                return known, []  # its echo was faster
            new = self._journal.append(conn, [news_of(known, now)])
            if came_back and known.event_id is not None:
                rows.put_in_place(conn, known.account, known.event_id, new[0].seq)
            if known.state == "failed":
                ids = {"delivery_id": d.delivery_id, "account": d.account, "agent": d.agent, "room_id": d.room_id}
                self._audit.append(conn, "message.failed", **ids)
            return known, new

        known, new = await self._db.write(work, then=lambda result: self._settled(*result))
        if known.state == "failed" and new:
            await self._failures.tell(known)

    # --- memory follows the commits ---

    async def _load(self, account: str) -> None:
        """What the bridge before this one has left of an account."""
        if account not in self._loaded:
            async with self._loading:
                if account not in self._loaded:
                    await self._read_all(account)
                    self._loaded.add(account)

    async def _read_all(self, account: str) -> None:
        """A page at a time: a queue of many thousands must not hold up the event loop."""
        found: list[Delivery] = []
        rooms: set[str] = set()
        after = 0
        self._passed.clear()
        while page := await self._db.read(partial(rows.waiting, account=account, after=after)):
            found += [_as_found(delivery, rooms) for delivery in page]
            after = page[-1].seq
        for delivery in found:
            if delivery.delivery_id not in self._passed:
                self._waiting.add(delivery)

    async def _claim_all(self, account: str, device_id: str) -> None:
        """What was accepted without a session, and so never tried, is this device's from now on; what another device
        has left behind becomes so one by one, when its turn comes."""
        fresh = [each for each in self._waiting.of(account) if each.device_id is None]
        for start in range(0, len(fresh), rows.PAGE):
            part = fresh[start : start + rows.PAGE]
            await self._db.write(partial(rows.claim, device_id=device_id, seqs=[each.seq for each in part]))
            for each in part:
                self._waiting.note(attrs.evolve(each, device_id=device_id))

    def _device(self, account: str) -> str | None:
        sender = self._senders.get(account)
        return None if sender is None else sender.device_id

    def _fresh(self, out: Outgoing, now: int) -> Delivery:
        stamp = f"{now:011x}"  # ids that come in order touch one page of their index, not one each
        return Delivery(
            delivery_id=f"d_{stamp}{secrets.token_urlsafe(9)}",
            txn_id=f"{TXN_PREFIX}{stamp}{secrets.token_urlsafe(12)}",
            account=out.account,
            agent=out.agent,
            room_id=out.room_id,
            type=out.type,
            state="queued",
            created_ms=now,
            idempotency_key=out.idempotency_key,
            device_id=self._device(out.account),
            refers=out.refers,
        )

    def _take_in(self, conn: Connection, fresh: Delivery, out: Outgoing) -> tuple[Delivery, bool]:
        """The message as it is on disk from now on; and whether the queue that it is in is in memory."""
        earlier = rows.earlier(conn, out)
        if earlier is None:
            return self._insert(conn, fresh, out.content), True
        if earlier.account not in self._loaded:
            return earlier, False
        if earlier.state != "failed" or earlier.may_be_seen:
            return earlier, True
        anew = _anew(earlier, fresh.created_ms, self._device(earlier.account))
        return rows.requeue(conn, anew, out.content), True

    def _insert(self, conn: Connection, delivery: Delivery, content: bytes) -> Delivery:
        stored = rows.insert(conn, delivery, content)
        ids = {"delivery_id": stored.delivery_id, "account": stored.account, "agent": stored.agent}
        self._audit.append(conn, "message.accepted", **ids, room_id=stored.room_id)
        return stored

    def _accepted(self, delivery: Delivery, content: bytes) -> None:
        self._waiting.add(delivery)
        self.told["queued"] += 1
        sender = self._senders.get(delivery.account)
        if sender is not None:
            sender.handover.put(delivery, content if delivery.refers is None else None)

    def _settled(self, delivery: Delivery, events: list[Event]) -> None:
        self._tell(events, delivery.state)
        self._gone(delivery)
        if delivery.state == "failed" and events:
            log.warning("message failed", delivery_id=delivery.delivery_id, why=delivery.reason)

    def _gone(self, delivery: Delivery) -> None:
        """It waits no more; what it was queued anew as since, does."""
        if self._waiting.has(delivery):
            self._waiting.remove(delivery.delivery_id)

    def _came_back(self, delivery_id: str, state: State) -> None:
        """A sync has told of a message: its sender need not try it again."""
        self.told[state] += 1
        if self._loading.locked():
            self._passed.add(delivery_id)
        known = self._waiting.remove(delivery_id)
        if known is not None and (sender := self._senders.get(known.account)) is not None:
            sender.drop(known)

    def _tell(self, events: list[Event], state: State) -> None:
        """Before anything else that follows a commit: nothing may keep from its listeners what is on record."""
        self._journal.publish(events)
        self.told[state] += len(events)

    async def _earlier(self, out: Outgoing) -> Delivery:
        """With a full queue, a message that was accepted before still has its answer."""
        earlier = await self._db.read(partial(rows.earlier, out=out))
        if earlier is None:
            raise self._waiting.refusal(out.account, out.agent, out.room_id)
        return earlier


def _anew(failed: Delivery, now_ms: int, device_id: str | None) -> Delivery:
    """A failed message as it is queued once more; one that may have been seen stays in doubt."""
    in_doubt = failed.may_be_seen
    return attrs.evolve(
        failed,
        state="unknown" if in_doubt else "queued",
        reason=None,
        attempts=0,
        settled_ms=None,
        created_ms=now_ms,
        device_id=failed.device_id if in_doubt else device_id,
        in_doubt=in_doubt,
    )


def _as_found(delivery: Delivery, rooms: set[str]) -> Delivery:
    """What a bridge that ended left behind: of each room the first may have been under way then."""
    first = delivery.room_id not in rooms
    rooms.add(delivery.room_id)
    if delivery.state == "unknown":
        return attrs.evolve(delivery, in_doubt=True)
    if first and delivery.device_id is not None:
        return attrs.evolve(delivery, in_doubt=True, tried_ms=delivery.created_ms)
    return delivery


def _conflict(delivery: Delivery, why: str, hint: str = "") -> ArmorclawError:
    return ArmorclawError("conflict", f"delivery {delivery.delivery_id}", why=why, hint=hint, state=delivery.state)
