"""From a path to two connections: the file is made, checked, migrated; or set aside when it is damaged."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from armorclaw.errors import ArmorclawError
from armorclaw.store.aside import SetAside, set_aside
from armorclaw.store.connection import (
    Connection,
    DatabaseError,
    Error,
    cannot_decrypt,
    is_corrupt,
    open_connection,
    storage_error,
)
from armorclaw.store.folder import sync_directory
from armorclaw.store.keycheck import key_fits, note_key
from armorclaw.store.migrate import migrate
from armorclaw.store.schema import Migration

_CODE = re.compile(r"error code[= ](\d+)")


class Opening:
    """One attempt after another to open the database at `path`; on a thread, under the lock."""

    def __init__(self, path: Path, migrations: Sequence[Migration]) -> None:
        self._path = path
        self._migrations = migrations

    def connect(self, key: bytes, *, thorough: bool, now_ms: int) -> tuple[Connection, Connection, SetAside | None]:
        """A connection that writes, one that reads, and what was set aside to get them.

        A file that is damaged gives way to a new one; never one that another key may open. `thorough` looks at
        everything, indexes too. Raises storage_corrupt, storage_newer, and SQLite's own errors.
        """
        aside = None
        fits = key_fits(self._path, key)
        try:
            connections = self._connect(key, fits, thorough=thorough)
        except _DamagedError as damage:
            aside = set_aside(self._path, damage.why, now_ms)
            connections = self._connect(key, True, thorough=False)
        if not fits:  # whatever was noted: it has just opened the file
            note_key(self._path, key)
        return (*connections, aside)

    def _connect(self, key: bytes, fits: bool | None, *, thorough: bool) -> tuple[Connection, Connection]:
        if not self._path.exists():
            self._create(key)
        elif self._path.stat().st_size == 0:  # SQLite would take it for a new one, and we never leave it so
            raise _DamagedError(self._path, "the file is empty")
        writer = self._open_writer(key, fits)
        try:
            with self._finding_damage():
                _check(writer, self._path, thorough=thorough)
                # After a failed sync nobody knows which pages of the old log are on disk: move all of it into the
                # database and begin a new log, lest an acknowledged commit stand behind a page that is not there.
                writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                migrate(writer, self._migrations, self._path)
                return writer, open_connection(self._path, key, read_only=True)
        except BaseException:
            writer.close()
            raise

    def _open_writer(self, key: bytes, fits: bool | None) -> Connection:
        try:
            return open_connection(self._path, key)
        except DatabaseError as error:
            if cannot_decrypt(error) and not fits:
                if fits is None:  # nobody can tell, and the text says so
                    raise
                raise self._wrong_key() from error
            with self._finding_damage():
                raise

    def _create(self, key: bytes) -> None:
        """Makes the file aside and moves it into place whole, so that an empty or half-made one is always damage."""
        if Path(f"{self._path}-wal").exists():
            raise _DamagedError(self._path, "the file is missing, its log is there")
        draft = Path(f"{self._path}.new")
        for leftover in (draft, Path(f"{draft}-wal"), Path(f"{draft}-shm")):
            leftover.unlink(missing_ok=True)
        os.close(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        connection = open_connection(draft, key)
        try:
            migrate(connection, self._migrations, self._path)
            connection.execute("PRAGMA journal_mode = DELETE")  # everything into the one file, or an error
        finally:
            connection.close()
        draft.rename(self._path)
        sync_directory(self._path.parent)

    @contextmanager
    def _finding_damage(self) -> Iterator[None]:
        """For what is done with the right key: what it cannot read is damaged."""
        try:
            yield
        except Error as error:
            known = storage_error(error, self._path, doing="open")
            if known is None or known.name != "storage_corrupt":
                raise
            raise _DamagedError(self._path, str(error)) from error

    def _wrong_key(self) -> ArmorclawError:
        return ArmorclawError(
            "storage_corrupt",
            f"cannot open the database {self._path}",
            why="the key does not fit: it is not the one that opened this database before",
            hint=f"restore the key file that belongs to {self._path}, or restore both from a backup",
        )


class _DamagedError(ArmorclawError):
    """The file itself is damaged: no other key and no further attempt would read it."""

    def __init__(self, path: Path, why: str) -> None:
        super().__init__("storage_corrupt", f"the database {path} is damaged", why=why, hint="check the disk (dmesg)")


def _check(connection: Connection, path: Path, *, thorough: bool) -> None:
    (found,) = connection.execute(f"PRAGMA {'integrity_check' if thorough else 'quick_check'}(1)").fetchone()
    if found == "ok":
        return
    why = found.splitlines()[-1]
    code = _CODE.search(why)
    if code is None or is_corrupt(int(code[1])):
        raise _DamagedError(path, why)
    hint = "check the disk (dmesg), then start again"  # it would not give the page, which says nothing of the file
    raise ArmorclawError("storage_failed", f"cannot check the database {path}", why=why, hint=hint)
