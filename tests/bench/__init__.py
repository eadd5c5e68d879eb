"""Benchmarks: product and baseline interleaved in one run, judged by ratios.

Each module here with a function `run(quick)` is a benchmark; `python -m tests.bench` lists them.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Figure:
    """One measured value; `limit` is the most it may be, None where it only informs."""

    name: str
    value: float
    unit: str = ""
    limit: float | None = None

    @property
    def holds(self) -> bool:
        return self.limit is None or self.value <= self.limit

    def __str__(self) -> str:
        shown = f"{self.name:<52} {self.value:>10.3f} {self.unit:<6}"
        if self.limit is None:
            return shown.rstrip()
        return f"{shown} limit {self.limit:g}{'' if self.holds else '  <-- over'}"


def percentile(values: list[float], share: float) -> float:
    """The value below which `share` (0 to 1) of `values` lie, by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
