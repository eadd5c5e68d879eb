"""The key of the database: 32 random bytes in a file that only its owner can read.

Random, never derived: facts about a machine can be guessed by anyone who has been on it, and change with its parts.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from armorclaw.errors import ArmorclawError
from armorclaw.store.connection import KEY_BYTES
from armorclaw.store.folder import sync_directory


def load_or_create_key(path: Path, database: Path) -> bytes:
    """The key in `path`, made on the first start.

    A new key opens no old file, so none is made beside a `database` that exists. Call it under the database's lock
    (`Database` does, if given a function). Raises `key_file_unreadable`.
    """
    if os.path.lexists(path):
        return load_key(path)
    if database.exists():
        raise ArmorclawError(
            "key_file_unreadable",
            f"the key file {path} is missing",
            why=f"the database {database} exists and can be read with its key only",
            hint=f"restore {path} from a backup; without it the database is lost",
        )
    try:
        _create(path)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), doing="make", hint=f"check {path.parent}") from error
    return load_key(path)


def load_key(path: Path, *, private: bool = True) -> bytes:
    """The key in `path`: 64 hexadecimal digits. Raises `key_file_unreadable`.

    `private` refuses a file that others than its owner can read or write. A systemd credential needs it False: its
    directory keeps others out, and its access list shows up as group bits.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            mode = os.fstat(fd).st_mode
            text = os.read(fd, 2 * KEY_BYTES + 2) if stat.S_ISREG(mode) else b""
        finally:
            os.close(fd)
    except OSError as error:
        raise _unreadable(path, error.strerror or str(error), hint=f"run as the user that owns {path}") from error
    if not stat.S_ISREG(mode):
        raise _unreadable(path, "it is not a regular file", hint=f"put the key itself at {path}")
    if private and mode & 0o077:
        raise _unreadable(path, f"its mode {mode & 0o777:04o} lets others at it", hint=f"chmod 0400 {path}")
    try:
        key = bytes.fromhex(text.removesuffix(b"\n").decode("ascii"))
    except ValueError:
        key = b""
    if len(key) != KEY_BYTES or len(text.removesuffix(b"\n")) != 2 * KEY_BYTES:
        raise _unreadable(
            path, f"it does not hold {2 * KEY_BYTES} hexadecimal digits", hint=f"restore {path} from a backup"
        )
    return key


def _create(path: Path) -> None:
    """Whole or not at all, and never over another: written aside, synced, then linked."""
    draft = Path(f"{path}.new")
    draft.unlink(missing_ok=True)
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o400)
    try:
        os.write(fd, secrets.token_hex(KEY_BYTES).encode("ascii") + b"\n")
        os.fsync(fd)
    finally:
        os.close(fd)
    try:
        os.link(draft, path)
    finally:
        draft.unlink()
    sync_directory(path.parent)


def _unreadable(path: Path, why: str, *, doing: str = "use", hint: str) -> ArmorclawError:
    return ArmorclawError("key_file_unreadable", f"cannot {doing} the key file {path}", why=why, hint=hint)
