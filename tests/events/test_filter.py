from __future__ import annotations

import re
from collections.abc import Callable
from time import thread_time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.filter import PATTERN_LIMIT, PATTERNS_LIMIT, STARS_LIMIT, EventFilter

MakeEvent = Callable[..., Event]


def test_an_empty_filter_matches_everything(new_event: MakeEvent) -> None:
    assert EventFilter().matches(new_event())
    assert EventFilter().matches(Event.make("alert", {}, at_ms=1))


@pytest.mark.parametrize(
    "given, matches",
    [
        ({"types": ["m.room.message"]}, True),
        ({"types": ["m.room.*"]}, True),
        ({"types": ["m.*.message", "x"]}, True),
        ({"types": ["m.reaction"]}, False),
        ({"rooms": ["!a:x"]}, True),
        ({"rooms": ["!b:x", "!a:*"]}, True),
        ({"rooms": ["!a"]}, False),
        ({"senders": ["@*:x"]}, True),
        ({"senders": ["@*:y"]}, False),
        ({"types": ["m.*"], "rooms": ["!b:x"]}, False),
        ({"agents": ["*"]}, False),  # the event is about no agent
        ({"types": ["m.room.message.*"]}, False),
        ({"types": ["[m].room.message"]}, False),  # a star is the only special character
        ({"types": ["m?room.message"]}, False),
    ],
)
def test_every_field_that_is_given_must_match(new_event: MakeEvent, given: dict[str, Any], matches: bool) -> None:
    assert EventFilter.from_json(given).matches(new_event("!a:x")) is matches


def test_agents(new_event: MakeEvent) -> None:
    assert EventFilter(agents=("ech*",)).matches(new_event(agent="echo"))


@pytest.mark.parametrize(
    "severities, of_event, matches",
    [
        (["warning", "error"], "warning", True),
        (["warning", "error"], "info", False),
        (["*"], "critical", True),
        (["*"], None, False),
        ([], None, True),
    ],
)
def test_severities(severities: list[str], of_event: str | None, matches: bool) -> None:
    event = Event.make("alert", {}, at_ms=1, severity=of_event)
    assert EventFilter.from_json({"severities": severities}).matches(event) is matches


def test_a_filter_kept_by_an_older_version_is_read() -> None:
    assert EventFilter.from_json('{"types":["a"],"rooms":[],"senders":[],"agents":[]}') == EventFilter(types=("a",))


pattern = st.text(st.sampled_from("ab*"), max_size=8)


@given(pattern, st.text(st.sampled_from("ab"), max_size=10))
def test_a_star_means_what_it_means_in_a_regular_expression(pattern: str, text: str) -> None:
    regex = ".*".join(re.escape(part) for part in pattern.split("*"))
    event = Event.make(text, {}, at_ms=1)
    assert EventFilter(types=(pattern,)).matches(event) is bool(re.fullmatch(regex, text))


def test_no_pattern_is_slow() -> None:
    event = Event.make("a" * 255, {}, at_ms=1)
    worst = EventFilter(types=("*" + "a*" * (STARS_LIMIT - 2) + "b*",) * PATTERNS_LIMIT)
    started = thread_time()
    assert not worst.matches(event)
    assert thread_time() - started < 5  # some 5 ms; a backtracking matcher would need hours


patterns = st.lists(st.text(max_size=10), max_size=4).map(tuple)


@given(patterns, patterns, patterns)
def test_json_and_back(types: tuple[str, ...], rooms: tuple[str, ...], severities: tuple[str, ...]) -> None:
    original = EventFilter(types=types, rooms=rooms, severities=severities)
    assert EventFilter.from_json(original.to_json()) == original
    assert original.to_json().isascii()


@pytest.mark.parametrize(
    "given, place",
    [
        ("[", "filter"),
        ("[]", "filter"),
        ({"kinds": []}, "filter"),
        ({"types": "m.room.message"}, "filter.types"),
        ({"rooms": [1]}, "filter.rooms"),
        ({"senders": ["x" * (PATTERN_LIMIT + 1)]}, "filter.senders"),
        ({"agents": ["x"] * (PATTERNS_LIMIT + 1)}, "filter.agents"),
        ({"types": ["a*" * STARS_LIMIT + "*"]}, "filter.types"),
        ({"types": ["x" * PATTERN_LIMIT] * PATTERNS_LIMIT, "rooms": ["x"]}, "filter"),
        ({"types": ["\x00" * PATTERN_LIMIT] * 6}, "filter"),
    ],
)
def test_what_is_wrong_is_named(given: Any, place: str) -> None:
    with pytest.raises(ArmorclawError) as caught:
        EventFilter.from_json(given)
    assert caught.value.name == "invalid_params"
    assert caught.value.what == place
