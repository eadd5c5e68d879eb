"""Events that wait for their room key: kept with the sync token, tried again when it comes, told when it does not.

A key can be late: it comes to the device, the event to the room, and the homeserver orders neither by the other. So
an event without its key is no loss yet, but it must not wait for ever either, nor may strangers fill the store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import attrs

from armorclaw.clock import Clock
from armorclaw.events.event import Event, ascii_json
from armorclaw.matrix.answer import Raw, is_id
from armorclaw.store import Connection, Database

PER_ACCOUNT = 1_000
PER_SESSION = 100
"""Events that wait at most; of the room with the most of them the oldest is given up first."""

MAX_AGE_MS = 24 * 3600 * 1000
"""An event that has waited so long is given up. Who sent it would have been asked for the key long ago."""

RAW_LIMIT = 128 * 1024
"""Bytes of one event that waits, as ASCII. Matrix allows 64 KiB of UTF-8."""

TYPE = "matrix.undecryptable"
"""The type of the event that stands for one that cannot be read. Its content: room_id, event_id, sender, reason."""

Session = tuple[str, str]
"""A room, and the id of a Megolm session in it."""


@attrs.frozen
class Waiting:
    """An event whose room key is not here, as the homeserver gave it; or that of one on which it depends whose this
    one is."""

    room_id: str
    event_id: str
    session_id: str
    raw: bytes = attrs.field(repr=False)

    @classmethod
    def of(cls, raw: Raw, room_id: str, session_id: str) -> Waiting | None:
        """None if it is too large to be kept, or no proper event."""
        event_id = raw.get("event_id")
        if not is_id(event_id) or not is_id(session_id):
            return None
        try:
            kept = {name: raw[name] for name in _KEPT if name in raw}
            text = ascii_json(kept)
        except (ValueError, RecursionError):
            return None
        return cls(room_id, event_id, session_id, text) if len(text) <= RAW_LIMIT else None


_KEPT = ("type", "sender", "event_id", "origin_server_ts", "content")


@attrs.frozen
class Kept:
    """One that is in the table. `last` says that it is to be given up unless it can be read now."""

    room_id: str
    event_id: str
    session_id: str
    raw: bytes = attrs.field(repr=False)
    last: bool = False

    def event(self) -> dict[str, Any]:
        """As the homeserver gave it."""
        event: dict[str, Any] = json.loads(self.raw)
        return event


@attrs.frozen
class Settled:
    """That one waits no longer. `event` is what became of it; None if it is nobody's to hear."""

    room_id: str
    event_id: str
    event: Event | None


def undecryptable(account: str, room_id: str, raw: Raw, reason: str, at_ms: int) -> Event:
    """The event that stands for one that cannot be read; told once, however often that one comes."""
    event_id, sender = raw.get("event_id"), raw.get("sender")
    content = {"room_id": room_id, "event_id": event_id, "sender": sender, "reason": reason}
    return Event.make(
        TYPE,
        content,
        at_ms=at_ms,
        id=f"{account}/undecryptable/{event_id}",
        account=account,
        room_id=room_id,
        severity="warning",
    )


class Undecrypted:
    """The waiting events of one account: the table `undecrypted`, which moves together with the sync token.

    `count` and `oldest_ms` are as of the last commit; with none waiting, the latter is None.
    """

    def __init__(self, account: str, db: Database, clock: Clock) -> None:
        self.count = 0
        self.oldest_ms: int | None = None
        self.on_count: Callable[[int], object] = lambda count: None
        """Told how many wait, each time that may have changed."""
        self._account = account
        self._db = db
        self._clock = clock
        self._came: set[Session] = set()  # keys since `candidates` was asked last
        self._trying: set[Session] = set()  # those before that, until what came of it is in the store
        self._any = True  # any may have come, before we were there

    def keys_came(self, sessions: Iterable[Session]) -> bool:
        """Room keys have come; whether anything waits."""
        self._came.update(sessions)
        return self.count > 0

    @property
    def hopeful(self) -> bool:
        """Whether keys have come for which nothing was tried yet."""
        return bool(self._came or self._trying)

    async def candidates(self) -> list[int]:
        """The numbers of those to be tried now, as their keys came or their time is over. Then call `tried`.

        Until that these keys are not forgotten; one that comes again meanwhile is tried again, as more may be known
        of it by then. Raises as `load`.
        """
        self._trying |= self._came
        self._came.clear()
        sessions = None if self._any else frozenset(self._trying)
        if not self.count or not (sessions or sessions is None or self.any_due):
            return []
        return await self._db.read(lambda conn: self._numbers(conn, sessions))

    def tried(self) -> None:
        """What came of the candidates is in the store."""
        self._trying.clear()
        self._any = False

    async def load(self) -> None:
        """Have memory know what is in the table. Raises what the store raises."""
        self.noted(await self._db.read(self.look))

    async def session_of(self, room_id: str, event_id: str) -> str | None:
        """Of one that waits, the session whose key it waits for; None if it does not. Raises as `load`."""
        query = "SELECT session_id FROM undecrypted WHERE account = ? AND room_id = ? AND event_id = ?"
        args = [self._account, room_id, event_id]
        row = await self._db.read(lambda conn: conn.execute(query, args).fetchone()) if self.count else None
        return None if row is None else row[0]

    async def get(self, seq: int) -> Kept | None:
        """One of them, if it waits still. Raises as `load`."""
        before = self._clock.now_ms() - MAX_AGE_MS
        query = "SELECT room_id, event_id, session_id, raw, since_ms <= ? FROM undecrypted WHERE seq = ?"
        row = await self._db.read(lambda conn: conn.execute(query, [before, seq]).fetchone())
        return None if row is None else Kept(row[0], row[1], row[2], row[3], last=bool(row[4]))

    # --- within a transaction, on the store's thread ---

    def look(self, conn: Connection) -> tuple[int, int | None]:
        """How many wait, and since when the first. Hand it to `noted` after the commit."""
        row = conn.execute(
            "SELECT count(*), min(since_ms) FROM undecrypted WHERE account = ?", [self._account]
        ).fetchone()
        return row[0], row[1]

    def keep(self, conn: Connection, waiting: Sequence[Waiting]) -> list[Event]:
        """Write them down; returns what is to be told of those that are given up for it.

        One that waits already may wait for another key from now on.
        """
        now = self._clock.now_ms()
        conn.executemany(
            "INSERT INTO undecrypted (account, event_id, room_id, session_id, raw, since_ms)"
            " VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (account, event_id) DO UPDATE SET session_id = excluded.session_id",
            [(self._account, each.event_id, each.room_id, each.session_id, each.raw, now) for each in waiting],
        )
        sessions = dict.fromkeys((each.room_id, each.session_id) for each in waiting)
        over = [seq for session in sessions for seq in self._over(conn, session)]
        told = [self._give_up(conn, seq, "too many events of its session wait for their key") for seq in over]
        return told + self._make_room(conn)

    def drop(self, conn: Connection, room_id: str, event_id: str) -> bool:
        """It waits no longer; whether it did."""
        where = "account = ? AND room_id = ? AND event_id = ?"
        cursor = conn.execute(f"DELETE FROM undecrypted WHERE {where}", [self._account, room_id, event_id])  # noqa: S608
        return cursor.rowcount > 0

    # --- behind the commit, on Trio's thread ---

    def noted(self, found: tuple[int, int | None]) -> None:
        """Have memory follow what `look` found."""
        self.count, self.oldest_ms = found
        self.on_count(self.count)

    @property
    def any_due(self) -> bool:
        """Whether one has waited too long."""
        return self.oldest_ms is not None and self.oldest_ms <= self._clock.now_ms() - MAX_AGE_MS

    def _numbers(self, conn: Connection, sessions: Iterable[Session] | None) -> list[int]:
        """Those of these sessions and those that have waited too long, or all, in the order they came."""
        query = "SELECT seq FROM undecrypted WHERE account = ?"
        if sessions is None:
            return sorted(seq for (seq,) in conn.execute(query, [self._account]))
        before = self._clock.now_ms() - MAX_AGE_MS
        found = {seq for (seq,) in conn.execute(f"{query} AND since_ms <= ?", [self._account, before])}
        of_session = f"{query} AND room_id = ? AND session_id = ?"
        found.update(seq for each in sessions for (seq,) in conn.execute(of_session, [self._account, *each]))
        return sorted(found)

    def _over(self, conn: Connection, session: Session) -> list[int]:
        """The oldest of a session beyond its bound."""
        return [
            seq
            for (seq,) in conn.execute(
                "SELECT seq FROM undecrypted WHERE account = ? AND room_id = ? AND session_id = ?"
                " ORDER BY seq DESC LIMIT -1 OFFSET ?",
                [self._account, *session, PER_SESSION],
            )
        ][::-1]

    def _make_room(self, conn: Connection) -> list[Event]:
        """Give up as many as there are too many. Whoever floods one room takes no place of the others."""
        rooms = Counter(
            dict(
                conn.execute(
                    "SELECT room_id, count(*) FROM undecrypted WHERE account = ? GROUP BY room_id", [self._account]
                ).fetchall()
            )
        )
        told = []
        for _ in range(rooms.total() - PER_ACCOUNT):
            ((room_id, _),) = rooms.most_common(1)
            rooms[room_id] -= 1
            (seq,) = conn.execute(
                "SELECT min(seq) FROM undecrypted WHERE account = ? AND room_id = ?", [self._account, room_id]
            ).fetchone()
            told.append(self._give_up(conn, seq, "too many events wait for their keys"))
        return told

    def _give_up(self, conn: Connection, seq: int, reason: str) -> Event:
        room_id, raw = conn.execute("DELETE FROM undecrypted WHERE seq = ? RETURNING room_id, raw", [seq]).fetchone()
        return undecryptable(self._account, room_id, json.loads(raw), reason, self._clock.now_ms())
