"""The folder of each agent that outlives its generations: where it lies, who may enter it, and how full it is.

Everything below it is the agent's: names, links and depth may be meant to harm. The bridge opens nothing there but
folders, follows no symbolic link, and stops measuring when the limit is passed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from itertools import islice
from pathlib import Path

import attrs

from armorclaw import config
from armorclaw.containers.resources.usage import MAX_PROCESSES
from armorclaw.errors import ArmorclawError

DATA = "/data"
"""Where an agent finds its folder inside."""

ENTRY_BYTES = 4096
"""Counted for each file and folder beside what it holds, so that a limit of bytes is one of entries, too."""

MAX_DEPTH = 128
"""Folders within folders; what lies deeper cannot be measured, which counts as being over every limit."""

_BREATH = 256  # entries after which measuring lets others use the interpreter


@attrs.frozen
class DataSize:
    """What a folder holds: `bytes` as it takes on the disk. `complete` is false where not all could be measured:
    `why` says what was in the way, and it holds at least this much. `too_deep`: that was how deep folders lie."""

    bytes: int
    complete: bool = True
    why: str = ""
    too_deep: bool = False

    def excess(self, limit: int) -> str:
        """Why that is more than `limit` allows, in a few words for people; "" if it is not."""
        if self.too_deep:
            return f"{self.why}, which cannot be measured"
        return f"it holds more than the {limit:,} bytes it may" if self.bytes > limit else ""


def data_folder(state_dir: Path, agent: str) -> Path:
    """What one agent sees at DATA."""
    return state_dir.absolute() / "data" / agent


def make_data_folder(state_dir: Path, agent: str, uid: int) -> Path:
    """Make it, or give it the mode it is to have: the agent's own, and nobody else's. Blocking.

    A bridge run by root gives it to the agent's uid, mode 0700. Any other cannot: its folders are open to all, in one
    that only it can pass, except to an agent that has its folder mounted. Raises `storage_failed`.
    """
    folder = data_folder(state_dir, agent)
    is_root = os.geteuid() == 0
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.parent.chmod(0o711 if is_root else 0o700)  # a sandbox makes its mounts as the agent's uid
        if is_root:
            os.chown(folder, uid, uid, follow_symlinks=False)
        folder.chmod(0o700 if is_root else 0o777)
    except OSError as error:
        raise ArmorclawError(
            "storage_failed", f"agent {agent!r} cannot have a data folder", why=error.strerror or ""
        ) from error
    return folder


def measure(folder: Path, enough: int, pids: Iterable[int] = ()) -> DataSize:
    """What `folder` holds, each file once however many names it has; no further than `enough`. Blocking.

    Files without a name that `pids` hold open on its file system count as well; of those of whom /proc does not tell,
    nothing does. It takes some 5 µs an entry, and lets go of the interpreter in between.
    """
    measuring = _Measuring(enough)
    try:
        fd = os.open(folder, _FOLDER)
    except FileNotFoundError:
        return DataSize(0)
    except OSError as error:
        return DataSize(0, False, error.strerror or "it cannot be read")
    device = os.fstat(fd).st_dev
    measuring.walk(fd, 1)
    for pid in islice(pids, MAX_PROCESSES):
        measuring.look_into(pid, device)
    return DataSize(measuring.bytes, not measuring.why, measuring.why, measuring.too_deep)


def check_room(declared: config.Agent, state_dir: Path) -> None:
    """Raise `quota_exceeded` if the agent's folder holds more than it may: it would be ended at once. Blocking."""
    limit = declared.data.hard
    size = measure(data_folder(state_dir, declared.name), limit)
    if excess := size.excess(limit):
        place = f"data/{declared.name} in the bridge's state_dir"
        raise ArmorclawError(
            "quota_exceeded",
            f"the data folder of agent {declared.name} is full",
            why=excess if size.too_deep else f"{excess} (agents.{declared.name}.data.hard)",
            hint=f"remove the nested folders from {place}: no limit allows them"
            if size.too_deep
            else f"remove files from {place}, or raise the limit",
        )


_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME * (os.geteuid() == 0)


class _Measuring:
    """One walk; `walk` closes what it is given."""

    def __init__(self, enough: int) -> None:
        self.bytes = 0
        self.why = ""
        self.too_deep = False
        self._enough = enough
        self._seen: set[tuple[int, int]] = set()  # files with more than one name, or none
        self._entries = 0

    def walk(self, fd: int, depth: int) -> None:
        try:
            with os.scandir(fd) as entries:
                for entry in entries:
                    if self.bytes > self._enough:
                        return
                    self._breathe()
                    self._count(fd, entry, depth)
        except OSError as error:
            self.why = error.strerror or "a folder cannot be read"
        finally:
            os.close(fd)

    def look_into(self, pid: int, device: int) -> None:
        """Count what a process holds open that has no name any more, or never had one (O_TMPFILE)."""
        try:
            with os.scandir(f"/proc/{pid}/fd") as entries:
                for entry in entries:
                    if self.bytes > self._enough:
                        return
                    self._breathe()
                    self._count_nameless(entry.path, device)
        except OSError:  # it has ended, or is not ours to look into
            return

    def _count_nameless(self, path: str, device: int) -> None:
        try:
            facts = os.stat(path)
        except OSError:  # closed meanwhile
            return
        key = facts.st_dev, facts.st_ino
        if facts.st_nlink == 0 and facts.st_dev == device and key not in self._seen:
            self._seen.add(key)
            self.bytes += ENTRY_BYTES + facts.st_blocks * 512

    def _breathe(self) -> None:
        self._entries += 1
        if self._entries % _BREATH == 0:
            time.sleep(0.001)

    def _count(self, fd: int, entry: os.DirEntry[str], depth: int) -> None:
        try:
            facts = entry.stat(follow_symlinks=False)
        except FileNotFoundError:  # removed meanwhile
            return
        if facts.st_nlink == 1 or entry.is_dir(follow_symlinks=False):
            self.bytes += ENTRY_BYTES + facts.st_blocks * 512
        else:
            self.bytes += ENTRY_BYTES
            if (key := (facts.st_dev, facts.st_ino)) not in self._seen:
                self._seen.add(key)
                self.bytes += facts.st_blocks * 512
        if entry.is_dir(follow_symlinks=False):
            self._descend(fd, entry.name, depth)

    def _descend(self, fd: int, name: str, depth: int) -> None:
        if depth == MAX_DEPTH:
            self.bytes, self.too_deep = self._enough + 1, True
            self.why = f"folders are nested more than {MAX_DEPTH} deep"
            return
        try:
            below = os.open(name, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            return
        except OSError as error:  # of another's, or no folder any more
            self.why = error.strerror or "a folder cannot be read"
            return
        self.walk(below, depth + 1)
