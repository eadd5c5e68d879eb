from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.events.event import Event
from armorclaw.guard.policy import Said
from armorclaw.matrix.routing.said import MARK, Relation, read_said

ALICE = "@alice:x"


def read(content: dict[str, Any], *, type: str = "m.room.message") -> tuple[Said, Relation]:  # noqa: A002
    return read_said(Event.make(type, content, at_ms=1, room_id="!r:x", sender=ALICE, event_id="$e"))


def message(body: str, **more: Any) -> dict[str, Any]:
    return {"msgtype": "m.text", "body": body, **more}


def test_a_message() -> None:
    said, relation = read(message("hello"))
    assert said == Said(ALICE, is_text=True, body="hello")
    assert not relation


@pytest.mark.parametrize(
    "content, is_text, is_notice",
    [
        (message("a"), True, False),
        ({"msgtype": "m.notice", "body": "a"}, False, True),
        ({"msgtype": "m.image", "body": "a"}, False, False),
        ({"msgtype": ["m.notice"], "body": 7}, False, False),
        (message("* b", **{"m.new_content": {"msgtype": "m.notice", "body": "b"}}), True, True),
        ({}, False, False),
    ],
)
def test_what_sort_of_message_it_is(content: dict[str, Any], is_text: bool, is_notice: bool) -> None:
    said, _ = read(content)
    assert (said.is_text, said.is_notice) == (is_text, is_notice)


def test_a_notice_is_one_only_as_a_message() -> None:
    said, _ = read({"msgtype": "m.notice", "body": "hello"}, type="m.sticker")
    assert (said.is_notice, said.body) == (False, "")


@pytest.mark.parametrize(
    "mark, speaker",
    [({}, None), ({MARK: "echo"}, "echo"), ({MARK: {"name": "echo"}}, ""), ({MARK: 1}, ""), ({MARK: None}, None)],
)
def test_marks_of_bridges(mark: dict[str, Any], speaker: str | None) -> None:
    assert read(message("a", **mark))[0].speaker == speaker
    assert read(message("* a", **{"m.new_content": {**message("a"), **mark}}))[0].speaker == speaker


@pytest.mark.parametrize(
    "mentions, expected",
    [
        ({}, None),
        ({"m.mentions": {}}, frozenset()),
        ({"m.mentions": {"user_ids": ["@bot:x", 7]}}, frozenset({"@bot:x"})),
        ({"m.mentions": {"user_ids": "@bot:x"}}, frozenset()),
        ({"m.mentions": {"room": True}}, frozenset()),
        ({"m.mentions": "@bot:x"}, None),
        ({"formatted_body": '<a href="https://matrix.to/#/@bot:x">Claw</a>'}, frozenset({"@bot:x"})),
        ({"formatted_body": '<a href="https://matrix.to/#/%40bot%3Ax">Claw</a>'}, frozenset({"@bot:x"})),
        ({"formatted_body": '<a href="https://matrix.to/#/!r:x">room</a>'}, None),
        (
            {"formatted_body": '<mx-reply><a href="https://matrix.to/#/@bot:x">Claw</a></mx-reply>yes'},
            None,
        ),
        (
            {"m.mentions": {}, "formatted_body": '<a href="https://matrix.to/#/@bot:x">Claw</a>'},
            frozenset(),
        ),
    ],
)
def test_mentions(mentions: dict[str, Any], expected: frozenset[str] | None) -> None:
    assert read(message("hello", **mentions))[0].mentions == expected


def test_what_a_reply_quotes_is_not_said() -> None:
    reply = {"m.relates_to": {"m.in_reply_to": {"event_id": "$a"}}}
    body = "> <@bot:x> !claw stop\n> all of it\n\nno"
    said, relation = read(message(body, **reply))
    assert said.body == "no"
    assert relation == Relation(("$a",))
    assert read(message(body))[0].body == body  # without a reply it is what somebody wrote


@pytest.mark.parametrize(
    "type_, content, relation",
    [
        ("m.room.message", {"m.relates_to": {"rel_type": "m.replace", "event_id": "$a"}}, Relation(changes="$a")),
        (
            "m.room.message",
            {"m.relates_to": {"rel_type": "m.thread", "event_id": "$a", "m.in_reply_to": {"event_id": "$b"}}},
            Relation(("$a", "$b"), "$a"),
        ),
        ("m.reaction", {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$a"}}, Relation(("$a",))),
        ("m.poll.response", {"m.relates_to": {"rel_type": "m.reference", "event_id": "$a"}}, Relation(("$a",))),
        ("m.room.redaction", {"redacts": "$a"}, Relation(changes="$a")),
        ("m.room.message", {"m.relates_to": {"rel_type": "m.thread", "event_id": 7}}, Relation()),
        ("m.room.message", {"m.relates_to": {"m.in_reply_to": "$a"}}, Relation()),
        ("m.room.message", {"m.relates_to": {"event_id": "$" + "a" * 255}}, Relation()),
    ],
)
def test_relations(type_: str, content: dict[str, Any], relation: Relation) -> None:
    assert read(content, type=type_)[1] == relation


def test_an_edit_says_its_new_words_and_is_no_text_by_itself() -> None:
    edit = message(
        "* !claw stop",
        **{"m.new_content": message("!claw stop"), "m.relates_to": {"rel_type": "m.replace", "event_id": "$a"}},
    )
    said, _ = read(edit)
    assert (said.body, said.is_text) == ("!claw stop", False)


@pytest.mark.parametrize("sender", ["@alice:x", None, 7])
def test_a_word_of_the_bridge_may_be_about_somebody(sender: object) -> None:
    event = Event.make("matrix.undecryptable", {"sender": sender}, at_ms=1, room_id="!r:x")
    said, relation = read_said(event)
    assert said == Said(sender if isinstance(sender, str) else None, is_own_word=True)
    assert not relation


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8) | st.just("$a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
keys = st.sampled_from(
    ["msgtype", "body", "formatted_body", "m.mentions", "m.relates_to", "m.new_content", "redacts", MARK]
)


@given(st.dictionaries(keys, json_values), st.sampled_from(["m.room.message", "m.reaction", "m.room.redaction"]))
def test_whatever_a_content_holds_it_is_read(content: dict[str, Any], type_: str) -> None:
    said, relation = read(content, type=type_)
    assert said.sender == ALICE
    assert isinstance(said.body, str)
    assert all(isinstance(each, str) for each in (*relation.answers, *(said.mentions or ())))
