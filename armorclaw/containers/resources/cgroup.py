"""What the kernel accounts to the control group of a process: found once, then read through open files.

Version 1 has a hierarchy per controller, version 2 one for all, and many hosts have some of each. Where they are
mounted /proc/self/mountinfo says, and where a process is in them /proc/PID/cgroup; nothing is guessed from names. See
cgroups(7), and Documentation/admin-guide/cgroup-v1/memory.rst and cgroup-v2.rst of the kernel.

A group that the bridge itself is in tells nothing about an agent, so it is left out.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Self

import attrs

from armorclaw.containers.resources.usage import Usage

V2 = "v2"
"""Stands for the one hierarchy of version 2 where version 1 has the name of a controller."""

READ_BYTES = 16 * 1024
"""The longest file read here, memory.stat, has some 2 KiB; io.stat a line of about 80 bytes for each disk."""

_NO_LIMIT = 1 << 60  # version 1 writes "none" as about 2**63
_OCTAL = re.compile(r"\\([0-7]{3})")

Parse = Callable[[bytes], int | None]


@attrs.frozen
class Hierarchies:
    """Where control groups are mounted: (mount point, path of the group shown there) by controller, or V2."""

    places: Mapping[str, tuple[Path, str]]

    @classmethod
    def parse(cls, mountinfo: str) -> Self:
        """From the text of /proc/self/mountinfo; what is mounted twice counts where it shows more."""
        found: dict[str, tuple[Path, str]] = {}
        for line in mountinfo.splitlines():
            here, _, there = line.partition(" - ")
            kind, _, options = there.partition(" ")
            if kind not in ("cgroup", "cgroup2"):
                continue
            _, _, _, root, target, *_ = here.split(" ")
            place = Path(_plain(target)), _plain(root)
            for name in (V2,) if kind == "cgroup2" else options.rpartition(" ")[2].split(","):
                if name not in found or len(place[1]) < len(found[name][1]):
                    found[name] = place
        return cls(found)

    def folder(self, name: str, path: str) -> Path | None:
        """Of the group `path`, as /proc/PID/cgroup writes it; None if it is not shown here."""
        if name not in self.places or ".." in path.split("/"):
            return None
        mounted, root = self.places[name]
        if not _is_below(path, root):
            return None
        return mounted / path[len(root.rstrip("/")) :].lstrip("/")


def memberships(text: str) -> dict[str, str]:
    """The path of a process's group by controller, or V2, from the text of /proc/PID/cgroup."""
    found = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else (V2,):
            found[name] = path
    return found


def folders_of(theirs: str, ours: str, mountinfo: str) -> dict[str, Path]:
    """The folders of a process's groups by controller, or V2, but for those that the bridge is in, too.

    From the texts of its /proc/PID/cgroup, the bridge's own, and the bridge's mountinfo.
    """
    hierarchies, own = Hierarchies.parse(mountinfo), memberships(ours)
    found = {}
    for name, path in memberships(theirs).items():
        if not _is_below(own.get(name, "/"), path):
            folder = hierarchies.folder(name, path)
            if folder is not None:
                found[name] = folder
    return found


class Cgroup:
    """The accounts of one agent's groups, held open until `close`; all reading is synchronous and takes some 20 µs.

    What cannot be read is None. Once the group was removed, which an engine does as soon as the last process in it
    has ended, only what was seen of kills for want of memory is left.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self._fds: dict[Path, int] = {}
        self._sources: dict[str, tuple[int, Parse]] = {}
        self._oom: int | None = None
        self._alarm: _Alarm | None = None
        self.gone = False
        """Whether the group was found removed."""
        self._folder = next((folders[name] for name in ("pids", "memory", V2) if name in folders), None)
        for figure, candidates in _FIGURES.items():
            for name, file, parse in candidates:
                if name in folders and (fd := self._open(folders[name] / file)) is not None:
                    self._sources[figure] = fd, parse
                    break
        self.memory_limit = self._read("memory_limit")
        self.pids_limit = self._read("pids_limit")
        self._forget("memory_limit", "pids_limit")  # they stay what they were made with
        if "memory" in folders:
            with suppress(OSError):
                self._alarm = _Alarm(folders["memory"])
        self.oom_kills()

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """Of the groups of that process; None if it has gone, or has none of its own that can be read."""
        try:
            texts = [_text(f"/proc/{pid}/cgroup"), _text("/proc/self/cgroup"), _text("/proc/self/mountinfo")]
            folders = folders_of(*texts)
        except (OSError, ValueError):  # ValueError: of another form than the kernel documents
            return None
        made = cls(folders)
        if made.usage() == Usage(memory_limit=made.memory_limit):
            made.close()
            return None
        return made

    def __repr__(self) -> str:
        return f"<Cgroup {next(iter(self._fds), '')}>"

    def usage(self) -> Usage:
        """What all in it use now."""
        memory, droppable = self._read("memory"), self._read("droppable")
        return Usage(
            cpu_ns=self._read("cpu_ns"),
            memory_bytes=None if memory is None else max(0, memory - (droppable or 0)),
            memory_limit=self.memory_limit,
            pids=self._read("pids"),
            read_bytes=self._read("read_bytes"),
            written_bytes=self._read("written_bytes"),
        )

    def throttled_ns(self) -> int | None:
        """How long they were held back by their limit of processor time."""
        return self._read("throttled_ns")

    def oom_kills(self) -> int | None:
        """How many processes in it were killed for want of memory, also after it was removed.

        For that the kernel of version 1 calls back; for some milliseconds after the removal it may not be known
        (None). With version 2 it is the last number read.
        """
        now = self._read("oom_kills")
        if now is None and self._alarm is not None:
            now = self._alarm.shortages(self.gone)
            if now is None:
                return self._oom or None
        if now is not None:
            self._oom = max(self._oom or 0, now)
        return self._oom

    def processes(self) -> list[int]:
        """The pids of those in it; for any thread."""
        try:
            text = "" if self._folder is None else _text(str(self._folder / "cgroup.procs"))
        except OSError:
            return []
        return [int(word) for word in text.split() if word.isdecimal() and word != "0"]  # 0: not of our namespace

    def close(self) -> None:
        """Let go of it. Harmless twice."""
        while self._fds:
            os.close(self._fds.popitem()[1])
        self._sources.clear()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    def _open(self, path: Path) -> int | None:
        if path not in self._fds:
            try:
                self._fds[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return None
        return self._fds[path]

    def _forget(self, *figures: str) -> None:
        for figure in figures:
            self._sources.pop(figure, None)
        used = {fd for fd, _ in self._sources.values()}
        for path, fd in list(self._fds.items()):
            if fd not in used:
                os.close(fd)
                del self._fds[path]

    def _read(self, figure: str) -> int | None:
        if figure not in self._sources:
            return None
        fd, parse = self._sources[figure]
        try:
            return parse(os.pread(fd, READ_BYTES, 0))
        except OSError:  # ENODEV: it was removed
            self.gone = True
            return None
        except ValueError:  # of another form than the kernel documents
            return None


class _Alarm:
    """The kernel's calls about a group of version 1: counters that outlive the group.

    One is called at each shortage of memory, and once when the group is removed; the other for a use of memory that
    is never reached, so that it tells of the removal alone. The two calls of the removal come in any order.
    """

    def __init__(self, folder: Path) -> None:
        """Raises OSError where this user may not, or the kernel does not offer it."""
        self._calls = self._removals = 0
        self._shortage = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        try:
            self._removal = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        except OSError:
            os.close(self._shortage)
            raise
        try:
            _register(self._shortage, folder, "memory.oom_control")
            _register(self._removal, folder, "memory.usage_in_bytes", _NO_LIMIT)
        except OSError:
            self.close()
            raise

    def shortages(self, gone: bool) -> int | None:
        """How many there were; None while it cannot be told whether the only call was that of the removal."""
        self._calls += _drained(self._shortage)
        if not gone:
            return self._calls
        self._removals += _drained(self._removal)
        if self._calls == 1 and not self._removals:
            return None
        return max(0, self._calls - 1)

    def close(self) -> None:
        os.close(self._shortage)
        os.close(self._removal)


def _register(counter: int, folder: Path, file: str, *arguments: int) -> None:
    watched = os.open(folder / file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        control = os.open(folder / "cgroup.event_control", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(control, " ".join(map(str, (counter, watched, *arguments))).encode())
        finally:
            os.close(control)
    finally:
        os.close(watched)


def _drained(counter: int) -> int:
    try:
        return os.eventfd_read(counter)
    except BlockingIOError:
        return 0


def _number(data: bytes) -> int | None:
    """A file of one number, or of the word max."""
    value = None if data.strip() == b"max" else int(data)
    return None if value is None or not 0 <= value < _NO_LIMIT else value


def _field(name: str, factor: int = 1) -> Parse:
    """A file of lines NAME VALUE."""
    wanted = re.compile(rb"^" + name.encode() + rb" (\d+)$", re.MULTILINE)

    def parse(data: bytes) -> int | None:
        found = wanted.search(data)
        return None if found is None else int(found[1]) * factor

    return parse


def _over_disks(pattern: bytes) -> Parse:
    """A file of lines that begin with the number of a disk; None where none is counted."""
    wanted = re.compile(pattern, re.MULTILINE)

    def parse(data: bytes) -> int | None:
        values = [int(value) for value in wanted.findall(data)]
        return sum(values) if values else None

    return parse


_BLKIO = "blkio.throttle.io_service_bytes_recursive"

_FIGURES: Mapping[str, tuple[tuple[str, str, Parse], ...]] = {
    # figure: (hierarchy, file, how to read it), version 1 first: on a mixed host it is the one in use
    "cpu_ns": (("cpuacct", "cpuacct.usage", _number), (V2, "cpu.stat", _field("usage_usec", 1000))),
    "throttled_ns": (
        ("cpu", "cpu.stat", _field("throttled_time")),
        (V2, "cpu.stat", _field("throttled_usec", 1000)),
    ),
    "memory": (("memory", "memory.usage_in_bytes", _number), (V2, "memory.current", _number)),
    "droppable": (
        ("memory", "memory.stat", _field("total_inactive_file")),
        (V2, "memory.stat", _field("inactive_file")),
    ),
    "memory_limit": (("memory", "memory.limit_in_bytes", _number), (V2, "memory.max", _number)),
    "oom_kills": (
        ("memory", "memory.oom_control", _field("oom_kill")),
        (V2, "memory.events", _field("oom_kill")),
    ),
    "pids": (("pids", "pids.current", _number), (V2, "pids.current", _number)),
    "pids_limit": (("pids", "pids.max", _number), (V2, "pids.max", _number)),
    "read_bytes": (
        ("blkio", _BLKIO, _over_disks(rb"^\d+:\d+ Read (\d+)$")),
        (V2, "io.stat", _over_disks(rb"^\d+:\d+ .*\brbytes=(\d+)")),
    ),
    "written_bytes": (
        ("blkio", _BLKIO, _over_disks(rb"^\d+:\d+ Write (\d+)$")),
        (V2, "io.stat", _over_disks(rb"^\d+:\d+ .*\bwbytes=(\d+)")),
    ),
}


def _text(path: str) -> str:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _plain(word: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), word)
