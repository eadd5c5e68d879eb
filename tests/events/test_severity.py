from __future__ import annotations

from typing import Any

import pytest

from armorclaw.events.severity import severity_of


@pytest.mark.parametrize(
    "type_, content, severity",
    [
        ("alert", {"severity": "critical"}, "critical"),
        ("agent.failed", {}, "error"),
        ("agent.error", {"severity": "info"}, "info"),
        ("agent.error", {"severity": ["x"]}, "info"),
        ("agent.state", {}, "info"),
    ],
)
def test_what_it_says_of_itself_counts_first(type_: str, content: dict[str, Any], severity: str) -> None:
    assert severity_of(type_, content) == severity
