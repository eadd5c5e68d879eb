"""The folders that attached files are in: ROOT/AGENT/NAME, and nothing that a client names leads out of there.

A name is a single one, without a slash. Folders are opened one below the other, each by the descriptor of the one
before, and no link is followed. What is written goes to a new file of ours and is then renamed: a link, a pipe, a
device or a second name of some other file that turns up under the name is replaced, and never opened. Looking is
lstat, so nothing there can make it wait.

The files are 0644 and the folders the bridge's alone; an agent's start opens its folder to that agent, as far as its
uid needs it (containers/recipe.py). All here blocks: call it in a worker thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from armorclaw.config import SHARED_CONFIGS, is_name
from armorclaw.errors import ArmorclawError
from armorclaw.store import storage_full

NAME_BYTES = 255
"""What file systems allow."""

_DRAFTS = "_drafts"
_OPEN_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def is_file_name(name: str) -> bool:
    """Whether a file may be called so: printable, no path, nothing that programs take for an option or hide."""
    return (
        1 <= len(name.encode(errors="replace")) <= NAME_BYTES
        and name.isprintable()
        and not name.startswith(("-", ".", "~", " "))
        and not name.endswith(" ")
        and "/" not in name
        and "\\" not in name
    )


def folded(name: str) -> str:
    """The same for names that people, or file systems of other machines, take for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


@attrs.frozen
class Entry:
    """A file as it lies there; `modified_ns` is nanoseconds since the epoch."""

    name: str
    size: int
    modified_ns: int


class Draft:
    """A file that is being written, not in its place yet. `close` removes it unless it was published."""

    def __init__(self, folder: int) -> None:
        self.folder = folder
        self.name = secrets.token_hex(16)
        self.size = 0
        self._file = open(os.open(self.name, _NEW_FILE, 0o600, dir_fd=folder), "wb")  # noqa: SIM115 - `close`

    def write(self, data: bytes) -> None:
        """Appends. Raises storage_failed."""
        with _storing():
            self._file.write(data)
        self.size += len(data)

    def finish(self) -> int:
        """All of it is on disk; its time of modification, as of `Entry`. Raises storage_failed."""
        with _storing():
            self._file.flush()
            os.fchmod(self._file.fileno(), 0o644)
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_mtime_ns

    def close(self) -> None:
        """Quick enough for Trio's own thread. What cannot be removed is left to the next start."""
        try:
            os.unlink(self.name, dir_fd=self.folder)
        except OSError:
            pass  # published
        try:
            self._file.close()
        except OSError:
            pass  # what a full disk did not take is given up
        os.close(self.folder)


class ConfigFiles:
    """Everything below one root. Calls that change something come one at a time."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._tidied = False

    def draft(self) -> Draft:
        """A new file to write to. Raises storage_failed."""
        with _storing(), self._opened(_DRAFTS) as folder:
            if not self._tidied:  # what was being written when an earlier bridge was killed
                for leftover in os.listdir(folder):
                    os.unlink(leftover, dir_fd=folder)
                self._tidied = True
            return Draft(os.dup(folder))

    def publish(self, draft: Draft, owner: str, name: str) -> None:
        """Puts a finished draft in place of whatever is there under that name. Raises storage_failed."""
        with self._opened(owner) as folder:
            os.rename(draft.name, name, src_dir_fd=draft.folder, dst_dir_fd=folder)
            os.fsync(folder)

    def entries(self) -> dict[str, list[Entry]]:
        """The files of each owner, SHARED_CONFIGS first. Raises storage_failed.

        Regular files alone, under names that we would give, and that no other name leads to.
        """
        with self._opened_root() as root, os.scandir(root) as scan:
            owners = sorted(each.name for each in scan if each.is_dir(follow_symlinks=False))
        return {owner: self._entries(owner) for owner in owners if owner == SHARED_CONFIGS or is_name(owner)}

    def _entries(self, owner: str) -> list[Entry]:
        found = []
        with self._opened(owner) as folder, os.scandir(folder) as scan:
            for each in scan:
                try:
                    about = each.stat(follow_symlinks=False)
                except FileNotFoundError:  # removed just now
                    continue
                if stat.S_ISREG(about.st_mode) and about.st_nlink == 1 and is_file_name(each.name):
                    found.append(Entry(each.name, about.st_size, about.st_mtime_ns))
        return sorted(found, key=lambda entry: entry.name)

    @contextmanager
    def _opened_root(self) -> Iterator[int]:
        """Its descriptor. The folders above are the operator's own, and may be links."""
        with _storing():
            self._root.mkdir(0o700, exist_ok=True)
            descriptor = os.open(self._root, _OPEN_FOLDER)
            try:
                yield descriptor
            finally:
                os.close(descriptor)

    @contextmanager
    def _opened(self, owner: str) -> Iterator[int]:
        with self._opened_root() as root:
            try:
                os.mkdir(owner, 0o700, dir_fd=root)
            except FileExistsError:
                pass
            descriptor = os.open(owner, _OPEN_FOLDER, dir_fd=root)
            try:
                yield descriptor
            finally:
                os.close(descriptor)


@contextmanager
def _storing() -> Iterator[None]:
    """No path of the host in what a client sees."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise storage_full() from error
        raise ArmorclawError("storage_failed", "the folder of configs", why=error.strerror or "") from error
