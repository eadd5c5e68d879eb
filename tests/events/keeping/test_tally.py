from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armorclaw.events.keeping.tally import BLOCKS, Tally

sizes = st.lists(st.integers(1, 100), max_size=60)


def test_nothing_is_cut_within_the_bound() -> None:
    tally = Tally(100)
    tally.count([(1, 60), (2, 40)])
    assert (tally.total, tally.counted, tally.cut()) == (100, 2, 0)


def test_the_oldest_are_cut_beyond_it() -> None:
    tally = Tally(100)
    tally.count([(1, 60), (3, 40), (4, 1)])
    assert tally.cut() == 1
    tally.count([(7, 90)])
    assert tally.cut() == 3


def test_one_event_larger_than_the_bound_goes_too() -> None:
    tally = Tally(10)
    tally.count([(5, 11)])
    assert tally.cut() == 5


def test_what_was_never_counted_is_left_aside() -> None:
    tally = Tally(10)
    tally.count([(1, 5)])
    tally.free([(1, 2), (2, 100)])
    assert tally.total == 3
    tally.forget(4)
    assert tally.counted == 4, "what is deleted need not be counted"


def test_it_keeps_few_sums() -> None:
    tally = Tally(1000)
    tally.count((seq, 1) for seq in range(1, 100_000))
    tally.forget(tally.cut())
    assert len(tally._sums) <= BLOCKS + 1


@given(sizes, sizes, st.integers(1, 3000), st.data())
def test_after_the_cut_the_bound_holds_and_little_more_is_gone(
    first: list[int], second: list[int], limit: int, data: st.DataObject
) -> None:
    rows = dict(enumerate(first + second, start=1))
    tally = Tally(limit)
    tally.count((seq, rows[seq]) for seq in range(1, len(first) + 1))
    shrunk = data.draw(st.sets(st.sampled_from(sorted(rows)))) if rows else set()
    freed = [(seq, data.draw(st.integers(0, rows[seq] - 1))) for seq in sorted(shrunk) if seq <= len(first)]
    tally.free(freed)
    for seq, size in freed:
        rows[seq] -= size
    tally.count((seq, rows[seq]) for seq in range(len(first) + 1, len(rows) + 1))
    assert tally.total == sum(rows.values())
    cut = tally.cut()
    if tally.total <= limit:
        assert cut == 0
        return
    left = sum(size for seq, size in rows.items() if seq > cut)
    assert left <= limit
    # a sum ends with the event that fills it
    assert left > limit - limit // BLOCKS - 2 - max(rows.values())
    gone = [(seq, size) for seq, size in rows.items() if seq <= cut]
    tally.free(gone)
    tally.forget(cut)
    assert tally.total == left
    assert tally.cut() == 0
