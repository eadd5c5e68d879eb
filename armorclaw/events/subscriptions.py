"""Everyone who follows the journal: opened, kept durable by name, and told of each commit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError, trace
from armorclaw.events.cursor import Cursor, Start
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.subscription import RETRY_FIRST, RETRY_LAST, Sink, Subscription
from armorclaw.log import get_logger
from armorclaw.store import Database

log = get_logger(__name__)

MAIN = "main"
"""The name of an agent's own subscription: pushed to its session, or polled by `matrix.receive`."""

TAKE_LIMIT = 100
"""Events in one polled batch."""

Allowed = Callable[[Event], bool]


class Subscriptions:
    """The one listener to the journal on behalf of all subscribers.

    `owner` is an agent's name, or "" for operators; names of different owners never meet.
    """

    def __init__(self, db: Database, journal: Journal, around: Surroundings) -> None:
        self._db = db
        self._journal = journal
        self._around = around
        self._cursors: WeakValueDictionary[tuple[str, str], Cursor] = WeakValueDictionary()
        self._kept: set[Cursor] = set()  # those the store has: names that it refuses take no memory
        self._followers: set[Subscription] = set()
        self._opened = 0
        self.on_work: Callable[[str], object] = lambda owner: None
        """Called when an agent has answered for an event: it works."""
        journal.subscribe_hub(self._offer)

    @property
    def open_count(self) -> int:
        """Subscriptions being served now."""
        return len(self._followers)

    async def ensure(self, owner: str, name: str, *, filter: EventFilter | None = None, at: Start = "now") -> None:  # noqa: A002
        """From now on events are kept for (owner, name), whether it is connected or not.

        A cursor that exists stays where it is; `filter` replaces its filter. Raises `invalid_params` for an odd
        name, `conflict` for too many of them, and what the store raises.
        """
        await self._cursor(owner, name).load(filter, at)

    def open(
        self,
        owner: str,
        name: str | None,
        filter: EventFilter | None,  # noqa: A002 - the word of the wire
        start: Start,
        allowed: Allowed,
        sink: Sink,
    ) -> Subscription:
        """A subscription that serves `sink` while its `run` does.

        With a name it goes on from the cursor of that name, which is made at `start` if there is none, and takes
        over from the connection that had it. Its id is its name, so an acknowledgement that comes late still finds
        it. `allowed` is the access policy: asked at each push, so it may change its mind, and on the store's reading
        thread, so it must be quick and may only look things up; `filter` only narrows it.
        """
        cursor = None if name is None else self._cursor(owner, name)
        self._opened += 1
        return Subscription(
            f"#{self._opened}" if name is None else name,
            self._journal,
            sink,
            matching=filter,
            allowed=allowed,
            cursor=cursor,
            start=start,
            followers=self._followers,
        )

    async def ack(self, owner: str, name: str, seq: int, *, cumulative: bool = False) -> None:
        """Settles events of a named subscription, whoever is connected to it; see `Cursor.ack`.

        Raises `not_found` if nobody has used that name since the start.
        """
        cursor = self._cursors.get((owner, name))
        if cursor not in self._kept:
            raise ArmorclawError("not_found", f"subscription {name[:80]!r}", hint="subscribe first")
        await cursor.ack(seq, cumulative=cumulative)

    async def take(self, owner: str, limit: int, *, allowed: Allowed, wait: float = 0.0) -> list[Event]:
        """The next events of the owner's main cursor, for those who poll; waits up to `wait` seconds for the first.

        Each call acknowledges the batch before it; a batch that was not followed by another call is given again
        after a restart, or after `forget_batch`. Raises `conflict` while the events are being pushed to a
        connection, and what the store raises.
        """
        cursor = self._cursor(owner, MAIN)
        await cursor.load(None, "now")
        async with cursor.turn:
            if cursor.given is not None:
                await cursor.advance(cursor.given)
                cursor.given = None
                self.on_work(owner)
            limit = min(max(limit, 1), TAKE_LIMIT)
            batch, end = await self._batch(cursor, limit, allowed)
            with trio.move_on_after(wait):
                while not batch:
                    await self._journal.beyond(end)
                    batch, end = await self._batch(cursor, limit, allowed)
            if end > cursor.floor:
                cursor.given = end
                cursor.taken = (len(batch), trio.current_time() if batch else None)
            return batch

    def unsettled(self, owner: str) -> tuple[int, float | None]:
        """How many events of its main cursor are in the owner's hands, and since when the oldest is (Trio's clock).

        Given to a connection and not answered, those put off left aside; or in the batch that a poller took last.
        """
        cursor = self._cursors.get((owner, MAIN))
        if cursor is None:
            return 0, None
        if cursor.holder is not None:
            return cursor.holder.held()
        return cursor.taken if cursor.given is not None else (0, None)

    async def until_work(self, owner: str, *, allowed: Allowed) -> None:
        """Until there is an event for the owner's main cursor that is `allowed` and not acknowledged.

        One that is there already counts, given out before or not: between the end of its last connection and this
        call none can be missed. A store that does not answer is waited for.
        """
        cursor = self._cursor(owner, MAIN)
        position, delay = 0, RETRY_FIRST
        while True:
            try:
                await cursor.load(None, "now")
                found, position = await self._waiting(cursor, max(position, cursor.floor), allowed)
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("a sleeping agent waits for the store", agent=owner, why=str(error))
                await trio.sleep(delay)
                delay = min(2 * delay, RETRY_LAST)
                continue
            if found:
                return
            delay = RETRY_FIRST
            await self._journal.beyond(position)

    async def has_work(self, owner: str, *, allowed: Allowed) -> bool:
        """Whether `until_work` would return at once. Raises what the store raises."""
        cursor = self._cursor(owner, MAIN)
        await cursor.load(None, "now")
        found, _ = await self._waiting(cursor, cursor.floor, allowed)
        return found

    async def floor(self, owner: str) -> int:
        """Up to where the owner has settled everything of its main cursor, which is made if there is none."""
        cursor = self._cursor(owner, MAIN)
        await cursor.load(None, "now")
        return cursor.floor

    async def forget(self, owner: str, name: str, sink: object) -> None:
        """Deletes what is kept for (owner, name), for `sink`, and closes whoever follows by that name.

        Raises `not_found` if nothing is kept, and what the store raises.
        """
        await self._cursor(owner, name).forget(sink)

    def forget_batch(self, owner: str) -> None:
        """The batch given out last was lost on its way: the next `take` gives it again."""
        cursor = self._cursors.get((owner, MAIN))
        if cursor is not None:
            cursor.given = None

    def _cursor(self, owner: str, name: str) -> Cursor:
        cursor = self._cursors.get((owner, name))
        if cursor is None:
            cursor = self._cursors[owner, name] = Cursor(self._db, owner, name, self._kept)
        return cursor

    async def _batch(self, cursor: Cursor, limit: int, allowed: Allowed) -> tuple[list[Event], int]:
        """What comes next, and up to where it was looked for."""
        position = cursor.floor
        batch: list[Event] = []
        while True:
            page = await self._journal.after(position, limit, cursor.filter, allowed)
            if cursor.holder is not None:
                raise ArmorclawError(
                    "conflict",
                    f"subscription {cursor.name!r} of {cursor.owner or 'the operator'} cannot be polled",
                    why="its events are being pushed to a connection",
                    hint="use one of the two",
                )
            for event in page.events:
                if not cursor.done(event.seq) and allowed(event):
                    batch.append(event)
                if len(batch) == limit:
                    return batch, event.seq
            position = page.position
            if page.complete:
                return batch, position

    async def _waiting(self, cursor: Cursor, position: int, allowed: Allowed) -> tuple[bool, int]:
        """Whether an event behind `position` is not settled, and, if none is, up to where that was looked for."""
        while True:
            page = await self._journal.after(position, TAKE_LIMIT, cursor.filter, allowed)
            if any(not cursor.done(event.seq) for event in page.events):
                return True, position
            position = page.position
            if page.complete:
                return False, position

    def _offer(self, events: Sequence[Event]) -> None:
        """Runs between a commit and whoever waits for it: no task is woken for those who keep up."""
        for follower in tuple(self._followers):
            try:
                follower.offer(events)
            except Exception as error:  # noqa: BLE001 - its sink is broken: the others must not notice
                log.error("cannot push to a subscriber", subscription=follower.id, trace=trace(error))
                follower.close("its sink is broken")
