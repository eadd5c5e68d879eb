"""Events given up for one named subscription, kept until somebody looks at them."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import attrs

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

if TYPE_CHECKING:
    from armorclaw.events.durable.cursor import Cursor

log = get_logger(__name__)

DEAD_LIMIT = 1000
"""Dead letters of one subscription. Past it the oldest goes, so that an agent that fails at everything does not fill
the disk; its event stays in the journal as long as any."""

LIST_LIMIT = 1000
"""Dead letters in one answer."""

# ruff: noqa: S608 - the statements below are put together from constants
_COLUMNS = "owner, name, seq, at_ms, given, lost, reason, again"
_BURY = (
    f"INSERT INTO dead_letters ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, 0) ON CONFLICT DO UPDATE SET"
    " at_ms = excluded.at_ms, given = excluded.given, lost = excluded.lost, reason = excluded.reason, again = 0"
)
_SETTLED = (
    "SELECT 1 FROM subscriptions WHERE owner = ?1 AND name = ?2"
    " AND (floor >= ?3 OR EXISTS (SELECT 1 FROM acks WHERE owner = ?1 AND name = ?2 AND seq = ?3))"
)
_NOT_OWED = (
    "SELECT 1 WHERE NOT EXISTS (SELECT 1 FROM dead_letters WHERE owner = ? AND name = ? AND seq = ? AND again = 1)"
)
_OLDEST = (
    "DELETE FROM dead_letters WHERE owner = ?1 AND name = ?2 AND seq IN"
    " (SELECT seq FROM dead_letters WHERE owner = ?1 AND name = ?2 AND again = 0 AND seq != ?3"
    " ORDER BY at_ms DESC, seq DESC LIMIT -1 OFFSET ?4) RETURNING seq"
)
_LIST = f"SELECT {_COLUMNS} FROM dead_letters WHERE ?1 IS NULL OR owner = ?1 ORDER BY at_ms DESC, seq DESC LIMIT ?2"
_COUNT = "SELECT count(*) FROM dead_letters WHERE ?1 IS NULL OR owner = ?1"
_AGAIN = (
    "UPDATE dead_letters SET again = 1, given = 1, lost = 0 WHERE owner = ? AND name = ? AND seq = ? AND again = 0"
)
_FIND = "SELECT again FROM dead_letters WHERE owner = ? AND name = ? AND seq = ?"
_THERE = "SELECT 1 FROM journal WHERE seq = ?"
_DROP = "DELETE FROM dead_letters WHERE owner = ? AND name = ? AND seq = ?"


@attrs.frozen
class DeadLetter:
    """`given` times given to subscription `name` of `owner` ("" for operators), `lost` of them without any answer.

    `again`: somebody wants it given once more; the counts are since then. `event` is None when retention has deleted
    it.
    """

    owner: str
    name: str
    seq: int
    at_ms: int
    given: int
    lost: int
    reason: str
    again: bool = attrs.field(converter=bool)
    event: Event | None = None


class DeadLetters:
    """Those of all subscriptions."""

    def __init__(self, db: Database, journal: Journal, clock: Clock | None = None) -> None:
        self._db = db
        self._journal = journal
        self.clock = clock or Clock()
        self._cursors: WeakValueDictionary[tuple[str, str], Cursor] = WeakValueDictionary()

    def know(self, cursor: Cursor) -> None:
        """A cursor is in use: it is told of what is wanted again."""
        self._cursors[cursor.owner, cursor.name] = cursor

    async def list(self, owner: str | None = None, limit: int = 100) -> list[DeadLetter]:
        """The newest first, of one owner or (None) of all. Raises what the store raises."""
        limit = min(max(limit, 1), LIST_LIMIT)
        rows = await self._db.read(lambda conn: conn.execute(_LIST, (owner, limit)).fetchall())
        letters = [DeadLetter(*row) for row in rows]
        events = {event.seq: event for event in await self._journal.find([letter.seq for letter in letters])}
        return [attrs.evolve(letter, event=events.get(letter.seq)) for letter in letters]

    async def count(self, owner: str | None = None) -> int:
        """How many there are, of one owner or (None) of all. Raises what the store raises."""

        def work(conn: Connection) -> int:
            (count,) = conn.execute(_COUNT, (owner,)).fetchone()
            return int(count)

        return await self._db.read(work)

    async def again(self, owner: str, name: str, seq: int) -> None:
        """Owes the event to its subscription once more: now if somebody is connected, else when somebody is.

        An acknowledgement then removes the dead letter. Again is harmless. Raises `not_found` if there is no such
        dead letter or its event is deleted, and what the store raises.
        """

        def work(conn: Connection) -> bool:
            if conn.execute(_FIND, (owner, name, seq)).fetchone() is None:
                raise _unknown(name, seq)
            if conn.execute(_THERE, (seq,)).fetchone() is None:
                raise _unknown(name, seq, why="its event is deleted: it was older than the journal is kept")
            return bool(conn.execute(_AGAIN, (owner, name, seq)).rowcount)

        def then(new: bool) -> None:
            cursor = self._cursors.get((owner, name))
            if new and cursor is not None:
                cursor.owe(seq)

        await self._db.write(work, durable=True, then=then)

    async def drop(self, owner: str, name: str, seq: int) -> None:
        """Deletes a dead letter; nobody wants its event any more. Raises `not_found`, and what the store raises."""

        def work(conn: Connection) -> None:
            if not conn.execute(_DROP, (owner, name, seq)).rowcount:
                raise _unknown(name, seq)

        def then(_: None) -> None:
            cursor = self._cursors.get((owner, name))
            if cursor is not None:
                cursor.owe_no_more([seq])

        await self._db.write(work, durable=True, then=then)


def bury(conn: Connection, letter: DeadLetter, *, owed: bool) -> bool:
    """Writes a dead letter, in the transaction that settles its event; False if that is settled meanwhile.

    `owed`: it was a dead letter already, and wanted again.
    """
    key = letter.owner, letter.name, letter.seq
    if conn.execute(_NOT_OWED if owed else _SETTLED, key).fetchone() is not None:
        return False
    conn.execute(_BURY, (*key, letter.at_ms, letter.given, letter.lost, letter.reason))
    gone = conn.execute(_OLDEST, (*key, DEAD_LIMIT - 1)).fetchall()
    if gone:
        log.warning(
            "too many dead letters: the oldest goes", agent=letter.owner, subscription=letter.name, seq=gone[0][0]
        )
    return True


def remove(conn: Connection, owner: str, name: str, seq: int) -> None:
    """Deletes a dead letter that was wanted again, and acknowledged."""
    conn.execute(_DROP, (owner, name, seq))


def _unknown(name: str, seq: int, why: str = "") -> ArmorclawError:
    what = f"no dead letter {seq} of subscription {name[:80]!r} to give again or to drop"
    hint = "armorclaw events dead, or events.dead_letters, lists them; one of an agent's wants its name as well"
    return ArmorclawError("not_found", what, why=why, hint=hint)
