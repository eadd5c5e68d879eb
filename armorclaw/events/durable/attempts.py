"""How often each event of one named subscription was given out, also by bridges that were killed since."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import trio

from armorclaw.config import EventsSection
from armorclaw.events.journal import head
from armorclaw.store import Connection, Database

RESERVE = 8192
"""Numbers ahead that are marked on disk as "may have been given", so that to give an event for the first time need
not wait for the disk. Twice what a floor lags at most, so that one who hears little amid a busy journal does not wait
either. Of a bridge that was killed, what nobody had been given yet is then marked as if it had been."""

SUSPECT = 2
"""An event lost so often is given alone from then on: had others been with it, each of them could be the one that its
reader ended from, and all would become dead letters with it."""

_RESERVE = "UPDATE subscriptions SET reserved = max(reserved, ?) WHERE owner = ? AND name = ?"
_LOWER = "UPDATE subscriptions SET reserved = ? WHERE owner = ? AND name = ?"
_RESERVED = "SELECT reserved FROM subscriptions WHERE owner = ? AND name = ?"
_LOAD = "SELECT seq, given, lost FROM attempts WHERE owner = ? AND name = ?"
_LOAD_AGAIN = "SELECT seq, given, lost FROM dead_letters WHERE owner = ? AND name = ? AND again = 1"
_SAVE = (  # only while there is something to count: it may be acknowledged, or all forgotten, meanwhile
    "INSERT INTO attempts (owner, name, seq, given, lost) SELECT owner, name, ?3, ?4, ?5 FROM subscriptions"
    " WHERE owner = ?1 AND name = ?2 AND floor < ?3"
    " AND NOT EXISTS (SELECT 1 FROM acks WHERE owner = ?1 AND name = ?2 AND seq = ?3)"
    " ON CONFLICT DO UPDATE SET given = excluded.given, lost = excluded.lost"
)
_SAVE_AGAIN = (
    "UPDATE dead_letters SET given = ?4, lost = ?5 WHERE owner = ?1 AND name = ?2 AND seq = ?3 AND again = 1"
)
_DROP = "DELETE FROM attempts WHERE owner = ? AND name = ? AND (seq <= ? OR seq = ?)"

Count = tuple[int, int, int]
"""A number, how often it was given, and how often of those it was lost."""

Loaded = tuple[int, int, list[Count], list[Count]]
"""What is reserved, and how far of it there were events; those given more than once; dead letters wanted again."""

Reservation = tuple[int, int]
"""When it was wanted, and up to where."""


class Attempts:
    """Counts of what is not settled. An event is given again only when that is on disk, so no crash forgets it.

    An event is lost when its reader ended, or took too long: nobody will answer for it.
    """

    def __init__(self, db: Database, owner: str, name: str, section: EventsSection, *, mortal: bool) -> None:
        self.owed: set[int] = set()
        """Numbers that are settled and to be given all the same: dead letters that somebody wants given again."""
        self._db = db
        self._key = owner, name
        self._max_given = section.max_deliveries if mortal else math.inf
        self._max_lost = section.max_lost if mortal else math.inf
        self._suspect = max(1, min(SUSPECT, self._max_lost - 1))
        self._given: dict[int, int] = {}
        self._lost: dict[int, int] = {}
        self._saved: dict[int, int] = {}  # as `_given`, on disk; 0 while that is being written
        self._reserved = 0  # first deliveries up to here are on disk, as possible ones
        self._writing = trio.Lock()  # a busy store may change the order of what two tasks hand over at once
        self._closing = False
        self._epoch = 0  # counts how often all that was reserved was given back
        self._presumed = 0  # up to here an earlier bridge may have given what is not counted
        self._given_to = 0  # the highest that may have been given
        self._gap = 0  # the number of the last that stands for deleted ones

    def given(self, seq: int) -> int:
        """How often it was given; 1 if it may have been, by a bridge that was killed."""
        return self._given.get(seq, 1 if seq <= self._presumed else 0)

    def lost(self, seq: int) -> int:
        """How often it was lost."""
        return self._lost.get(seq, 0)

    def suspect(self, seq: int) -> bool:
        """Whether it is to be given alone."""
        if not self._lost and not self.owed:
            return False
        return self._lost.get(seq, 0) >= self._suspect or seq in self.owed

    def spent(self, seq: int) -> str:
        """Why it is to be given up instead of being given once more, or nothing."""
        if self.lost(seq) >= self._max_lost:
            return f"lost {self.lost(seq)} times: its reader ended, or did not answer in time"
        if self.given(seq) - (seq in self.owed) >= self._max_given:  # the delivery it begins with was before
            return f"given {self.given(seq)} times and never acknowledged"
        return ""

    def ready(self, seq: int) -> bool:
        """Whether it may be given at once: it is not spent, and should we be killed, the disk knows enough."""
        given = self.given(seq)
        if not given:
            return seq <= self._reserved
        return self._saved.get(seq, 0) > given and not self.spent(seq)

    def gave(self, seq: int) -> None:
        """It was given once more."""
        self._given[seq] = self.given(seq) + 1
        self._given_to = max(self._given_to, seq)

    def lose(self, seqs: Iterable[int]) -> None:
        """These were lost."""
        for seq in seqs:
            self._lost[seq] = self._lost.get(seq, 0) + 1

    def owe(self, seq: int) -> None:
        """A dead letter is to be given again, with counts that begin anew."""
        self.forget(seq)
        self.owed.add(seq)
        self._given[seq] = 1

    def forget(self, seq: int) -> None:
        """It is not counted any more, nor owed."""
        self.owed.discard(seq)
        for counts in (self._given, self._lost, self._saved):
            counts.pop(seq, None)

    def replaced(self, seq: int) -> None:
        """Events up to here are deleted: one that stands for them is given by this number, with counts of its own.

        Those last as long as the number is the same, so that this one, too, is given up in the end.
        """
        if seq == self._gap:
            return
        self._gap = seq
        for one in [one for one in self.owed if one <= seq]:
            self.forget(one)
        self._given[seq] = 0
        self._lost.pop(seq, None)

    def settled(self, floor: int, seq: int | None) -> None:
        """After the commit: what is acknowledged, up to `floor` and `seq`, is not counted any more."""
        if not self._lost and not self._saved and not self.owed:  # nearly always
            if seq is not None:
                self._given.pop(seq, None)
            for one in [one for one in self._given if one <= floor]:
                del self._given[one]
            return
        if seq is not None:
            self.forget(seq)
        for counts in (self._given, self._lost, self._saved):
            for one in [one for one in counts if one <= floor and one not in self.owed]:
                del counts[one]

    # --- the store ---

    def load(self, conn: Connection) -> Loaded:
        """What there is of it, within a transaction of the caller; for `loaded`."""
        (reserved,) = conn.execute(_RESERVED, self._key).fetchone()
        counts = conn.execute(_LOAD, self._key).fetchall()
        return reserved, min(reserved, head(conn)), counts, conn.execute(_LOAD_AGAIN, self._key).fetchall()

    def loaded(self, found: Loaded) -> None:
        """After the first load since the bridge was started, or the name used anew."""
        self._reserved, self._presumed, counts, again = found
        self._given_to = self._presumed
        self.owed = {seq for seq, _, _ in again}
        for seq, given, lost in (*counts, *again):
            self._given[seq] = self._saved[seq] = given
            if lost:
                self._lost[seq] = lost

    def reserve(self, floor: int) -> Reservation:
        """What to have reserved from now on, when somebody writes anyway; for `reserved` after that commit."""
        return self._epoch, max(floor, self._given_to) + RESERVE

    def reserved(self, reservation: Reservation) -> bool:
        """After the commit: events up to there may be given for the first time. False: it is taken back by now."""
        if reservation[0] != self._epoch or self._closing:
            return False
        self._reserved = max(self._reserved, reservation[1])
        return True

    def drop(self, floor: int, seq: int | None) -> Callable[[Connection], object]:
        """What deletes the counts of these, in the transaction that acknowledges them."""
        if not any(one <= floor or one == seq for one in self._saved):
            return lambda conn: None
        return lambda conn: conn.execute(_DROP, (*self._key, floor, seq))

    async def prepare(self, seqs: Sequence[int], floor: int = 0) -> None:
        """Has the disk know that these, and anything new, are about to be given; `floor`: how far the journal goes.

        Survives kill -9; raises what the store raises.
        """
        async with self._writing:
            await self._prepare(seqs, floor)

    async def close(self) -> None:
        """Nothing is given until the next `prepare`, so the disk need not expect it. Raises what the store raises."""
        async with self._writing:
            if self._reserved > self._given_to:
                self._closing = True
                try:
                    await self._close()
                finally:
                    self._closing = False

    async def _prepare(self, seqs: Sequence[int], floor: int) -> None:
        reservation = self.reserve(max(floor, *seqs) if seqs else floor)
        again = [seq for seq in seqs if self.given(seq) and self._saved.get(seq, 0) <= self.given(seq)]
        for seq in again:
            self._saved.setdefault(seq, 0)
        rows = self._rows((seq, self.given(seq) + 1, self.lost(seq)) for seq in again)

        def work(conn: Connection) -> None:
            conn.execute(_RESERVE, (reservation[1], *self._key))
            for sql, row in rows:
                conn.execute(sql, row)

        def then(_: None) -> None:
            if self.reserved(reservation):
                for _sql, (_owner, _name, seq, given, _lost) in rows:
                    if seq in self._saved:  # else it is settled
                        self._saved[seq] = given

        await self._db.write(work, then=then)

    async def _close(self) -> None:
        self._epoch += 1  # a reservation under way is undone by this write, which comes behind it
        self._reserved, lowest = 0, self._given_to
        off = [seq for seq, given in self._saved.items() if seq in self._lost or given != self._given.get(seq)]
        rows = self._rows((seq, self.given(seq), self.lost(seq)) for seq in off)
        self._saved.update((seq, self.given(seq)) for seq in off)  # who has begun since has to prepare once more

        def work(conn: Connection) -> None:
            conn.execute(_LOWER, (lowest, *self._key))
            for sql, row in rows:
                conn.execute(sql, row)

        await self._db.write(work)

    def _rows(self, counts: Iterable[Count]) -> list[tuple[str, tuple[str, str, int, int, int]]]:
        return [(_SAVE_AGAIN if count[0] in self.owed else _SAVE, (*self._key, *count)) for count in counts]
