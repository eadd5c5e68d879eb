"""A key that does not fit, told apart from a file that is damaged: to SQLCipher both look alike.

`<database>.check` holds an HMAC of a constant under the key that last opened the database. It tells nothing about the
key, which is 32 random bytes.
"""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from armorclaw.log import get_logger
from armorclaw.store.folder import sync_directory

log = get_logger(__name__)


def key_fits(database: Path, key: bytes) -> bool | None:
    """Whether this is the key of the last time; None when nobody knows."""
    try:
        noted = _file(database).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return hmac.compare_digest(noted, _digest(key)) if len(noted) == len(_digest(key)) else None


def note_key(database: Path, key: bytes) -> None:
    """Notes `key`, which has just opened the database. On a disk that takes nothing it is left for another time."""
    path = _file(database)
    draft = Path(f"{path}.new")
    try:
        draft.unlink(missing_ok=True)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, _digest(key).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        draft.rename(path)
        sync_directory(path.parent)
    except OSError as error:
        log.warning("cannot note which key fits", path=str(path), error=error.strerror)


def _file(database: Path) -> Path:
    return Path(f"{database}.check")


def _digest(key: bytes) -> str:
    return hmac.digest(key, b"armorclaw: the key of the database", "sha256").hex()
