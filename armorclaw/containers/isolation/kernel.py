"""What the kernel says of a process and of those below it: read from /proc and the control groups. All blocking.

Functions raise OSError for what cannot be read (gone, or hidden from this user) and ValueError for what is not
understood. See proc(5), cgroups(7), mount_namespaces(7).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import PurePosixPath

import attrs

from armorclaw.containers.resources.cgroup import V2, Hierarchies, memberships

NAMESPACES = ("user", "pid", "net", "ipc", "uts", "mnt", "cgroup")

MAX_PROCESSES = 4096
"""More are not looked at: no container may have so many."""

_NO_LIMIT = 1 << 60  # version 1 of control groups writes "none" as about 2**63
_OCTAL = re.compile(r"\\([0-7]{3})")


@attrs.frozen
class Mount:
    """A line of /proc/PID/mountinfo. `options` are this mount's, `of_system` those of the whole file system, which
    may be mounted elsewhere, too; `root` is what of it is shown here, `device` which one it is."""

    device: str
    root: str
    target: str
    options: tuple[str, ...]
    kind: str
    of_system: tuple[str, ...]

    @property
    def is_writable(self) -> bool:
        return "rw" in self.options and "rw" in self.of_system


@attrs.frozen
class Status:
    """Of one process, from /proc/PID/status: ids on the host as real, effective, saved, and of the file system."""

    uids: tuple[int, ...]
    gids: tuple[int, ...]
    groups: frozenset[int]
    capabilities: Mapping[str, int]  # Inh, Prm, Eff, Bnd, Amb
    no_new_privileges: bool
    seccomp: int  # 0 none, 1 strict, 2 filter


def text_of(pid: int | str, name: str) -> str:
    """The text of /proc/PID/name."""
    with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="replace") as file:
        return file.read()


def started(pid: int) -> int:
    """When it started, in clock ticks since boot: with its pid, what tells it from any other process."""
    return int(text_of(pid, "stat").rpartition(")")[2].split()[19])


def tree(pid: int) -> list[int]:
    """The process and all below it, as far as they live; MAX_PROCESSES at most."""
    found, at = [pid], 0
    while at < len(found) < MAX_PROCESSES:
        try:
            tasks = os.listdir(f"/proc/{found[at]}/task")
        except OSError:
            tasks = []
        for task in tasks:  # a child belongs to the thread that made it
            try:
                found += [int(word) for word in text_of(found[at], f"task/{task}/children").split()]
            except OSError:
                continue
        at += 1
    return found[:MAX_PROCESSES]


def status(pid: int) -> Status:
    lines = dict(line.partition(":")[::2] for line in text_of(pid, "status").splitlines())
    try:
        return Status(
            uids=tuple(int(word) for word in lines["Uid"].split()),
            gids=tuple(int(word) for word in lines["Gid"].split()),
            groups=frozenset(int(word) for word in lines["Groups"].split()),
            capabilities={name: int(lines[f"Cap{name}"], 16) for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")},
            no_new_privileges=int(lines["NoNewPrivs"]) == 1,
            seccomp=int(lines["Seccomp"]),
        )
    except KeyError as missing:
        raise ValueError(f"the kernel does not tell {missing.args[0]}") from None


def inside(pid: int, host_id: int, kind: str = "uid") -> int:
    """What a uid (or gid) of the host is in that process's user namespace. Raises ValueError if it is not there."""
    for line in text_of(pid, f"{kind}_map").splitlines():
        within, outside, count = (int(number) for number in line.split())
        if outside <= host_id < outside + count:
            return within + host_id - outside
    raise ValueError(f"{kind} {host_id} of the host is not mapped inside")


def namespace(pid: int | str, name: str) -> int:
    """The number of one of NAMESPACES."""
    return os.stat(f"/proc/{pid}/ns/{name}").st_ino


def mounts(pid: int | str) -> list[Mount]:
    """All that are mounted for it, in the order they were."""
    found = []
    for line in text_of(pid, "mountinfo").splitlines():
        here, _, there = line.partition(" - ")
        _, _, device, root, target, options, *_ = here.split(" ")
        kind, _, of_system = there.split(" ", 2)
        found.append(
            Mount(device, _plain(root), _plain(target), tuple(options.split(",")), kind, tuple(of_system.split(",")))
        )
    return found


def host_path(mount: Mount, ours: list[Mount]) -> str | None:
    """Where that lies on the host, by the bridge's own mounts; None if it is of no file system mounted there."""
    best: Mount | None = None
    for each in ours:
        is_above = each.device == mount.device and _is_below(mount.root, each.root)
        if is_above and (best is None or len(each.root) >= len(best.root)):
            best = each
    if best is None:
        return None
    return str(PurePosixPath(best.target, *PurePosixPath(mount.root).relative_to(best.root).parts))


def network_devices(pid: int) -> list[str]:
    return [line.partition(":")[0].strip() for line in text_of(pid, "net/dev").splitlines()[2:]]


def routes(pid: int) -> list[str]:
    """Where it could send to beside itself: devices of its routes other than lo."""
    found = [line.split()[0] for line in text_of(pid, "net/route").splitlines()[1:]]
    try:
        found += [line.split()[-1] for line in text_of(pid, "net/ipv6_route").splitlines()]
    except FileNotFoundError:  # a kernel without IPv6
        pass
    return sorted({name for name in found if name != "lo"})


def limits(pid: int) -> dict[str, tuple[int | None, int | None]]:
    """Of /proc/PID/limits, soft and hard by name ("Max open files"); None: unlimited."""
    found = {}
    for line in text_of(pid, "limits").splitlines()[1:]:
        soft, hard = (None if word == "unlimited" else int(word) for word in line[26:].split()[:2])
        found[line[:26].strip()] = soft, hard
    return found


def devices(pid: int) -> tuple[list[str], list[str]]:
    """Names below its /dev: character devices, block devices."""
    characters, blocks = [], []
    with os.scandir(f"/proc/{pid}/root/dev") as entries:
        for entry in entries:
            mode = entry.stat(follow_symlinks=False).st_mode & 0o170000
            if mode == 0o020000:
                characters.append(entry.name)
            elif mode == 0o060000:
                blocks.append(entry.name)
    return sorted(characters), sorted(blocks)


def has_swap() -> bool:
    """Whether this host swaps at all."""
    with open("/proc/swaps", encoding="utf-8") as file:
        return len(file.read().splitlines()) > 1


class Groups:
    """The control groups that hold a process and do not hold the bridge, from the innermost on."""

    def __init__(self, pid: int) -> None:
        self._theirs = memberships(text_of(pid, "cgroup"))
        self._ours = memberships(text_of("self", "cgroup"))
        self._hierarchies = Hierarchies.parse(text_of("self", "mountinfo"))

    def values(self, controller: str, first: str, second: str) -> list[str]:
        """What the file `first` (version 1) or `second` (version 2) says in each; one that has no such file is left
        out. Raises ValueError where they cannot be seen from here."""
        name = self._hierarchy(controller)
        found = []
        for path in self._apart(name):
            folder = self._hierarchies.folder(name, path)
            if folder is None:
                raise ValueError(f"the control groups for {controller} are not mounted here")
            try:
                with open(folder / (second if name == V2 else first), encoding="ascii") as file:
                    found.append(file.read().strip())
            except FileNotFoundError:
                continue
        return found

    def least(self, controller: str, first: str, second: str) -> int | None:
        """The least number of those; None: no limit of its own."""
        numbers = [int(text) for text in self.values(controller, first, second) if text not in ("max", "-1")]
        return min((number for number in numbers if number < _NO_LIMIT), default=None)

    def cpus(self) -> float | None:
        """Processor time per time, in processors; None: no limit of its own."""
        quotas = self.values("cpu", "cpu.cfs_quota_us", "cpu.max")
        if self.version("cpu") == 1:
            periods = self.values("cpu", "cpu.cfs_period_us", "cpu.max")
            pairs = list(zip(quotas, periods, strict=True))
        else:
            pairs = [(quota, period) for quota, period in (text.split() for text in quotas)]
        return min((int(q) / int(p) for q, p in pairs if q not in ("max", "-1")), default=None)

    def version(self, controller: str) -> int:
        """1 or 2: of the groups that this controller is in."""
        return 2 if self._hierarchy(controller) == V2 else 1

    def has_one(self, controller: str) -> bool:
        """Whether there is a group of its own at all."""
        return bool(self._apart(self._hierarchy(controller)))

    def _hierarchy(self, controller: str) -> str:
        return controller if controller in self._theirs else V2

    def _apart(self, name: str) -> list[str]:
        """Its group and those above, as long as the bridge is not in them."""
        path, ours = PurePosixPath(self._theirs.get(name, "/")), self._ours.get(name, "/")
        return [str(each) for each in (path, *path.parents) if not _is_below(ours, str(each))]


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _plain(word: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), word)
