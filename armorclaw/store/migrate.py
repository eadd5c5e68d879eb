"""Numbered migrations: what brings a database of an older version to the tables of this one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from armorclaw.errors import ArmorclawError
from armorclaw.store.connection import Connection
from armorclaw.store.schema import Migration


def migrate(connection: Connection, migrations: Sequence[Migration], path: Path) -> int:
    """Runs what `connection` has not seen yet, each in a transaction of its own; returns how many ran.

    The number of the last one is kept in SQLite's `user_version`, which is part of the transaction. A database that
    a newer version wrote raises `storage_newer` and stays untouched; `path` is for that message.
    """
    if [step.number for step in migrations] != list(range(1, len(migrations) + 1)):
        raise ValueError("migrations are numbered from 1 without gaps, in order")
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > len(migrations):
        raise ArmorclawError(
            "storage_newer",
            f"the database {path} was written by a newer version of armorclaw",
            why=f"its schema has number {version}, this version knows {len(migrations)}",
        )
    for step in migrations[version:]:
        try:
            connection.executescript(f"BEGIN IMMEDIATE; {step.sql}; PRAGMA user_version = {step.number:d}; COMMIT;")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return len(migrations) - int(version)
