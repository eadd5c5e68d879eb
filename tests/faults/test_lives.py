"""The checker of the trials, given what it must not let pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.faults.hearers import Given
from tests.faults.lives import ROOM, Trial, short_folder
from tests.faults.town import BOT, Town


@pytest.fixture
def trial() -> Iterator[Trial]:
    """One question, its answer, and a word of the operator's; all is well."""
    with short_folder() as folder:
        town = Town()
        for room in (ROOM, "!b:town"):
            town.add_room(room)
        trial = Trial(town, "http://127.0.0.1:1", folder)
        event_id = trial.say(ROOM, "hello")
        trial.sent["op"] = ROOM, "notice"
        for body in ("re: hello", "notice"):
            town.say(ROOM, body, sender=BOT)
        trial.accepted["op"].add("d_1")
        trial.echo.accepted[event_id].add("d_2")
        for hearer in (trial.echo, trial.archive):
            hearer.given.append(Given(1, 1, "x", "m.room.message", ROOM, event_id, {}, 0))
        yield trial


def rows(trial: Trial) -> list[dict[str, Any]]:
    places = {"d_1": "notice", "d_2": "re: hello"}
    return [
        {"delivery_id": name, "state": "sent", "event_id": trial.town.event_of(ROOM, body)}
        for name, body in places.items()
    ]


def test_all_is_well(trial: Trial) -> None:
    trial.check(rows(trial), marks=True)


def twice(trial: Trial) -> None:
    trial.town.say(ROOM, "notice", sender=BOT)


def never(trial: Trial) -> None:
    trial.sent["other"] = ROOM, "never seen"


def from_nowhere(trial: Trial) -> None:
    trial.town.say(ROOM, "who said this?", sender=BOT)


def out_of_order(trial: Trial) -> None:
    trial.say(ROOM, "one")
    trial.say(ROOM, "two")
    for body in ("re: two", "re: one"):
        trial.town.say(ROOM, body, sender=BOT)


def two_ids(trial: Trial) -> None:
    trial.accepted["op"].add("d_3")


def forgotten(trial: Trial) -> None:
    trial.accepted["op"] = {"d_9"}


def unheard(trial: Trial) -> None:
    trial.echo.given.clear()


def came_again(trial: Trial) -> None:
    trial.echo.again.append(trial.echo.given[0])


def unmarked(trial: Trial) -> None:
    trial.echo.given.append(Given(2, 1, "x", "m.room.message", ROOM, None, {}, 0))


def number_reused(trial: Trial) -> None:
    trial.archive.given.append(Given(2, 1, "y", "m.room.message", ROOM, None, {}, 1))


def backwards(trial: Trial) -> None:
    trial.archive.given.append(Given(1, 1, "x", "m.room.message", ROOM, None, {}, 1))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (twice, "visible twice"),
        (never, "lost"),
        (from_nowhere, "new"),
        (out_of_order, "out of order"),
        (two_ids, "was answered with"),
        (forgotten, "accepted and forgotten"),
        (unheard, "lost to the agent"),
        (came_again, "after it was acknowledged"),
        (unmarked, "without a mark"),
        (number_reused, "two events"),
        (backwards, "out of order"),
    ],
)
def test_what_must_not_be_is_found(trial: Trial, harm: Callable[[Trial], None], words: str) -> None:
    harm(trial)
    with pytest.raises(AssertionError, match=words):
        trial.check(rows(trial), marks=True)


def test_a_message_that_is_not_sent_in_the_end_is_found(trial: Trial) -> None:
    table = rows(trial)
    table[0]["state"] = "queued"
    with pytest.raises(AssertionError, match="accepted and not sent"):
        trial.check(table, marks=True)


def test_what_is_told_of_messages_must_be_in_the_room(trial: Trial) -> None:
    table = rows(trial)
    table[0]["event_id"] = "$elsewhere"
    with pytest.raises(AssertionError, match="is not what is in the rooms"):
        trial.check(table, marks=True)
