"""Where the crypto files of accounts are: opened, made, set aside; never deleted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.store.aside import move_aside
from armorclaw.store.connection import Error, storage_error
from armorclaw.store.folder import sync_directory

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.database import CryptoDatabase

__all__ = ["KeysLost", "Vault"]

log = get_logger(__name__)


class Vault:
    """`folder` holds a file for each account; `key` gives that of the main database (32 bytes), when it is used."""

    def __init__(self, folder: Path, key: Callable[[], bytes], clock: Clock | None = None) -> None:
        self._folder = folder
        self._key = key
        self._clock = clock or Clock()

    def exists(self, account: str) -> bool:
        """Whether anything of this account's keys is there, be it damaged."""
        path = self._path(account)
        return os.path.lexists(path) or os.path.lexists(f"{path}-wal")

    def set_aside(self, account: str, why: str) -> str | None:
        """Rename an account's file, so that the next one begins anew; returns the new name. The file must be closed.

        None if there is none. Raises OSError.
        """
        if not self.exists(account):
            return None
        moved = move_aside(self._path(account), "aside", self._clock.now_ms())
        log.warning("the keys of an account were set aside", account=account, path=str(moved), why=why)
        return moved.name

    def open(self, account: str, *, expected: bool) -> CryptoDatabase:
        """The file, made when it is missing; on a thread. `expected`: it was there before.

        Raises KeysLost when it is missing or cannot be read, and storage_failed for troubles that pass. Only its
        beginning is looked at: every page has a signature of its own, so damage is found when a page is read.
        """
        from armorclaw.matrix.crypto.database import CryptoDatabase

        path, key = self._path(account), self._key()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self._folder, 0o700)
        if not path.exists():
            if expected:
                raise KeysLost("the file of the keys is missing")
            if os.path.lexists(f"{path}-wal"):
                raise KeysLost("the file of the keys is missing, its log is there")
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
            sync_directory(self._folder)
        elif expected and path.stat().st_size == 0:
            raise KeysLost("the file of the keys is empty")
        try:
            connection = CryptoDatabase.connect(path, key)
            try:
                connection.execute("SELECT count(*) FROM sqlite_master")
            except BaseException:
                connection.close()
                raise
        except Error as error:
            known = storage_error(error, path, doing="open")
            if known is None:
                raise
            if known.name == "storage_corrupt":
                raise KeysLost(known.why) from error
            raise known from error
        return CryptoDatabase(path, key, connection)

    def _path(self, account: str) -> Path:
        return self._folder / f"{quote(account, safe='')}.db"
