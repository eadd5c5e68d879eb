"""The one encrypted SQLite database: what the bridge remembers, safe from kill -9, power cuts and a stolen disk."""

from armorclaw.store.aside import SetAside
from armorclaw.store.ballast import storage_full
from armorclaw.store.connection import Connection, IntegrityError
from armorclaw.store.database import Database

__all__ = ["Connection", "Database", "IntegrityError", "SetAside", "storage_full"]
