from __future__ import annotations

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.events.event import Event
from armorclaw.guard.policy import Place
from armorclaw.matrix.chat.carrying_out import Given
from armorclaw.matrix.chat.confirmations import WITHIN, Confirmations, verdict
from armorclaw.matrix.chat.order import Order

from .conftest import ANN, BEN, ROOM


def given(by: str = ANN) -> Given:
    event = Event.make("m.room.message", {}, at_ms=0, account="main", room_id=ROOM, sender=by, event_id="$e")
    return Given(Order("stop", ("echo",)), event, Place("main", (ROOM,)))


async def test_an_answer_that_comes_in_time_counts_once(autojump_clock: MockClock) -> None:
    waiting = Confirmations()
    assert waiting.next_end == math.inf
    assert waiting.ask("k", given()) == []
    assert waiting.next_end == trio.current_time() + WITHIN
    for wrong in (
        ("x", ANN, "main", ROOM),
        ("k", BEN, "main", ROOM),
        ("k", ANN, "b", ROOM),
        ("k", ANN, "main", "!b:x"),
    ):
        assert waiting.answer(*wrong) is None
    assert waiting.answer("k", ANN, "main", ROOM) is not None
    assert waiting.answer("k", ANN, "main", ROOM) is None
    assert "k" not in waiting


async def test_an_answer_that_comes_late_counts_for_nothing(autojump_clock: MockClock) -> None:
    """Also if nobody has asked yet what is over."""
    waiting = Confirmations()
    waiting.ask("k", given())
    await trio.sleep(WITHIN)
    assert waiting.answer("k", ANN, "main", ROOM) is None
    assert [each.key for each in waiting.over()] == ["k"]
    assert waiting.over() == []


@pytest.mark.parametrize(
    ("key", "means"),
    [("✅", True), ("✅\ufe0f", True), ("❌", False), ("👍", None), ("", None), (None, None), (["✅"], None)],
)
def test_signs(key: Any, means: bool | None) -> None:
    assert verdict(key) is means
