"""1 GiB each way through a streaming method, beside a bare Trio copy of the same bytes.

Two processes each: the server and its user. The bytes of the product go as base64 in JSON, in pieces of 192 KiB, one
call for each direction from first to last; those of bare Trio go as they are. They take turns in slices, so that both
see the same moods of the machine; memory is the most that a process had from a first slice on to the end.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from armorclaw.rpc.flow import BYTES_MAX
from tests.bench import Figure
from tests.bench._real import ROOT, folder

MIB = 1024 * 1024
SIZE, QUICK_SIZE = 1024 * MIB, 192 * MIB
SLICES = 16
WARM_UP = 64 * MIB
LEAST_SHARE = 0.15
"""Of the throughput of bare Trio."""
MOST_GROWTH = 16.0
"""MiB that either process may grow."""


def run(quick: bool) -> list[Figure]:
    """About 15 s when quick, 60 s otherwise."""
    size = QUICK_SIZE if quick else SIZE
    count = size // SLICES // BYTES_MAX
    carried = count * SLICES * BYTES_MAX / MIB
    figures = []
    with ExitStack() as stack:
        product = stack.enter_context(_pair("product"))
        pairs = [product, stack.enter_context(_pair("bare"))]
        for pair in pairs:
            for way in ("down", "up"):
                pair.carry(way, WARM_UP // BYTES_MAX)
            pair.begin()
        for way in ("down", "up"):
            seconds = {pair.kind: 0.0 for pair in pairs}
            before = {pair.kind: pair.cpu() for pair in pairs}
            for _ in range(SLICES):
                for pair in pairs:
                    seconds[pair.kind] += pair.carry(way, count)
            cost = {pair.kind: (pair.cpu() - before[pair.kind]) / carried * 1000 for pair in pairs}
            figures += [
                Figure(f"{way}: product", carried / seconds["product"], "MiB/s"),
                Figure(f"{way}: bare Trio", carried / seconds["bare"], "MiB/s"),
                Figure(f"{way}: bare / product", seconds["product"] / seconds["bare"], "x", 1 / LEAST_SHARE),
                Figure(f"{way}: CPU of both processes, product", cost["product"], "ms/MiB"),
                Figure(f"{way}: CPU of both processes, bare Trio", cost["bare"], "ms/MiB"),
            ]
        figures += [
            Figure("growth of the server", product.server.growth(), "MiB", MOST_GROWTH),
            Figure("growth of the user", product.user.growth(), "MiB", MOST_GROWTH),
        ]
        for pair in pairs:
            pair.end()
    return figures


class Process:
    """One of the processes, from outside."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._peak = 0.0
        assert self.line() == "ready"

    def line(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        """Its answer."""
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        self._process.stdin.flush()
        return self.line()

    def close(self) -> str:
        """Its last answer."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        return self.line()

    def cpu(self) -> float:
        """Seconds it has used, in user and system mode; exact to 10 ms."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def begin(self) -> None:
        """Measure growth from here."""
        self._peak = self._most()

    def growth(self) -> float:
        """MiB that it had at most, beyond the most of the time before `begin`."""
        return self._most() - self._peak

    def _most(self) -> float:
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@attrs.frozen
class Pair:
    kind: str
    server: Process
    user: Process
    sent: list[int] = attrs.field(factory=list)
    """Pieces that went up."""

    def carry(self, way: str, count: int) -> float:
        """Seconds for so many pieces."""
        if way == "up":
            self.sent.append(count)
        return float(self.user.tell(f"{way} {count}\n"))

    def begin(self) -> None:
        self.server.begin()
        self.user.begin()

    def cpu(self) -> float:
        return self.server.cpu() + self.user.cpu()

    def end(self) -> None:
        """All that was sent has arrived."""
        assert int(self.user.close()) == sum(self.sent) * BYTES_MAX


@contextmanager
def _pair(kind: str) -> Iterator[Pair]:
    with folder() as home, _process(kind, "serve", home) as server, _process(kind, "use", home) as user:
        yield Pair(kind, server, user)


@contextmanager
def _process(kind: str, what: str, home: Path) -> Iterator[Process]:
    command = [sys.executable, "-m", "tests.bench._stream_sides", kind, what, str(home / "s")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Process(process)
        finally:
            process.kill()
