"""Inbound Megolm: the keys to what is said in rooms, how they come here, and what they open.

Specification: Client-Server API, "m.megolm.v1.aes-sha2". Keys are believed only as far as their way here proves: one
that came over a channel is its sender's, one that was forwarded is nobody's for sure.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import attrs

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.answer import Raw, is_id, is_room_id
from armorclaw.matrix.crypto.channels import PASSPHRASE, Letter
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.crypto.olm import InboundGroupSession, OlmError, OlmGroupSessionError

log = get_logger(__name__)

ALGORITHM = "m.megolm.v1.aes-sha2"

VISIBLE = ("rel_type", "event_id", "key", "is_falling_back", "m.in_reply_to")
"""Of a relation what the homeserver needs: the rest is encrypted with all else."""

OPEN_KEYS = 64
"""Keys kept at hand, unpacked: some kilobytes each, and the ratchet stands where it was last."""

WITHHELD = 1000
"""Notes of withheld keys that are kept; the oldest go. Anybody may send them."""

CLAIMS = 10
"""Devices of one user that may call the same key theirs. It is one, unless somebody lies."""

USE_GRAIN_MS = 3600 * 1000
"""How often at most it is written down that a key is used, or waited with."""

MAX_CLOSED = 250_000
"""Sessions known to be closed, some 40 bytes each; of more the oldest are dropped, and then nothing that was
forwarded is taken any more: it may be of one of them."""


@attrs.frozen
class RoomKey:
    """A key at hand. `owner` is whose device made it; None if it was forwarded."""

    number: int
    session_id: str
    sender_key: str
    signing_key: str
    owner: str | None
    session: InboundGroupSession = attrs.field(repr=False, eq=False)


@attrs.frozen
class Opened:
    """What an encrypted event says, and the key that opened it; its sender is not judged yet."""

    type: str
    content: dict[str, Any]
    key: RoomKey
    place: int


class RoomKeys:
    """All keys of one account."""

    def __init__(self, db: CryptoDatabase, clock: Clock) -> None:
        self._db = db
        self._clock = clock
        self._open: OrderedDict[tuple[str, str, str], RoomKey] = OrderedDict()
        db.on_rollback.append(self._open.clear)

    def receive(self, letter: Letter) -> tuple[str, str] | None:
        """Keep the key of an m.room_key; returns room and session if it tells us anything new. Raises OlmError."""
        room_id, session_id, text = _named(letter.content)
        session = InboundGroupSession(text)
        if session.id != session_id:
            raise OlmError("the key is of another session")
        return self._keep(room_id, session, letter.sender_key, letter.signing_key, letter.sender)

    def receive_forwarded(self, content: Mapping[str, Any]) -> tuple[str, str] | None:
        """The same for m.forwarded_room_key. Whether to believe who forwarded it is the caller's to decide."""
        room_id, session_id, text = _named(content)
        sender_key, signing_key = content.get("sender_key"), content.get("sender_claimed_ed25519_key")
        if not isinstance(sender_key, str) or not isinstance(signing_key, str):
            raise OlmError("the forwarded key does not say whose it is")
        first = self._db.one("SELECT min(number) FROM closed")
        if first is not None and first[0] is not None and first[0] > 1:
            raise OlmError("a forwarded key may be one of the many that were deleted")
        session = InboundGroupSession.import_session(text)
        if session.id != session_id:
            raise OlmError("the key is of another session")
        return self._keep(room_id, session, sender_key, signing_key, None)

    def add_own(self, room_id: str, session_key: str, sender_key: str, signing_key: str, owner: str) -> None:
        """A key of our own, to read what we said ourselves."""
        self._keep(room_id, InboundGroupSession(session_key), sender_key, signing_key, owner)

    def _keep(
        self, room_id: str, session: InboundGroupSession, sender_key: str, signing_key: str, owner: str | None
    ) -> tuple[str, str] | None:
        """A key that is there gives way only to one of the same device that reaches further back, or proves more. One
        that was forwarded and leads to it is of the same device.

        Anybody in the room can pass the key on as their own: each word stands beside the others, so that what its
        owner says is nobody else's. Raises OlmError for one that was deleted, or that too many call theirs.
        """
        if self.is_closed(room_id, session.id):
            raise OlmError("the key is one that was used and deleted")
        row = self._db.one(
            "SELECT owner, signing_key, first_index, pickle FROM room_keys "
            "WHERE room_id = ? AND session_id = ? AND sender_key = ?",
            room_id,
            session.id,
            sender_key,
        )
        if row is not None:
            proven = row["owner"] is None and owner is not None
            longer = session.first_known_index < row["first_index"]
            if longer and owner is None and _leads_to(session, row["pickle"], row["first_index"]):
                owner, signing_key = row["owner"], row["signing_key"]
            same = row["owner"] == owner
            if not ((proven and not session.first_known_index > row["first_index"]) or (same and longer)):
                return None
        else:
            sql = "SELECT count(*) FROM room_keys WHERE room_id = ? AND session_id = ? AND owner IS ?"
            claims = self._db.one(sql, room_id, session.id, owner)
            if claims is not None and claims[0] >= CLAIMS:
                raise OlmError("too many devices of the same user call the key theirs")
        self._db.run(
            "INSERT INTO room_keys (room_id, session_id, sender_key, signing_key, owner, first_index, pickle, "
            "received_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (room_id, session_id, sender_key) "
            "DO UPDATE SET signing_key = excluded.signing_key, owner = excluded.owner, "
            "first_index = excluded.first_index, pickle = excluded.pickle",
            room_id,
            session.id,
            sender_key,
            signing_key,
            owner,
            session.first_known_index,
            session.pickle(PASSPHRASE),
            self._clock.now_ms(),
        )
        self._db.run("DELETE FROM withheld WHERE room_id = ? AND session_id = ?", room_id, session.id)
        # what waits is tried with it; if that misses a key still, it is wanted anew
        self._db.run("UPDATE wanted SET since_ms = 0 WHERE room_id = ? AND session_id = ?", room_id, session.id)
        self.put_away(room_id, session.id)
        return room_id, session.id

    def put_away(self, room_id: str, session_id: str) -> None:
        """What is at hand of a session is no longer what is in the file."""
        for place in [each for each in self._open if each[:2] == (room_id, session_id)]:
            del self._open[place]

    def close(self, room_id: str, session_id: str) -> None:
        """From now on nothing of this session is read, and no key of it is taken. Again, it does nothing."""
        self._db.run("INSERT INTO closed (mark) VALUES (?) ON CONFLICT DO NOTHING", _mark(room_id, session_id))
        self._db.run("DELETE FROM closed WHERE number <= (SELECT max(number) FROM closed) - ?", MAX_CLOSED)
        self.put_away(room_id, session_id)

    def is_closed(self, room_id: str, session_id: str) -> bool:
        """Whether this is a session that was closed."""
        return self._db.one("SELECT 1 FROM closed WHERE mark = ?", _mark(room_id, session_id)) is not None

    def waited_with(self, room_id: str, session_id: str) -> None:
        """A message waits for another key of this session, or for what its device is: the keys are not idle."""
        now = self._clock.now_ms()
        self._db.run(
            "UPDATE room_keys SET received_ms = ?1, used_ms = CASE WHEN used_ms IS NOT NULL THEN ?1 END "
            "WHERE room_id = ?2 AND session_id = ?3 AND coalesce(used_ms, received_ms) < ?4",
            now,
            room_id,
            session_id,
            now - USE_GRAIN_MS,
        )

    def withhold(self, sender: str, content: Mapping[str, Any]) -> None:
        """Note what an m.room_key.withheld says. It is anybody's word, so it explains and decides nothing."""
        room_id, session_id, code = (content.get(name) for name in ("room_id", "session_id", "code"))
        if not (is_room_id(room_id) and is_id(session_id) and is_id(code)):
            return
        self._db.run(
            "INSERT INTO withheld VALUES (?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET code = excluded.code, "
            "at_ms = excluded.at_ms",
            room_id,
            session_id,
            sender,
            code,
            self._clock.now_ms(),
        )
        self._db.run(
            "DELETE FROM withheld WHERE (room_id, session_id, sender) IN "
            "(SELECT room_id, session_id, sender FROM withheld ORDER BY at_ms DESC LIMIT -1 OFFSET ?)",
            WITHHELD,
        )

    def get(self, room_id: str, session_id: str, sender: str = "") -> RoomKey | None:
        """A key, for opening what `sender` says, or for passing on. Of several devices that call it theirs it is
        that of the sender, else the one that another device of ours has vouched for, else the first."""
        place = room_id, session_id, sender
        found = self._open.get(place)
        if found is not None:
            self._open.move_to_end(place)
            return found
        if self.is_closed(room_id, session_id):  # its last rows may be there yet
            return None
        row = self._db.one(
            "SELECT number, sender_key, signing_key, owner, pickle FROM room_keys "
            "WHERE room_id = ? AND session_id = ? ORDER BY owner IS ? DESC, owner IS NULL DESC, number",
            *place,
        )
        if row is None:
            return None
        session = InboundGroupSession.from_pickle(row["pickle"], PASSPHRASE)
        found = RoomKey(row["number"], session_id, row["sender_key"], row["signing_key"], row["owner"], session)
        self._open[place] = found
        if len(self._open) > OPEN_KEYS:
            self._open.popitem(last=False)
        return found

    def open(self, room_id: str, raw: Raw) -> Opened:
        """What an m.room.encrypted of a room says. Raises Undecryptable."""
        content = raw.get("content")
        if not isinstance(content, dict) or content.get("algorithm") != ALGORITHM:
            raise Undecryptable("unknown_algorithm")
        ciphertext, session_id = content.get("ciphertext"), content.get("session_id")
        if not isinstance(ciphertext, str) or not is_id(session_id):
            raise Undecryptable("malformed")
        sender = str(raw.get("sender"))
        key = self.get(room_id, session_id, sender)
        if key is None:
            if self.is_closed(room_id, session_id):
                raise Undecryptable("key_deleted", session_id)
            raise Undecryptable(self._why_missing(room_id, session_id, sender), session_id, later=True)
        try:
            plaintext, place = key.session.decrypt(ciphertext)
        except OlmGroupSessionError as error:
            if key.session.is_before(ciphertext):  # somebody may have the key from further back
                raise Undecryptable("no_key", session_id, later=True) from error
            raise Undecryptable("malformed", session_id) from error
        type_, inner = _payload(plaintext, room_id, session_id)
        _relate(inner, content.get("m.relates_to"))
        return Opened(type_, inner, key, place)

    def heard(self, opened: Opened, event_id: str) -> None:
        """Note that this message was accepted as this event. Raises Undecryptable if it was another event before."""
        mark = hashlib.sha256(event_id.encode("utf-8", "surrogatepass")).digest()[:12]
        key, place = opened.key.number, opened.place
        row = self._db.one("SELECT event FROM heard WHERE key = ? AND place = ?", key, place)
        if row is not None and bytes(row[0]) != mark:
            raise Undecryptable("replayed", opened.key.session_id)
        now = self._clock.now_ms()
        # before its first mark, lest a key that has some is ever taken for one that has none
        sql = "UPDATE room_keys SET used_ms = ?1 WHERE number = ?2 AND coalesce(used_ms NOT BETWEEN ?3 AND ?1, 1)"
        self._db.run(sql, now, key, now - USE_GRAIN_MS)
        if row is None:
            self._db.run("INSERT INTO heard VALUES (?, ?, ?)", key, place, mark)

    def _why_missing(self, room_id: str, session_id: str, sender: str) -> str:
        row = self._db.one(
            "SELECT code FROM withheld WHERE room_id = ? AND session_id = ? AND sender = ?",
            room_id,
            session_id,
            sender,
        )
        return "no_key" if row is None else f"withheld:{row[0]}"


def _leads_to(session: InboundGroupSession, pickle: bytes, first: int) -> bool:
    """Whether the key that is there, from `first` on, is a later state of this one: whoever made it made both."""
    known = InboundGroupSession.from_pickle(pickle, PASSPHRASE)
    return session.export_session(first) == known.export_session(first)


def _mark(room_id: str, session_id: str) -> bytes:
    return hashlib.sha256(f"{room_id}\0{session_id}".encode("utf-8", "surrogatepass")).digest()[:12]


def _relate(inner: dict[str, Any], seen: Any) -> None:
    """Of a relation what the homeserver can see is what counts, says the specification; the rest stands inside."""
    said = inner.get("m.relates_to")
    if isinstance(seen, dict):
        rest = said.items() if isinstance(said, dict) else ()
        inner["m.relates_to"] = {name: value for name, value in rest if name not in VISIBLE} | seen
    elif seen is not None:
        inner["m.relates_to"] = seen
    elif isinstance(said, dict):
        del inner["m.relates_to"]


def _named(content: Mapping[str, Any]) -> tuple[str, str, str]:
    room_id, session_id, key = (content.get(name) for name in ("room_id", "session_id", "session_key"))
    if content.get("algorithm") != ALGORITHM:
        raise OlmError("unknown algorithm")
    if not (is_room_id(room_id) and is_id(session_id) and isinstance(key, str)):
        raise OlmError("the key is not complete")
    return room_id, session_id, key


def _payload(plaintext: bytes, room_id: str, session_id: str) -> tuple[str, dict[str, Any]]:
    try:
        told = json.loads(plaintext)
        type_, content, where = told["type"], told["content"], told["room_id"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Undecryptable("malformed", session_id) from error
    if not is_id(type_) or not isinstance(content, dict):
        raise Undecryptable("malformed", session_id)
    if where != room_id:
        raise Undecryptable("mismatch", session_id)
    return type_, content
