"""Ten minutes of readings in arrays, and peaks."""

from __future__ import annotations

import gc
import tracemalloc

import pytest

from armorclaw.containers.resources.history import SECONDS, History, Peaks
from armorclaw.containers.resources.usage import Reading, Usage

pytestmark = pytest.mark.mission("P0.4")

FULL = Reading(
    at=1.0,
    at_ms=5000,
    container="c",
    usage=Usage(1, 2048, 3, 4, 5, 6),
    cpu_percent=12.34,
    throttled_ns=7,
    oom_kills=8,
    tmp_bytes=4096,
    data_bytes=1 << 33,
)


def test_what_is_kept() -> None:
    history = History()
    history.add(FULL)
    history.add(Reading(2.0, 6000, "c"))
    first, second = history.since(0)
    assert (first.at_ms, first.cpu_percent, first.tmp_bytes, first.data_bytes) == (5000, 12.3, 4096, 1 << 33)
    assert first.usage == Usage(memory_bytes=2048, pids=4, read_bytes=5, written_bytes=6)
    assert (second.at_ms, second.usage, second.cpu_percent, second.tmp_bytes) == (6000, Usage(), None, None)


def test_the_oldest_goes() -> None:
    history = History()
    for second in range(SECONDS + 5):
        history.add(Reading(float(second), second, "c", Usage(pids=second)))
    assert len(history) == SECONDS
    kept = list(history.since(0))
    assert [each.at_ms for each in kept] == list(range(5, SECONDS + 5))
    assert [each.usage.pids for each in kept] == [each.at_ms for each in kept]
    assert [each.at_ms for each in history.since(SECONDS + 2)] == [SECONDS + 2, SECONDS + 3, SECONDS + 4]


def test_its_size() -> None:
    gc.collect()
    tracemalloc.start()
    history = History()
    for second in range(SECONDS * 2):
        history.add(Reading(float(second), second, "c", FULL.usage))
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 40_000


def test_peaks() -> None:
    peaks = Peaks()
    for memory, percent in ((10, None), (None, 5.0), (30, 2.0), (20, None)):
        peaks.take(Reading(0.0, 0, "c", Usage(memory_bytes=memory), cpu_percent=percent))
    assert peaks == Peaks(cpu_percent=5.0, memory_bytes=30)
