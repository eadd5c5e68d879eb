"""Back-off and limits: pure decisions, checked against the plainest counting there is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.supervision.backoff import HOUR, Backoff, BackoffRecord, Intensity

pytestmark = pytest.mark.mission("P0.3")


class Longest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


def waits(policy: Backoff, lives: list[float], chance: random.Random | None = None) -> list[float | None]:
    """The waits that follow generations that were ready for so long, restarts taking no time."""
    record, now, answers = BackoffRecord(policy), 0.0, []
    for life in lives:
        now += life
        answers.append(record.ended(now, life, chance or Longest()))
        now += answers[-1] or 0.0
    return answers


def test_first_restart_is_immediate_then_waits_double_up_to_the_maximum() -> None:
    policy = Backoff(max_in_row=None, max_per_hour=None)
    assert waits(policy, [1.0] * 9) == [0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_only_a_stable_time_starts_the_series_anew() -> None:
    policy = Backoff(max_in_row=None, max_per_hour=None)
    assert waits(policy, [1, 1, 1, 599.9, 600, 1]) == [0, 1, 2, 4, 0, 1]


def test_fails_at_the_sixth_unstable_generation_in_a_row() -> None:
    assert waits(Backoff(), [1.0] * 6) == [0, 1, 2, 4, 8, None]
    assert waits(Backoff(), [1.0] * 5 + [600.0] + [1.0] * 6) == [0, 1, 2, 4, 8, 0, 1, 2, 4, 8, 16, None]


def test_fails_at_the_twentieth_end_within_an_hour_even_when_each_was_stable() -> None:
    policy = Backoff(stable_seconds=10.0)
    assert waits(policy, [100.0] * 20) == [0.0] * 19 + [None]
    assert HOUR < 19 * 190.0
    assert waits(policy, [190.0] * 40) == [0.0] * 40
    assert waits(Backoff(max_per_hour=2), [HOUR] * 3) == [0.0] * 3, "a full hour apart is not within an hour"


def test_a_series_of_weeks_does_not_overflow() -> None:
    policy = Backoff(max_in_row=None, max_per_hour=None)
    assert waits(policy, [1.0] * 2000)[-1] == 60.0


def test_jitter_is_full() -> None:
    policy = Backoff(max_in_row=None, max_per_hour=None)
    drawn = [wait for wait in waits(policy, [1.0] * 2000, random.Random(1))[10:] if wait is not None]
    assert 0.0 <= min(drawn) < 1.0
    assert 59.0 < max(drawn) <= 60.0
    assert 28.0 < sum(drawn) / len(drawn) < 32.0


@given(
    st.lists(st.floats(0.0, 2000.0), max_size=80),
    st.one_of(st.none(), st.integers(1, 8)),
    st.one_of(st.none(), st.integers(1, 25)),
)
def test_limits_agree_with_plain_counting(lives: list[float], in_row: int | None, per_hour: int | None) -> None:
    policy = Backoff(max_in_row=in_row, max_per_hour=per_hour)
    record = BackoffRecord(policy)
    now, ends, row = 0.0, [], 0
    for life in lives:
        now += life
        ends.append(now)
        row = 0 if life >= policy.stable_seconds else row + 1
        recent = sum(now - end < HOUR for end in ends)
        failed = (in_row is not None and row >= in_row) or (per_hour is not None and recent >= per_hour)
        assert (record.ended(now, life, Longest()) is None) == failed
        if failed:
            break


@given(st.lists(st.floats(0.0, 20.0), max_size=60), st.integers(0, 5))
def test_intensity_agrees_with_plain_counting(pauses: list[float], limit: int) -> None:
    intensity, now = Intensity(limit, 10.0), 0.0
    restarts: list[float] = []
    for pause in pauses:
        now += pause
        allowed = sum(now - restart < 10.0 for restart in restarts) < limit
        assert intensity.allows(now) == allowed
        if allowed:
            restarts.append(now)


@pytest.mark.parametrize(
    "wrong",
    [{"first": -1.0}, {"base": 0.0}, {"factor": 0.5}, {"maximum": 0.0}, {"stable_seconds": 0.0}, {"max_in_row": 0},
     {"max_per_hour": 0}],
)  # fmt: skip
def test_policies_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Backoff(**wrong)  # type: ignore[arg-type]
