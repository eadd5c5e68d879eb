from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import structlog

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Connection, Database


@pytest.mark.mission("P0.3")
async def test_an_alert_is_logged_recorded_and_audited_at_once(db: Database, around: Surroundings) -> None:
    events: list[tuple[str, Mapping[str, Any], str | None]] = []
    audit = AuditLog(around)

    async def sink(
        type: str,  # noqa: A002
        content: Mapping[str, Any],
        *,
        agent: str | None,
        also: Callable[[Connection], object],
    ) -> None:
        await db.write(also, then=lambda _: events.append((type, content, agent)))

    with structlog.testing.capture_logs() as logs:
        await Alerts(sink, audit).raise_alert(
            "agent_failed", "error", "agent echo died 6 times", agent="echo", restarts=6, event="odd name"
        )
    content = {
        "name": "agent_failed",
        "severity": "error",
        "text": "agent echo died 6 times",
        "restarts": 6,
        "event": "odd name",
    }
    assert events == [("alert", content, "echo")]
    (record,) = await db.read(lambda c: audit.tail(c, 5))
    assert record.kind == "alert"
    assert record.fields == {**content, "agent": "echo"}
    assert logs == [
        {
            "event": "alert",
            "log_level": "error",
            "name": "agent_failed",
            "text": "agent echo died 6 times",
            "agent": "echo",
            "fields": {"restarts": 6, "event": "odd name"},
        }
    ]


@pytest.mark.parametrize("severity", ["info", "warning", "error"])
async def test_without_a_store_the_log_has_it(around: Surroundings, severity: Any) -> None:
    async def sink(*_: object, **__: object) -> None:
        raise ArmorclawError("storage_failed", "cannot write", why="the disk is full")

    with structlog.testing.capture_logs() as logs:
        await Alerts(sink, AuditLog(around)).raise_alert("disk_full", severity, "the disk is full")
    assert [(entry["event"], entry["log_level"]) for entry in logs] == [
        ("alert", severity),
        ("an alert reached the log only", "error"),
    ]
    assert logs[1]["why"] == "cannot write: the disk is full"
