"""Supervision: children that are kept alive, in order, with limits. No domain word in here."""

from armorclaw.supervision.backoff import Backoff
from armorclaw.supervision.changes import Changes, log_crash
from armorclaw.supervision.failures import ChildStartFailed, End, NotAgain, RestartLimitExceeded, in_words, root_of
from armorclaw.supervision.spec import (
    ChildChange,
    ChildSnapshot,
    ChildSpec,
    ChildState,
    Restart,
    Strategy,
    SupervisorSnapshot,
)
from armorclaw.supervision.supervisor import Supervisor

__all__ = [
    "Backoff",
    "Changes",
    "ChildChange",
    "ChildSnapshot",
    "ChildSpec",
    "ChildStartFailed",
    "ChildState",
    "End",
    "NotAgain",
    "Restart",
    "RestartLimitExceeded",
    "Strategy",
    "Supervisor",
    "SupervisorSnapshot",
    "in_words",
    "log_crash",
    "root_of",
]
