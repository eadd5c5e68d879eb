"""What is no longer needed is deleted, so that a bridge that runs for years needs the disk of a month.

The audit trail is never deleted: it is there to be complete.
"""

from __future__ import annotations

import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

DAY_MS = 24 * 3600 * 1000

ACKNOWLEDGED_MS = DAY_MS
"""An event that every durable subscription has acknowledged is kept for so long, to know it when it comes again."""

UNACKNOWLEDGED_MS = 30 * DAY_MS
"""No event is kept longer, though somebody who has been away for so long may still want it."""

SETTLED_MS = UNACKNOWLEDGED_MS
"""A message that was sent, or has failed, is kept as long as the event it may answer: so long its key works."""

PERIOD = 3600.0
"""Seconds between two looks."""

BATCH = 2_000
"""Rows deleted in one transaction, so that nobody waits long for the writer."""

# ruff: noqa: S608 - the statements below are put together from constants
_FLOOR = "SELECT coalesce(min(floor), (SELECT coalesce(max(seq), 0) FROM journal)) FROM subscriptions"
_EVENTS = (
    "DELETE FROM journal WHERE seq IN (SELECT seq FROM journal"
    f" WHERE stored_ms < :unacknowledged OR (stored_ms < :acknowledged AND seq <= ({_FLOOR}))"
    f" ORDER BY seq LIMIT {BATCH})"
)
_MESSAGES = (
    "DELETE FROM outbox WHERE seq IN (SELECT seq FROM outbox"
    f" WHERE state != 'queued' AND settled_ms < :settled ORDER BY seq LIMIT {BATCH})"
)


class Retention:
    """Deletes old events and settled messages, once an hour."""

    def __init__(self, db: Database, around: Surroundings) -> None:
        self._db = db
        self._clock = around.clock

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. A store that is away or full is tried again an hour later."""
        task_status.started()
        while True:
            try:
                await self.prune()
            except ArmorclawError as error:
                log.warning("old events could not be deleted", why=str(error))
            await trio.sleep(PERIOD)

    async def prune(self) -> tuple[int, int]:
        """Delete what is due; how many events and messages that were. Raises what the store raises."""
        now = self._clock.now_ms()
        bounds = {
            "unacknowledged": now - UNACKNOWLEDGED_MS,
            "acknowledged": now - ACKNOWLEDGED_MS,
            "settled": now - SETTLED_MS,
        }
        counts = []
        for statement in (_EVENTS, _MESSAGES):
            total = 0
            while deleted := await self._db.write(lambda db, sql=statement: _delete(db, sql, bounds)):  # type: ignore[misc]
                total += deleted
            counts.append(total)
        if any(counts):
            log.info("deleted what is old", events=counts[0], messages=counts[1])
        return counts[0], counts[1]


def _delete(db: Connection, statement: str, bounds: dict[str, int]) -> int:
    return db.execute(statement, bounds).rowcount
