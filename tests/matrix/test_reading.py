"""What the reader itself decides: the rest is seen through the sync, in test_sync.py."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest
import trio
import trio.testing

from armorclaw.clock import Clock
from armorclaw.config import AccessSection, Respond, Route
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.matrix.intake import Intake
from armorclaw.matrix.portions import put
from armorclaw.matrix.reading import Late, Reader
from armorclaw.matrix.status import KEY_COMES_SECONDS, SessionStatus
from armorclaw.matrix.undecrypted import MAX_AGE_MS, Undecrypted
from tests.matrix.fake_encryption import FakeEncryption, sealed
from tests.matrix.routing.house import ALICE, BOT, House

ROOM = "!r:x"
Raw = dict[str, Any]


class Desk:
    """Keeps all; `clear` is what it was told is in the clear where it should not be."""

    def __init__(self) -> None:
        self.clear: list[str] = []

    def covers(self, room_id: str) -> bool:
        return True

    def hears(self, room_id: str, sender: str) -> bool:
        return True

    def own(self, event_id: str, txn_id: str | None) -> None:
        pass

    def follows(self, event: Event) -> str | None:
        return None

    async def place(self, event: Event, *, in_clear: bool = False) -> Event | None:
        if in_clear:
            self.clear.append(event.type)
        return event


@pytest.mark.mission("S.5")
@pytest.mark.parametrize(
    ("type_", "more", "encrypted", "clear"),
    [
        ("m.room.message", {}, True, True),
        ("org.example.poll", {}, True, True),
        ("m.room.message", {}, False, False),
        ("m.room.message", {}, None, False),
        ("m.reaction", {}, True, False),
        ("m.room.redaction", {"redacts": "$x"}, True, False),
        ("m.room.topic", {"state_key": ""}, True, False),
        ("m.room.encrypted", {"content": {}}, True, False),  # redacted
    ],
)
async def test_what_is_in_the_clear_where_the_room_is_encrypted(
    type_: str, more: dict[str, Any], encrypted: bool | None, clear: bool
) -> None:
    """There a homeserver could put anything into somebody's mouth."""
    unused: Any = None
    desk = Desk()
    reader = Reader(
        "main",
        BOT,
        Clock(),
        desk=desk,
        outcomes=unused,
        undecrypted=unused,
        encryption=None,
        is_encrypted=lambda room_id: encrypted,
    )
    raw = {"type": type_, "sender": ALICE, "event_id": "$e", "content": {"msgtype": "m.text", "body": "x"}, **more}
    for turning, expected in ((), [type_] if clear else []), ((ROOM,), []):
        desk.clear.clear()
        reader.begin(turning=turning)
        item = reader.item(raw, ROOM)
        assert item is not None
        assert await reader.read(item) is not None
        assert desk.clear == expected


# --- what relates to what is not in the store yet ---


class Place:
    """A room of a person and agents that hear only what concerns them, with a store that can be looked at."""

    def __init__(self, respond: Respond = "mention") -> None:
        self.house = House(
            {"echo": [ROOM]},
            access=AccessSection(trusted=(ALICE,)),
            routes=[Route("echo", room=ROOM, respond=respond)],
        )
        self.house.be_in(ROOM)
        db = cast(Any, self.house.db)
        self.encryption = FakeEncryption((ROOM, "here"))
        self.status = SessionStatus("main", "http://x", self.house.clock)
        self.undecrypted = Undecrypted("main", db, self.house.clock)
        self.intake = Intake("main", db, Journal(db, self.house.clock), None, self.undecrypted)
        self.reader = Reader(
            "main",
            BOT,
            self.house.clock,
            desk=self.house.router,
            outcomes=self.status,
            undecrypted=self.undecrypted,
            encryption=cast(Any, self.encryption),
        )

    async def take(self, *raws: Raw) -> None:
        """As of one answer."""
        late = [Late(seq) for seq in await self.undecrypted.candidates()]
        self.reader.begin()
        items = [*late, *(self.reader.item(raw, ROOM) for raw in raws)]
        await put(self.intake, items, (), read=self.reader.read, also=lambda conn: None)
        self.undecrypted.tried()

    async def key(self, session_id: str, *raws: Raw) -> None:
        """It comes, with an answer."""
        self.encryption.keys.add((ROOM, session_id))
        self.undecrypted.keys_came([(ROOM, session_id)])
        await self.take(*raws)

    @property
    def journal(self) -> dict[str, Any]:
        """Whom each event is for, in their order."""
        rows = self.house.db.conn.execute("SELECT coalesce(event_id, type), addressed FROM journal ORDER BY seq")
        return {event_id: None if names is None else json.loads(names) for event_id, names in rows}

    @property
    def waiting(self) -> list[str]:
        rows = self.house.db.conn.execute("SELECT event_id FROM undecrypted ORDER BY seq")
        return [event_id for (event_id,) in rows]


def said(event_id: str, body: str = "and?", *mentions: str, **more: Any) -> Raw:
    content = {"msgtype": "m.text", "body": body, "m.mentions": {"user_ids": list(mentions)}, **more}
    return {"type": "m.room.message", "sender": ALICE, "event_id": event_id, "content": content}


def secretly(raw: Raw, session_id: str) -> Raw:
    return {**raw, "type": "m.room.encrypted", "content": sealed(raw["type"], raw["content"], session_id)}


def related(event_id: str, rel_type: str, root: str, *mentions: str) -> Raw:
    return said(event_id, "and?", *mentions, **{"m.relates_to": {"rel_type": rel_type, "event_id": root}})


def redaction(of: str, **more: Any) -> Raw:
    raw = {"type": "m.room.redaction", "sender": ALICE, "event_id": f"{of}-r", "content": {"redacts": of}}
    return {**raw, **more}


CONVERSATION = [
    said("$root", "hi", BOT),
    related("$thread", "m.thread", "$root"),
    related("$edit", "m.replace", "$root"),
    redaction("$root"),
]


@pytest.mark.parametrize("session", [None, "here"], ids=["clear", "encrypted"])
@pytest.mark.parametrize("together", [True, False])
async def test_a_conversation_in_one_answer_is_heard_like_one_in_many(together: bool, session: str | None) -> None:
    place = Place()
    *said_first, taken_back = CONVERSATION
    raws = [raw if session is None else secretly(raw, session) for raw in said_first] + [taken_back]
    for group in [raws] if together else [[raw] for raw in raws]:
        await place.take(*group)
    assert place.journal == {name: ["echo"] for name in ("$root", "$thread", "$edit", "$root-r")}


@pytest.mark.parametrize("together", [True, False])
async def test_what_follows_one_that_waits_for_its_key_waits_too(together: bool) -> None:
    place = Place()
    raws = [
        secretly(said("$root", "hi", BOT), "late"),
        secretly(related("$thread", "m.thread", "$root"), "here"),
        secretly(related("$edit", "m.replace", "$thread"), "here"),
        secretly(related("$other", "m.thread", "$unknown"), "here"),
    ]
    for group in [raws] if together else [[raw] for raw in raws]:
        await place.take(*group)
    assert (place.journal, place.waiting) == ({}, ["$root", "$thread", "$edit"])
    # with the key, in one answer, comes what need not wait any more
    await place.key("late", secretly(related("$next", "m.thread", "$root"), "here"))
    assert place.journal == {name: ["echo"] for name in ("$root", "$thread", "$edit", "$next")}
    assert list(place.journal) == ["$root", "$thread", "$edit", "$next"]
    assert place.waiting == []


async def test_an_account_that_reads_again_is_no_longer_deaf(autojump_clock: trio.testing.MockClock) -> None:
    place, deaf = Place(), []
    for wait, *raws in (
        (KEY_COMES_SECONDS + 1, secretly(said("$a", "hi", BOT), "late")),
        (0, said("$clear", "hi", BOT)),  # read without keys
        (0, secretly(said("$b", "hi", BOT), "here")),
        (KEY_COMES_SECONDS + 1, secretly(said("$c", "hi", BOT), "late")),
    ):
        await place.take(*raws)
        await trio.sleep(wait)
        deaf.append(place.status.deaf)
    await place.key("late")
    assert [*deaf, place.status.deaf] == [True, True, False, True, False]


async def test_what_follows_waits_for_both_keys_in_whatever_order_they_come() -> None:
    place = Place()
    await place.take(secretly(said("$root", "hi", BOT), "late"))
    await place.take(secretly(related("$thread", "m.thread", "$root"), "other"))
    await place.key("other")
    assert (place.journal, place.waiting) == ({}, ["$root", "$thread"])
    await place.key("late")
    assert place.journal == {"$root": ["echo"], "$thread": ["echo"]}


async def test_what_is_heard_anyhow_or_of_a_stranger_waits_for_nobody() -> None:
    place = Place()
    stranger = {**related("$stranger", "m.thread", "$root"), "sender": "@mallory:evil"}
    await place.take(
        secretly(said("$root", "hi", BOT), "late"),
        secretly(related("$asks", "m.thread", "$root", BOT), "here"),
        secretly(stranger, "here"),
    )
    assert (place.journal, place.waiting) == ({"$asks": ["echo"]}, ["$root"])
    everything = Place("always")
    await everything.take(
        secretly(said("$root"), "late"),
        secretly(related("$thread", "m.thread", "$root"), "here"),
    )
    assert (everything.journal, everything.waiting) == ({"$thread": None}, ["$root"])


async def test_what_follows_one_that_is_given_up_is_decided_without_it() -> None:
    place = Place()
    await place.take(secretly(said("$root", "hi", BOT), "late"), secretly(CONVERSATION[1], "here"))
    place.house.wall += MAX_AGE_MS / 1000
    await place.take()
    assert (place.journal, place.waiting) == ({"matrix.undecryptable": None}, [])


async def test_those_that_follow_each_other_do_not_wait_for_ever() -> None:
    place = Place()
    raws = [related("$a", "m.thread", "$b"), related("$b", "m.thread", "$a")]
    await place.take(*(secretly(raw, "late") for raw in raws))
    await place.key("late")
    assert place.waiting == ["$a", "$b"]
    place.house.wall += MAX_AGE_MS / 1000
    await place.take()
    assert (place.journal, place.waiting) == ({}, [])


# --- what is taken back ---


@pytest.mark.parametrize("who", [ALICE, BOT, "@moderator:x"])
async def test_what_is_taken_back_by_anybody_waits_no_longer(who: str) -> None:
    """Though the redaction itself may be for nobody: the message was for no agent as yet, or who took it back is none
    that is heard."""
    place = Place()
    await place.take(
        secretly(said("$a", "hi", BOT), "late"), redaction("$a", sender=who), secretly(said("$b", "hi", BOT), "late")
    )
    assert place.waiting == ["$b"]
    await place.take(redaction("$b", sender=who))
    assert place.waiting == []
    await place.key("late")
    assert place.journal == {}


async def test_what_is_taken_back_in_the_answer_that_brings_its_key_is_not_heard() -> None:
    place = Place()
    await place.take(secretly(said("$a", "hi", BOT), "late"), secretly(said("$b", "hi", BOT), "late"))
    await place.key("late", redaction("$a", sender="@moderator:x"))
    assert place.journal == {"$b": ["echo"]}


@pytest.mark.parametrize(
    "more",
    [
        {"redacts": "$other"},  # one of them was checked by the homeserver, and which that is, depends on the room
        {"content": {}},
        {"content": {"redacts": 5}},
        {"content": None},
        {"state_key": ""},
    ],
    ids=["two", "none", "number", "no content", "state"],
)
async def test_what_takes_nothing_back(more: Raw) -> None:
    place = Place()
    await place.take(secretly(said("$a", "hi", BOT), "late"), redaction("$a", **more))
    assert place.waiting == ["$a"]


async def test_redactions_of_older_rooms() -> None:
    place = Place()
    await place.take(secretly(said("$a", "hi", BOT), "late"), redaction("$a", content={}, redacts="$a"))
    assert place.waiting == []


async def test_rooms_do_not_take_back_for_each_other() -> None:
    place = Place()
    await place.take(secretly(said("$a", "hi", BOT), "late"))
    item = place.reader.item(redaction("$a"), "!else:x")
    await put(place.intake, [item], (), read=place.reader.read, also=lambda conn: None)
    assert place.waiting == ["$a"]
