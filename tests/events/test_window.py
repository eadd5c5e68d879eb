from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from armorclaw.events.window import WINDOW_BYTES, WINDOW_EVENTS, Window


def test_it_is_full_by_number_and_by_size() -> None:
    window = Window()
    full = []
    for seq in range(WINDOW_EVENTS):
        full.append(window.full)
        window.give(seq, 1, 0.0)
    full.append(window.full)
    assert full == [False] * WINDOW_EVENTS + [True]

    def after(change: Callable[[], None]) -> bool:
        change()
        return window.full

    assert not after(partial(window.settle, 0))
    assert after(partial(window.give, WINDOW_EVENTS, WINDOW_BYTES, 0.0))
    assert not after(partial(window.settle_to, WINDOW_EVENTS))
    assert window.empty


def test_what_is_put_off_takes_no_room_and_is_due_in_order() -> None:
    window = Window()
    window.give(1, WINDOW_BYTES, 0.0)
    window.give(2, 1, 0.0)
    window.postpone(2, 5.0)
    window.postpone(1, 9.0)
    assert not window.full
    assert not window.empty
    assert window.next_due == 5.0
    assert window.due(4.9, 10) == []
    assert window.due(9.0, 10) == [1, 2]
    assert window.due(9.0, 1) == [1]
    window.give(1, 3, 0.0)
    assert window.due(9.0, 10) == [2]
    window.settle(2)
    assert window.next_due == math.inf


def test_the_lowest_that_would_be_left() -> None:
    window = Window()
    assert window.lowest(1, cumulative=False) is None
    for seq in (3, 5, 7):
        window.give(seq, 1, 0.0)
    window.postpone(5, 1.0)
    assert window.lowest(7, cumulative=False) == 3
    assert window.lowest(3, cumulative=False) == 5
    assert window.lowest(5, cumulative=True) == 7
    assert window.lowest(7, cumulative=True) is None
