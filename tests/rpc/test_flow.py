from __future__ import annotations

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.rpc.flow import BYTES_MAX, CHUNK_MAX, WINDOW, FlowError, Inflow, Outflow


@given(
    window=st.integers(1, 20),
    steps=st.lists(st.sampled_from(["send", "arrive", "use", "grant"]), max_size=300),
    count=st.integers(0, 60),
)
def test_never_more_under_way_than_granted_and_all_arrive_in_order(window: int, steps: list[str], count: int) -> None:
    """However sending, arriving, using up and granting interleave; in the end nothing waits for what never comes."""
    out, into = Outflow(window), Inflow(window)
    wire: deque[int] = deque()
    waiting: deque[int] = deque()
    credit: deque[int] = deque()
    used: list[int] = []

    def step(kind: str) -> bool:
        if kind == "send" and out.credit and out.seq < count:
            wire.append(out.take())
        elif kind == "arrive" and wire:
            into.received(wire[0])
            waiting.append(wire.popleft())
        elif kind == "use" and waiting:
            used.append(waiting.popleft())
            if granted := into.consumed():
                credit.append(granted)
        elif kind == "grant" and credit:
            out.grant(credit.popleft())
        else:
            return False
        assert out.seq - len(used) <= window
        return True

    for kind in steps:
        step(kind)
    while any(step(kind) for kind in ("grant", "use", "arrive", "send")):
        pass
    assert used == list(range(count))
    into.ended(out.seq)


def test_credit_comes_in_halves_of_the_window() -> None:
    into = Inflow()
    for seq in range(WINDOW):
        into.received(seq)
    assert [into.consumed() for _ in range(WINDOW)] == [0, 0, 0, 4, 0, 0, 0, 4]


def test_a_piece_of_bytes_fits_as_base64() -> None:
    assert BYTES_MAX / 3 * 4 == CHUNK_MAX


def test_nothing_goes_out_without_credit() -> None:
    out = Outflow(1)
    assert (out.take(), out.seq) == (0, 1)
    with pytest.raises(FlowError, match="no credit"):
        out.take()
    assert out.seq == 1


@pytest.mark.parametrize("chunks", [0, -1, 1.0, True, "1", None, [], 10**9, 2**70])
def test_what_is_no_credit(chunks: Any) -> None:
    out = Outflow()
    with pytest.raises(FlowError):
        out.grant(chunks)
    assert out.credit == WINDOW


@pytest.mark.parametrize("seq", [0, 2, -1, 1.0, True, "1", None, {}])
def test_only_the_next_number_will_do(seq: Any) -> None:
    into = Inflow()
    into.received(0)
    for check in (into.received, into.ended):
        with pytest.raises(FlowError, match="seq 1 was due"):
            check(seq)
    into.received(1)


def test_more_than_was_granted() -> None:
    into = Inflow()
    for seq in range(WINDOW):
        into.received(seq)
    for _ in range(3):
        into.consumed()
    with pytest.raises(FlowError, match="than were granted, 8"):
        into.received(WINDOW)
    into.consumed()
    into.received(WINDOW)
