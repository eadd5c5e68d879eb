"""The one encrypted SQLite database: what the bridge remembers, safe against kill -9, power loss and theft of the disk."""

from armorclaw.store.connection import Connection, IntegrityError
from armorclaw.store.database import Database

__all__ = ["Connection", "Database", "IntegrityError"]
