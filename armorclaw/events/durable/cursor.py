"""The durable half of a named subscription: what of the journal its owner is done with."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Literal, Protocol

import trio

from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError, trace
from armorclaw.events.durable.attempts import Attempts, Loaded
from armorclaw.events.durable.dead_letters import DeadLetter, DeadLetters, bury, remove
from armorclaw.events.durable.reading import Reading, Seen
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import head
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

_Loaded = tuple[str, int, list[int], Loaded]

Start = Literal["now"] | int
"""Where a new subscription begins: behind what there is now, or behind a sequence number."""

CURSORS_LIMIT = 64
"""Named subscriptions of one owner; each is a row that stays."""

ACKED_LIMIT = 10_000
"""Acknowledgements kept above the oldest unacknowledged event. Past it, nothing new is given out until that one is
settled, and only what is in the owner's hands can be acknowledged; else an owner that never settles one event would
make the table grow with the journal."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

_MAKE = "INSERT INTO subscriptions (owner, name, filter, floor) VALUES (?, ?, ?, ?)"
_COUNT = "SELECT count(*) FROM subscriptions WHERE owner = ?"
_LOAD = "SELECT filter, floor FROM subscriptions WHERE owner = ? AND name = ?"
_ACKS = "SELECT seq FROM acks WHERE owner = ? AND name = ? AND seq > ?"
_SET_FILTER = "UPDATE subscriptions SET filter = ? WHERE owner = ? AND name = ?"
_RAISE_FLOOR = (
    "UPDATE subscriptions SET floor = max(floor, ?), reserved = max(reserved, ?) WHERE owner = ? AND name = ?"
)
_ADD_ACK = "INSERT INTO acks (owner, name, seq) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_DROP_ACKS = "DELETE FROM acks WHERE owner = ? AND name = ? AND seq <= ?"
_FORGET = "DELETE FROM subscriptions WHERE owner = ? AND name = ?"  # its acks go along


class Holder(Protocol):
    """The connection that is served from a cursor now."""

    def settled_floor(self, without: int, *, cumulative: bool) -> int:
        """Up to where all is settled once `without` (`cumulative`: and all below) is acknowledged."""
        ...

    def knows(self, seq: int) -> bool:
        """Whether the holder has come as far as `seq`, so that it exists."""
        ...

    def gave(self, seq: int) -> bool:
        """Whether `seq` was given out and is not settled."""
        ...

    def owe(self, seq: int) -> None:
        """`seq` is to be given though it is settled."""
        ...

    def held(self) -> tuple[int, float | None]:
        """How many events were given out, not answered and not put off; since when the oldest is (Trio's clock)."""
        ...

    def settled(self, floor: int, seq: int | None) -> None:
        """Everything up to `floor`, and `seq`, is acknowledged."""
        ...

    def give_way(self, sink: object, reason: str) -> None:
        """`sink` takes the name over, or away; whoever is told hears why."""
        ...


OnDead = Callable[[str, str, Event, int, int, str], object]
"""Called with owner, name, the event, how often it was given and lost, and why it is given up."""

OnSettled = Callable[[str, Seen], object]
"""Called with the owner and the last event of a room that it has read."""


class Cursor:
    """A floor, below which all is settled, and the acknowledgements above it; memory follows the commits.

    There is one object per (owner, name), whatever connections come and go. Without `dead` nothing is ever given up.
    """

    def __init__(
        self,
        db: Database,
        owner: str,
        name: str,
        kept: set[Cursor],
        *,
        section: EventsSection | None = None,
        dead: DeadLetters | None = None,
        on_dead: OnDead | None = None,
    ) -> None:
        if not _NAME.fullmatch(name):
            what, why = f"subscription name {name[:80]!r}", f"allowed is {_NAME.pattern}"
            raise ArmorclawError("invalid_params", what, why=why, fields=["name"])
        self.owner = owner
        self.name = name
        self.filter = EventFilter()
        self.floor = 0
        self.acked: set[int] = set()
        self.section = section or EventsSection()
        self.deadline = math.inf if owner.startswith("@") else self.section.redeliver_after_s
        """Seconds in which an event wants an answer. Parts of the bridge, whose owners begin so, may take longer."""
        self.mortal = dead is not None and not owner.startswith("@")
        """Whether events are given up."""
        self.attempts = Attempts(db, owner, name, self.section, mortal=self.mortal)
        self.reading = Reading()
        """Kept only while there is an `on_settled`."""
        self.on_settled: OnSettled | None = None
        """Called on the Trio thread, after the commit of an acknowledgement, once for each room."""
        self.on_owed: Callable[[], object] = lambda: None
        """Called on the Trio thread, after the commit, when a dead letter is wanted again."""
        self.holder: Holder | None = None
        self.given: int | None = None
        """The end of the batch that `take` gave out last; its next call settles it."""
        self.taken: tuple[int, float | None] = (0, None)
        """How many events are in that batch, and since when."""
        self.turn = trio.Lock()
        """Whoever takes a batch does so alone."""
        self._loading = trio.Lock()
        self._loaded = False
        self._db = db
        self._dead = dead
        self._on_dead = on_dead
        self._kept = kept  # it is there itself as long as the store has it

    async def load(self, matching: EventFilter | None, start: Start) -> None:
        """Reads the cursor from the store; makes it, durably, when there is none.

        `matching` replaces the filter kept with it, `start` counts for a new one only. Raises `conflict` for one name
        too many, and what the store raises.
        """
        async with self._loading:
            if self._loaded and (matching is None or matching == self.filter):
                return
            # a cursor is made to last; a filter is not worth a flush of the disk, as often as it may be changed
            exists = self._loaded or await self._db.read(self._exists)
            await self._db.write(lambda conn: self._load(conn, matching, start), durable=not exists, then=self._set)

    def done(self, seq: int) -> bool:
        """Whether this event is acknowledged, or given up. Somebody may want it given again: see `attempts.owed`."""
        return seq <= self.floor or seq in self.acked

    async def ack(self, seq: int, *, cumulative: bool = False) -> None:
        """Settles one event, or with `cumulative` all up to it. Again is harmless.

        Survives kill -9; after a power cut the event may come once more. Raises `invalid_params` for a number that
        was never given out, `queue_full` past `ACKED_LIMIT`, `not_found` if the name is forgotten meanwhile, and what
        the store raises.
        """
        owed = self._owed(seq, cumulative=cumulative)
        floor = self._floor_with(seq, cumulative=cumulative)
        # acknowledged on its own before there was a holder that knows what else is settled: the floor may move now
        if not owed and (seq <= self.floor or (seq in self.acked and floor <= self.floor)):
            if self.holder is not None:
                self.holder.settled(self.floor, seq)
            return
        known = self.holder is not None and self.holder.knows(seq)
        beyond = seq > floor and seq not in self.acked and len(self.acked) >= ACKED_LIMIT
        if beyond and not (self.holder is not None and self.holder.gave(seq)):
            why = f"{ACKED_LIMIT} events behind one that is not are acknowledged"
            hint = "acknowledge the oldest, or use cumulative"
            raise ArmorclawError("queue_full", f"event {seq} of subscription {self.name!r}", why=why, hint=hint)

        def also(conn: Connection) -> bool:
            if not known and (seq < 1 or seq > head(conn)):
                raise ArmorclawError("invalid_params", f"seq {seq}", why="no event has that number", fields=["seq"])
            for one in owed:
                remove(conn, self.owner, self.name, one)
            return bool(owed)

        await self._settle(floor, seq, also, lambda _: self.owe_no_more(owed))

    async def advance(self, floor: int, *, found: tuple[str, int] | None = None) -> None:
        """Moves the floor over events that were settled or not meant for this owner.

        Raises `conflict` if the filter or the floor is not by now what was `found` when that was told.
        """

        def also(conn: Connection) -> bool:
            row = conn.execute(_LOAD, (self.owner, self.name)).fetchone()
            if found is not None and row is not None and (row[0], row[1]) != found:
                raise ArmorclawError("conflict", f"subscription {self.name!r}", why="it has changed meanwhile")
            return False

        await self._settle(floor, None, None if found is None else also)

    async def bury(self, event: Event, reason: str, *, cumulative: bool = False) -> None:
        """Gives an event up: makes it a dead letter, and settles it; `cumulative`: and all before it, which it stands
        for. Raises what the store raises.
        """
        if self._dead is None:
            raise RuntimeError(f"nothing is given up of subscription {self.name!r}")
        seq, owed = event.seq, event.seq in self.attempts.owed
        given, lost = self.attempts.given(seq), self.attempts.lost(seq)
        letter = DeadLetter(self.owner, self.name, seq, self._dead.clock.now_ms(), given, lost, reason, False)

        def then(done: bool) -> None:
            self.reading.forget(seq)  # not before: it may be acknowledged meanwhile, and then it was read
            self.owe_no_more([seq] if owed else ())
            if not done:
                return
            log.warning("an event is given up", agent=self.owner, subscription=self.name, seq=seq, why=reason)
            if self._on_dead is not None:
                try:
                    self._on_dead(self.owner, self.name, event, given, lost, reason)
                except Exception as error:  # noqa: BLE001 - it is on record; who waits for the commit must not notice
                    log.error("nobody is told of a dead letter", seq=seq, trace=trace(error))

        floor = self.floor if owed else self._floor_with(seq, cumulative=cumulative)
        await self._settle(floor, None if owed else seq, lambda conn: bury(conn, letter, owed=owed), then)

    def owe(self, seq: int) -> None:
        """After the commit: a dead letter is wanted again."""
        self.attempts.owe(seq)
        if self.holder is not None:
            self.holder.owe(seq)
        self.on_owed()

    def owe_no_more(self, seqs: Iterable[int]) -> None:
        """After the commit: dead letters that were wanted again are acknowledged, dead once more, or dropped."""
        for seq in seqs:
            if seq in self.attempts.owed:
                self.attempts.forget(seq)
                if self.holder is not None:
                    self.holder.settled(self.floor, seq)

    async def forget(self, sink: object) -> None:
        """Deletes it from the store; whoever is served from it is closed. Its name begins anew if it is used again.

        Raises `not_found` if the store has none, and what the store raises.
        """
        async with self._loading:
            await self._db.write(self._delete, durable=True, then=lambda _: self._forgotten(sink))

    def _exists(self, conn: Connection) -> bool:
        if conn.execute(_LOAD, (self.owner, self.name)).fetchone() is not None:
            return True
        self._refuse_too_many(conn)
        return False

    def _refuse_too_many(self, conn: Connection) -> None:
        (others,) = conn.execute(_COUNT, (self.owner,)).fetchone()
        if others >= CURSORS_LIMIT:
            why = f"an owner has at most {CURSORS_LIMIT} named subscriptions"
            hint = "reuse a name, or free one with events.forget"
            raise ArmorclawError("conflict", f"subscription {self.name!r}", why=why, hint=hint)

    def _owed(self, seq: int, *, cumulative: bool) -> list[int]:
        """Those owed again that an acknowledgement means: by number, or as they are in somebody's hands."""
        owed, holder = self.attempts.owed, self.holder
        return (
            [
                one
                for one in owed
                if one == seq or (cumulative and one <= seq and holder is not None and holder.gave(one))
            ]
            if owed
            else []
        )

    def _floor_with(self, seq: int, *, cumulative: bool) -> int:
        floor = max(self.floor, seq) if cumulative else self.floor
        return floor if self.holder is None else max(floor, self.holder.settled_floor(seq, cumulative=cumulative))

    async def _settle(
        self,
        floor: int,
        seq: int | None,
        also: Callable[[Connection], bool] | None = None,
        then: Callable[[bool], object] | None = None,
    ) -> None:
        """Moves the floor and settles `seq`; does `also` in the transaction, and `then` with its result after it."""
        attempts = self.attempts
        reservation = attempts.reserve(floor) if self.holder is not None else (-1, 0)
        drop = attempts.drop(floor, seq)

        def work(conn: Connection) -> bool:
            done = also is not None and also(conn)
            self._raise_floor(conn, floor, reservation[1])
            if seq is not None and seq > floor:
                conn.execute(_ADD_ACK, (self.owner, self.name, seq))
            drop(conn)
            return done

        def committed(done: bool) -> None:
            attempts.reserved(reservation)
            if then is not None:
                then(done)
            self._acked(floor, seq)

        await self._db.write(work, then=committed)

    def _load(self, conn: Connection, matching: EventFilter | None, start: Start) -> _Loaded:
        key = (self.owner, self.name)
        row = conn.execute(_LOAD, key).fetchone()
        if row is None:
            self._refuse_too_many(conn)
            now = head(conn)
            row = ((matching or EventFilter()).to_json(), now if start == "now" else min(max(start, 0), now))
            conn.execute(_MAKE, (*key, *row))
        elif matching is not None:
            row = (matching.to_json(), row[1])
            conn.execute(_SET_FILTER, (row[0], *key))
        acked = [seq for (seq,) in conn.execute(_ACKS, (*key, row[1]))]
        return row[0], row[1], acked, self.attempts.load(conn)

    def _set(self, loaded: _Loaded) -> None:
        text, self.floor, acked, attempts = loaded
        self.filter = EventFilter.from_json(text)
        self.acked = set(acked)
        if not self._loaded:  # else memory knows more
            self.attempts.loaded(attempts)
            if self._dead is not None:
                self._dead.know(self)
        self._loaded = True
        self._kept.add(self)

    def _raise_floor(self, conn: Connection, floor: int, reserved: int) -> None:
        key = (self.owner, self.name)
        if not conn.execute(_RAISE_FLOOR, (floor, reserved, *key)).rowcount:
            raise self._unknown()
        conn.execute(_DROP_ACKS, (*key, floor))

    def _delete(self, conn: Connection) -> None:
        if not conn.execute(_FORGET, (self.owner, self.name)).rowcount:
            raise self._unknown()

    def _forgotten(self, sink: object) -> None:
        """After the commit: as if nobody had ever used the name."""
        if self.holder is not None:  # whoever that is by now
            self.holder.give_way(sink, "its name was forgotten")
            self.holder = None  # what it has settled says nothing of who uses the name next
        self.filter, self.floor, self.given, self._loaded = EventFilter(), 0, None, False
        self.acked.clear()
        self.attempts = Attempts(self._db, self.owner, self.name, self.section, mortal=self.mortal)
        self.reading = Reading()
        self._kept.discard(self)

    def _unknown(self) -> ArmorclawError:
        return ArmorclawError("not_found", f"subscription {self.name!r}", hint="subscribe first")

    def _acked(self, floor: int, seq: int | None) -> None:
        """After the commit, in its order: so the floor here is never ahead of the one on disk."""
        if floor > self.floor:
            self.floor = floor
            self.acked = {one for one in self.acked if one > floor}
        if seq is not None and seq > self.floor:
            self.acked.add(seq)
        self.attempts.settled(self.floor, seq)
        if self.on_settled is not None:
            for seen in self.reading.settle(self.floor, seq):
                try:
                    self.on_settled(self.owner, seen)
                except Exception as error:  # noqa: BLE001 - the acknowledgement stands all the same
                    log.error("nobody is told what was read", agent=self.owner, trace=trace(error))
        if self.holder is not None:
            self.holder.settled(self.floor, seq)
