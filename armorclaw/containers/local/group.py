"""Control groups for agents without an engine, so that limits hold for the whole of one agent.

One group per generation, below the bridge's own::

    GROUP OF THE BRIDGE/armorclaw-INSTANCE/KIND-NAME-xxxxxxxx

With version 1 that takes nothing but the right to make folders there, which root has. With version 2 a group whose
controllers are handed down may hold no process itself, and on hosts with systemd its tree may be changed only below
what was delegated (`Delegate=yes` in the unit). So there the bridge takes a place in a group of its own first,
`bridge`, and only where it was told that the tree is its own, or is at the root of it. See
https://systemd.io/CGROUP_DELEGATION and cgroups(7).

Everything here is a few system calls; nothing of it waits for a disk.
"""

from __future__ import annotations

import math
import os
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

import trio

from armorclaw.containers.resources.cgroup import V2, Cgroup, Hierarchies, memberships
from armorclaw.containers.resources.usage import Usage
from armorclaw.containers.spec import Limits
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

NEEDED = ("memory", "pids", "cpu")
"""Controllers without all of which no group is made."""

COUNTED = ("cpuacct", "blkio")
"""Those of version 1 that only count: a group there is worth having, and no more."""

REMOVE_SECONDS = 2.0
"""For the kernel to let go of what has been killed; it takes some 10 ms."""

_PERIOD_US = 100_000  # over which processor time is limited, the kernel's default
_LEAF = "bridge"
_ATTEMPTS = 10  # to remove what a killed bridge left, with pauses of 2 ms


class NoGroups(Exception):  # noqa: N818 - reads as what is the case
    """Why no groups can be made here, in a few words for people."""


class Parent:
    """Where the groups of this host's agents are made: a folder in each hierarchy, by controller, or V2."""

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = folders

    @classmethod
    def find(cls, proc: Path = Path("/proc/self")) -> Self:
        """From where the bridge is itself. Raises NoGroups."""
        try:
            hierarchies = Hierarchies.parse((proc / "mountinfo").read_text())
            own = memberships((proc / "cgroup").read_text())
        except OSError as error:
            raise NoGroups(f"/proc does not tell of control groups: {error.strerror}") from error
        except ValueError as error:
            raise NoGroups("/proc tells of control groups in a form that is not known") from error
        folders = {}
        for name, path in own.items():
            folder = hierarchies.folder(name, path)
            if folder is not None and name in (*NEEDED, *COUNTED, V2):
                folders[name] = folder
        if all(name in folders for name in NEEDED):
            folders.pop(V2, None)
            return cls(folders)._checked()
        if V2 not in folders:
            raise NoGroups("no control groups are mounted")
        return cls({V2: _handing_down(folders[V2], own[V2])})._checked()

    def _checked(self) -> Self:
        if not all(os.access(folder, os.W_OK) for folder in self.folders.values()):
            raise NoGroups("this user may not make control groups")
        return self

    @property
    def version(self) -> int:
        return 2 if V2 in self.folders else 1


def _handing_down(own: Path, path: str) -> Path:
    """The group of version 2 whose controllers can be handed down to ours. Raises NoGroups."""
    if path == "/":  # of the host, or of a container that has its own view
        candidates = [own]
    else:
        candidates = [folder for folder in (own, own.parent) if _is_delegated(folder)]
    if not candidates:
        raise NoGroups("its control group is not delegated to it (Delegate=yes in its unit)")
    why = ""
    for folder in candidates:
        for attempt in range(2):
            try:
                (folder / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in NEEDED))
                return folder
            except OSError as error:
                why = error.strerror or ""
                if attempt or folder != own or not _step_aside(folder):
                    break
    raise NoGroups(f"controllers are not handed down: {why}")


def _is_delegated(folder: Path) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(folder, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _step_aside(folder: Path) -> bool:
    """Move the bridge into a group below `folder`, if it is alone in there."""
    try:
        if (folder / "cgroup.procs").read_text().split() != [str(os.getpid())]:
            return False
        (folder / _LEAF).mkdir(exist_ok=True)
        (folder / _LEAF / "cgroup.procs").write_text(str(os.getpid()))
    except OSError:
        return False
    return True


class Groups:
    """Makes and removes the groups of one kind of runtime."""

    def __init__(self, kind: str, parent: Parent) -> None:
        self._kind = kind
        self._parent = parent
        self._live: set[str] = set()
        self._cleaned: set[str] = set()
        self._cleaning = trio.Lock()

    @property
    def version(self) -> int:
        """Of the control groups used."""
        return self._parent.version

    @asynccontextmanager
    async def group(self, instance: str, name: str, limits: Limits) -> AsyncIterator[Group]:
        """An empty group with these limits; leaving kills what is still in it and removes it.

        `name` is the id of one generation. Raises `engine_refused`. The first time for an instance also what a bridge
        that was killed left of it is ended and removed: there is only one bridge of an instance.
        """
        async with self._cleaning:
            if instance not in self._cleaned:
                await self.clean(instance)
                self._cleaned.add(instance)
        self._live.add(name)
        folders = {each: folder / f"armorclaw-{instance}" / name for each, folder in self._parent.folders.items()}
        try:
            self._make(folders, limits)
        except OSError as error:
            for folder in folders.values():
                _remove(folder)
                _remove(folder.parent)
            self._live.discard(name)
            what = "the control group of an agent could not be made"
            raise ArmorclawError("engine_refused", what, why=error.strerror or "") from error
        group = Group(name, folders)
        try:
            yield group
        finally:
            await group.remove()
            self._live.discard(name)

    def _make(self, folders: Mapping[str, Path], limits: Limits) -> None:
        for folder in folders.values():
            folder.parent.mkdir(exist_ok=True)
            if self._parent.version == 2:
                (folder.parent / "cgroup.subtree_control").write_text(" ".join(f"+{each}" for each in NEEDED))
            folder.mkdir()
        for path, value in _settings(folders, limits):
            path.write_text(value)

    async def clean(self, instance: str) -> None:
        """End and remove what a bridge of that instance left that was killed."""
        for folder in self._parent.folders.values():
            top = folder / f"armorclaw-{instance}"
            try:
                left = [each for each in top.iterdir() if each.is_dir()]
            except OSError:
                continue
            for each in left:
                if each.name.startswith(f"{self._kind}-") and each.name not in self._live:
                    log.info("removing a control group that is nobody's", group=each.name)
                    for _ in range(_ATTEMPTS):
                        if _remove(each):
                            break
                        _kill_all(each)
                        await trio.sleep(0.002)
            _remove(top)


def _settings(folders: Mapping[str, Path], limits: Limits) -> Iterator[tuple[Path, str]]:
    quota = max(1000, math.floor(limits.cpus * _PERIOD_US))  # the kernel takes no less
    if V2 in folders:
        folder = folders[V2]
        yield folder / "memory.max", str(limits.memory)
        if (folder / "memory.swap.max").exists():  # not without swap in the kernel
            yield folder / "memory.swap.max", "0"
        yield folder / "pids.max", str(limits.pids)
        yield folder / "cpu.max", f"{quota} {_PERIOD_US}"
        return
    memory = folders["memory"]
    yield memory / "memory.limit_in_bytes", str(limits.memory)
    if (memory / "memory.memsw.limit_in_bytes").exists():
        yield memory / "memory.memsw.limit_in_bytes", str(limits.memory)  # memory and swap together: no swap
    yield folders["pids"] / "pids.max", str(limits.pids)
    yield folders["cpu"] / "cpu.cfs_period_us", str(_PERIOD_US)
    yield folders["cpu"] / "cpu.cfs_quota_us", str(quota)


class Group:
    """The control group of one generation; `name` is its id."""

    def __init__(self, name: str, folders: Mapping[str, Path]) -> None:
        self.name = name
        self._folders = folders
        self._accounts = Cgroup(folders)
        self._kills: int | None = None

    def __repr__(self) -> str:
        return f"<Group {self.name}>"

    def add(self, pid: int) -> None:
        """Take a process in, with all it will start; those it has started already stay where they are.

        Raises OSError.
        """
        for folder in self._folders.values():
            (folder / "cgroup.procs").write_text(str(pid))

    def usage(self) -> Usage:
        """What all in it use now."""
        return self._accounts.usage()

    def oom_kills(self) -> int | None:
        """How many processes in it were killed for want of memory, also after it was removed."""
        if self._kills is None:
            return self._accounts.oom_kills()
        return self._kills

    async def remove(self) -> None:
        """Kill what is still in it, and remove it. What stays is said in the log, and removed by the next bridge."""
        self._kills = self.oom_kills()
        self._accounts.close()
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_SECONDS) as scope:
            while True:
                gone = [_remove(folder) for folder in self._folders.values()]
                if all(gone):
                    break
                for folder in self._folders.values():
                    _kill_all(folder)
                await trio.sleep(0.005)
        if scope.cancelled_caught:
            log.error("control group not removed", group=self.name)
        for folder in self._folders.values():
            _remove(folder.parent)  # unless there are others


def _kill_all(folder: Path) -> None:
    """SIGKILL to all in a group; not to those that they start meanwhile, but for version 2."""
    try:
        (folder / "cgroup.kill").write_text("1")  # version 2, Linux 5.14
        return
    except OSError:
        pass
    try:
        pids = [int(word) for word in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return
    for pid in pids:
        if pid not in (0, os.getpid()):  # 0: one that is not in our pid namespace
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue


def _remove(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:  # something is in it, or is just ending
        return False
    return True
