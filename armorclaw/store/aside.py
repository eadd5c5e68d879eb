"""A damaged database is moved away, never deleted: whoever can may get something out of it yet.

It keeps its key, so the key file must be kept with it. `<database>.damaged-20261122T031246Z` has its log beside it
under the names SQLite looks for, and may be opened with SQLCipher's own tools.
"""

from __future__ import annotations

import calendar
import glob
import os
import re
import time
from pathlib import Path

import attrs

from armorclaw.log import get_logger
from armorclaw.store.folder import sync_directory

log = get_logger(__name__)

_TIME = "%Y%m%dT%H%M%SZ"
_NAME = re.compile(r"\.damaged-(\d{8}T\d{6}Z)(?:-(\d+))?(?:-wal|-shm)?")


@attrs.frozen
class SetAside:
    """A damaged database that was moved away: where it is, what was wrong with it, and when (epoch, ms)."""

    path: Path
    why: str
    at_ms: int


def set_aside(database: Path, why: str, now_ms: int) -> SetAside:
    """Moves a damaged file and its log away, over nothing that is there. Raises OSError."""
    moved = move_aside(database, "damaged", now_ms)
    log.critical("the database is damaged: it was set aside, and a new one is begun", path=str(moved), why=why)
    return SetAside(moved, why, now_ms)


def move_aside(database: Path, word: str, now_ms: int) -> Path:
    """Renames the file and its log to `<database>.<word>-<time>`, over nothing that is there. Raises OSError.

    The database goes first: if we die in between, its log is left alone, which is told from a sound database. The
    other way round a database that lost its log, and with it the last commits, could pass for a sound one.
    """
    stamp = time.strftime(_TIME, time.gmtime(now_ms / 1000))
    target, n = Path(f"{database}.{word}-{stamp}"), 1
    while any(os.path.lexists(f"{target}{ending}") for ending in ("", "-wal", "-shm")):
        n += 1
        target = Path(f"{database}.{word}-{stamp}-{n}")
    moved = []
    for ending in ("", "-wal", "-shm"):
        source = Path(f"{database}{ending}")
        if os.path.lexists(source):
            moved.append(source.rename(f"{target}{ending}"))
    sync_directory(database.parent)
    return moved[0]


def last_set_aside(database: Path) -> SetAside | None:
    """The last that an earlier life moved away and nobody removed since."""
    found = [
        (match[1], int(match[2] or 1), -len(path.name), path)  # of one that has its log beside it, the file itself
        for path in database.parent.glob(f"{glob.escape(database.name)}.damaged-*")
        if (match := _NAME.fullmatch(path.name.removeprefix(database.name)))
    ]
    if not found:
        return None
    stamp, _, _, path = max(found)
    at_ms = calendar.timegm(time.strptime(stamp, _TIME)) * 1000
    return SetAside(path, "it was found damaged when it was opened then", at_ms)
