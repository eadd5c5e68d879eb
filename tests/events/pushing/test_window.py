from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

from armorclaw.events.pushing.window import WINDOW_BYTES, WINDOW_EVENTS, Window


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


def test_who_takes_too_long_has_it_again() -> None:
    window = Window(deadline=10.0)
    assert window.next_expiry == math.inf
    for seq in (1, 2, 3):
        window.give(seq, 1, float(seq))
    assert window.next_expiry == 11.0
    assert window.expire(10.9) == []
    assert window.touch(1, 5.0)
    assert not window.touch(9, 5.0)
    assert window.held == (3, 2.0)
    assert window.expire(13.0) == [2, 3]
    assert window.due(13.0, 10) == [2, 3]
    assert window.out == [1]
    assert window.next_expiry == 15.0
    assert Window().expire(1e9) == []


def test_beside_one_given_alone_there_is_no_other() -> None:
    window = Window()

    def after(change: Callable[[], None]) -> tuple[bool, bool]:
        change()
        return window.full, window.crowded

    assert after(partial(window.give, 1, 1, 0.0, alone=True)) == (True, True)
    assert after(partial(window.postpone, 1, 5.0)) == (False, False)
    window.give(2, 1, 0.0)
    assert after(partial(window.wait_alone, 1)) == (True, True)
    assert after(partial(window.settle, 2)) == (False, True)  # it may be given now, and nothing else
    assert after(partial(window.postpone, 1, 99.0)) == (False, False)
    window.wait_alone(1)
    assert after(partial(window.settle, 1)) == (False, False)


def test_what_is_owed_apart_holds_no_floor() -> None:
    window = Window()
    window.owe(3, 1.0)
    window.give(5, 1, 0.0)
    assert window.lowest(9, cumulative=False) == 5
    window.settle_to(5)
    assert window.empty
    assert 3 in window
    assert window.due(1.0, 9) == [3]
    window.settle(3)
    assert 3 not in window
    assert window.empty
