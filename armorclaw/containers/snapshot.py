"""Copies of what is mounted into agents, named by their content and never changed.

An upgrade of the bridge or an edit of an agent's code makes a new copy; what runs keeps the files it started with.
Agents have uids of their own, so copies are readable by everybody who can reach them: `state_dir` and the folders
above it must be passable (mode 0711 will do). Who does not know a copy's name cannot reach it, as the folder of all
copies (0711) cannot be listed. All here blocks, up to a second at the limits: call it in a worker thread.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

import armorclaw
from armorclaw.errors import ArmorclawError

MAX_BYTES = 16 * 1024 * 1024
MAX_FILES = 2000
"""Files, folders and links together; code that is larger belongs into an image, or was not meant (a .git, a venv)."""

_CORE = ("rpc/__init__.py", "rpc/flow.py", "rpc/framing.py", "rpc/jsoncodec.py", "rpc/jsonrpc.py")
_LIBRARY = ("__init__.py", "_version.py", "agent", *_CORE)
_LEFT_OUT = frozenset({"__pycache__"})


def snapshot_code(source: Path, state_dir: Path) -> Path:
    """Copy a folder, or a single file, to `state_dir`/code/SHA256/ and return that folder.

    The copy is read-only (files 0444, programs and folders 0555) and appears at once or not at all; the same content
    is copied once. Links are kept if they stay within the folder; __pycache__ is left out. Raises `not_found`,
    `too_large`, `storage_failed`, `config_invalid`: a link that leads out, a file of several names (a hard link, as
    the others may be anybody's), a socket or device, something unreadable.
    """
    if not source.exists():
        raise ArmorclawError("not_found", f"{source} does not exist")
    root = source.resolve()
    if state_dir.resolve().is_relative_to(root):
        raise ArmorclawError(
            "config_invalid",
            f"{source} cannot be an agent's code",
            why="the bridge's own state is in it",
            hint="name the folder of the agent alone",
        )
    copier = _Copier(root, hard_links=False)
    if root.is_dir():
        return _published(state_dir / "code", lambda place: copier.copy_below(root, place))
    return _published(state_dir / "code", lambda place: copier.copy(root, place / source.name))


class Library:
    """The copy of the agent library that this bridge mounts, made once: what it has loaded itself changes no more."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._copying = trio.Lock()
        self._copy: Path | None = None

    async def there(self) -> Path:
        """Where it is; made, or made again if somebody removed it. Raises `storage_failed`."""
        async with self._copying:
            if self._copy is None or not await trio.to_thread.run_sync(self._copy.is_dir):
                self._copy = await trio.to_thread.run_sync(snapshot_library, self._state_dir)
            return self._copy


def snapshot_library(state_dir: Path) -> Path:
    """Copy what runs inside containers to `state_dir`/lib/SHA256/armorclaw/ and return `state_dir`/lib/SHA256/.

    That folder is what PYTHONPATH of an agent names. Raises `storage_failed`.
    """
    package = Path(armorclaw.__file__).parent
    copier = _Copier(package, hard_links=True)  # as some installers make, to share files

    def fill(place: Path) -> None:
        for name in _LIBRARY:
            (place / "armorclaw" / name).parent.mkdir(parents=True, exist_ok=True)
            copier.copy(package / name, place / "armorclaw" / name)
        (place / "armorclaw" / "rpc").chmod(0o555)
        (place / "armorclaw").chmod(0o555)

    return _published(state_dir / "lib", fill)


class _Copier:
    """Copies within one budget of bytes and files, following no link below `root`."""

    def __init__(self, root: Path, *, hard_links: bool) -> None:
        self._root = root
        self._hard_links = hard_links
        self._bytes_left = MAX_BYTES
        self._files_left = MAX_FILES

    def copy(self, source: Path, place: Path) -> None:
        with _reading(source):
            mode = source.lstat().st_mode
        self._spend(files=1)
        if stat.S_ISDIR(mode):
            place.mkdir()
            self.copy_below(source, place)
            place.chmod(0o555)
        elif stat.S_ISREG(mode):
            place.write_bytes(self._content(source))
            place.chmod(0o555 if mode & stat.S_IXUSR else 0o444)
        elif stat.S_ISLNK(mode):
            place.symlink_to(self._link(source))
        else:
            raise ArmorclawError("config_invalid", f"{source} cannot be copied", why="it is no file, folder or link")

    def copy_below(self, folder: Path, place: Path) -> None:
        with _reading(folder):
            names = sorted(set(os.listdir(folder)) - _LEFT_OUT)
        for name in names:
            self.copy(folder / name, place / name)

    def _content(self, source: Path) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC  # it may have become a pipe by now
        with _reading(source), open(os.open(source, flags), "rb") as file:
            if os.fstat(file.fileno()).st_nlink > 1 and not self._hard_links:
                raise ArmorclawError(
                    "config_invalid",
                    f"{source} cannot be copied",
                    why="it is a hard link: the same file has other names, which may be outside the folder",
                    hint="make it a file of its own: cp it to a new name, then mv that over it",
                )
            content = file.read(self._bytes_left + 1)
        self._spend(size=len(content))
        return content

    def _link(self, source: Path) -> str:
        with _reading(source):
            target = os.readlink(source)
            inside = not os.path.isabs(target) and (source.parent / target).resolve().is_relative_to(self._root)
        if not inside:
            raise ArmorclawError(
                "config_invalid",
                f"{source} cannot be copied",
                why="this link leads out of the folder",
                hint="replace the link by what it names",
            )
        return target

    def _spend(self, *, size: int = 0, files: int = 0) -> None:
        self._bytes_left -= size
        self._files_left -= files
        if self._bytes_left < 0 or self._files_left < 0:
            raise ArmorclawError(
                "too_large",
                f"{self._root} is too large to be an agent's code",
                why=f"it has more than {MAX_BYTES // 1024**2} MiB or {MAX_FILES} files",
                hint="name the folder of the agent alone, or put it into an image",
            )


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ArmorclawError("config_invalid", f"{path} cannot be copied", why=why or "") from error


def _published(into: Path, fill: Callable[[Path], None]) -> Path:
    """A folder below `into`, named by its content, that `fill` has made."""
    into = into.absolute()
    try:
        into.mkdir(parents=True, exist_ok=True)
        into.chmod(0o711)  # whatever the umask: to be passed by who knows a name in it, not to be listed
        work = Path(tempfile.mkdtemp(prefix=".new-", dir=into))
        try:
            fill(work)
            work.chmod(0o555)
            place = into / _digest(work)
            if (
                place.exists() and _digest(place) != place.name
            ):  # a crash of the machine may have left it half-written
                _remove(place.rename(work.with_name(work.name + ".damaged")))
            try:
                work.rename(place)
            except OSError:
                if not place.is_dir():
                    raise  # else it is there, from before or from another thread just now
            return place
        finally:
            _remove(work)
    except OSError as error:
        raise ArmorclawError(
            "storage_failed", f"no copy could be made in {into}", why=error.strerror or str(error)
        ) from error


def _digest(folder: Path) -> str:
    """SHA-256 over names, modes and contents."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(os.readlink(path))
        else:
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
        name = os.fsencode(path.relative_to(folder))
        digest.update(b"%d %s\0%o %d\0" % (len(name), name, mode, len(content)))
        digest.update(content)
    return digest.hexdigest()


def _remove(folder: Path) -> None:
    """Remove a copy, if it is there; its folders must be writable first, unless we are root."""
    if not folder.exists():
        return
    for below, _, _ in os.walk(folder):
        os.chmod(below, 0o700)
    shutil.rmtree(folder)
