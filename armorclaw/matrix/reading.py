"""What stands in timelines made into what the journal takes: who said it, for whom it is, and what it says if it is
encrypted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.guard.policy import BRIDGE
from armorclaw.log import get_logger
from armorclaw.matrix.answer import Echo, Raw, is_id, to_echo, to_event
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.routing.desk import Desk
from armorclaw.matrix.undecrypted import Kept, Settled, Undecrypted, Waiting, undecryptable

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.encryption import Decrypted

log = get_logger(__name__)

ENCRYPTED = "m.room.encrypted"

VERIFICATION = "m.key.verification."
"""How the types of what two devices say to verify each other begin; it may be said in a room."""

REQUEST = "m.key.verification.request"
"""The type of the first of it, or of a message that stands for it in a room."""

OnVerification = Callable[[str, str, str, str, Mapping[str, Any]], object]
"""Told of one such event: room, event id, sender, type, content."""


class Decrypts(Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`."""

    async def decrypt(self, room_id: str, raw: Raw) -> Decrypted: ...


class Outcomes(Protocol):
    """Who keeps account of what could be read; as `SessionStatus`."""

    def decrypted(self) -> object: ...
    def undecryptable(self) -> object: ...


@attrs.frozen
class Sealed:
    """An encrypted event on its way."""

    room_id: str
    raw: Raw


@attrs.frozen
class Late:
    """One that waited, by its number in the table, and is to be tried again."""

    seq: int


Item = Event | Echo | Sealed | Late
Entry = Event | Echo | Waiting | Settled
"""What an item is once it is read: what the store takes."""


class Reader:
    """Reads for one account. `own` is its user id, `encryption` None if it has none: `without` says why.
    `is_encrypted` tells of a room whether it is known to be."""

    def __init__(
        self,
        account: str,
        own: str,
        clock: Clock,
        *,
        desk: Desk,
        outcomes: Outcomes,
        undecrypted: Undecrypted,
        encryption: Decrypts | None,
        without: str = "encryption_off",
        on_verification: OnVerification | None = None,
        is_encrypted: Callable[[str], bool | None] = lambda room_id: None,
    ) -> None:
        self._account = account
        self._own = own
        self._clock = clock
        self._desk = desk
        self._outcomes = outcomes
        self._undecrypted = undecrypted
        self._encryption = encryption
        self._without = without
        self._on_verification = on_verification
        self._is_encrypted = is_encrypted

    @property
    def listens(self) -> bool:
        """Whether there may be something for our device in rooms that are nobody's."""
        return self._on_verification is not None

    def item(self, raw: Raw, room_id: str) -> Item | None:
        """What an event of a timeline is to us, before anybody is asked; None if it is no proper event."""
        if raw.get("sender") == self._own:
            return to_echo(raw, room_id)
        if raw.get("type") == ENCRYPTED and "state_key" not in raw and not _is_redacted(raw):
            return Sealed(room_id, raw)
        return self._event(raw, room_id)

    async def read(self, item: Item) -> Entry | None:
        """What the store is to keep of it; None if it is nobody's. To be called in the order of the timeline.

        Raises what the store raises.
        """
        match item:
            case Event():
                return await self._place_clear(item)
            case Echo():
                self._desk.own(item.event_id, item.txn_id)
                return item
            case Sealed():
                return await self._open(item)
            case Late():
                kept = await self._undecrypted.get(item.seq)
                return None if kept is None else await self._open_kept(kept)

    async def _place_clear(self, event: Event) -> Event | None:
        placed = await self._desk.place(event)
        if placed is None or placed.addressed != (BRIDGE,) or placed.type != "m.room.message":
            return placed
        assert placed.room_id is not None, "what is said, is said in a room"
        if not self._is_encrypted(placed.room_id):
            return placed
        # encrypted it would be known whose it is; in the clear only the homeserver says so
        facts = {"account": self._account, "room": placed.room_id, "event_id": placed.event_id}
        log.warning("order in the clear left out, as the room is encrypted", by=placed.sender, **facts)
        return None

    async def _open(self, sealed: Sealed) -> Entry | None:
        raw, room_id = sealed.raw, sealed.room_id
        if not (is_id(raw.get("event_id")) and is_id(raw.get("sender"))):
            log.warning("malformed event left out", account=self._account, room=room_id)
            return None
        try:
            return await self._decrypted(raw, room_id)
        except Undecryptable as error:
            if not self._desk.hears(room_id, raw["sender"]):
                return None
            if self._encryption is not None:
                self._outcomes.undecryptable()
            waiting = Waiting.of(raw, room_id, error.session_id) if error.later else None
            if waiting is None:
                return self._lost(raw, room_id, error.reason)
            facts = {"account": self._account, "room": room_id, "event_id": waiting.event_id}
            log.info("event waits for its room key", **facts, why=error.reason)
            return waiting

    async def _open_kept(self, kept: Kept) -> Settled | None:
        """None if it is to wait on."""
        raw = kept.event()
        try:
            event = await self._decrypted(raw, kept.room_id)
        except Undecryptable as error:
            if error.later and not kept.last:
                return None
            heard = self._desk.hears(kept.room_id, raw["sender"])
            event = self._lost(raw, kept.room_id, error.reason) if heard else None
        return Settled(kept.room_id, kept.event_id, event)

    async def _decrypted(self, raw: Raw, room_id: str) -> Event | None:
        """The event as if it had come in the clear. Raises Undecryptable."""
        if self._encryption is None:
            raise Undecryptable(self._without)
        found = await self._encryption.decrypt(room_id, raw)
        if found.type.startswith("m.room.") and found.type != "m.room.message":
            # state, redactions and ciphertext are never inside of ciphertext; who trusts the type would be deceived
            raise Undecryptable("malformed", session_id=found.session_id)
        self._outcomes.decrypted()
        event = self._event({**raw, "type": found.type, "content": found.content}, room_id)
        return None if event is None else await self._desk.place(event)

    def _event(self, raw: Raw, room_id: str) -> Event | None:
        if self._on_verification is not None and _verifies(raw):
            self._on_verification(room_id, raw["event_id"], raw["sender"], raw["type"], raw["content"])
            return None
        if not self._desk.covers(room_id):
            return None
        event = to_event(raw, room_id, self._account, self._clock.now_ms())
        if event is None:
            log.warning("malformed event left out", account=self._account, room=room_id)
        elif event.event_id is None:
            log.warning("event too deep to be read left out", account=self._account, room=room_id)
        return event

    def _lost(self, raw: Raw, room_id: str, reason: str) -> Event:
        log.warning(
            "event cannot be decrypted",
            account=self._account,
            room=room_id,
            event_id=raw.get("event_id"),
            why=reason,
        )
        return undecryptable(self._account, room_id, raw, reason, self._clock.now_ms())


def _is_redacted(raw: Raw) -> bool:
    """Whether its content was taken away: then there is nothing left to decrypt."""
    return not raw.get("content")


def _verifies(raw: Raw) -> bool:
    """Whether it is a proper event of a verification, which is for our device and nobody else."""
    type_, content = raw.get("type"), raw.get("content")
    if not (is_id(type_) and is_id(raw.get("event_id")) and is_id(raw.get("sender")) and isinstance(content, dict)):
        return False
    asks = type_ == "m.room.message" and content.get("msgtype") == REQUEST
    return "state_key" not in raw and (asks or type_.startswith(VERIFICATION))
