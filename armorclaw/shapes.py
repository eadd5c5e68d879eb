"""What the bridge's own methods answer."""

from __future__ import annotations

from typing import Literal

import attrs

from armorclaw.containers.shapes import Standing
from armorclaw.matrix.shapes import AccountStanding


@attrs.frozen
class BridgeStatus:
    """The members every client reads first, then more. `container_ids` are those that run; `uptime_s` is seconds.
    `socket` is where operators connect; observers are not told."""

    version: str
    state: str
    socket: str
    containers: int
    container_ids: list[str]
    uptime_s: int
    accounts: list[AccountStanding]
    agents: list[Standing]


@attrs.frozen
class Health:
    """`reasons` says what is wrong, one sentence each; it is empty when all is well."""

    status: Literal["healthy", "degraded"]
    reasons: list[str]


@attrs.frozen
class MetricsText:
    """All figures at one moment, in the text format of Prometheus; `content_type` names its version."""

    content_type: str
    text: str
