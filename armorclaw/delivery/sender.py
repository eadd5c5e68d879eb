"""The sender of one account: a task for each room that has something to say, as long as it has."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Protocol, TypeVar

import attrs
import trio

from armorclaw.clock import Surroundings
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
"""Seconds: where nobody tells us, the first wait, and the longest that doubling leads to."""

GIVE_UP_MS = 24 * 3600 * 1000
"""Milliseconds after which a message that could not be sent has failed. Homeservers also forget transaction ids after
about a day, so sending it later could show it twice."""

EXPIRED = "not sent within"
"""How the reason of such a failure begins."""

STORE_FIRST, STORE_LAST = 0.1, 5.0
"""Seconds between attempts while the store does not answer."""

TOLD_LEAST = 0.1
"""Seconds: the shortest wait, even if a server tells less: it must not make us spin."""


class Book(Protocol):
    """Where the sender finds bodies and writes down what became of messages."""

    async def content(self, delivery: Delivery) -> bytes | None:
        """The body of a message; None if it is queued no more."""
        ...

    async def begin(self, delivery: Delivery) -> bool:
        """An attempt is about to be made: whether to make it, which is not so once somebody took the message back."""
        ...

    async def attempted(self, delivery: Delivery) -> None:
        """The last attempt must be repeated."""
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


class Sender:
    """Sends through one transport for as long as `run` runs."""

    def __init__(self, transport: Transport, book: Book, around: Surroundings) -> None:
        self._transport = transport
        self._book = book
        self._around = around
        self._rooms: dict[str, _Room] = {}
        self._puts = trio.CapacityLimiter(PUTS_AT_ONCE)
        self._nursery: trio.Nursery | None = None

    async def run(
        self,
        queued: Callable[[], Iterable[Delivery]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Sends what is `queued` at this moment, in that order, and what is added from then on, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                for delivery in queued():
                    self.add(delivery, None)
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._nursery = None

    def add(self, delivery: Delivery, content: bytes | None) -> None:
        """One more message, just accepted. Its body is kept only if it goes out at once."""
        if self._nursery is None:
            return  # the next sender finds it in the store
        room = self._rooms.get(delivery.room_id)
        if room is None:
            room = self._rooms[delivery.room_id] = _Room()
            room.content = content
            self._nursery.start_soon(self._send_room, delivery.room_id, room)
        room.waiting.append(delivery)

    def hurry(self) -> None:
        """Ends the waits whose length was our own guess."""
        for room in self._rooms.values():
            room.nudge.set()

    async def _send_room(self, room_id: str, room: _Room) -> None:
        while room.waiting:
            await self._send(room, room.waiting[0])
            room.waiting.popleft()
        del self._rooms[room_id]

    async def _send(self, room: _Room, delivery: Delivery) -> None:
        """Attempts until the message is settled. Between attempts its body is left to the store."""
        content, room.content = room.content, None
        failures = 0
        while True:
            if self._seconds_left(delivery) <= 0:
                await self._settle(attrs.evolve(delivery, state="failed", reason=_expired(delivery)))
                return
            if content is None:
                content = await self._insist(partial(self._book.content, delivery))
                if content is None:
                    return
            was_in_doubt = delivery.in_doubt
            delivery = attrs.evolve(delivery, attempts=delivery.attempts + 1, in_doubt=True)
            try:
                async with self._puts:
                    if not await self._book.begin(delivery):
                        return
                    event_id = await self._transport.put(delivery.room_id, delivery.type, delivery.txn_id, content)
            except Refused as refusal:
                await self._settle(attrs.evolve(delivery, state="failed", reason=refusal.reason))
                return
            except Delayed as delay:
                content = None
                delivery = attrs.evolve(delivery, reason=delay.reason, in_doubt=was_in_doubt or not delay.sure)
                await self._wait(room, delivery, delay.seconds, failures)
                failures += 1
            else:
                await self._settle(attrs.evolve(delivery, state="sent", event_id=event_id, reason=None))
                return

    async def _wait(self, room: _Room, delivery: Delivery, told: float | None, failures: int) -> None:
        """Until it is time for the next attempt, or for giving up."""
        room.nudge = trio.Event()
        started = trio.current_time()
        try:
            await self._book.attempted(delivery)
        except ArmorclawError as error:  # a number for people: the message itself is safe
            if not error.kind.retryable:
                raise
        if told is None:
            longest = min(BACKOFF_FIRST * 2 ** min(failures, 16), BACKOFF_LAST)
            seconds = longest * (0.5 + self._around.random.random() / 2)
        else:
            seconds = min(max(told, TOLD_LEAST), TOLD_LIMIT)
        log.info("message waits", delivery_id=delivery.delivery_id, seconds=round(seconds, 3), why=delivery.reason)
        with trio.move_on_at(started + min(seconds, self._seconds_left(delivery))):
            if told is None:
                await room.nudge.wait()
            else:
                await trio.sleep_forever()

    def _seconds_left(self, delivery: Delivery) -> float:
        """Until we give up. By the wall clock: only that goes on while the bridge is down."""
        return (delivery.created_ms + GIVE_UP_MS - self._around.clock.now_ms()) / 1000

    async def _settle(self, delivery: Delivery) -> None:
        await self._insist(partial(self._book.settle, delivery))

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


def _expired(delivery: Delivery) -> str:
    reason = f"{EXPIRED} {GIVE_UP_MS // 3_600_000} hours"
    return f"{reason}: {delivery.reason}" if delivery.reason else reason
