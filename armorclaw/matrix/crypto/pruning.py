"""Which room keys go, when, and in which order; with a key go the marks of what it opened, never before.

Of every session that has opened anything a mark stays (table `closed`): its key, should it come again, is refused.
Who has the homeserver could else say again under new event ids all that was said with it, as if it were new.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.room_keys import USE_GRAIN_MS, RoomKeys
from armorclaw.store.connection import Connection

log = get_logger(__name__)

MAX_UNUSED = 20_000
"""Keys that have opened nothing yet; of more the oldest go. Anybody may send them, so they push out no others."""

MAX_USED = 80_000
"""Keys that have opened something; of more those go that were not used for longest. Some 1.5 kB each."""

MAX_MARKS = 4_000_000
"""Messages known to be no news, of some 25 bytes each; of more the keys go that were not used for longest."""

LOOK_AFTER = 10_000
"""Rows changed in the file after which what is there is counted again, whatever the hour."""

SECONDS = 5.0
"""For which one round lasts at most; what is left is for the next, which follows at once."""

DAY_MS = 24 * 3600 * 1000

_KEYS_A_TURN, _MARKS_A_TURN = 10, 200  # deleted before other tasks have their turn; a few milliseconds


@attrs.define
class _Excess:
    """How many there are too many, and the time before which a key must have been used last (epoch, ms)."""

    over: int
    unused: int = 0
    used: int = 0
    marks: int = 0


class Pruning:
    """One account's. `days`: how long a key is kept that opens nothing, 0 for ever; `counts` gets `keys_pruned`."""

    def __init__(
        self, account: str, db: CryptoDatabase, keys: RoomKeys, clock: Clock, *, days: int, counts: Counter[str]
    ) -> None:
        self._account = account
        self._db = db
        self._keys = keys
        self._clock = clock
        self._days = days
        self._counts = counts
        self._looked = db.connection.total_changes
        self._more = False

    async def prune(self, *, now: bool, by_age: bool = True) -> bool:
        """Delete what is to go, `now` or if much has changed or was left; whether there is more. Raises what the file
        raises.

        Without `by_age` only what there is too much of: what was said with an old key may not have been heard yet.
        Wherever it is stopped, what is left is gone on with by the next round.
        """
        if not (now or self._more) and self._db.connection.total_changes - self._looked < LOOK_AFTER:
            return False
        excess = await self._db.look(_count)
        if by_age and self._days:
            # a use is written down by the hour, and so is that somebody waits
            excess.over = self._clock.now_ms() - self._days * DAY_MS - USE_GRAIN_MS
        before = self._counts["keys_pruned"]
        spared: set[int] = set()
        with trio.move_on_after(SECONDS) as scope:
            while self._turn(excess, spared):
                await trio.lowlevel.checkpoint()
        if pruned := self._counts["keys_pruned"] - before:
            log.info("room keys were deleted that are old or too many", account=self._account, number=pruned)
        self._looked, self._more = self._db.connection.total_changes, scope.cancelled_caught
        return self._more

    def _turn(self, excess: _Excess, spared: set[int]) -> bool:
        """Some of it, all or nothing; whether there is more."""
        marks, pruned = _MARKS_A_TURN, 0
        more = True
        with self._db.transaction():
            for _ in range(_KEYS_A_TURN):
                row = self._next(excess)
                if row is None or row["number"] in spared:
                    more = False
                    break
                if (since := self._needed_since(row)) is not None:
                    spared.add(row["number"])
                    self._renew(row, since)
                    continue
                gone = self._delete(row, marks, excess)
                pruned += gone < marks
                marks -= gone
                if marks <= 0:
                    break
        self._counts["keys_pruned"] += pruned  # behind the commit
        return more

    def _next(self, excess: _Excess) -> Any:
        """The key that is to go next, if any is."""
        columns = "SELECT number, room_id, session_id, received_ms, used_ms FROM room_keys"
        row = self._db.one(f"{columns} WHERE used_ms IS NULL ORDER BY received_ms LIMIT 1")
        if row is not None and (excess.unused > 0 or row["received_ms"] < excess.over):
            return row
        row = self._db.one(f"{columns} WHERE used_ms IS NOT NULL ORDER BY used_ms LIMIT 1")
        if row is not None and (excess.used > 0 or excess.marks > 0 or row["used_ms"] < excess.over):
            return row
        return None

    def _needed_since(self, row: Any) -> int | None:
        """When the key was needed last, if that is not what stands in its row (epoch, ms).

        We may be speaking with it. And what a session opened must not go before the last of those who call it theirs
        has stopped to use it: they would all be closed.
        """
        session = row["room_id"], row["session_id"]
        if self._db.one("SELECT 1 FROM outbound WHERE room_id = ? AND session_id = ?", *session) is not None:
            return self._clock.now_ms()
        if row["used_ms"] is None:
            return None
        latest = self._db.one("SELECT max(used_ms) FROM room_keys WHERE room_id = ? AND session_id = ?", *session)
        return None if latest is None or latest[0] <= row["used_ms"] else int(latest[0])

    def _renew(self, row: Any, at_ms: int) -> None:
        column = "received_ms" if row["used_ms"] is None else "used_ms"
        self._db.run(f"UPDATE room_keys SET {column} = ? WHERE number = ?", at_ms, row["number"])  # noqa: S608

    def _delete(self, row: Any, marks: int, excess: _Excess) -> int:
        """Close a session and delete up to so many marks, with the last also the key; returns how many marks."""
        number = row["number"]
        if row["used_ms"] is not None:  # before anything else goes: from here on nothing of it is ever read again
            self._keys.close(row["room_id"], row["session_id"])
        cursor = self._db.run(
            "DELETE FROM heard WHERE key = ?1 AND place IN (SELECT place FROM heard WHERE key = ?1 LIMIT ?2)",
            number,
            marks,
        )
        gone = cursor.rowcount
        excess.marks -= gone
        if gone < marks:
            self._db.run("DELETE FROM room_keys WHERE number = ?", number)
            self._keys.put_away(row["room_id"], row["session_id"])
            if row["used_ms"] is None:
                excess.unused -= 1
            else:
                excess.used -= 1
        return gone


def _count(connection: Connection) -> _Excess:
    unused, used = connection.execute("SELECT count(*) - count(used_ms), count(used_ms) FROM room_keys").fetchone()
    (marks,) = connection.execute("SELECT count(*) FROM heard").fetchone()
    return _Excess(-1, unused - MAX_UNUSED, used - MAX_USED, marks - MAX_MARKS)
