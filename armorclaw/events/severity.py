"""How much an event of the bridge's own matters: for filters, and for whoever looks through many."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from armorclaw.events.event import SEVERITIES

_BY_TYPE = {
    "agent.failed": "error",
    "agent.oom": "error",
    "agent.quota": "warning",
    "agent.resources": "warning",
    "agent.touched": "warning",
    "bridge.lag": "warning",
    "egress.refused": "warning",
}


def severity_of(type: str, content: Mapping[str, Any]) -> str:  # noqa: A002 - the word of the wire
    """What the event says of itself, as an alert does, else what its type is worth."""
    said = content.get("severity")
    return said if said in SEVERITIES else _BY_TYPE.get(type, "info")
