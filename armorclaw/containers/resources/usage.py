"""What one container uses, as its engine tells or as /proc does. What cannot be told is None, never made up."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import attrs

MAX_PROCESSES = 4096
"""More are not counted: no sandbox may have so many."""

_TICK_NS = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


@attrs.frozen
class Usage:
    """One reading.

    `cpu_ns` is processor time since the container started, `memory_bytes` without what the kernel could drop from its
    caches, `memory_limit` that of the whole container, `pids` processes and threads, the rest what it has read from
    and written to disks.
    """

    cpu_ns: int | None = None
    memory_bytes: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None


@attrs.frozen
class Reading:
    """What one agent used at one moment, with what only those who watch it can know. None: cannot be told.

    `at` is the time by Trio's clock, `at_ms` that of the wall; `container` is the id of what was read. `cpu_percent`
    is of one processor since the reading before; `throttled_ns` how long its processor limit held it back and
    `oom_kills` how many of its processes were killed for want of memory, both since its container started.
    `tmp_bytes` is what its /tmp holds, `data_bytes` its /data, as it was measured last.
    """

    at: float
    at_ms: int
    container: str
    usage: Usage = Usage()
    cpu_percent: float | None = None
    throttled_ns: int | None = None
    oom_kills: int | None = None
    tmp_bytes: int | None = None
    data_bytes: int | None = None


def usage_told(answer: Mapping[str, Any]) -> Usage:
    """From what an engine answers to GET /containers/ID/stats; of one that does not run it tells nothing."""
    memory = _table(answer, "memory_stats")
    if "usage" not in memory:
        return Usage()
    details = _table(memory, "stats")  # Podman has none: then caches count as well
    cache = _number(details.get("total_inactive_file", details.get("inactive_file"))) or 0
    used = _number(memory["usage"])
    return Usage(
        cpu_ns=_number(_table(_table(answer, "cpu_stats"), "cpu_usage").get("total_usage")),
        memory_bytes=None if used is None else max(0, used - cache),
        memory_limit=_number(memory.get("limit")),
        pids=_number(_table(answer, "pids_stats").get("current")),
        read_bytes=_transferred(answer, "read"),
        written_bytes=_transferred(answer, "write"),
    )


def usage_below(pid: int) -> Usage:
    """Summed over a process and those below it that live; blocking, about 0.1 ms each.

    Processor time is theirs and that of their children that have ended, to a clock tick (10 ms). Memory is what is
    their own and no file's; pages that several share after a fork count for each. An orphan that left the tree is not
    found again.
    """
    ticks = memory = threads = 0
    for number, each in enumerate(tree(pid)):
        if number == MAX_PROCESSES:
            return Usage()
        fields, status = _read(f"/proc/{each}/stat"), _read(f"/proc/{each}/status")
        if not fields or not status:
            continue  # it has ended meanwhile; its parent has its time
        ticks += sum(int(word) for word in fields[fields.rindex(")") + 2 :].split()[11:15])
        lines = dict(line.partition(":")[::2] for line in status.splitlines())
        memory += sum(int(lines.get(name, "0 kB").split()[0]) for name in ("RssAnon", "RssShmem")) * 1024
        threads += int(lines.get("Threads", "0"))
    return Usage(cpu_ns=ticks * _TICK_NS, memory_bytes=memory, pids=threads) if threads else Usage()


def tree(pid: int) -> Iterator[int]:
    """A process and those below it, as /proc tells; blocking."""
    found = [pid]
    while found:
        yield (pid := found.pop())
        try:
            tasks = os.listdir(f"/proc/{pid}/task")
        except OSError:
            continue
        for task in tasks:  # a child belongs to the thread that made it
            found += [int(child) for child in _read(f"/proc/{pid}/task/{task}/children").split()]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _table(answer: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = answer.get(name)
    return value if isinstance(value, Mapping) else {}


def _number(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _transferred(answer: Mapping[str, Any], wanted: str) -> int | None:
    """Bytes over all devices; None where the kernel counts none, which an empty list means as well."""
    rows = _table(answer, "blkio_stats").get("io_service_bytes_recursive") or []
    values = [_number(row.get("value")) or 0 for row in rows if str(row.get("op", "")).lower() == wanted]
    return sum(values) if values else None
