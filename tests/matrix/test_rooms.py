"""What is known of rooms: encryption that is never taken back, direct chats that are never guessed, names."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from armorclaw.clock import Clock
from armorclaw.matrix.answer import Answer, RoomUpdate, read_answer
from armorclaw.matrix.client import POLL_MARGIN, POLL_SECONDS
from armorclaw.matrix.rooms import CURRENT_SECONDS, Rooms, RoomState
from tests.events.inline_store import InlineDatabase

BOT = "@bot:x"
ROOM = "!a:x"


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    db = InlineDatabase()
    yield db.conn
    db.close()


def state(type_: str, content: dict[str, Any], state_key: str = "", **more: Any) -> dict[str, Any]:
    return {"type": type_, "state_key": state_key, "sender": "@ann:x", "content": content, **more}


def joined(*events: dict[str, Any], timeline: bool = False) -> Answer:
    part = "timeline" if timeline else "state"
    return read_answer({"next_batch": "s", "rooms": {"join": {ROOM: {part: {"events": list(events)}}}}})


def invited(*events: dict[str, Any]) -> Answer:
    return read_answer({"next_batch": "s", "rooms": {"invite": {ROOM: {"invite_state": {"events": list(events)}}}}})


def invite(**content: Any) -> dict[str, Any]:
    return state("m.room.member", {"membership": "invite", **content}, BOT)


def direct(**rooms: list[str]) -> Answer:
    content = {f"@{person}:x": ids for person, ids in rooms.items()}
    return read_answer({"next_batch": "s", "account_data": {"events": [{"type": "m.direct", "content": content}]}})


def after(rooms: Rooms, *answers: Answer) -> RoomState:
    """How the room stands after these."""
    for answer in answers:
        rooms.apply(rooms.after(answer, BOT))
    found = rooms.get(ROOM)
    assert found is not None
    return found


def test_all_that_is_kept_survives_the_table(conn: sqlite3.Connection) -> None:
    rooms = Rooms("main")
    whole = RoomState("invite", True, "@ann:x", True, "A room", "#a:x", "@ann:x", "!b:x")
    rooms.save(conn, {ROOM: whole, "!other:x": RoomState("join")})
    rooms.save(conn, {"!other:x": RoomState("leave", direct="@bob:x")})
    Rooms("second").save(conn, {ROOM: RoomState("leave")})
    assert rooms.load(conn) == {ROOM: whole, "!other:x": RoomState("leave", direct="@bob:x")}


# --- encryption ---


def test_whether_to_encrypt_is_certain_only_while_the_sync_follows() -> None:
    rooms = Rooms("main")
    rooms.replace({ROOM: RoomState("join"), "!secret:x": RoomState("join", True)})
    assert rooms.encrypted(ROOM) is False
    assert rooms.must_encrypt(ROOM) is None  # it may have changed while nobody looked
    assert rooms.must_encrypt("!secret:x") is True
    rooms.current_at = Clock().boottime()
    assert rooms.must_encrypt(ROOM) is False
    assert rooms.must_encrypt("!unknown:x") is None
    rooms.replace({ROOM: RoomState("join")})
    assert rooms.must_encrypt(ROOM) is None


def test_a_room_that_turned_stays_so_whatever_becomes_of_the_news() -> None:
    rooms = Rooms("main")
    rooms.replace({ROOM: RoomState("join")})
    rooms.current_at = Clock().boottime()
    rooms.turned_encrypted(ROOM)
    assert rooms.must_encrypt(ROOM) is True
    # the table does not know yet, so the news that says so is a change still
    assert rooms.after(joined(state("m.room.encryption", {}), timeline=True), BOT) == {ROOM: RoomState("join", True)}


def test_a_room_that_turned_stays_so_over_a_login() -> None:
    """The table may not have it yet."""
    rooms = Rooms("main")
    rooms.turned_encrypted(ROOM)
    rooms.replace({ROOM: RoomState("join")})
    rooms.current_at = Clock().boottime()
    assert rooms.must_encrypt(ROOM) is True


def test_what_was_heard_too_long_ago_is_not_certain() -> None:
    """A poll that hangs, or a machine that slept: nobody says then that the sync stands still."""
    now = 1000.0
    rooms = Rooms("main", Clock(boottime=lambda: now))
    rooms.replace({ROOM: RoomState("join"), "!secret:x": RoomState("join", True)})
    rooms.current_at = now
    now += CURRENT_SECONDS
    assert rooms.must_encrypt(ROOM) is False
    now += 0.1
    assert rooms.must_encrypt(ROOM) is None
    assert rooms.must_encrypt("!secret:x") is True
    rooms.current_at = now
    assert rooms.must_encrypt(ROOM) is False


def test_an_encrypted_room_stays_so_whatever_else_is_told_of_it(conn: sqlite3.Connection) -> None:
    """After a restart, too, nothing that is silent about it takes it back."""
    before = Rooms("main")
    before.save(conn, {ROOM: RoomState("join", True)})
    rooms = Rooms("main")
    rooms.replace(rooms.load(conn))
    known = after(rooms, joined(state("m.room.name", {"name": "New"})))
    assert known == RoomState("join", True, name="New")
    assert rooms.encrypted(ROOM) is True
    rooms.save(conn, {ROOM: known})
    assert rooms.load(conn) == {ROOM: known}


def test_the_table_never_takes_encryption_back(conn: sqlite3.Connection) -> None:
    """Whoever writes it, and whatever he knew."""
    rooms = Rooms("main")
    rooms.save(conn, {ROOM: RoomState("join", True)})
    rooms.save(conn, {ROOM: RoomState("leave", False, name="New")})
    assert rooms.load(conn) == {ROOM: RoomState("leave", True, name="New")}


def test_it_is_certain_for_as_long_as_a_poll_may_take() -> None:
    assert CURRENT_SECONDS == POLL_SECONDS + POLL_MARGIN


def test_what_an_invite_says_of_encryption_is_not_believed() -> None:
    """Whoever invites would decide for a room that is none of theirs; once we are in, its state tells."""
    known = after(Rooms("main"), invited(invite(), state("m.room.encryption", {"algorithm": "x"})))
    assert known == RoomState("invite", inviter="@ann:x")


# --- direct chats ---


def test_an_invite_tells_who_asks_and_whether_it_is_a_direct_chat() -> None:
    rooms = Rooms("main")
    known = after(rooms, invited(state("m.room.name", {"name": "For two"}), invite(is_direct=True)))
    assert known == RoomState("invite", inviter="@ann:x", direct="@ann:x", name="For two")
    assert after(rooms, joined()) == RoomState("join", direct="@ann:x", name="For two")


@pytest.mark.parametrize("is_direct", [False, "true", 1, None])
def test_an_invite_that_does_not_say_so_is_to_a_room(is_direct: Any) -> None:
    assert after(Rooms("main"), invited(invite(is_direct=is_direct))).direct is None


def test_the_invite_of_somebody_else_is_not_ours() -> None:
    other = state("m.room.member", {"membership": "invite", "is_direct": True}, "@else:x")
    assert after(Rooms("main"), invited(other)) == RoomState("invite")


def test_a_second_invite_counts_and_not_the_first() -> None:
    rooms = Rooms("main")
    left = read_answer({"next_batch": "s", "rooms": {"leave": {ROOM: {}}}})
    assert after(rooms, invited(invite(is_direct=True)), joined(), left).direct == "@ann:x"
    assert after(rooms, invited(invite())).direct is None


def test_the_list_of_direct_chats_is_followed_both_ways() -> None:
    rooms = Rooms("main")
    assert after(rooms, joined(), direct(bob=[ROOM])).direct == "@bob:x"
    assert after(rooms, joined()).direct == "@bob:x"
    assert after(rooms, direct(bob=["!else:x"])) == RoomState("join")


def test_the_list_does_not_take_back_what_an_invite_said() -> None:
    """We do not keep that list: what others begin with us is not on it."""
    rooms = Rooms("main")
    assert after(rooms, invited(invite(is_direct=True)), joined(), direct()).direct == "@ann:x"
    assert after(rooms, direct(bob=[ROOM])).direct == "@bob:x"


def test_room_and_list_may_come_together_and_unknown_rooms_are_left_out() -> None:
    rooms = Rooms("main")
    content = {"@bob:x": [ROOM, "!unknown:x"]}
    answer = read_answer(
        {
            "next_batch": "s",
            "rooms": {"join": {ROOM: {}}},
            "account_data": {"events": [{"type": "m.direct", "content": content}]},
        }
    )
    assert rooms.after(answer, BOT) == {ROOM: RoomState("join", direct="@bob:x", listed=True)}


# --- what it is called ---


def test_names_aliases_and_successors_are_followed() -> None:
    rooms = Rooms("main")
    known = after(
        rooms,
        joined(state("m.room.name", {"name": "Old"}), state("m.room.canonical_alias", {"alias": "#a:x"})),
        joined(state("m.room.name", {"name": "New\n\x1b[31m name "}), timeline=True),
        joined(state("m.room.tombstone", {"replacement_room": "!next:x"}), timeline=True),
    )
    assert known == RoomState("join", name="New  [31m name", alias="#a:x", successor="!next:x")
    gone = [state("m.room.name", {}), state("m.room.canonical_alias", {}), state("m.room.tombstone", {})]
    assert after(rooms, joined(*gone, timeline=True)) == RoomState("join")


def test_a_room_says_which_one_it_has_replaced() -> None:
    created = state("m.room.create", {"predecessor": {"room_id": "!old:x", "event_id": "$e"}})
    assert after(Rooms("main"), joined(created)) == RoomState("join", predecessor="!old:x")
    for odd in ({}, {"predecessor": "!old:x"}, {"predecessor": {"room_id": 7}}, {"predecessor": {"room_id": "old"}}):
        assert after(Rooms("main"), joined(state("m.room.create", odd))) == RoomState("join")


def test_an_invitation_gives_a_room_no_rights_of_another() -> None:
    created = state("m.room.create", {"predecessor": {"room_id": "!old:x"}})
    replaced = state("m.room.tombstone", {"replacement_room": "!new:x"})
    name = state("m.room.name", {"name": "A"})
    assert after(Rooms("main"), invited(created, replaced, name)) == RoomState("invite", name="A")


@pytest.mark.parametrize("value", [None, 5, [], {}, "", "  ", "\n"])
def test_names_that_are_none(value: Any) -> None:
    odd = [
        state("m.room.name", {"name": value}),
        state("m.room.canonical_alias", {"alias": value}),
        state("m.room.tombstone", {"replacement_room": value}),
        {"type": "m.room.name", "state_key": "", "content": value},
    ]
    assert after(Rooms("main"), joined(*odd)) == RoomState("join")


def test_a_name_is_cut_and_another_state_key_is_no_name() -> None:
    known = after(Rooms("main"), joined(state("m.room.name", {"name": "x" * 5000})))
    assert known.name == "x" * 255
    assert after(Rooms("main"), joined(state("m.room.name", {"name": "x"}, "key"))).name is None


def test_nothing_new_is_no_change() -> None:
    rooms = Rooms("main")
    answer = joined(state("m.room.name", {"name": "A"}))
    rooms.apply(rooms.after(answer, BOT))
    assert rooms.after(answer, BOT) == {}
    assert rooms.after(Answer("s", [RoomUpdate(ROOM, "leave")]), BOT) == {ROOM: RoomState("leave", name="A")}
