"""Reading /sync: the shapes of the specification, and everything else a homeserver might say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.delivery.news import TYPE as DELIVERY
from armorclaw.events import severity
from armorclaw.events.methods import FOR_OTHERS, PUBLISHED
from armorclaw.events.pushing.gap import GAP
from armorclaw.matrix.answer import (
    BadAnswerError,
    DeviceLists,
    Echo,
    Receipt,
    after_own_join,
    is_room_id,
    read_answer,
    to_echo,
    to_event,
)
from armorclaw.matrix.rooms import Rooms

NOW = 1_700_000_000_000


def message(**changes: Any) -> dict[str, Any]:
    raw = {
        "type": "m.room.message",
        "sender": "@ann:x",
        "event_id": "$1",
        "origin_server_ts": 5,
        "content": {"msgtype": "m.text", "body": "hé\n"},
    }
    return {name: value for name, value in {**raw, **changes}.items() if value is not ...}


def test_rooms_and_their_timelines() -> None:
    timeline = {"events": [message()], "limited": True, "prev_batch": "p1"}
    state = {"events": [{"type": "m.room.encryption", "state_key": "", "content": {}}]}
    sections = {
        "join": {"!a:x": {"timeline": timeline}, "!b:x": {"state": state}},
        "leave": {"!c:x": {"timeline": {"events": []}}},
        "invite": {"!d:x": {"invite_state": {"events": []}}},
        "knock": {"!e:x": {}},
    }
    answer = read_answer({"next_batch": "s1", "rooms": sections})
    assert answer.next_batch == "s1"
    a, b, c, d = answer.rooms
    assert (a.room_id, a.membership, a.timeline, a.limited, a.prev_batch) == ("!a:x", "join", [message()], True, "p1")
    assert not a.turns_encrypted
    assert b.turns_encrypted
    assert (c.membership, d.membership) == ("leave", "invite")
    assert not answer.empty


def test_encryption_in_the_timeline_counts_and_with_another_state_key_does_not() -> None:
    def room(**raw: Any) -> Any:
        timeline = {"events": [{"type": "m.room.encryption", **raw}]}
        return read_answer({"next_batch": "s", "rooms": {"join": {"!a": {"timeline": timeline}}}}).rooms[0]

    assert room(state_key="").turns_encrypted
    assert not room(state_key="x").turns_encrypted
    assert not room().turns_encrypted  # no state at all: an event of that name


@pytest.mark.parametrize("bad", [None, [], "x", {}, {"next_batch": None}, {"next_batch": ""}, {"next_batch": 5}])
def test_without_a_token_an_answer_is_none(bad: object) -> None:
    with pytest.raises(BadAnswerError):
        read_answer(bad)


def test_nothing_happened() -> None:
    assert read_answer({"next_batch": "s"}).empty
    assert read_answer({"next_batch": "s", "rooms": {"join": {"!a": {}}}}).empty
    assert not read_answer({"next_batch": "s", "rooms": {"invite": {"!a": {}}}}).empty


def test_receipts_of_others_and_only_those_that_are_public() -> None:
    content = {
        "$1": {
            "m.read": {"@ann:x": {"ts": 1}, "@bob:x": {"ts": 2, "thread_id": "main"}},
            "m.read.private": {"@c:x": {}},
        },
        "$2": {"m.read": {"": {}, "@dan:x": None}},
        "": {"m.read": {"@ann:x": {}}},
        "$3": [],
    }
    events = [
        {"type": "m.typing", "content": content},
        {"type": "m.receipt", "content": content},
        {"type": "m.receipt"},
    ]
    answer = read_answer({"next_batch": "s", "rooms": {"join": {"!a:x": {"ephemeral": {"events": events}}}}})
    assert list(answer.rooms[0].receipts) == [
        Receipt("!a:x", "$1", "@ann:x"),
        Receipt("!a:x", "$1", "@bob:x"),
        Receipt("!a:x", "$2", "@dan:x"),
    ]
    assert not answer.empty


@pytest.mark.parametrize(
    "facts, counts",
    [
        ({"ts": 1}, True),
        ({"thread_id": "main"}, True),
        ({"thread_id": None}, True),
        ({"thread_id": "$root"}, False),
        ({"thread_id": ""}, False),
        ({"thread_id": ["main"]}, False),
    ],
)
def test_a_receipt_for_a_thread_says_nothing_of_the_rest_of_the_room(facts: dict[str, Any], counts: bool) -> None:
    event = {"type": "m.receipt", "content": {"$1": {"m.read": {"@ann:x": facts}}}}
    answer = read_answer({"next_batch": "s", "rooms": {"join": {"!a:x": {"ephemeral": {"events": [event]}}}}})
    assert [each.event_id for each in answer.rooms[0].receipts] == ["$1"] * counts


def test_echoes() -> None:
    assert to_echo(message(unsigned={"transaction_id": "t"}), "!a:x") == Echo("!a:x", "$1", "t")
    odd: list[Any] = [..., None, {}, [], {"transaction_id": None}, {"transaction_id": "x" * 256}]
    for unsigned in odd:
        assert to_echo(message(unsigned=unsigned), "!a:x") == Echo("!a:x", "$1", None)
    assert to_echo(message(state_key=""), "!a:x") is None  # no message
    for event_id in (..., None, "", 5, "$" * 256):
        assert to_echo(message(event_id=event_id), "!a:x") is None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
WORDS = [
    "rooms",
    "join",
    "leave",
    "invite",
    "timeline",
    "state",
    "events",
    "!a:x",
    "limited",
    "prev_batch",
    "next_batch",
]
WORDS += ["ephemeral", "m.receipt", "m.read", "unsigned", "transaction_id"]
WORDS += ["to_device", "device_lists", "changed", "account_data", "m.direct", "invite_state", "m.room.member"]
WORDS += ["type", "sender", "event_id", "content", "state_key", "origin_server_ts", "m.room.encryption"]
near_misses = st.recursive(
    st.sampled_from(["join", "s1", "", None, 0, True, "m.room.encryption", "m.receipt"]) | json_values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS), inner, max_size=5),
    max_leaves=30,
)


@given(near_misses)
def test_no_answer_whatever_raises_anything_else(data: object) -> None:
    try:
        answer = read_answer(data)
    except BadAnswerError:
        return
    rooms = Rooms("main")
    rooms.apply(rooms.after(answer, "@bot:x"))
    for update in answer.rooms:
        assert rooms.get(update.room_id) is not None
        assert is_room_id(update.room_id)
        assert update.turns_encrypted in (True, False)
        for raw in update.timeline:
            to_event(raw, update.room_id, "main", NOW)
            to_echo(raw, update.room_id)
        for receipt in update.receipts:
            assert receipt.event_id
            assert receipt.reader


@given(st.dictionaries(st.sampled_from(WORDS), near_misses))
def test_no_event_whatever_raises_and_what_comes_out_can_be_stored_and_sent(changes: dict[str, Any]) -> None:
    event = to_event(message(**changes), "!a:x", "main", NOW)
    if event is not None:
        event.wire().decode("ascii")
        assert isinstance(event.plain()["content"], dict)
        assert 0 <= event.at_ms < 2**63


def test_a_message_as_the_journal_takes_it() -> None:
    event = to_event(message(), "!a:x", "main", NOW)
    assert event is not None
    assert (event.type, event.sender, event.room_id, event.event_id) == ("m.room.message", "@ann:x", "!a:x", "$1")
    assert (event.account, event.at_ms) == ("main", 5)
    assert event.content.isascii()
    assert json.loads(event.content) == {"msgtype": "m.text", "body": "hé\n"}
    again = to_event(message(), "!a:x", "main", NOW)
    assert again is not None
    assert again.id == event.id


@pytest.mark.parametrize(
    "changes",
    [
        {"type": ...},
        {"type": 5},
        {"type": ""},
        {"sender": ...},
        {"event_id": None},
        {"event_id": "$" * 256},
        {"content": "text"},
        {"content": None},
        {"content": {"body": float("inf")}},
        {"content": {"body": "x" * 300_000}},
    ],
)
def test_what_is_no_event_is_left_out(changes: dict[str, Any]) -> None:
    assert to_event(message(**changes), "!a:x", "main", NOW) is None


@pytest.mark.mission("P3.4")
@pytest.mark.parametrize(
    "type_",
    [
        *sorted(FOR_OTHERS - severity._BY_TYPE.keys()),
        *severity._BY_TYPE,
        *(GAP, DELIVERY, f"{PUBLISHED}x", "events.trimmed", "engine.lost", "egress.opened", "message.sent"),
        *("security.x", "call.x", "budget.x", "container.x", "matrix.alert"),
    ],
)
def test_a_name_of_the_bridges_own_events_is_not_left_to_an_event_of_a_room(type_: str) -> None:
    event = to_event(message(type=type_), "!a:x", "main", NOW)
    assert event is not None
    assert event.type == f"matrix.{type_}"


@pytest.mark.parametrize("type_", ["m.room.message", "org.example.alert", "alerts", "agents.x", "deliver", "x"])
def test_other_names_stay_as_they_are(type_: str) -> None:
    event = to_event(message(type=type_), "!a:x", "main", NOW)
    assert event is not None
    assert event.type == type_


@pytest.mark.parametrize("time", [..., None, "5", -1, 1e300, True, 2**63])
def test_a_wrong_time_becomes_now(time: Any) -> None:
    event = to_event(message(origin_server_ts=time), "!a:x", "main", NOW)
    assert event is not None
    assert event.at_ms == NOW


def test_a_redaction_names_its_target_in_its_content() -> None:
    event = to_event(message(type="m.room.redaction", content={}, redacts="$0"), "!a:x", "main", NOW)
    assert event is not None
    assert json.loads(event.content) == {"redacts": "$0"}


def test_what_came_after_the_last_own_join() -> None:
    def member(user: str, membership: str) -> dict[str, Any]:
        return message(type="m.room.member", state_key=user, content={"membership": membership})

    join, leave = member("@bot:x", "join"), member("@bot:x", "leave")
    timeline = [message(), join, message(), leave, join, member("@ann:x", "join"), message()]
    assert after_own_join(timeline, "@bot:x") == timeline[5:]
    assert after_own_join(timeline, "@eve:x") is None
    assert after_own_join([], "@bot:x") is None


@pytest.mark.parametrize("text", ["!a:x", "!opaque", "!" + "a" * 254])
def test_room_ids(text: str) -> None:
    assert is_room_id(text)


@pytest.mark.parametrize("text", ["", "!", "a:x", "#a:x", "!a b", "!a\n", "!a\x00", "!" + "a" * 255, None, 5])
def test_no_room_ids(text: object) -> None:
    assert not is_room_id(text)


# --- keys, direct chats, invites ---


def test_what_is_told_of_keys() -> None:
    answer = read_answer(
        {
            "next_batch": "s",
            "to_device": {"events": [{"type": "m.dummy"}, "odd"]},
            "device_lists": {"changed": ["@ann:x", 5, ""], "left": ["@bob:x"]},
            "device_one_time_keys_count": {"signed_curve25519": 20, "odd": "many", "below": -5},
            "device_unused_fallback_key_types": ["signed_curve25519", None],
        }
    )
    assert answer.to_device == [{"type": "m.dummy"}]
    assert answer.device_lists == DeviceLists(["@ann:x"], ["@bob:x"])
    assert answer.one_time_keys == {"signed_curve25519": 20, "below": 0}
    assert answer.fallback_keys == ["signed_curve25519"]


@pytest.mark.parametrize("odd", [None, 5, "x", []])
def test_what_is_not_told_of_keys_is_as_it_was(odd: object) -> None:
    parts = ("to_device", "device_lists", "device_one_time_keys_count", "account_data")
    answer = read_answer({"next_batch": "s", **dict.fromkeys(parts, odd)})
    assert (answer.to_device, answer.one_time_keys, answer.direct) == ([], None, None)
    assert not answer.device_lists
    assert answer.fallback_keys is None
    assert answer.empty


def test_that_keys_are_counted_in_every_answer_is_no_news() -> None:
    counted = {"next_batch": "s", "device_one_time_keys_count": {}, "device_unused_fallback_key_types": []}
    assert read_answer(counted).empty
    assert read_answer(counted).one_time_keys == {}
    assert not read_answer({**counted, "to_device": {"events": [{}]}}).empty
    assert not read_answer({**counted, "device_lists": {"left": ["@ann:x"]}}).empty


def test_direct_chats_by_room() -> None:
    def direct(content: object) -> Any:
        events = [{"type": "m.other", "content": {}}, {"type": "m.direct", "content": content}]
        return read_answer({"next_batch": "s", "account_data": {"events": events}}).direct

    assert direct({"@ann:x": ["!a:x", "!b:x"], "@bob:x": ["!b:x"]}) == {"!a:x": "@ann:x", "!b:x": "@ann:x"}
    assert direct({"@ann:x": ["a", 5, None], "": ["!a:x"], "@bob:x": "!a:x", "@carl:x": {"!a:x": 1}}) == {}
    assert direct({}) == {}
    assert direct(None) == {}


def test_an_invite_shows_a_part_of_the_room() -> None:
    member = {"type": "m.room.member", "state_key": "@bot:x", "sender": "@ann:x", "content": {"membership": "invite"}}
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {}}
    parts = {"!a:x": {"invite_state": {"events": [member, encryption, 5]}}, "!b:x": None, "!c:x": {"invite_state": 5}}
    answer = read_answer({"next_batch": "s", "rooms": {"invite": parts}})
    assert [update.stripped for update in answer.rooms] == [[member, encryption], [], []]
    assert not answer.rooms[0].turns_encrypted  # it is not the room's own word
