"""Who is in encrypted rooms, as far as that matters for keys: asked for once, then followed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs
from mautrix.api import Method, Path
from mautrix.errors import MatrixResponseError

from armorclaw.delivery.transport import Delayed
from armorclaw.matrix.answer import Raw, events_in, is_id
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.room_keys import ALGORITHM

WEEK_MS, MESSAGES = 7 * 24 * 3600 * 1000, 100
"""How long, and for how many messages, a key is used where the room does not say: the specification's figures."""

MIN_PERIOD_MS, MAX_MESSAGES = 3600 * 1000, 10_000
"""Less than an hour a room may not ask for, nor for more messages: it would cost every device a message each."""

QUESTIONS = 3
"""How often it is asked who is in a room, if each time something is missed before the answer comes."""

_PRESENT = ("join", "invite")


@attrs.frozen
class Rules:
    """How a room wants to be encrypted."""

    algorithm: str
    period_ms: int
    messages: int


@attrs.define
class _Meanwhile:
    """What the sync tells while it is asked who is in a room: the answer may be older."""

    members: dict[str, str] = attrs.field(factory=dict)
    invited: int | None = None
    missed: bool = False
    """Whether there is also what it does not tell."""


class Roster:
    """The rooms of one account. Where nothing is known yet, `complete` asks."""

    def __init__(self, client: MatrixClient, db: CryptoDatabase) -> None:
        self._client = client
        self._db = db
        self._asking: dict[str, _Meanwhile] = {}
        self._versions: Counter[str] = Counter()

    def version(self, room_id: str) -> int:
        """Counts up whenever it may have changed who may read a room."""
        return self._versions[room_id]

    def touch(self, user_id: str) -> None:
        """Something is different with a user, in all their rooms."""
        self._versions.update(
            row[0] for row in self._db.all("SELECT room_id FROM members WHERE user_id = ?", user_id)
        )

    def note(self, room_id: str, raw: Raw) -> None:
        """Follow an event of a room's state, in the order of the room."""
        type_, key, content = raw.get("type"), raw.get("state_key"), raw.get("content")
        if not isinstance(content, dict):
            return
        if type_ == "m.room.encryption" and key == "":
            self._note_encryption(room_id, content)
        elif type_ == "m.room.member" and is_id(key):
            self._note_member(room_id, key, str(content.get("membership")))
        elif type_ == "m.room.history_visibility" and key == "":
            self._note_visibility(room_id, _invited_read(content))

    def forget(self, room_id: str) -> None:
        """Something may have been missed: who is there is asked for anew."""
        self._reopen(room_id)
        self._versions[room_id] += 1

    def forget_all(self) -> None:
        """The same for all rooms."""
        for row in self._db.all("SELECT room_id FROM rooms"):
            self.forget(row[0])

    def rules(self, room_id: str) -> Rules | None:
        """How the room wants to be encrypted; None if that is not known."""
        sql = "SELECT algorithm, period_ms, period_messages FROM rooms WHERE room_id = ?"
        row = self._db.one(sql, room_id)
        if row is None:
            return None
        period, messages = row["period_ms"], row["period_messages"]
        return Rules(
            row["algorithm"],
            WEEK_MS if period is None else max(period, MIN_PERIOD_MS),
            MESSAGES if messages is None else min(max(messages, 1), MAX_MESSAGES),
        )

    def readers(self, room_id: str) -> list[str]:
        """Who may read what is said in a room from now on; after `complete`."""
        sql = (
            "SELECT user_id FROM members JOIN rooms USING (room_id) WHERE room_id = ? "
            "AND (membership = 'join' OR invited = 1) ORDER BY user_id"
        )
        return [row[0] for row in self._db.all(sql, room_id)]

    async def complete(self, room_id: str) -> None:
        """Until it is known how the room is encrypted and who is in it; at once if it is.

        One at a time for each room. Raises MatrixError, and Delayed if something is missed again and again.
        """
        if self.rules(room_id) is None:
            state = await self._client.state(room_id, "m.room.encryption", "")
            if self.rules(room_id) is None:  # a room that was encrypted once stays so, whatever it says now
                self._note_encryption(room_id, state or {"algorithm": ALGORITHM})
        for _ in range(QUESTIONS):
            if self._is_complete(room_id):
                return
            await self._ask(room_id)
        if not self._is_complete(room_id):
            raise Delayed(None, "each time it is asked who is in the room, something of it is missed", sure=True)

    def _is_complete(self, room_id: str) -> bool:
        row = self._db.one("SELECT complete FROM rooms WHERE room_id = ?", room_id)
        return row is not None and bool(row["complete"])

    async def _ask(self, room_id: str) -> None:
        """Who is in the room, if nothing is missed while we ask."""
        meanwhile = self._asking[room_id] = _Meanwhile()
        try:
            visibility = await self._client.state(room_id, "m.room.history_visibility", "")
            path = Path.v3.rooms[room_id].members
            answer = await self._client.api.request(Method.GET, path, query_params={"not_membership": "leave"})
        finally:
            del self._asking[room_id]
        if not isinstance(answer.get("chunk"), list):
            raise MatrixResponseError("the answer about members has none")
        if meanwhile.missed:
            return
        members = dict(filter(None, map(_membership, events_in(answer["chunk"])))) | meanwhile.members
        invited = _invited_read(visibility or {}) if meanwhile.invited is None else meanwhile.invited
        with self._db.transaction():
            self._db.run("DELETE FROM members WHERE room_id = ?", room_id)
            rows = ((room_id, user, state) for user, state in members.items() if state in _PRESENT)
            self._db.run_many("INSERT INTO members VALUES (?, ?, ?)", rows)
            self._db.run("UPDATE rooms SET complete = 1, invited = ? WHERE room_id = ?", invited, room_id)
        self._versions[room_id] += 1

    def _reopen(self, room_id: str) -> None:
        if room_id in self._asking:
            self._asking[room_id].missed = True
        self._db.run("UPDATE rooms SET complete = 0 WHERE room_id = ?", room_id)

    def _note_visibility(self, room_id: str, invited: int) -> None:
        if room_id in self._asking:
            self._asking[room_id].invited = invited
        self._db.run("UPDATE rooms SET invited = ? WHERE room_id = ?", invited, room_id)
        self._versions[room_id] += 1

    def _note_encryption(self, room_id: str, content: Mapping[str, Any]) -> None:
        algorithm = content.get("algorithm")
        self._db.run(
            "INSERT INTO rooms VALUES (?, ?, ?, ?, 0, 0) ON CONFLICT DO UPDATE SET algorithm = excluded.algorithm, "
            "period_ms = excluded.period_ms, period_messages = excluded.period_messages",
            room_id,
            algorithm if isinstance(algorithm, str) else "",
            _count(content.get("rotation_period_ms")),
            _count(content.get("rotation_period_msgs")),
        )
        self._versions[room_id] += 1

    def _note_member(self, room_id: str, user: str, membership: str) -> None:
        if room_id in self._asking:
            self._asking[room_id].members[user] = membership
        if membership in _PRESENT:
            changed = self._db.run(
                "INSERT INTO members SELECT ?, ?, ? WHERE EXISTS "
                "(SELECT 1 FROM rooms WHERE room_id = ?1 AND complete = 1) "
                "ON CONFLICT DO UPDATE SET membership = excluded.membership WHERE membership != excluded.membership",
                room_id,
                user,
                membership,
            ).rowcount
        else:
            changed = self._db.run("DELETE FROM members WHERE room_id = ? AND user_id = ?", room_id, user).rowcount
            if user == str(self._client.mxid):
                self._reopen(room_id)  # of what is said there from now on we are told nothing
        if changed:
            self._versions[room_id] += 1


def _membership(raw: Raw) -> tuple[str, str] | None:
    user, content = raw.get("state_key"), raw.get("content")
    if raw.get("type") != "m.room.member" or not is_id(user) or not isinstance(content, dict):
        return None
    return user, str(content.get("membership"))


def _invited_read(visibility: Mapping[str, Any]) -> int:
    """Whether who is invited will read what is said before they join; `shared` is what rooms without a word have."""
    return int(visibility.get("history_visibility", "shared") != "joined")


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < 2**53 else None
