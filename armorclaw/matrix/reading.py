"""What stands in timelines made into what the journal takes: who said it, for whom it is, and what it says if it is
encrypted."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import attrs

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.log import get_logger
from armorclaw.matrix.answer import Echo, Raw, is_id, to_echo, to_event
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.routing.desk import Desk
from armorclaw.matrix.undecrypted import Kept, Settled, Undecrypted, Waiting, undecryptable

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.encryption import Decrypted

log = get_logger(__name__)

ENCRYPTED = "m.room.encrypted"

REDACTION = "m.room.redaction"
IN_THE_CLEAR = frozenset({REDACTION, "m.reaction"})
"""What is never encrypted: the homeserver must see what a reaction or redaction is about. See the specification,
"Event relationships" and "Redactions"."""

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


@attrs.frozen
class InClear:
    """An event that should be encrypted, as its room is, and is not."""

    event: Event


@attrs.frozen
class Redacted:
    """That an event of the room was taken back, which counts whoever did it. `by` is the redaction itself, as far as
    it is anybody's."""

    room_id: str
    event_id: str
    by: Event | Echo | None


Item = Event | Echo | Sealed | Late | InClear | Redacted
Entry = Event | Echo | Waiting | Settled | Redacted
"""What an item is once it is read: what the store takes."""


class Reader:
    """Reads for one account. `own` is its user id, `encryption` None if it has none: `without` says why.
    `is_encrypted` tells of a room whether it is known to be. Before each answer call `begin`."""

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
        self.desk = desk
        self._outcomes = outcomes
        self.undecrypted = undecrypted
        self._encryption = encryption
        self._without = without
        self._on_verification = on_verification
        self._is_encrypted = is_encrypted
        self._turning: set[str] = set()
        self._fates: dict[tuple[str, str], str | None] = {}  # of this answer: for whose key it waits

    @property
    def listens(self) -> bool:
        """Whether there may be something for our device in rooms that are nobody's."""
        return self._on_verification is not None

    def begin(self, *, turning: Collection[str] = ()) -> None:
        """A new answer: what was read before is in the store, or comes again. In the rooms `turning` somebody has
        switched encryption on since the last one, and what was said before that may be in the clear."""
        self._fates.clear()
        self._turning = set(turning)

    def turned(self, room_id: str) -> None:
        """From here on what comes of this room was said when it was encrypted."""
        self._turning.discard(room_id)

    def item(self, raw: Raw, room_id: str) -> Item | None:
        """What an event of a timeline is to us, before anybody is asked; None if it is no proper event."""
        item = self._item(raw, room_id)
        if (gone := _takes_back(raw)) is not None and not isinstance(item, Sealed | InClear):
            return Redacted(room_id, gone, item)
        return item

    def _item(self, raw: Raw, room_id: str) -> Event | Echo | Sealed | InClear | None:
        if raw.get("sender") == self._own:
            return to_echo(raw, room_id)
        if raw.get("type") == ENCRYPTED and "state_key" not in raw and not _is_redacted(raw):
            return Sealed(room_id, raw)
        event = self._event(raw, room_id)
        if event is not None and _is_secret(raw) and room_id not in self._turning and self._is_encrypted(room_id):
            return InClear(event)
        return event

    async def read(self, item: Item) -> Entry | None:
        """What the store is to keep of it; None if it is nobody's. To be called in the order of the timeline.

        Raises what the store raises.
        """
        entry = await self._read(item)
        match entry:
            case Waiting():
                self._fates[entry.room_id, entry.event_id] = entry.session_id
            case Settled() | Redacted():
                self._fates[entry.room_id, entry.event_id] = None
        return entry

    async def _read(self, item: Item) -> Entry | None:
        match item:
            case Event() | Echo():
                return await self._place(item)
            case InClear():
                return await self.desk.place(item.event, in_clear=True)
            case Redacted():
                return attrs.evolve(item, by=None if item.by is None else await self._place(item.by))
            case Sealed():
                return await self._open(item)
            case Late():
                kept = await self.undecrypted.get(item.seq)
                return None if kept is None else await self._open_kept(kept)

    async def _place(self, item: Event | Echo) -> Event | Echo | None:
        if isinstance(item, Event):
            return await self.desk.place(item)
        self.desk.own(item.event_id, item.txn_id)
        return item

    async def _open(self, sealed: Sealed) -> Entry | None:
        raw, room_id = sealed.raw, sealed.room_id
        if not (is_id(raw.get("event_id")) and is_id(raw.get("sender"))):
            log.warning("malformed event left out", account=self._account, room=room_id)
            return None
        try:
            event = await self._decrypted(raw, room_id)
        except Undecryptable as error:
            if not self.desk.hears(room_id, raw["sender"]):
                return None
            if self._encryption is not None:
                self._outcomes.undecryptable()
            waiting = Waiting.of(raw, room_id, error.session_id) if error.later else None
            if waiting is None:
                return self._lost(raw, room_id, error.reason)
            facts = {"account": self._account, "room": room_id, "event_id": waiting.event_id}
            log.info("event waits for its room key", **facts, why=error.reason)
            return waiting
        if event is None:
            return None
        return await self._behind(event, raw, room_id) or await self.desk.place(event)

    async def _open_kept(self, kept: Kept) -> Settled | Waiting | None:
        """None if it is to wait on."""
        raw = kept.event()
        try:
            event = await self._decrypted(raw, kept.room_id)
        except Undecryptable as error:
            if error.later and not kept.last:
                return None
            heard = self.desk.hears(kept.room_id, raw["sender"])
            event = self._lost(raw, kept.room_id, error.reason) if heard else None
        else:
            if event is not None:
                if not kept.last and (waiting := await self._behind(event, raw, kept.room_id)) is not None:
                    return waiting
                event = await self.desk.place(event)
        return Settled(kept.room_id, kept.event_id, event)

    async def _decrypted(self, raw: Raw, room_id: str) -> Event | None:
        """The event as if it had come in the clear; None if it is nobody's. Raises Undecryptable."""
        if self._encryption is None:
            raise Undecryptable(self._without)
        found = await self._encryption.decrypt(room_id, raw)
        if found.type.startswith("m.room.") and found.type != "m.room.message":
            # state, redactions and ciphertext are never inside of ciphertext; who trusts the type would be deceived
            raise Undecryptable("malformed", session_id=found.session_id)
        self._outcomes.decrypted()
        return self._event({**raw, "type": found.type, "content": found.content}, room_id)

    async def _behind(self, event: Event, raw: Raw, room_id: str) -> Waiting | None:
        """It waits for the key of the one on which it depends whose this one is, if that one waits."""
        root = self.desk.follows(event) if self._fates or self.undecrypted.count else None
        if root is None:
            return None
        known = (room_id, root) in self._fates
        session = self._fates[room_id, root] if known else await self.undecrypted.session_of(room_id, root)
        if session is None:
            return None
        facts = {"account": self._account, "room": room_id, "event_id": event.event_id}
        log.info("event waits for the one that it follows", **facts, follows=root)
        return Waiting.of(raw, room_id, session)

    def _event(self, raw: Raw, room_id: str) -> Event | None:
        if self._on_verification is not None and _verifies(raw):
            self._on_verification(room_id, raw["event_id"], raw["sender"], raw["type"], raw["content"])
            return None
        if not self.desk.covers(room_id):
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


def _is_secret(raw: Raw) -> bool:
    """Whether it would be encrypted in a room that is."""
    return "state_key" not in raw and raw.get("type") not in (*IN_THE_CLEAR, ENCRYPTED)


def _takes_back(raw: Raw) -> str | None:
    """The event that it redacts. Where that stands depends on the version of the room, and homeservers write it into
    both places; if they differ, one of them was never checked by anybody."""
    if raw.get("type") != REDACTION or "state_key" in raw:
        return None
    content = raw.get("content")
    named = (raw.get("redacts"), content.get("redacts") if isinstance(content, dict) else None)
    found = {each for each in named if is_id(each)}
    return found.pop() if len(found) == 1 else None


def _verifies(raw: Raw) -> bool:
    """Whether it is a proper event of a verification, which is for our device and nobody else."""
    type_, content = raw.get("type"), raw.get("content")
    if not (is_id(type_) and is_id(raw.get("event_id")) and is_id(raw.get("sender")) and isinstance(content, dict)):
        return False
    asks = type_ == "m.room.message" and content.get("msgtype") == REQUEST
    return "state_key" not in raw and (asks or type_.startswith(VERIFICATION))
