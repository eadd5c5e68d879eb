"""How subscriptions stand: what is kept of them, and what is in the hands of those who follow."""

from __future__ import annotations

from collections.abc import Iterable

import attrs
import trio

from armorclaw.events.journal import Journal
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.shapes import SubscriptionStats
from armorclaw.store import Connection, Database

ROWS = 1_000
"""Subscriptions told of at a time."""

_NAMED = (
    "SELECT owner, name, floor, (SELECT count(*) FROM acks a WHERE a.owner = s.owner AND a.name = s.name),"
    " (SELECT count(*) FROM dead_letters d WHERE d.owner = s.owner AND d.name = s.name)"
    " FROM subscriptions s WHERE ?1 IS NULL OR owner = ?1 ORDER BY owner, name LIMIT ?2"
)


async def of_all(
    db: Database, journal: Journal, followers: Iterable[Subscription], owner: str | None
) -> list[SubscriptionStats]:
    """Those with names first, in order; see `Subscriptions.stats`."""
    head = await journal.head()

    def rows(conn: Connection) -> list[tuple[str, str, int, int, int]]:
        return conn.execute(_NAMED, (owner, ROWS)).fetchall()

    found: dict[tuple[str, str], SubscriptionStats] = {}
    for whose, name, floor, acknowledged, dead in await db.read(rows):
        behind = max(head - floor - acknowledged, 0)
        stats = SubscriptionStats(whose, name, True, False, behind, acknowledged=acknowledged, dead=dead)
        found[whose, name] = stats
    for each in followers:
        if owner is not None and each.owner != owner:
            continue
        in_hand, since = each.held()
        told = found.get((each.owner, each.id))
        if told is None:
            if len(found) >= ROWS:
                continue
            told = SubscriptionStats(each.owner, each.id, False, True, max(head - each.position, 0))
        found[each.owner, each.id] = attrs.evolve(
            told,
            connected=True,
            in_hand=in_hand,
            oldest_s=None if since is None else round(trio.current_time() - since, 3),
            redelivered=each.redelivered,
            missed=each.missed,
        )
    return list(found.values())
