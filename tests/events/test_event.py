from __future__ import annotations

import json

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.events.event import CONTENT_LIMIT, SEVERITIES, Event, ascii_json, frame, frame_head

texts = st.text(max_size=40)
maybe = st.none() | texts


severities = st.none() | st.sampled_from(SEVERITIES)


@given(
    *(texts, texts, maybe, maybe, maybe, maybe, st.dictionaries(texts, texts), st.integers(0, 2**62), texts),
    *(severities, st.booleans()),
)
def test_a_frame_is_one_line_of_json_with_what_the_event_holds(
    type_: str,
    id_: str,
    agent: str | None,
    room: str | None,
    sender: str | None,
    event_id: str | None,
    content: dict[str, str],
    seq: int,
    subscription: str,
    severity: str | None,
    erased: bool,
) -> None:
    event = Event.make(
        type_,
        content,
        at_ms=7,
        id=id_ or "x",
        agent=agent,
        room_id=room,
        sender=sender,
        event_id=event_id,
        account="m",
        severity=severity,
    )
    event = attrs.evolve(event, seq=seq, erased=erased)
    whole = frame(frame_head(subscription, 3), event)
    assert whole.isascii()
    assert whole.index(b"\n") == len(whole) - 1
    params = {"subscription": subscription, "redelivered": 3, "seq": seq, "id": id_ or "x", "type": type_, "at_ms": 7}
    optional: dict[str, object] = {
        "agent": agent,
        "room_id": room,
        "sender": sender,
        "event_id": event_id,
        "severity": severity,
    }
    optional |= {"erased": True} if erased else {}
    params |= {name: value for name, value in optional.items() if value is not None} | {"content": content}
    assert json.loads(whole) == {"jsonrpc": "2.0", "method": "event", "params": params}
    del params["subscription"], params["redelivered"]
    assert event.plain() == params


def test_the_wire_form_is_made_once() -> None:
    event = Event.make("a", {}, at_ms=1)
    assert event.wire() is event.wire()


def test_the_wire_form_of_a_copy_is_its_own() -> None:
    event = Event.make("a", {}, at_ms=1)
    event.wire()
    assert b'"seq":9' in attrs.evolve(event, seq=9).wire()


def test_without_an_id_each_event_gets_a_fresh_one() -> None:
    assert Event.make("a", {}, at_ms=1).id != Event.make("a", {}, at_ms=1).id


@pytest.mark.parametrize("content", [b"", b"[]", b'"x"', b'{"a":\n1}', '{"a":"é"}'.encode()])
def test_content_that_would_break_the_framing_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="one line"):
        Event("a", content, 1, "id")


def test_content_has_a_limit() -> None:
    with pytest.raises(ValueError, match="at most"):
        Event.make("a", {"body": "x" * CONTENT_LIMIT}, at_ms=1)


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError):
        ascii_json({"a": float("nan")})


def test_the_order_on_the_wire_is_the_same_for_all() -> None:
    event = Event.make("a", {}, at_ms=1, id="i", event_id="$e", severity="error")
    event = attrs.evolve(event, seq=2, erased=True)
    expected = '"seq":2,"id":"i","type":"a","at_ms":1,"event_id":"$e","severity":"error","erased":true,"content":{}'
    assert event.wire() == expected.encode()


@pytest.mark.parametrize(
    "given, addressed, text",
    [(None, None, None), ((), (), "[]"), (["a", "b"], ("a", "b"), '["a","b"]'), ('["a"]', ("a",), '["a"]')],
)
def test_whom_an_event_is_for_is_nobody_else_s_business(
    given: list[str] | str | None, addressed: tuple[str, ...] | None, text: str | None
) -> None:
    plain = Event.make("a", {}, at_ms=1, id="x")
    event = attrs.evolve(plain, addressed=given)
    assert (event.addressed, event.addressed_text) == (addressed, text)
    assert event.is_for("a") is (addressed is None or "a" in addressed)
    assert event.wire() == plain.wire()


def test_a_severity_is_one_of_a_few() -> None:
    with pytest.raises(ValueError, match=r"'bad'.*info, warning, error, critical"):
        Event.make("a", {}, at_ms=1, severity="bad")


def test_bodies_do_not_show_in_a_repr() -> None:
    event = Event.make("a", {"body": "sesame"}, at_ms=1)
    event.wire()
    assert "sesame" not in repr(event)
