"""How a supervisor fails, and crashes put in words."""

from __future__ import annotations

from typing import NamedTuple

MAX_TEXT = 300  # characters of an error's text that a snapshot keeps
MAX_LEAVES = 3  # errors of a group that are named


class End(NamedTuple):
    """The end of a generation that called for a restart."""

    at: float
    """Monotonic seconds."""
    child: str
    reason: str


class ChildStartFailed(Exception):  # noqa: N818 - what happened, as Trio names its exceptions
    """The first start of a child failed: it ended by a crash, or too late, before it was ready.

    The crash is `__cause__`; `root` follows such causes down through nested supervisors.
    """

    def __init__(self, supervisor: str, child: str, reason: str) -> None:
        super().__init__(f"child {child!r} of supervisor {supervisor!r} did not start: {reason}")
        self.supervisor = supervisor
        self.child = child
        self.reason = reason

    @property
    def root(self) -> BaseException:
        """The error at the bottom, which is what a person wants to read."""
        return root_of(self)


class NotAgain(Exception):  # noqa: N818 - as above
    """Raised by a child: to start it again would not help. It has failed at once, as if it were over its limits."""


class RestartLimitExceeded(Exception):  # noqa: N818 - as above
    """A child kept ending, so its supervisor gave up, stopped the others and failed upward. Raised once.

    `history` holds the most recent ends that led to restarts, oldest first.
    """

    def __init__(self, supervisor: str, child: str, history: tuple[End, ...]) -> None:
        reason = history[-1].reason if history else "no restart is allowed"
        super().__init__(f"child {child!r} of supervisor {supervisor!r} kept ending: {reason}")
        self.supervisor = supervisor
        self.child = child
        self.history = history

    @property
    def root(self) -> BaseException:
        """The error at the bottom, which is what a person wants to read."""
        return root_of(self)


def root_of(error: BaseException) -> BaseException:
    """The crash that made supervisors fail, however deep: follows the causes of supervisors' failures only."""
    while isinstance(error, (ChildStartFailed, RestartLimitExceeded)) and error.__cause__ is not None:
        error = error.__cause__
    return error


def leaves_of(error: BaseException) -> list[BaseException]:
    """The errors in a group, however nested; of any other error, itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    return [leaf for inner in error.exceptions for leaf in leaves_of(inner)]


def in_words(error: BaseException) -> str:
    """Type and first line of an error; of a group, of its first leaves. At most `MAX_TEXT` characters."""
    if isinstance(error, BaseExceptionGroup):
        leaves = leaves_of(error)
        more = [f"{len(leaves) - MAX_LEAVES} more"] if len(leaves) > MAX_LEAVES else []
        return "; ".join([in_words(leaf) for leaf in leaves[:MAX_LEAVES]] + more)[:MAX_TEXT]
    text = str(error).partition("\n")[0]
    kind = type(error).__name__
    return f"{kind}: {text}"[:MAX_TEXT] if text else kind
