"""What the sessions of all accounts use of the rest of the bridge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Literal

import attrs

from armorclaw.clock import Surroundings
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.receipts import Receipts
from armorclaw.events.journal import Journal
from armorclaw.store import Database

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.vault import Vault

Alert = Callable[[str, Literal["info", "warning", "error"], str], Awaitable[None]]
"""Tells people: the name of the alert, how bad it is, and a sentence."""


@attrs.frozen
class Services:
    """`receipts` hears what becomes of our messages, as part of each sync. Without a `vault`, where keys are kept,
    nothing is encrypted."""

    db: Database
    journal: Journal
    outbox: Outbox
    around: Surroundings
    alert: Alert
    receipts: Receipts | None = None
    vault: Vault | None = None
