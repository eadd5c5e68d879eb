"""SQLCipher's dialect of SQLite: how a connection is opened, and what its errors mean to us."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from armorclaw.errors import ArmorclawError
from armorclaw.store.ballast import storage_full

if TYPE_CHECKING:  # sqlcipher3 is a fork of the standard module and carries no types: they have the same shape
    from sqlite3 import Connection, DatabaseError, Error, IntegrityError, connect
else:
    from sqlcipher3.dbapi2 import Connection, DatabaseError, Error, IntegrityError, connect

__all__ = [
    "Connection",
    "DatabaseError",
    "Error",
    "IntegrityError",
    "cannot_decrypt",
    "disk_full",
    "fatal",
    "is_corrupt",
    "open_connection",
    "storage_error",
]

KEY_BYTES = 32
"""Length of the key; handed over raw, so no key derivation delays the start."""

BUSY_TIMEOUT_MS = 2000
"""How long a statement waits for another process that holds the database, in milliseconds."""

# SQLite's primary result codes (https://www.sqlite.org/rescode.html); the low byte of any extended code
_BUSY, _LOCKED, _NOMEM, _READONLY, _IOERR, _CORRUPT, _FULL, _CANTOPEN, _NOTADB = 5, 6, 7, 8, 10, 11, 13, 14, 26
_SHMSIZE = _IOERR | 19 << 8  # the index of the log, which all connections share, cannot grow

_WHY = {
    _BUSY: "another process holds the database",
    _LOCKED: "another connection holds the table",
    _NOMEM: "out of memory",
    _READONLY: "the file may not be written",
    _IOERR: "the disk reports an error",
    _CORRUPT: "the file is damaged",
    _FULL: "the disk is full",
    _CANTOPEN: "the file cannot be opened",
    _NOTADB: "the key does not fit, or the file is damaged; the two cannot be told apart",
}
_HINT = {
    _BUSY: "close the other program that uses {path}",
    _READONLY: "check owner and mode of {path} and of its directory",
    _IOERR: "check the disk (dmesg), then start again",
    _CORRUPT: "move {path} (with -wal and -shm) away and restore it from a backup",
    _FULL: "make room on the file system of {path}",
    _CANTOPEN: "check owner and mode of {path} and of its directory",
    _NOTADB: "restore the key file that belongs to {path}, or restore both from a backup",
}


def open_connection(path: Path, key: bytes, *, read_only: bool = False) -> Connection:
    """Opens `path` (made when missing) in WAL mode, transactions left to the caller.

    The connection may be used by any one thread at a time. `read_only` refuses changes made through it by mistake.
    Raises SQLite's own errors: pass them through `storage_error`.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of a database has {KEY_BYTES} bytes, not {len(key)}")
    connection = connect(str(path), isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        connection.execute("PRAGMA cipher_log_level = NONE")  # it would write to our standard error
        connection.execute(f"PRAGMA key = \"x'{key.hex()}'\"")
        connection.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        connection.execute("PRAGMA temp_store = MEMORY")  # nothing decrypted in temporary files
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA secure_delete = ON")  # what is deleted is gone, for who has the key too
        if read_only:
            connection.execute("PRAGMA query_only = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def storage_error(error: Exception, path: Path, *, doing: str) -> ArmorclawError | None:
    """What a SQLite error says about the storage; None when the SQL or its data is at fault, not the storage."""
    code = _FULL if disk_full(error, path) else _primary(error)
    if code not in _WHY:
        return None
    why = f"{_WHY[code]} ({getattr(error, 'sqlite_errorname', '')})"
    if code == _FULL and doing != "open":
        return storage_full(why)
    return ArmorclawError(
        "storage_corrupt" if is_corrupt(code) else "storage_failed",
        f"cannot {doing} the database {path}",
        why=why,
        hint=_HINT.get(code, "").format(path=path),
    )


def disk_full(error: Exception, path: Path) -> bool:
    """Whether there is no room; where SQLite maps memory of a file it cannot tell by itself."""
    code = _primary(error)
    return code == _FULL or (code == _IOERR and _is_full(path))


def cannot_decrypt(error: Exception) -> bool:
    """Whether the beginning of the file is not that of a database, with this key."""
    return _primary(error) == _NOTADB


def is_corrupt(code: int) -> bool:
    """Whether a result code, which may be an extended one, says that the file is damaged."""
    return code & 0xFF in (_CORRUPT, _NOTADB)


def _is_full(path: Path) -> bool:
    try:
        return os.statvfs(path.parent).f_bavail == 0
    except OSError:
        return False


def fatal(error: Exception) -> bool:
    """Whether the connection must not be trusted any more.

    After a failed fsync the kernel may forget that the pages were never written, so a later success would prove
    nothing: the only way on is to close, open again and check. What had no room to begin with was never written.
    """
    return _primary(error) in (_IOERR, _CORRUPT, _NOTADB) and _code(error) != _SHMSIZE


def _primary(error: Exception) -> int:
    return _code(error) & 0xFF


def _code(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0)) if isinstance(error, Error) else 0
