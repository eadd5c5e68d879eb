"""What is known of each room of an account: whether we are in it, whether it is encrypted, and what it is called."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Protocol

import attrs

from armorclaw.clock import Clock
from armorclaw.matrix.answer import Answer, Raw, RoomUpdate, is_id, is_room_id, is_state
from armorclaw.store import Connection

_MAX_NAME = 255  # characters; anybody with the power to change it may make it longer

CURRENT_SECONDS = 40.0
"""How long what a sync said of rooms is certain: as long as the next answer may take."""

_VOUCHED = ("m.room.create", "m.room.tombstone")
"""State that gives a room rights of another: never believed from whoever invites."""


@attrs.frozen
class RoomState:
    """`membership` is ours: join, invite or leave. `encrypted` never goes back to false, as the specification says.

    `direct` is with whom it is a direct chat, as `m.direct` or the invite said: never guessed from who is there.
    `listed` tells that it is `m.direct` that says so. `inviter` is there while we are invited. `successor` is the
    room that is said to have replaced this one, `predecessor` the one that this says it has replaced: only both
    together are true. For a room we are not in, all of it is only what was last seen.
    """

    membership: str
    encrypted: bool = False
    direct: str | None = None
    listed: bool = False
    name: str | None = None
    alias: str | None = None
    inviter: str | None = None
    successor: str | None = None
    predecessor: str | None = None


class Knows(Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`: it remembers for good which rooms are encrypted."""

    def knows(self, room_id: str) -> bool: ...
    async def room_state(self, room_id: str, raw: Raw) -> object: ...


class Rooms:
    """The rooms of one account, in memory as in the table `rooms`, which moves together with the sync token."""

    def __init__(self, account: str, clock: Clock | None = None) -> None:
        self._account = account
        self._clock = clock or Clock()
        self._rooms: dict[str, RoomState] = {}
        self._turned: set[str] = set()  # encrypted by news that is perhaps not in the table yet
        self.current_at: float | None = None
        """When the sync last told what happens, by `Clock.boottime`; None while it stands still."""

    def get(self, room_id: str) -> RoomState | None:
        return self._rooms.get(room_id)

    def all(self) -> Mapping[str, RoomState]:
        """Every room that is known, by id."""
        return self._rooms

    def joined(self, room_id: str) -> bool:
        state = self._rooms.get(room_id)
        return state is not None and state.membership == "join"

    def joined_ids(self) -> list[str]:
        return [room_id for room_id, state in self._rooms.items() if state.membership == "join"]

    def encrypted(self, room_id: str) -> bool | None:
        """True if a message there must be encrypted; None if only the homeserver can tell.

        What was known when the sync stood still counts as known; `must_encrypt` is for whoever is about to send.
        """
        state = self._rooms.get(room_id)
        if room_id in self._turned or (state is not None and state.encrypted):
            return True
        return False if state is not None and state.membership == "join" else None

    def must_encrypt(self, room_id: str) -> bool | None:
        """As `encrypted`, but None also while the sync stands still, in which time the room may have changed.

        That nobody said it stands still is not enough: a poll may hang, and the machine may have slept.
        """
        known = self.encrypted(room_id)
        at = self.current_at
        current = at is not None and self._clock.boottime() - at <= CURRENT_SECONDS
        return known if known or current else None

    async def find_out(
        self, room_id: str, encryption: Knows | None, ask: Callable[[], Awaitable[Raw | None]]
    ) -> bool:
        """As `must_encrypt`, but of what is not certain the homeserver is asked: `ask` gives the room's state
        m.room.encryption, None if there is none. A yes is remembered, whatever it says later."""
        known = self.must_encrypt(room_id)
        if not known and encryption is not None and encryption.knows(room_id):
            self.turned_encrypted(room_id)
            return True
        if known is not None:
            return known
        state = await ask()
        if state is None:
            return self.encrypted(room_id) is True  # a sync may have told meanwhile
        self.turned_encrypted(room_id)
        if encryption is not None:
            await encryption.room_state(room_id, {"type": "m.room.encryption", "state_key": "", "content": state})
        return True

    def turned_encrypted(self, room_id: str) -> None:
        """It is encrypted from now on, for this life at least, whatever becomes of the news that said so."""
        self._turned.add(room_id)

    def after(self, answer: Answer, own: str) -> dict[str, RoomState]:
        """How the rooms stand after an answer to /sync, as far as it changes them; `own` is who we are."""
        changes: dict[str, RoomState] = {}
        for update in answer.rooms:
            known = self._rooms.get(update.room_id)
            if (state := _after(update, known, own)) != known:
                changes[update.room_id] = state
        if answer.direct is not None:
            for room_id, known in {**self._rooms, **changes}.items():
                person = answer.direct.get(room_id)
                if person is not None and (person, True) != (known.direct, known.listed):
                    changes[room_id] = attrs.evolve(known, direct=person, listed=True)
                elif person is None and known.listed:
                    changes[room_id] = attrs.evolve(known, direct=None, listed=False)
        return changes

    def load(self, db: Connection) -> dict[str, RoomState]:
        """Read the table; runs in the store. Hand the result to `replace`."""
        query = (
            "SELECT room_id, membership, encrypted, direct, listed, name, alias, inviter, successor, predecessor"
            " FROM rooms WHERE account = ?"
        )
        return {
            room: RoomState(membership, bool(encrypted), direct, bool(listed), *rest)
            for room, membership, encrypted, direct, listed, *rest in db.execute(query, [self._account])
        }

    def save(self, db: Connection, changes: Mapping[str, RoomState]) -> None:
        """Write changes; runs in the store, in the transaction of the sync token."""
        query = (
            "INSERT INTO rooms"
            " (account, room_id, membership, encrypted, direct, listed, name, alias, inviter, successor, predecessor)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (account, room_id)"
            " DO UPDATE SET membership = excluded.membership, encrypted = max(encrypted, excluded.encrypted),"
            " direct = excluded.direct, listed = excluded.listed, name = excluded.name, alias = excluded.alias,"
            " inviter = excluded.inviter, successor = excluded.successor, predecessor = excluded.predecessor"
        )
        db.executemany(query, [(self._account, room, *attrs.astuple(state)) for room, state in changes.items()])

    def replace(self, rooms: Mapping[str, RoomState]) -> None:
        """Forget what was known and take what `load` read; but what turned encrypted stays so, whoever we are now."""
        self._rooms = dict(rooms)
        self.current_at = None

    def apply(self, changes: Mapping[str, RoomState]) -> None:
        """Take changes that `save` has committed."""
        self._rooms.update(changes)


def _after(update: RoomUpdate, known: RoomState | None, own: str) -> RoomState:
    before = known or RoomState(update.membership)
    if update.membership == "invite":
        shown = [raw for raw in update.stripped if raw.get("type") not in _VOUCHED]
        state = _told(attrs.evolve(before, inviter=None), shown)
        for raw in update.stripped:
            if is_state(raw, "m.room.member", own) and is_id(raw.get("sender")):
                direct = _content(raw).get("is_direct") is True
                state = attrs.evolve(state, inviter=raw["sender"])
                if not state.listed:
                    state = attrs.evolve(state, direct=raw["sender"] if direct else None)
    else:
        state = _told(attrs.evolve(before, inviter=None), (*update.state, *update.timeline))
    return attrs.evolve(state, membership=update.membership, encrypted=before.encrypted or update.turns_encrypted)


def _told(state: RoomState, events: Iterable[Raw]) -> RoomState:
    """What these pieces of state say of the room, the last being the newest."""
    for raw in events:
        if is_state(raw, "m.room.name", ""):
            state = attrs.evolve(state, name=_name(_content(raw).get("name")))
        elif is_state(raw, "m.room.canonical_alias", ""):
            alias = _content(raw).get("alias")
            state = attrs.evolve(state, alias=alias if is_id(alias) and alias.startswith("#") else None)
        elif is_state(raw, "m.room.tombstone", ""):
            successor = _content(raw).get("replacement_room")
            state = attrs.evolve(state, successor=successor if is_room_id(successor) else None)
        elif is_state(raw, "m.room.create", ""):
            before = _content(_content(raw), "predecessor").get("room_id")
            state = attrs.evolve(state, predecessor=before if is_room_id(before) else None)
    return state


def _name(value: object) -> str | None:
    """Fit for one line of a terminal."""
    if not isinstance(value, str):
        return None
    return "".join(c if c.isprintable() else " " for c in value[:_MAX_NAME]).strip() or None


def _content(raw: Raw, name: str = "content") -> Raw:
    content = raw.get(name)
    return content if isinstance(content, dict) else {}
