"""Alerts about messages that failed when nobody was waiting for them any more."""

from __future__ import annotations

from typing import Any, Protocol

import trio

from armorclaw.delivery.message import Delivery
from armorclaw.guard.alerts import Severity

ANSWERED_MS = 4_000
"""Whoever sent a message has had its answer by then. What fails sooner, that answer tells, and no alert is needed."""

PERIOD = 60.0
"""Seconds between two alerts about messages of one agent; the second tells how many there were in between."""


class Alarm(Protocol):
    """How an alert is raised: `guard.alerts.Alerts`."""

    async def raise_alert(
        self, name: str, severity: Severity, text: str, *, agent: str | None = None, **fields: Any
    ) -> None: ...


class FailureAlerts:
    """Raises `message_failed`. Not about messages that tell of alerts themselves: that would never end."""

    def __init__(self, alarm: Alarm | None) -> None:
        self._alarm = alarm
        self._quiet: dict[str, tuple[float, int]] = {}  # by agent: until when, and how many were left out

    async def tell(self, failed: Delivery) -> None:
        """Once that is written down. Every single failure is an event of its own, so no number here is lost."""
        if self._alarm is None or not _is_news(failed):
            return
        until, more = self._quiet.get(failed.agent, (0.0, 0))
        now = trio.current_time()
        if now < until:
            self._quiet[failed.agent] = until, more + 1
            return
        self._quiet[failed.agent] = now + PERIOD, 0
        others = f"; since the last alert {more} others did" if more else ""
        await self._alarm.raise_alert(
            "message_failed",
            "warning",
            f"a message to {failed.room_id} was not sent: {failed.reason}{others}",
            agent=failed.agent or None,
            delivery_id=failed.delivery_id,
            account=failed.account,
            room_id=failed.room_id,
            others=more,
            next="armorclaw outbox ls --state failed",
        )


def _is_news(failed: Delivery) -> bool:
    if failed.agent == "" and (failed.idempotency_key or "").startswith("alert"):
        return False
    return failed.settled_ms is not None and failed.settled_ms - failed.created_ms > ANSWERED_MS
