"""When a limit that comes near is told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.resources.thresholds import EASED_FOR, Crossing, Threshold

pytestmark = pytest.mark.mission("P0.4")


def test_told_once_until_it_had_eased() -> None:
    threshold = Threshold("memory")
    levels = []
    for now, used in enumerate([0, 89, 90, 95, 85, 90, 79, 81, *[50] * 40, 95]):
        crossing = threshold.take(used, 100, float(now))
        if crossing:
            levels.append((now, crossing))
    began = 8  # the first of those that stay below
    assert levels == [
        (2, Crossing("memory", "high", 90, 100)),
        (began + EASED_FOR, Crossing("memory", "normal", 50, 100)),
        (48, Crossing("memory", "high", 95, 100)),
    ]


@pytest.mark.parametrize(("used", "limit"), [(None, 100), (100, None), (None, None), (5, 0)])
def test_what_is_not_known_is_no_crossing(used: int | None, limit: int | None) -> None:
    assert Threshold("tmp").take(used, limit, 0.0) is None


def test_another_share() -> None:
    threshold = Threshold("data")
    assert threshold.take(99, 100, 0.0, high=1.0) is None
    assert threshold.take(100, 100, 1.0, high=1.0) is not None


@given(st.lists(st.integers(0, 110), max_size=300))
def test_never_more_than_two_in_its_time(values: list[int]) -> None:
    threshold = Threshold("pids")
    told = [(now, c.level) for now, used in enumerate(values) if (c := threshold.take(used, 100, float(now)))]
    assert [level for _, level in told] == (["high", "normal"] * len(told))[: len(told)]
    for (first, _), (third, _) in zip(told, told[2:], strict=False):
        assert third - first > EASED_FOR
