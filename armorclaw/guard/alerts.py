"""Alerts: what a person should hear about. Each is a log line, an event and an audit record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Literal, Protocol

from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.log import get_logger
from armorclaw.store import Connection

log = get_logger(__name__)

Severity = Literal["info", "warning", "error", "critical"]

RANK: Mapping[str, int] = {"info": 0, "warning": 1, "error": 2, "critical": 3}
"""Which severity is above which."""


class EventSink(Protocol):
    """Where events go: records one durably, runs `also` in the same transaction, then publishes it."""

    async def __call__(
        self,
        type: str,  # noqa: A002 - the word of the wire
        content: Mapping[str, Any],
        *,
        agent: str | None,
        also: Callable[[Connection], object],
    ) -> object: ...


class Alerts:
    """Raises alerts as events of type `alert`; whoever subscribes to them decides who is told, and how."""

    def __init__(self, sink: EventSink, audit: AuditLog) -> None:
        self.raised: Counter[Severity] = Counter()
        """How many there were, by severity."""
        self._sink = sink
        self._audit = audit

    async def raise_alert(
        self, name: str, severity: Severity, text: str, *, agent: str | None = None, **fields: Any
    ) -> None:
        """Tells of `name` (a stable word for programs) with `text` (a sentence for people) about `agent`.

        The log line is written first and in any case. When the store cannot take the event, that is logged and not
        raised: an alert about a full disk must not fail for the full disk. `fields` are JSON values without secrets.
        """
        await self.say(name, severity, text, agent=agent, **fields)()

    def say(
        self, name: str, severity: Severity, text: str, *, agent: str | None = None, **fields: Any
    ) -> Callable[[], Awaitable[None]]:
        """Write the log line of an alert, and no more; what is returned records it. For whoever cannot wait."""
        self.raised[severity] += 1
        getattr(log, severity)("alert", name=name, text=text, agent=agent, fields=fields)
        content = {**fields, "name": name, "severity": severity, "text": text}

        def append(db: Connection) -> None:
            self._audit.append(db, "alert", agent=agent, **content)

        async def record() -> None:
            try:
                await self._sink("alert", content, agent=agent, also=append)
            except ArmorclawError as error:
                log.error("an alert reached the log only", name=name, why=str(error))

        return record
