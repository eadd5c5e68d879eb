"""Whose devices we know, and who must be asked for again. Asking may fail: then it is tried later, and said so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio
from mautrix.errors import MatrixRequestError

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.machine import QUERY_USERS, Machine

log = get_logger(__name__)

FIRST_PAUSE_MS, LAST_PAUSE_MS = 60_000, 3_600_000
"""Before a homeserver that did not answer for its users is asked again; doubled each time."""


class DeviceLists:
    """The lists of one account. `touched` is called with each user whose devices may be others now, `known` with each
    whose devices were heard, after that is noted."""

    def __init__(
        self,
        db: CryptoDatabase,
        machine: Machine,
        clock: Clock,
        *,
        touched: Callable[[str], object],
        known: Callable[[str], object],
    ) -> None:
        self._db = db
        self._machine = machine
        self._clock = clock
        self._touched = touched
        self._known = known
        # no mark that is in the file may be given out again
        self._mark = int(db.all("SELECT coalesce(max(mark), 0) FROM outdated")[0][0])
        self._under_way: dict[str, trio.Event] = {}

    def changed(self, users: Iterable[str]) -> None:
        """Somebody's devices changed; of users we do not follow it does not matter."""
        for user in users:
            if self._follows(user):
                self._outdate(user, idle=False)

    def left(self, users: Iterable[str]) -> None:
        """The homeserver will not tell us of these users any more: they are asked for when they matter again."""
        for user in users:
            if self._follows(user):
                self._outdate(user, idle=True)

    def left_all(self) -> None:
        """The same for everybody."""
        self.left(row[0] for row in self._db.all("SELECT user_id FROM crypto_tracked_user"))

    def follow(self, users: Iterable[str]) -> None:
        """Have the devices of these users asked for, if they are not known as they are now."""
        for user in users:
            row = self._db.one("SELECT idle FROM outdated WHERE user_id = ?", user)
            if (row["idle"] if row is not None else not self._follows(user)) and _is_user(user):
                self._outdate(user, idle=False)

    def is_pending(self, user: str) -> bool:
        """Whether what is known of the user's devices is about to be asked for."""
        return not self._follows(user) or self._db.one("SELECT 1 FROM outdated WHERE user_id = ?", user) is not None

    def due(self) -> list[str]:
        """Who is to be asked for now, up to `QUERY_USERS`."""
        sql = "SELECT user_id FROM outdated WHERE idle = 0 AND next_ms <= ? ORDER BY next_ms LIMIT ?"
        return [row[0] for row in self._db.all(sql, self._clock.now_ms(), QUERY_USERS)]

    def next_due_ms(self) -> int | None:
        """When the next is to be asked for (epoch, ms)."""
        row = self._db.one("SELECT min(next_ms) FROM outdated WHERE idle = 0")
        return None if row is None or row[0] is None else int(row[0])

    async def refresh(self, users: Sequence[str]) -> None:
        """Until the devices of all these users are known as they are now, but for homeservers that do not answer.

        Raises MatrixError if our own does not.
        """
        wanted: list[str] = []
        for begin in range(0, len(users), QUERY_USERS):
            part = users[begin : begin + QUERY_USERS]
            self.follow(part)
            wanted += filter(self._is_due, part)
            await trio.lowlevel.checkpoint()
        for begin in range(0, len(wanted), QUERY_USERS):
            part = wanted[begin : begin + QUERY_USERS]
            # others may have asked while we waited for the part before
            if mine := [user for user in part if user not in self._under_way and self._is_due(user)]:
                await self.ask(mine)
        for user in wanted:
            waited = False
            while (others := self._under_way.get(user)) is not None:
                waited = True
                await others.wait()
            if waited and self._is_due(user):  # it came to nothing
                await self.ask([user])

    def are_due(self, users: Iterable[str]) -> bool:
        """Whether `refresh` would ask for any of these users, who were followed before."""
        rows = self._db.all("SELECT user_id FROM outdated WHERE next_ms <= ?", self._clock.now_ms())
        return not {row[0] for row in rows}.isdisjoint(users)

    async def ask(self, users: Sequence[str]) -> None:
        """Ask for up to `QUERY_USERS` users. Raises MatrixError."""
        marks = {user: self._marked(user) for user in users}
        done = trio.Event()
        self._under_way.update(dict.fromkeys(users, done))
        try:
            heard = await self._heard_of(users)
        finally:
            done.set()
            for user in users:
                if self._under_way.get(user) is done:
                    del self._under_way[user]
        with self._db.transaction():
            for user in heard:
                self._db.run("DELETE FROM outdated WHERE user_id = ? AND mark IS ?", user, marks[user])
            for user in marks.keys() - heard:
                self._failed(user)
        for user in heard:
            self._known(user)
        if len(heard) < len(marks):
            missing = sorted(marks.keys() - heard)
            log.warning("homeservers did not answer for devices", users=missing[:10], number=len(missing))

    async def _heard_of(self, users: Sequence[str]) -> set[str]:
        try:
            return await self._machine.query(users)
        except MatrixRequestError as error:
            if error.http_status != 400:
                raise
            if len(users) == 1:
                return set()
            # one name that the homeserver does not like must not hide the others
            half = len(users) // 2
            return await self._heard_of(users[:half]) | await self._heard_of(users[half:])

    def _failed(self, user: str) -> None:
        row = self._db.one("SELECT failures FROM outdated WHERE user_id = ?", user)
        failures = 0 if row is None else int(row[0])
        pause = min(FIRST_PAUSE_MS * 2 ** min(failures, 10), LAST_PAUSE_MS)
        self._db.run(
            "INSERT INTO outdated VALUES (?1, 0, 1, ?2, 0) "
            "ON CONFLICT DO UPDATE SET failures = failures + 1, next_ms = ?2",
            user,
            self._clock.now_ms() + pause,
        )

    def _outdate(self, user: str, *, idle: bool) -> None:
        self._mark += 1
        self._db.run(
            "INSERT INTO outdated VALUES (?1, ?2, 0, ?3, ?4) ON CONFLICT DO UPDATE SET mark = ?2, "
            "next_ms = iif(failures = 0, ?3, next_ms), idle = min(idle, ?4)",
            user,
            self._mark,
            self._clock.now_ms(),
            idle,
        )
        self._touched(user)

    def _follows(self, user: str) -> bool:
        return self._db.one("SELECT 1 FROM crypto_tracked_user WHERE user_id = ?", user) is not None

    def _marked(self, user: str) -> int | None:
        row = self._db.one("SELECT mark FROM outdated WHERE user_id = ?", user)
        return None if row is None else int(row[0])

    def _is_due(self, user: str) -> bool:
        sql = "SELECT 1 FROM outdated WHERE user_id = ? AND next_ms <= ?"
        return self._db.one(sql, user, self._clock.now_ms()) is not None


def _is_user(user: str) -> bool:
    return user.startswith("@") and ":" in user
