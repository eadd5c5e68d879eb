"""Which events somebody wants. A filter narrows what policy allows; it never widens it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event, ascii_json

PATTERNS_LIMIT = 32
"""Patterns in one field of a filter."""
PATTERN_LIMIT = 255
"""Characters of one pattern; as long as a Matrix identifier may be."""
STARS_LIMIT = 8
"""Stars in one pattern. A filter is tried at each event, so these limits are what it may cost everyone."""
FILTER_LIMIT = 8 * 1024
"""Bytes of a whole filter as JSON."""


@attrs.frozen
class EventFilter:
    """An event matches if every field that is not empty has a pattern for it; `*` stands for any characters.

    An event without, say, a room never matches a filter that names rooms, and one without a severity none that names
    severities.
    """

    types: tuple[str, ...] = ()
    rooms: tuple[str, ...] = ()
    senders: tuple[str, ...] = ()
    agents: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    _tests: tuple[tuple[str, _Patterns], ...] = attrs.field(init=False, eq=False, repr=False)

    def __attrs_post_init__(self) -> None:
        given = ((of_event, ours, getattr(self, ours)) for ours, of_event in _FIELDS.items())
        tests = ((of_event, _Patterns.of(ours, patterns)) for of_event, ours, patterns in given if patterns)
        object.__setattr__(self, "_tests", tuple(tests))
        if self._tests and len(self.to_json()) > FILTER_LIMIT:
            raise _invalid("filter", f"it may have {FILTER_LIMIT} bytes")

    def matches(self, event: Event) -> bool:
        """Whether the event passes. Safe to call on any thread."""
        for name, patterns in self._tests:  # noqa: SIM110 - in a hurry: each event is tried for each subscriber
            if not patterns.match(getattr(event, name)):
                return False
        return True

    def to_json(self) -> str:
        """As the store and the wire write it."""
        return ascii_json({field: list(getattr(self, field)) for field in _FIELDS}).decode("ascii")

    @classmethod
    def from_json(cls, text: str | bytes | Mapping[str, Any]) -> EventFilter:
        """The inverse; also takes the object already decoded. Raises `invalid_params` naming the field."""
        try:
            given = text if isinstance(text, Mapping) else json.loads(text)
        except ValueError as error:
            raise _invalid("filter", "it is not JSON") from error
        if not isinstance(given, Mapping) or not set(given) <= set(_FIELDS):
            raise _invalid("filter", f"it must be an object of {', '.join(_FIELDS)}")
        for field, patterns in given.items():
            if not isinstance(patterns, list | tuple) or not all(isinstance(one, str) for one in patterns):
                raise _invalid(f"filter.{field}", "it must be a list of strings")
        return cls(**{field: tuple(patterns) for field, patterns in given.items()})


_FIELDS = {"types": "type", "rooms": "room_id", "senders": "sender", "agents": "agent", "severities": "severity"}
"""Each field of a filter, and what of an event it is about."""


def _invalid(place: str, why: str) -> ArmorclawError:
    return ArmorclawError("invalid_params", place, why=why, fields=[place])


@attrs.frozen
class _Patterns:
    """One field's patterns: names looked up at once, the others tried in turn."""

    names: frozenset[str]
    wild: tuple[tuple[str, ...], ...]  # each split at its stars

    @classmethod
    def of(cls, field: str, patterns: Iterable[str]) -> _Patterns:
        given = tuple(patterns)
        if len(given) > PATTERNS_LIMIT or any(len(one) > PATTERN_LIMIT for one in given):
            raise _invalid(f"filter.{field}", f"at most {PATTERNS_LIMIT} patterns of {PATTERN_LIMIT} characters")
        if any(one.count("*") > STARS_LIMIT for one in given):
            raise _invalid(f"filter.{field}", f"at most {STARS_LIMIT} stars in a pattern")
        wild = tuple(tuple(one.split("*")) for one in given if "*" in one)
        return cls(frozenset(one for one in given if "*" not in one), wild)

    def match(self, value: str | None) -> bool:
        if value is None:
            return False
        return value in self.names or (bool(self.wild) and any(_glob(parts, value) for parts in self.wild))


def _glob(parts: tuple[str, ...], text: str) -> bool:
    """Whether `text` is the parts in order with anything between them.

    Taking each part at its first place is enough, so this looks at each character once per part: a pattern from an
    agent cannot make it slow, as it could a regular expression.
    """
    first, *middle, last = parts
    if len(text) < len(first) + len(last) or not text.startswith(first) or not text.endswith(last):
        return False
    at, end = len(first), len(text) - len(last)
    for part in middle:
        found = text.find(part, at, end)
        if found < 0:
            return False
        at = found + len(part)
    return True
