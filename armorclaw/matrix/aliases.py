"""Which room each granted alias named when last looked up: the table `aliases`.

Events carry only room ids. Whoever starts while the homeserver is away knows from here which rooms are granted.
"""

from __future__ import annotations

from armorclaw.store import Connection


def load(db: Connection, account: str) -> dict[str, str]:
    """Room ids by alias; runs in the store."""
    return dict(db.execute("SELECT alias, room_id FROM aliases WHERE account = ?", [account]).fetchall())


def save(db: Connection, account: str, alias: str, room_id: str) -> None:
    """Replaces what the alias named before; runs in the store."""
    db.execute("INSERT OR REPLACE INTO aliases (account, alias, room_id) VALUES (?, ?, ?)", [account, alias, room_id])


def forget(db: Connection, account: str) -> None:
    """Nothing is known any more; runs in the store."""
    db.execute("DELETE FROM aliases WHERE account = ?", [account])
