"""What a homeserver answers to /sync, read without trusting it. Pure: no I/O, no clock.

Specification: Client-Server API, "Syncing". Whatever has not the expected shape is left out, never an exception; the
one thing that must be there is `next_batch`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import attrs

from armorclaw.events.event import FOREIGN, Event, ascii_json, is_own
from armorclaw.rpc.framing import MAX_DEPTH, is_shallow

_MAX_ID = 255  # bytes of an identifier, says the specification
DEPTH_LIMIT = MAX_DEPTH - 8
"""Brackets open at once in an event's content. What carries it to a client has up to five more around it."""

_MAX_TIMESTAMP = 2**53  # milliseconds; what JSON readers everywhere can hold exactly


Raw = Mapping[str, Any]


class BadAnswerError(ValueError):
    """An answer that cannot be used at all."""


@attrs.frozen
class Echo:
    """An event of our own that came back. `txn_id` is there if it was sent by this very device."""

    room_id: str
    event_id: str
    txn_id: str | None


@attrs.frozen
class Receipt:
    """That `reader` has read the main timeline of a room up to this event.

    One that is for a thread alone is none: it says nothing of what stands outside that thread.
    """

    room_id: str
    event_id: str
    reader: str


@attrs.frozen
class RoomUpdate:
    """One room's part. `timeline` is in order; `limited` means that events before it are missing.

    `stripped` is what an invite shows of the room's state: the word of whoever invites, and not to be relied on.
    """

    room_id: str
    membership: str
    state: Sequence[Raw] = ()
    timeline: Sequence[Raw] = ()
    limited: bool = False
    prev_batch: str | None = None
    receipts: Sequence[Receipt] = ()
    stripped: Sequence[Raw] = ()

    @property
    def turns_encrypted(self) -> bool:
        """Whether the room's state now says it is encrypted; whatever algorithm is named."""
        return any(is_state(raw, "m.room.encryption", "") for part in (self.state, self.timeline) for raw in part)


@attrs.frozen
class DeviceLists:
    """Whose devices have `changed`, and who has `left`: no room in common is encrypted any more."""

    changed: Sequence[str] = ()
    left: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.changed or self.left)


@attrs.frozen
class Answer:
    """One answer to /sync. What stands as None was not told: it is as it was before."""

    next_batch: str
    rooms: Sequence[RoomUpdate] = ()
    to_device: Sequence[Raw] = ()
    device_lists: DeviceLists = DeviceLists()
    one_time_keys: Mapping[str, int] | None = None
    """How many of ours the homeserver has left, by algorithm; one that is not named has none left."""
    fallback_keys: Sequence[str] | None = None
    """Algorithms of which our fallback key is still unused."""
    direct: Mapping[str, str] | None = None
    """Room to person, by `m.direct`: all there are."""

    @property
    def empty(self) -> bool:
        """Whether nothing happened."""
        return not (self.to_device or self.device_lists or self.direct is not None) and not any(
            room.state or room.timeline or room.limited or room.receipts or room.membership != "join"
            for room in self.rooms
        )


def read_answer(data: object) -> Answer:
    """Raises BadAnswerError without a usable `next_batch`."""
    whole = _table(data)
    token = whole.get("next_batch")
    if not isinstance(token, str) or not token:
        raise BadAnswerError("the answer to /sync has no next_batch")
    lists = _table(whole.get("device_lists"))
    return Answer(
        token,
        list(_rooms(_table(whole.get("rooms")))),
        events_in(_table(whole.get("to_device")).get("events")),
        DeviceLists(_ids(lists.get("changed")), _ids(lists.get("left"))),
        _counts(whole.get("device_one_time_keys_count")),
        _ids(unused) if isinstance(unused := whole.get("device_unused_fallback_key_types"), list) else None,
        _direct(_table(whole.get("account_data")).get("events")),
    )


def _ids(value: object) -> list[str]:
    return [each for each in value if is_id(each)] if isinstance(value, list) else []


def _counts(value: object) -> Mapping[str, int] | None:
    if not isinstance(value, dict):
        return None
    return {name: max(count, 0) for name, count in value.items() if type(count) is int}


def _direct(events: object) -> Mapping[str, str] | None:
    """A room that is listed with two people is with the first of them."""
    direct: dict[str, str] | None = None
    for raw in events_in(events):
        if raw.get("type") == "m.direct":
            direct = {}
            for person, rooms in _table(raw.get("content")).items():
                for room_id in filter(is_room_id, rooms if isinstance(rooms, list) else ()):
                    if is_id(person):
                        direct.setdefault(room_id, person)
    return direct


def _rooms(sections: Raw) -> Iterator[RoomUpdate]:
    for section in ("join", "leave"):
        for room_id, value in _table(sections.get(section)).items():
            if not is_room_id(room_id):
                continue
            room = _table(value)
            timeline = _table(room.get("timeline"))
            prev_batch = timeline.get("prev_batch")
            yield RoomUpdate(
                room_id,
                section,
                events_in(_table(room.get("state")).get("events")),
                events_in(timeline.get("events")),
                timeline.get("limited") is True,
                prev_batch if isinstance(prev_batch, str) else None,
                list(_receipts(room_id, _table(room.get("ephemeral")).get("events"))),
            )
    for room_id, value in _table(sections.get("invite")).items():
        if is_room_id(room_id):
            stripped = events_in(_table(_table(value).get("invite_state")).get("events"))
            yield RoomUpdate(room_id, "invite", stripped=stripped)


def _receipts(room_id: str, events: object) -> Iterator[Receipt]:
    for raw in events_in(events):
        if raw.get("type") != "m.receipt":
            continue
        for event_id, kinds in _table(raw.get("content")).items():
            for reader, facts in _table(_table(kinds).get("m.read")).items():
                of_all = _table(facts).get("thread_id") in (None, "main")
                if of_all and is_id(event_id) and is_id(reader):
                    yield Receipt(room_id, event_id, reader)


def events_in(value: object) -> list[Raw]:
    """The objects of a list, in order; what is no object is left out."""
    return [raw for raw in value if isinstance(raw, dict)] if isinstance(value, list) else []


def own_join(raw: Raw, user_id: str) -> bool:
    """Whether this event is our own joining."""
    return is_state(raw, "m.room.member", user_id) and _table(raw.get("content")).get("membership") == "join"


def after_own_join(timeline: Sequence[Raw], user_id: str) -> Sequence[Raw] | None:
    """What happened since we last joined; None if our joining is not in here."""
    for place in range(len(timeline) - 1, -1, -1):
        if own_join(timeline[place], user_id):
            return timeline[place + 1 :]
    return None


def to_echo(raw: Raw, room_id: str) -> Echo | None:
    """The echo of a message of ours; None if it is no proper event, or one of state: those are never messages."""
    event_id, txn_id = raw.get("event_id"), _table(raw.get("unsigned")).get("transaction_id")
    if not is_id(event_id) or "state_key" in raw:
        return None
    return Echo(room_id, event_id, txn_id if is_id(txn_id) else None)


def to_event(raw: Raw, room_id: str, account: str, now_ms: int) -> Event | None:
    """The event as the journal takes it, or None if it is no proper event. `now_ms` stands in for a wrong time.

    One whose type is a name of the bridge's own events (`is_own`) has `matrix.` before it: `alert` is `matrix.alert`
    in the journal, so that nobody takes what a member of a room says for a word of the bridge. In place of one whose
    content is deeper than `DEPTH_LIMIT`, which no client could read, stands an event of type `gap` that names it.
    """
    type_, sender, event_id, content = (raw.get(name) for name in ("type", "sender", "event_id", "content"))
    if not (is_id(type_) and is_id(sender) and is_id(event_id) and isinstance(content, dict)):
        return None
    if type_ == "m.room.redaction" and "redacts" not in content and is_id(raw.get("redacts")):
        content = {**content, "redacts": raw["redacts"]}  # where room versions from 11 on have it
    at_ms = raw.get("origin_server_ts")
    if type(at_ms) is not int or not 0 <= at_ms < _MAX_TIMESTAMP:
        at_ms = now_ms
    where: dict[str, Any] = {"id": f"{account}/{event_id}", "account": account, "room_id": room_id}
    try:
        text = ascii_json(content)
        if is_shallow(text, DEPTH_LIMIT):
            kind = FOREIGN + type_ if is_own(type_) else type_
            return Event(kind, text, at_ms, **where, sender=sender, event_id=event_id)
    except RecursionError:
        pass
    except ValueError:  # infinite numbers, too large
        return None
    why = f"its content is nested deeper than {DEPTH_LIMIT}"
    left_out = {"room_id": room_id, "reason": why, "event_id": event_id, "sender": sender}
    return Event.make("gap", left_out, at_ms=at_ms, **where, severity="warning")


def is_room_id(text: object) -> TypeGuard[str]:
    """Whether `text` may be a room id: an opaque word after a `!`. Newer rooms have no server part."""
    return is_id(text) and text.startswith("!") and len(text) > 1 and text.isprintable() and " " not in text


def is_id(value: object) -> TypeGuard[str]:
    """Whether `value` may be an identifier, or the type of an event, as far as its length goes."""
    return isinstance(value, str) and 0 < len(value) <= _MAX_ID


def is_state(raw: Raw, type_: str, state_key: str) -> bool:
    """Whether this event is that piece of a room's state."""
    return raw.get("type") == type_ and raw.get("state_key") == state_key


def _table(value: object) -> Raw:
    return value if isinstance(value, dict) else {}
