"""Everyone who follows the journal: opened, kept durable by name, and told of each commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakSet, WeakValueDictionary

import trio

from armorclaw.clock import Surroundings
from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.events.durable.cursor import Cursor, Start
from armorclaw.events.durable.reading import Seen
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.keeping.idle import settle_idle
from armorclaw.events.pushing.hub import Hub
from armorclaw.events.pushing.outlet import Sink
from armorclaw.events.pushing.relay import Relay
from armorclaw.events.pushing.standing import of_all
from armorclaw.events.pushing.subscription import RETRY_FIRST, RETRY_LAST, Subscription
from armorclaw.events.pushing.totals import Totals
from armorclaw.events.shapes import SubscriptionStats
from armorclaw.log import get_logger
from armorclaw.store import Database

if TYPE_CHECKING:
    from armorclaw.events.durable.attempts import Attempts
    from armorclaw.events.durable.dead_letters import DeadLetters

log = get_logger(__name__)

MAIN = "main"
"""The name of an agent's own subscription: pushed to its session, or polled by `matrix.receive`."""

TAKE_LIMIT = 100
"""Events in one polled batch."""

Allowed = Callable[[Event], bool]


def is_agent(owner: str) -> bool:
    """Whether a name stands for an agent: not for an operator (""), nor for a part of the bridge ("@alerts")."""
    return owner[:1] not in ("", "@")


class Subscriptions:
    """All who follow the journal.

    `owner` is an agent's name, "" for operators, or "@" and a name for a part of the bridge; names of different
    owners never meet. Events come to those who follow through the relay of their nursery.
    """

    def __init__(
        self,
        db: Database,
        journal: Journal,
        around: Surroundings,
        section: EventsSection | None = None,
        dead: DeadLetters | None = None,
    ) -> None:
        self.dead = dead
        """Events that were given up, if those are kept."""
        self._db = db
        self._journal = journal
        self._around = around
        self._section = section or EventsSection()
        self.totals = Totals()
        """What happened to all of them since the start, for metrics."""
        self._hub = Hub()
        self._made: WeakSet[Subscription] = WeakSet()  # also those that have not begun
        self._holding = False
        self._released = trio.lowlevel.ParkingLot()  # those that wait for the end of that
        self._owed = trio.lowlevel.ParkingLot()  # those that wait for work
        self._owings = 0  # counts dead letters that were wanted again
        self._cursors: WeakValueDictionary[tuple[str, str], Cursor] = WeakValueDictionary()
        self._kept: set[Cursor] = set()  # those the store has: names that it refuses take no memory
        self._opened = 0
        self.on_work: Callable[[str], object] = lambda owner: None
        """Called when an agent has answered for an event: it works."""
        self.on_read: Callable[[Seen], object] | None = None
        """Called with a Matrix event when an agent is done with it and with all it had before it in its room. Set it
        before anything is given."""
        self.on_dead: Callable[[str, str, Event, int, int, str], object] = lambda *dead: None
        """Called when an event is given up: owner, name, event, how often it was given, lost, and why."""
        self.policy: Callable[[str], Allowed | None] = lambda owner: None
        """What an owner may hear; None: that cannot be told now, so whatever there is may be for it."""
        journal.subscribe_hub(self._hub.publish)

    @property
    def open_count(self) -> int:
        """Subscriptions being served now."""
        return len(self._hub.followers)

    @property
    def overflows(self) -> int:
        """How often a batch had no room on its way to followers, who then read it from the journal."""
        return self._hub.overflows

    def publish_ephemeral(self, event: Event) -> None:
        """Give an event that is kept nowhere to those without a name who follow now and have room."""
        self._hub.publish((event,))

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
        *,
        commons: trio.Nursery | None = None,
    ) -> Subscription:
        """A subscription that serves `sink` while its `run` does.

        With a name it goes on from the cursor of that name, which is made at `start` if there is none, and takes
        over from the connection that had it. Its id is its name, so an acknowledgement that comes late still finds
        it. `allowed` is the access policy: asked at each push, so it may change its mind, and on the store's reading
        thread, so it must be quick and may only look things up; `filter` only narrows it. `commons` is a nursery in
        which `run` will live, with others that follow: one task there serves all of them.
        """
        cursor = None if name is None else self._cursor(owner, name)
        self._opened += 1
        relay = self._hub.relay() if commons is None else self._hub.relay_of(commons)
        made = Subscription if commons is not None else _Alone
        subscription = made(
            f"#{self._opened}" if name is None else name,
            self._journal,
            sink,
            matching=filter,
            allowed=allowed,
            cursor=cursor,
            start=start,
            followers=relay,
            owner=owner,
            clock=self._around.clock,
            totals=self.totals,
        )
        self._made.add(subscription)
        if self._holding:
            self._hold(subscription)
        return subscription

    async def seq_at(self, time_ms: int) -> int:
        """See `Journal.seq_at`."""
        return await self._journal.seq_at(time_ms)

    def hold_all(self) -> None:
        """Give agents nothing new from now on, and wake none; for what they have, they may answer. Others do not
        notice."""
        self._holding = True
        for subscription in self._made:
            self._hold(subscription)

    def release_all(self) -> None:
        """Take `hold_all` back."""
        self._holding = False
        for subscription in self._made:
            subscription.resume()
        self._released.unpark_all()

    def in_hand(self) -> int:
        """How many events were pushed to agents and are not answered, those put off left aside."""
        return sum(follower.held()[0] for follower in self._hub.followers if is_agent(follower.owner))

    async def settle_idle(self) -> None:
        """Move the floor of every name over events that are not for it, as far as nothing before them is owed.

        So what may be erased does not wait for who has nothing to acknowledge. Raises what the store raises.
        """
        await settle_idle(self._db, self._journal, self._cursor, self.policy)

    async def give_again(self, owner: str, name: str, seq: int) -> None:
        """Owes a dead letter to its subscription once more, and wakes an agent that sleeps.

        Raises `not_found`, and what the store raises; see `DeadLetters.again`.
        """
        if self.dead is None:
            raise ArmorclawError("not_found", f"dead letter {seq} of subscription {name[:80]!r}")
        await self.dead.again(owner, name, seq)

    async def stats(self, owner: str | None = None) -> list[SubscriptionStats]:
        """How each subscription stands, connected or not, of one owner or of all. Raises what the store raises."""
        return await of_all(self._db, self._journal, self._hub.followers, owner)

    async def ack(self, owner: str, name: str, seq: int, *, cumulative: bool = False) -> None:
        """Settles events of a named subscription, whoever is connected to it; see `Cursor.ack`.

        Raises `not_found` if nobody has used that name since the start.
        """
        cursor = self._cursors.get((owner, name))
        if cursor not in self._kept:
            raise ArmorclawError("not_found", f"subscription {name[:80]!r}", hint="subscribe first")
        await cursor.ack(seq, cumulative=cumulative)

    async def take(
        self, owner: str, limit: int, *, name: str = MAIN, allowed: Allowed, wait: float = 0.0
    ) -> list[Event]:
        """The next events of one of the owner's names, for those who poll; waits up to `wait` seconds for the first.

        Each call acknowledges the batch before it; a batch that was not followed by another call is given again
        after a restart, or after `forget_batch`. Raises `conflict` while the events are being pushed to a
        connection, that or `not_found` when the name is forgotten meanwhile, and what the store raises.
        """
        cursor = self._cursor(owner, name)
        async with cursor.turn:
            await cursor.load(None, "now")
            attempts = cursor.attempts  # the name has others once it is forgotten
            if cursor.given is not None:
                await cursor.advance(cursor.given)
                cursor.given = None
                self.on_work(owner)
            if self._holds(owner):
                await trio.sleep(wait)
                return []
            limit = min(max(limit, 1), TAKE_LIMIT)
            batch, end = await self._batch(cursor, attempts, limit, allowed)
            with trio.move_on_after(wait):
                while not batch:
                    await self._journal.beyond(end)
                    if self._holds(owner):
                        await trio.sleep_forever()  # as long as it would wait
                    batch, end = await self._batch(cursor, attempts, limit, allowed)
            _refuse_poll(cursor, attempts)  # what was looked at is not to be settled for anybody else
            if cursor.on_settled is not None:
                for event in batch:
                    cursor.reading.give(event)
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
        call none can be missed. A store that does not answer is waited for, and so is the end of `hold_all`.
        """
        cursor = self._cursor(owner, MAIN)
        position, delay = 0, RETRY_FIRST
        while True:
            while self._holds(owner):
                await self._released.park()
            owings = self._owings
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
            if found and not self._holds(owner):
                return
            delay = RETRY_FIRST
            if not found:
                await self._news(position, owings)

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

    def forget_batch(self, owner: str, name: str = MAIN) -> None:
        """The batch given out last was lost on its way: the next `take` gives it again."""
        cursor = self._cursors.get((owner, name))
        if cursor is not None:
            cursor.given = None

    def cursor(self, owner: str, name: str) -> Cursor:
        """What is kept for a name, for those who read by it. Raises `invalid_params` for an odd name."""
        return self._cursor(owner, name)

    def _hold(self, subscription: Subscription) -> None:
        if is_agent(subscription.owner):
            subscription.pause()
        else:
            subscription.excuse()  # its connection is going to end, and nobody is to blame

    def _holds(self, owner: str) -> bool:
        return self._holding and is_agent(owner)

    def _cursor(self, owner: str, name: str) -> Cursor:
        cursor = self._cursors.get((owner, name))
        if cursor is None:
            cursor = self._cursors[owner, name] = Cursor(
                self._db, owner, name, self._kept, section=self._section, dead=self.dead, on_dead=self._died
            )
            cursor.on_owed = self._wake
            if self.on_read is not None and name == MAIN and is_agent(owner):
                cursor.on_settled = self._settled
        return cursor

    def _wake(self) -> None:
        self._owings += 1
        self._owed.unpark_all()

    def _settled(self, owner: str, seen: Seen) -> None:
        if self.on_read is not None:
            self.on_read(seen)

    def _died(self, owner: str, name: str, event: Event, given: int, lost: int, reason: str) -> None:
        self.on_dead(owner, name, event, given, lost, reason)

    async def _batch(
        self, cursor: Cursor, attempts: Attempts, limit: int, allowed: Allowed
    ) -> tuple[list[Event], int]:
        """What comes next, and up to where it was looked for."""
        position = cursor.floor
        batch: list[Event] = []
        while True:
            page = await self._journal.after(position, limit, cursor.filter, allowed)
            _refuse_poll(cursor, attempts)
            if page.trimmed > position:
                log.warning("events were deleted before they were polled", agent=cursor.owner, to=page.trimmed)
                self.totals.gaps += 1
            for event in page.events:
                if not cursor.done(event.seq) and allowed(event):
                    batch.append(event)
                if len(batch) == limit:
                    return batch, event.seq
            position = page.position
            if page.complete:
                return batch, position

    async def _news(self, position: int, owings: int) -> None:
        """Until there is an event behind `position`, or one is owed again since `owings` was counted."""
        if self._owings != owings:
            return  # while it was looked for others
        async with trio.open_nursery() as nursery:

            async def committed() -> None:
                await self._journal.beyond(position)
                nursery.cancel_scope.cancel(reason="there is a new event")

            nursery.start_soon(committed)
            await self._owed.park()
            nursery.cancel_scope.cancel(reason="an event is owed again")

    async def _waiting(self, cursor: Cursor, position: int, allowed: Allowed) -> tuple[bool, int]:
        """Whether an event behind `position` is not settled, and, if none is, up to where that was looked for."""
        if cursor.attempts.owed:
            return True, position
        while True:
            page = await self._journal.after(position, TAKE_LIMIT, cursor.filter, allowed)
            if any(not cursor.done(event.seq) for event in page.events):
                return True, position
            position = page.position
            if page.complete:
                return False, position


def _refuse_poll(cursor: Cursor, attempts: Attempts) -> None:
    """Raises `conflict` unless its events are a poller's that has begun with these `attempts`."""
    why = hint = ""
    if cursor.attempts is not attempts:
        why = "its name was forgotten"
    elif cursor.holder is not None:
        why, hint = "its events are being pushed to a connection", "use one of the two"
    if why:
        what = f"subscription {cursor.name!r} of {cursor.owner or 'the operator'} cannot be polled"
        raise ArmorclawError("conflict", what, why=why, hint=hint)


class _Alone(Subscription):
    """One that has no nursery in common with others: it brings a relay of its own."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        assert isinstance(self._followers, Relay)
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._followers.run, name="relay of events")
                await super().run(task_status=task_status)
                nursery.cancel_scope.cancel(reason="the subscription has ended")
