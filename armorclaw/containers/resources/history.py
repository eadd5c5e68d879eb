"""The last ten minutes of one agent's readings, and the most it ever used: arrays of numbers, never objects."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from typing import TypeVar

import attrs

from armorclaw.containers.resources.usage import Reading, Usage

SECONDS = 600
"""How far back it goes; at one reading each second also how many there are."""

_NOT_KNOWN = -1
_MOST = 2**31 - 1  # KiB, or pids
_MOST_MOVED = 2**63 - 1

T = TypeVar("T", int, float)


@attrs.define
class Peaks:
    """The most that a reading showed since the agent's container started."""

    cpu_percent: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    tmp_bytes: int | None = None
    data_bytes: int | None = None

    def take(self, reading: Reading) -> None:
        self.cpu_percent = _most(self.cpu_percent, reading.cpu_percent)
        self.memory_bytes = _most(self.memory_bytes, reading.usage.memory_bytes)
        self.pids = _most(self.pids, reading.usage.pids)
        self.tmp_bytes = _most(self.tmp_bytes, reading.tmp_bytes)
        self.data_bytes = _most(self.data_bytes, reading.data_bytes)


class History:
    """A ring of SECONDS readings, of 44 bytes each: 26 kB. The oldest is overwritten."""

    def __init__(self) -> None:
        self._next = 0
        self._count = 0
        self._at_ms = array("q", bytes(8 * SECONDS))
        self._percent = array("f", bytes(4 * SECONDS))
        self._pids = array("i", bytes(4 * SECONDS))
        self._held = array("i", bytes(3 * 4 * SECONDS))  # KiB in memory, /tmp and /data of each reading
        self._moved = array("q", bytes(2 * 8 * SECONDS))  # bytes read and written

    def __len__(self) -> int:
        return self._count

    def add(self, reading: Reading) -> None:
        place, usage = self._next, reading.usage
        self._at_ms[place] = reading.at_ms
        self._percent[place] = _NOT_KNOWN if reading.cpu_percent is None else reading.cpu_percent
        self._pids[place] = _NOT_KNOWN if usage.pids is None else min(usage.pids, _MOST)
        for number, size in enumerate((usage.memory_bytes, reading.tmp_bytes, reading.data_bytes)):
            self._held[3 * place + number] = _NOT_KNOWN if size is None else min(size // 1024, _MOST)
        for number, size in enumerate((usage.read_bytes, usage.written_bytes)):
            self._moved[2 * place + number] = _NOT_KNOWN if size is None else min(size, _MOST_MOVED)
        self._next = (place + 1) % SECONDS
        self._count = min(self._count + 1, SECONDS)

    def since(self, at_ms: int) -> Iterator[Reading]:
        """Those not older than `at_ms`, oldest first; with the figures alone that are kept, sizes to 1 KiB."""
        for number in range(self._count):
            place = (self._next - self._count + number) % SECONDS
            if self._at_ms[place] >= at_ms:
                yield self._reading(place)

    def _reading(self, place: int) -> Reading:
        memory, tmp, data = (_known(kib, 1024) for kib in self._held[3 * place : 3 * place + 3])
        read, written = (_known(size) for size in self._moved[2 * place : 2 * place + 2])
        percent = self._percent[place]
        return Reading(
            at=float("nan"),
            at_ms=self._at_ms[place],
            container="",
            usage=Usage(memory_bytes=memory, pids=_known(self._pids[place]), read_bytes=read, written_bytes=written),
            cpu_percent=None if percent == _NOT_KNOWN else round(percent, 1),
            tmp_bytes=tmp,
            data_bytes=data,
        )


def _known(value: int, unit: int = 1) -> int | None:
    return None if value == _NOT_KNOWN else value * unit


def _most(so_far: T | None, now: T | None) -> T | None:
    return now if so_far is None else so_far if now is None else max(so_far, now)
