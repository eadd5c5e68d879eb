"""The sender of one account: a task for each room that has something to say, as long as it has.

Each room waits by itself and holds up no other. Only while the homeserver as a whole is away, and nothing succeeds,
do the rooms' retries share a `Brake`; first attempts never do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery.brake import Brake
from armorclaw.delivery.handover import Handover
from armorclaw.delivery.message import Delivery
from armorclaw.delivery.transport import Delayed, Refused, Transport
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

T = TypeVar("T")

log = get_logger(__name__)

PUTS_AT_ONCE = 16
"""Requests in flight for one account; each room has at most one, which is what keeps its order."""

TOLD_LIMIT = 300.0
"""Seconds: the longest wait we let a server impose."""

BACKOFF_FIRST, BACKOFF_LAST = 0.25, 8.0
"""Seconds: where nobody tells us, the longest that the first wait may be, and that doubling leads to."""

BACKOFF_LEAST = 0.05
"""Seconds: the shortest wait that chance may choose."""

BLIND_MS = 20 * 3600 * 1000
"""Milliseconds after an attempt that may have arrived, for which its transaction id is trusted. Homeservers forget
them after about a day; then, as on another device, the room itself is asked before anything is sent again."""

EXPIRED = "not sent within"
"""How the reason of a message begins that waited too long."""

STORE_FIRST, STORE_LAST = 0.1, 5.0
"""Seconds between attempts while the store does not answer."""

TOLD_LEAST, TOLD_LEAST_LAST = 0.1, 2.0
"""Seconds: the shortest wait, even if a server tells less, and what doubling leads to when it does so each time: it
must not make us spin."""

_BREATH = 500  # messages taken up between two looks at the other tasks


class Book(Protocol):
    """Where the sender finds bodies and writes down what became of messages."""

    async def content(self, delivery: Delivery) -> bytes | None:
        """The body of a message; None if it waits no more. Raises `Refused` for one that can have none."""
        ...

    async def claim(self, delivery: Delivery, device_id: str) -> None:
        """Writes down which device is about to send a message, before its first attempt."""
        ...

    async def begin(self, delivery: Delivery) -> bool:
        """An attempt is about to be made: whether to make it, which is not so once somebody took the message back.

        Waits while nothing new may begin. Whatever it says, `end` follows.
        """
        ...

    def note(self, delivery: Delivery) -> None:
        """How a message stands while it waits, for whoever asks."""
        ...

    def end(self, delivery: Delivery) -> None:
        """What came of the attempt is written down, or the session is over."""
        ...

    async def claimed(self, account: str, event_id: str) -> bool:
        """Whether this event is known to be another message."""
        ...

    async def attempted(self, delivery: Delivery) -> bool:
        """The last attempt must be repeated, unless this says that the message waits no more."""
        ...

    async def settle(self, delivery: Delivery) -> None:
        """The message is sent, or has failed."""
        ...


class _Room:
    """What waits for one room, and what can wake its task."""

    def __init__(self) -> None:
        self.waiting: deque[Delivery] = deque()
        self.content: bytes | None = None  # of the first, when it came while nothing else waited
        self.nudge = trio.Event()
        self.told = False  # whether the wait of this moment is one that the server asked for
        self.found = False  # the last message was in the room, though we did not know: the next may be, too
        self.retries = False  # whether the next attempt is not the first of its message
        self.has_turn = False  # whether that retry may go out though the brake is on


class _BrakedError(Exception):
    """The brake was put on while a retry stood in line for its request."""


class Sender:
    """Sends through one transport for as long as `run` runs."""

    def __init__(self, transport: Transport, book: Book, around: Surroundings, expire_ms: float) -> None:
        self.device_id = transport.device_id
        self.handover = Handover()
        self._transport = transport
        self._book = book
        self._around = around
        self._expire_ms = expire_ms
        self._rooms: dict[str, _Room] = {}
        self._puts = trio.CapacityLimiter(PUTS_AT_ONCE)
        self._brake = Brake()
        self._taken = 0  # everything up to this place in the order is in a room here, or settled

    async def run(
        self,
        queued: Callable[[], Iterable[Delivery]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Sends what is `queued` at this moment, in that order, and what is handed over from then on, until
        cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._brake.run)
            task_status.started()
            await self._take_all(queued(), nursery)
            while True:
                batch, more = await self.handover.take()
                behind = queued() if more else ()
                for delivery, content in batch:
                    self._take(delivery, content, nursery)
                await self._take_all(behind, nursery)

    def hurry(self) -> None:
        """Ends the waits whose length was our own guess."""
        self._brake.lift()
        for room in self._rooms.values():
            if not room.told:
                room.nudge.set()

    def drop(self, delivery: Delivery) -> None:
        """A message needs no more attempts: ends the wait for the next one."""
        room = self._rooms.get(delivery.room_id)
        if room is not None and room.waiting and room.waiting[0].delivery_id == delivery.delivery_id:
            room.nudge.set()

    async def _take_all(self, deliveries: Iterable[Delivery], nursery: trio.Nursery) -> None:
        for number, delivery in enumerate(deliveries):
            self._take(delivery, None, nursery)
            if number % _BREATH == _BREATH - 1:
                await trio.lowlevel.checkpoint()

    def _take(self, delivery: Delivery, content: bytes | None, nursery: trio.Nursery) -> None:
        """Into its room. The body is kept only if it goes out at once."""
        if delivery.seq <= self._taken:
            return
        self._taken = delivery.seq
        room = self._rooms.get(delivery.room_id)
        if room is None:
            room = self._rooms[delivery.room_id] = _Room()
            room.content = content
            nursery.start_soon(self._send_room, delivery.room_id, room)
        room.waiting.append(delivery)

    async def _send_room(self, room_id: str, room: _Room) -> None:
        while room.waiting:
            first = room.waiting[0]
            if room.found and not first.in_doubt and first.device_id is not None:
                room.waiting[0] = attrs.evolve(first, in_doubt=True, tried_ms=first.created_ms)
                self._book.note(room.waiting[0])  # from now on nobody may take it back
            room.found = False
            await self._send(room)
            room.waiting.popleft()
        del self._rooms[room_id]

    async def _send(self, room: _Room) -> None:
        """Attempts until the message is settled. Between attempts its body is left to the store."""
        content, room.content = room.content, None
        failures = 0
        room.retries = room.has_turn = False
        while True:
            if room.retries:
                await self._until_turn(room, failures)
            if content is None:
                try:
                    content = await self._insist(partial(self._book.content, room.waiting[0]))
                except Refused as refusal:
                    failed = attrs.evolve(room.waiting[0], state="failed", reason=refusal.reason)
                    await self._insist(partial(self._book.settle, failed))
                    return
                if content is None:
                    return
            try:
                delay = await self._attempt(room, content)
            except _BrakedError:
                content = None
                continue
            if delay is None:
                return
            content, room.retries = None, True
            await self._wait(room, delay.seconds, failures)
            failures += 1

    async def _attempt(self, room: _Room, content: bytes) -> Delayed | None:
        """One attempt, and what came of it written down; returns why there must be another, if so."""
        before = room.waiting[0]
        if not before.in_doubt and before.device_id != self.device_id:
            await self._insist(partial(self._book.claim, before, self.device_id))
            before = attrs.evolve(before, device_id=self.device_id)
        try:
            outcome = await self._one_request(room, before, content)
            if outcome is None:
                return None
            delivery, delay = outcome
            if delay is None:
                await self._insist(partial(self._book.settle, delivery))
                return None
            room.waiting[0] = delivery
            room.nudge, room.told = trio.Event(), delay.seconds is not None
            try:
                if not await self._book.attempted(delivery):
                    return None
            except ArmorclawError as error:  # the message itself is safe: at worst it is looked for once more
                if not error.kind.retryable:
                    raise
            return delay
        finally:
            self._book.end(before)

    async def _one_request(
        self, room: _Room, before: Delivery, content: bytes
    ) -> tuple[Delivery, Delayed | None] | None:
        """How the message stands after it; None if it waits no more."""
        async with self._puts:
            if not await self._book.begin(before):
                return None
            expired = self._seconds_left(before) <= 0
            if room.retries and self._brake.on and not room.has_turn and not expired:
                room.nudge = trio.Event()
                raise _BrakedError
            if before.in_doubt and (expired or not self._is_known(before)):
                try:
                    event_id = await self._look(before, content)
                except Delayed as delay:
                    self._failed(delay)
                    if not expired:
                        return attrs.evolve(before, reason=delay.reason), delay
                except Refused as refusal:
                    if not expired:
                        reason = f"it may have arrived, and nobody can tell: {refusal.reason}"
                        return attrs.evolve(before, state="failed", reason=reason), None
                else:
                    if event_id is not None:
                        self._brake.lift()
                        room.found = True
                        return attrs.evolve(before, state="sent", event_id=event_id, reason=None), None
                    before = attrs.evolve(
                        before, state="queued", in_doubt=False, tried_ms=None, device_id=self.device_id
                    )
            if expired:
                return attrs.evolve(before, state="failed", reason=self._expiry(before)), None
            attempts = before.attempts + 1
            tried_ms = before.tried_ms if before.in_doubt else self._around.clock.now_ms()
            delivery = attrs.evolve(before, attempts=attempts, in_doubt=True, tried_ms=tried_ms)
            self._book.note(delivery)
            try:
                event_id = await self._transport.put(delivery.room_id, delivery.type, delivery.txn_id, content)
            except Refused as refusal:
                tried_ms = None if refusal.sure or not before.in_doubt else before.tried_ms
                return attrs.evolve(delivery, state="failed", reason=refusal.reason, tried_ms=tried_ms), None
            except Delayed as delay:
                self._failed(delay)
                if delay.sure:  # as if it had not been made
                    return attrs.evolve(before, attempts=attempts, reason=delay.reason), delay
                return attrs.evolve(delivery, state="unknown", reason=delay.reason), delay
            self._brake.lift()
            return attrs.evolve(delivery, state="sent", event_id=event_id, reason=None), None

    def _failed(self, delay: Delayed) -> None:
        if delay.whole:
            self._brake.put_on()

    def _is_known(self, delivery: Delivery) -> bool:
        """Whether the homeserver still knows the transaction id, so that sending again makes no second event."""
        if delivery.device_id != self.device_id or delivery.tried_ms is None:
            return False
        return self._around.clock.now_ms() - delivery.tried_ms <= BLIND_MS

    async def _look(self, delivery: Delivery, content: bytes) -> str | None:
        """The id of the event that an earlier attempt made, if it did."""
        since = delivery.created_ms if delivery.tried_ms is None else delivery.tried_ms
        claimed = partial(self._book.claimed, delivery.account)
        return await self._transport.find_echo(delivery.room_id, delivery.type, content, since, claimed)

    async def _wait(self, room: _Room, told: float | None, failures: int) -> None:
        """Until it is time for the next attempt, or for giving up."""
        if told is None:
            longest = min(BACKOFF_FIRST * 2 ** min(failures, 16), BACKOFF_LAST)
            seconds = max(longest * self._around.random.random(), BACKOFF_LEAST)
        else:
            least = min(TOLD_LEAST * 2 ** min(failures, 16), TOLD_LEAST_LAST)
            seconds = min(max(told, least), TOLD_LIMIT)
        delivery = room.waiting[0]
        log.info("message waits", delivery_id=delivery.delivery_id, seconds=round(seconds, 3), why=delivery.reason)
        with trio.move_on_after(max(min(seconds, self._seconds_left(delivery)), 0.0)):
            await room.nudge.wait()

    async def _until_turn(self, room: _Room, failures: int) -> None:
        """While the brake is on, until it is the turn of this room's retry."""
        room.has_turn = False
        if not self._brake.on or room.nudge.is_set():
            return
        turn = self._brake.ask(failures, room.nudge)
        try:
            with trio.move_on_after(max(self._seconds_left(room.waiting[0]), 0.0)):
                await room.nudge.wait()
        finally:
            turn.wanted = False
        room.has_turn = turn.given

    def _seconds_left(self, delivery: Delivery) -> float:
        """Until we give up. By the wall clock: only that goes on while the bridge is down."""
        return (delivery.created_ms + self._expire_ms - self._around.clock.now_ms()) / 1000

    def _expiry(self, delivery: Delivery) -> str:
        reason = f"{EXPIRED} {self._expire_ms / 3_600_000:g} hours"
        return f"{reason}: {delivery.reason}" if delivery.reason else reason

    async def _insist(self, do: Callable[[], Awaitable[T]]) -> T:
        """Does something with the store, as often as needed: what became of a message must not be lost to a restart
        of the store, nor may a full disk end the session."""
        seconds = STORE_FIRST
        while True:
            try:
                return await do()
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("messages wait for the store", why=str(error))
            await trio.sleep(seconds)
            seconds = min(2 * seconds, STORE_LAST)
