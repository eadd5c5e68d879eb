"""Floors of subscriptions that owe nothing are moved up, so that what nobody waits for can be erased in time."""

from __future__ import annotations

from collections.abc import Callable

from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.cursor import Cursor
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.store import Connection, Database

PAGES = 16
"""Pages of the journal read for one subscription at a time; what is left is for the next time."""

_ROWS = "SELECT owner, name, filter, floor FROM subscriptions"
_ACKS = "SELECT seq FROM acks WHERE owner = ? AND name = ?"

Policy = Callable[[str], Callable[[Event], bool] | None]


async def settle_idle(
    db: Database, journal: Journal, cursor_of: Callable[[str, str], Cursor], policy: Policy
) -> None:
    """Move each floor as far as everything is acknowledged or not for its owner; see `Subscriptions.settle_idle`."""
    for owner, name, text, floor in await db.read(lambda conn: conn.execute(_ROWS).fetchall()):
        allowed = policy(owner)
        if allowed is None or floor >= await journal.head():
            continue
        reached = await _reached(db, journal, (owner, name), floor, EventFilter.from_json(text), allowed)
        if reached <= floor:
            continue
        try:
            await cursor_of(owner, name).advance(reached, found=(text, floor))
        except ArmorclawError as error:
            if error.name not in ("not_found", "conflict"):  # its name was forgotten meanwhile, or used anew
                raise


async def _reached(
    db: Database,
    journal: Journal,
    key: tuple[str, str],
    floor: int,
    matching: EventFilter,
    allowed: Callable[[Event], bool],
) -> int:
    """The highest number up to which nothing is owed."""

    def acked(conn: Connection) -> set[int]:
        return {seq for (seq,) in conn.execute(_ACKS, key)}

    done = await db.read(acked)
    for _ in range(PAGES):
        page = await journal.after(floor, 1 + len(done), matching, allowed)
        if page.trimmed > floor:
            return floor  # it is to be told of the gap first
        for event in page.events:
            if event.seq not in done:
                return event.seq - 1
        floor = page.position
        if page.complete:
            break
    return floor
