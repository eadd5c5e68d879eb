"""What the end of a generation means. A pure decision.

    the child                                    permanent        transient        temporary
    ------------------------------------------------------------------------------------------
    returns                                      restart          FINISHED         FINISHED
    raises, or is not ready in time              restart          restart          FAILED
    ends after it was told to stop               STOPPED          STOPPED          STOPPED
    ends after it was told to start again        restart          restart          restart
    ends for the sake of one before it           restart          restart          STOPPED

The first two are counted against the limits of the child; what we asked for never is, however it ended. While
somebody waits for a child's first start, a crash before it is ready is FAILED: there is somebody to tell. So is a
child that raises NotAgain, as one over its limits.
"""

from __future__ import annotations

from typing import NamedTuple

import trio

from armorclaw.supervision.child import Generation
from armorclaw.supervision.failures import in_words
from armorclaw.supervision.spec import ChildState, Restart


class Verdict(NamedTuple):
    state: ChildState
    """What the child becomes; BACKING_OFF: another generation."""
    counted: bool
    """The limits have a say, and a waiting time."""
    reason: str
    error: Exception | None
    said: str | None
    """The error in words."""


def verdict(generation: Generation, error: Exception | None, *, closing: bool) -> Verdict:
    """`error` is what the child raised, None if it returned or ended by our cancellation."""
    child, restart = generation.child, generation.child.spec.restart
    if generation.late:
        error, cause = trio.TooSlowError(f"not ready within {child.spec.start_timeout:g} s"), error
        error.__cause__ = cause
    asked = generation.asked
    if asked is not None or closing or not child.wanted:
        reason = asked or "the supervisor stops"
        said = None if error is None else in_words(error)
        if said is not None:
            reason = f"{reason}; crashed while ending: {said}"
        again = generation.again or restart is not Restart.TEMPORARY
        stay = closing or not child.wanted or not again
        return Verdict(ChildState.STOPPED if stay else ChildState.BACKING_OFF, False, reason, error, said)

    if error is None and generation.ready_at is None and restart is Restart.PERMANENT:
        error = RuntimeError("returned before it was ready")
    if error is None:
        if restart is not Restart.PERMANENT:
            return Verdict(ChildState.FINISHED, False, "returned", None, None)
        return Verdict(ChildState.BACKING_OFF, True, "returned", None, None)
    said = in_words(error)
    if restart is Restart.TEMPORARY or (child.on_trial and generation.ready_at is None):
        return Verdict(ChildState.FAILED, False, said, error, said)
    return Verdict(ChildState.BACKING_OFF, True, said, error, said)
