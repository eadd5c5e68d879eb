"""Contents of events: relations as the specification has them, never too large, the agent's mark on each."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix.compose import content
from armorclaw.matrix.compose.content import EVENT_BYTES, PLAIN_BYTES, Draft, edits, messages, reaction, redaction
from armorclaw.matrix.routing.said import MARK

from .html_reader import read

PIECES = [
    "word ",
    "**bold** ",
    "<b>&",
    "é",
    "😀",
    "\n",
    "\n\n",
    "```py\n",
    "```\n",
    "- ",
    '"',
    "\x00",
    "[a](http://b/c) ",
]
LONG = st.tuples(st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join), st.integers(1, 120_000)).map(
    lambda made: (made[0] * (made[1] // len(made[0]) + 1))[: made[1]]
)


@given(LONG, st.booleans(), st.booleans())
@settings(max_examples=25)
@example("😀" * 60_000, False, True)
@example("x" * 200_000, False, True)
@example("> " * 30_000, True, True)
def test_whatever_is_said_the_events_hold_all_of_it(text: str, markdown: bool, thread: bool) -> None:
    text = text[:30_000] if markdown else text
    draft = Draft(text, markdown=markdown, thread="$root" if thread else None, reply_to="$it", agent="echo")
    for made, bodies in (
        (whole := messages(draft), [each["body"] for each in whole]),
        (whole := edits(draft, "$old"), [whole[0]["m.new_content"]["body"], *(each["body"] for each in whole[1:])]),
    ):
        assert "".join(bodies) == text
        for each in made:
            assert len(ascii_json(each)) <= EVENT_BYTES
            assert each[MARK] == "echo"
            if "formatted_body" in each:
                read(each["formatted_body"])


@given(LONG, st.booleans())
@settings(max_examples=15)
def test_an_interim_edit_is_one_event_with_the_beginning(text: str, markdown: bool) -> None:
    text = text[:30_000] if markdown else text
    (edit,) = edits(Draft(text, markdown=markdown), "$old", cut=True)
    assert len(ascii_json(edit)) <= EVENT_BYTES
    body = edit["m.new_content"]["body"]
    assert body == text or (body.endswith("…") and text.startswith(body[:-1]))


def test_a_plain_text_is_just_that() -> None:
    assert messages(Draft("hello")) == [{"msgtype": "m.text", "body": "hello"}]
    assert messages(Draft("*hello*")) == [{"msgtype": "m.text", "body": "*hello*"}]
    assert messages(Draft("hello", markdown=True, agent="echo")) == [
        {"msgtype": "m.text", "body": "hello", MARK: "echo"}
    ]


def test_markdown_is_shown_by_clients_that_can_and_read_as_it_is_by_others() -> None:
    assert messages(Draft("*hello*", "m.notice", markdown=True)) == [
        {
            "msgtype": "m.notice",
            "body": "*hello*",
            "format": "org.matrix.custom.html",
            "formatted_body": "<em>hello</em>",
        }
    ]


REPLY = {"m.in_reply_to": {"event_id": "$it"}}
THREAD = {"rel_type": "m.thread", "event_id": "$root"}


@pytest.mark.parametrize(
    ("reply_to", "thread", "relation"),
    [
        (None, None, None),
        ("$it", None, REPLY),
        (None, "$root", {**THREAD, "is_falling_back": True, "m.in_reply_to": {"event_id": "$root"}}),
        ("$it", "$root", {**THREAD, "is_falling_back": False, **REPLY}),
    ],
)
def test_relations(reply_to: str | None, thread: str | None, relation: Any) -> None:
    draft = Draft("x" * 60_000, reply_to=reply_to, thread=thread, mentions=["@a:x", "@room", "@a:x"])
    first, second = messages(draft)
    assert first.get("m.relates_to") == relation
    assert first["m.mentions"] == {"user_ids": ["@a:x"], "room": True}
    # what follows is in the same thread, and answers nobody a second time
    falling_back = {**THREAD, "is_falling_back": True, "m.in_reply_to": {"event_id": "$root"}}
    assert second.get("m.relates_to") == (falling_back if thread else None)
    assert "m.mentions" not in second


def test_what_the_sender_adds_is_in_every_part_and_replaces_what_we_made() -> None:
    extra = {"org.example": 1, "m.mentions": {"room": True}, "m.relates_to": {**THREAD, **REPLY}, MARK: "another"}
    first, second = messages(Draft("x" * 60_000, mentions=["@a:x"], thread="$no", extra=extra, agent="echo"))
    assert (first["org.example"], second["org.example"]) == (1, 1)
    assert first["m.mentions"] == {"room": True}
    assert first["m.relates_to"] == extra["m.relates_to"]
    assert second["m.relates_to"]["event_id"] == "$root"
    assert (first[MARK], second[MARK]) == ("echo", "echo")  # nobody else's name
    assert "m.mentions" not in second
    assert messages(Draft("x", extra={"body": "y", "msgtype": "m.emote"})) == [{"msgtype": "m.emote", "body": "y"}]


def test_what_cannot_be_split_is_refused_when_it_is_too_large() -> None:
    image = Draft("cat.png", "m.image", extra={"url": "mxc://a/b", "info": {"x": "y" * 50_000}})
    assert len(messages(image, encrypted=False)) == 1
    edit = Draft("x" * 50_000, extra={"m.relates_to": {"rel_type": "m.replace", "event_id": "$e"}})
    assert len(messages(edit, encrypted=False)) == 1
    huge = attrs.evolve(image, extra={"url": "y" * PLAIN_BYTES})
    for draft, encrypted in ((image, True), (edit, True), (huge, False)):
        with pytest.raises(ArmorclawError) as caught:
            messages(draft, encrypted=encrypted)
        assert caught.value.name == "too_large"


@pytest.mark.parametrize("draft", [Draft("a b", extra={"org.x": "y" * 44_000}), Draft("x " * 700_000)])
def test_what_would_be_too_much_however_it_is_split(draft: Draft) -> None:
    for made in (messages, lambda draft: edits(draft, "$old")):
        with pytest.raises(ArmorclawError) as caught:
            made(draft)
        assert caught.value.name == "too_large"


def test_an_edit() -> None:
    new = {"msgtype": "m.text", "body": "*b*", "format": "org.matrix.custom.html", "formatted_body": "<em>b</em>"}
    draft = Draft("*b*", markdown=True, mentions=["@a:x"], agent="echo", extra={"m.relates_to": REPLY})
    assert edits(draft, "$old") == [
        {
            "msgtype": "m.text",
            "body": "* *b*",
            "m.mentions": {"user_ids": ["@a:x"]},
            "m.new_content": {**new, "m.mentions": {"user_ids": ["@a:x"]}, MARK: "echo"},
            "m.relates_to": {"rel_type": "m.replace", "event_id": "$old"},
            MARK: "echo",
        }
    ]


def test_an_edit_that_became_too_long_goes_on_in_new_messages() -> None:
    text = "".join(f"line {number}\n" for number in range(9_000))
    first, *others = edits(Draft(text, thread="$root", agent="echo"), "$old")
    assert first["m.relates_to"] == {"rel_type": "m.replace", "event_id": "$old"}
    assert len(first["body"]) < 600  # the text is in the edit once
    assert len(others) == 2
    assert {each["m.relates_to"]["event_id"] for each in others} == {"$root"}
    assert first["m.new_content"]["body"] + "".join(each["body"] for each in others) == text


def test_reactions_and_redactions() -> None:
    annotation = {"rel_type": "m.annotation", "event_id": "$e", "key": "👍"}
    assert reaction("$e", "👍", None) == {"m.relates_to": annotation}
    assert reaction("$e", "👍", "echo") == {"m.relates_to": annotation, MARK: "echo"}
    assert redaction("$e", None) == {"redacts": "$e"}
    assert redaction("$e", "wrong") == {"redacts": "$e", "reason": "wrong"}


def test_room_for_encryption() -> None:
    """Base64 of the encrypted JSON, with what comes around it, is still an event."""
    inside = len(ascii_json({"type": "m.room.message", "room_id": "!" + "r" * 254, "content": {}})) + EVENT_BYTES
    assert inside * 4 / 3 + 4_096 < 65_536
    assert content.PLAIN_BYTES + 4_096 < 65_536
