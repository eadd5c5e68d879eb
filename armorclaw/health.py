"""Whether all is well, and what is not: one sentence for each thing that somebody should look at."""

from __future__ import annotations

from collections.abc import Sequence

from armorclaw.containers.shapes import Standing
from armorclaw.matrix.shapes import AccountStanding
from armorclaw.shapes import Health
from armorclaw.store import Database

SICK = ("exited", "failed", "hung", "oom", "restarting", "stalled", "suspect", "unknown")
"""States of agents that are not as they should be."""


def health(agents: Sequence[Standing], accounts: Sequence[AccountStanding], store: Sequence[str] = ()) -> Health:
    """ "healthy", or "degraded" with the reasons; `store` are those of the store."""
    reasons = [f"agent {each.name} is {each.state}" for each in agents if each.state in SICK]
    reasons += [f"matrix {each.account} is {each.state}" for each in accounts if not each.connected]
    reasons += [f"matrix {each.account} hears and cannot decrypt" for each in accounts if each.deaf]
    reasons += [f"matrix {each.account} has lost its keys" for each in accounts if each.encryption == "lost"]
    reasons += [
        f"the homeserver has lost the keys of matrix {each.account}"
        for each in accounts
        if each.encryption == "unpublished"
    ]
    reasons += store
    return Health("degraded" if reasons else "healthy", reasons)


def store_reasons(database: Database) -> list[str]:
    """What is wrong with the store: no room, or a damaged database that was set aside.

    The latter holds as long as the file lies there, over restarts too: then somebody has seen it.
    """
    reasons = []
    if database.full:
        reasons.append("the disk is full: new work is refused until there is room")
    if (aside := database.set_aside) is not None:
        reasons.append(f"a damaged database was set aside as {aside.path.name}: look at it, then move it away")
    return reasons
