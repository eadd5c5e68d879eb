"""Events that wait for their keys: their bounds, their order, and who is given up for whom."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.matrix import undecrypted
from armorclaw.matrix.undecrypted import MAX_AGE_MS, Undecrypted, Waiting, undecryptable
from tests.events.inline_store import InlineDatabase

ROOM, OTHER = "!a:x", "!b:x"


class Shelf:
    """The waiting events of an account on a clock of its own."""

    def __init__(self) -> None:
        self.now = 1.7e9
        self.db = InlineDatabase()
        db: Any = self.db
        self.conn: Any = self.db.conn
        self.clock = Clock(wall=lambda: self.now)
        self.events = Undecrypted("main", db, self.clock)

    def keep(self, *waiting: Waiting) -> list[dict[str, Any]]:
        """What is told of those that are given up."""
        told = self.events.keep(self.conn, waiting)
        self.events.noted(self.events.look(self.conn))
        return [event.plain()["content"] for event in told]

    async def ids(self, *sessions: tuple[str, str]) -> list[str]:
        """Event ids of those to be tried when the keys of some sessions come; of all, when any may have come."""
        db: Any = self.db
        events = Undecrypted("main", db, self.clock)
        await events.load()
        if sessions:
            await events.candidates()
            events.tried()
            assert events.keys_came(sessions) is (events.count > 0)
        numbers = await events.candidates()
        return [kept.event_id for seq in numbers if (kept := await self.events.get(seq)) is not None]


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    made = Shelf()
    yield made
    made.db.close()


def raw(event_id: str, **more: Any) -> dict[str, Any]:
    content = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "…", "session_id": "s"}
    return {"type": "m.room.encrypted", "sender": "@ann:x", "event_id": event_id, "content": content, **more}


def waiting(event_id: str, room_id: str = ROOM, session_id: str = "s") -> Waiting:
    made = Waiting.of(raw(event_id), room_id, session_id)
    assert made is not None
    return made


async def test_kept_in_order_and_found_by_session(shelf: Shelf) -> None:
    assert shelf.keep(waiting("$2"), waiting("$1"), waiting("$3", OTHER), waiting("$4", session_id="t")) == []
    assert await shelf.ids() == ["$2", "$1", "$3", "$4"]
    assert await shelf.ids((ROOM, "s")) == ["$2", "$1"]
    assert await shelf.ids((ROOM, "t"), (OTHER, "s"), ("!none:x", "s")) == ["$3", "$4"]
    assert shelf.events.count == 4


async def test_one_that_comes_twice_waits_once_and_since_the_first_time(shelf: Shelf) -> None:
    shelf.keep(waiting("$1"))
    shelf.now += 60
    shelf.keep(waiting("$1"))
    assert shelf.events.count == 1
    assert shelf.events.oldest_ms == 1_700_000_000_000


async def test_what_is_kept_is_the_event_and_nothing_else_that_the_homeserver_said(shelf: Shelf) -> None:
    made = Waiting.of(raw("$1", unsigned={"age": 5}, origin_server_ts=7, room_id="!odd:x"), ROOM, "s")
    assert made is not None
    shelf.keep(made)
    kept = await shelf.events.get(1)
    assert kept is not None
    assert kept.event() == raw("$1", origin_server_ts=7)
    assert (kept.room_id, kept.session_id, kept.last) == (ROOM, "s", False)


@pytest.mark.parametrize(
    "event, session_id",
    [
        (raw("$1", content={"ciphertext": "x" * undecrypted.RAW_LIMIT}), "s"),
        (raw("$1", content={"depth": float("inf")}), "s"),
        (raw("$1"), ""),
        (raw("$1"), "s" * 300),
        (raw("x" * 300), "s"),
        ({"content": {}}, "s"),
    ],
    ids=["large", "infinite", "no session", "long session", "long id", "no event"],
)
def test_what_is_not_kept(event: dict[str, Any], session_id: str) -> None:
    assert Waiting.of(event, ROOM, session_id) is None


async def test_of_one_session_the_oldest_are_given_up(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecrypted, "PER_SESSION", 3)
    shelf.keep(*(waiting(f"${n}") for n in range(3)), waiting("$other", session_id="t"))
    (told, again) = shelf.keep(waiting("$3"), waiting("$4"))
    assert (told["event_id"], again["event_id"]) == ("$0", "$1")
    assert "session" in told["reason"]
    assert (told["room_id"], told["sender"]) == (ROOM, "@ann:x")
    assert await shelf.ids() == ["$2", "$other", "$3", "$4"]


async def test_whoever_floods_one_room_takes_no_place_of_another(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undecrypted, "PER_ACCOUNT", 5)
    shelf.keep(waiting("$mine", OTHER))
    told = shelf.keep(*(waiting(f"${n}", session_id=f"s{n}") for n in range(10)))
    assert [each["event_id"] for each in told] == [f"${n}" for n in range(6)]
    assert await shelf.ids() == ["$mine", "$6", "$7", "$8", "$9"]
    assert shelf.events.count == 5


async def test_accounts_do_not_count_for_each_other(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(undecrypted, "PER_ACCOUNT", 1)
    db: Any = shelf.db
    second = Undecrypted("second", db, Clock())
    second.keep(shelf.conn, [waiting("$1")])
    assert shelf.keep(waiting("$1")) == []
    await second.load()
    assert await second.candidates() == [1]
    assert await shelf.events.candidates() == [2]


async def test_the_day_is_over(shelf: Shelf) -> None:
    shelf.keep(waiting("$1"))
    shelf.events.tried()
    shelf.now += MAX_AGE_MS / 1000 - 1
    shelf.keep(waiting("$2"))
    before = shelf.events.any_due
    assert await shelf.events.candidates() == []
    shelf.now += 1
    assert (before, shelf.events.any_due) == (False, True)
    assert await shelf.events.candidates() == [1]
    kept = await shelf.events.get(1)
    assert kept is not None
    assert kept.last
    assert shelf.events.drop(shelf.conn, ROOM, "$1")
    assert not shelf.events.drop(shelf.conn, ROOM, "$1")
    await shelf.events.load()
    assert not shelf.events.any_due
    assert shelf.events.count == 1


@pytest.mark.parametrize("first", [True, False], ids=["as it starts", "later"])
async def test_a_key_that_comes_again_while_it_is_tried_is_tried_again(shelf: Shelf, first: bool) -> None:
    """It may have come without what says whose it is, which is told by its coming again."""
    shelf.keep(waiting("$1"), waiting("$2", OTHER))
    if not first:
        await shelf.events.candidates()
        shelf.events.tried()
        shelf.events.keys_came([(ROOM, "s")])
    assert await shelf.events.candidates() == ([1, 2] if first else [1])
    assert shelf.events.keys_came([(ROOM, "s")])
    shelf.events.tried()
    hopeful = [shelf.events.hopeful]
    assert await shelf.events.candidates() == [1]
    shelf.events.tried()
    hopeful.append(shelf.events.hopeful)
    assert hopeful == [True, False]
    assert await shelf.events.candidates() == []


async def test_a_key_is_not_forgotten_before_what_came_of_it_is_stored(shelf: Shelf) -> None:
    shelf.keep(waiting("$1"), waiting("$2", OTHER))
    await shelf.events.candidates()
    shelf.events.tried()
    shelf.events.keys_came([(ROOM, "s")])
    assert await shelf.events.candidates() == [1]  # and the store did not take what came of it
    assert shelf.events.hopeful
    shelf.events.keys_came([(OTHER, "s")])
    assert await shelf.events.candidates() == [1, 2]


async def test_memory_follows_the_table_and_says_so(shelf: Shelf) -> None:
    counts: list[int] = []
    shelf.events.on_count = counts.append
    shelf.keep(waiting("$1"), waiting("$2"))
    shelf.events.drop(shelf.conn, ROOM, "$1")
    await shelf.events.load()
    assert counts == [2, 1]
    assert await shelf.events.get(99) is None


def test_the_event_that_stands_for_one() -> None:
    event = undecryptable("main", ROOM, raw("$1"), "no_key", 5)
    assert isinstance(event, Event)
    assert event.event_id is None  # it is the bridge's own word
    assert (event.type, event.severity, event.room_id) == ("matrix.undecryptable", "warning", ROOM)
    assert json.loads(event.content) == {
        "room_id": ROOM,
        "event_id": "$1",
        "sender": "@ann:x",
        "reason": "no_key",
    }
    assert event.id == undecryptable("main", ROOM, raw("$1"), "another", 6).id
