"""What an agent can be, what can become known of it, and where each such fact leads: one table, that all moves go by.

The diagram and the table in docs/health.md are made of it (`python -m tests.states`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType


class State(enum.StrEnum):
    """What an agent is, as clients read it."""

    STOPPED = "stopped"  # by hand, or it has finished; stays so
    STARTING = "starting"  # its container is being made
    RUNNING = "running"  # its container runs; it has not said that it is ready, or need not
    READY = "ready"  # it has said so, and answers
    SUSPECT = "suspect"  # its container runs, but its session broke, or a ping went unanswered
    STALLED = "stalled"  # it answers, but nothing of what it was given gets done
    UNKNOWN = "unknown"  # its engine is lost; it may run
    HUNG = "hung"  # it did not answer for too long: its container is being removed
    EXITED = "exited"  # its container ended, or had to be ended, and is being removed
    OOM = "oom"  # likewise, after a process in it was killed for want of memory
    RESTARTING = "restarting"  # it ended, or could not start, and will be tried again
    FAILED = "failed"  # given up; `start` tries again
    STOPPING = "stopping"  # it was told to end
    SLEEPING = "sleeping"  # it has no container until there is work for it


class Fact(enum.StrEnum):
    """What can become known of an agent."""

    # of its container
    BEGUN = "begun"  # a start is under way
    RUNS = "runs"  # its container was made to run, or was found running
    EXITED = "exited"
    OOM = "oom"
    HUNG = "hung"
    ENGINE_LOST = "engine lost"
    ENGINE_BACK = "engine back"
    # of its session
    READY = "ready"  # it says so, and the connection that did is its session
    SESSION_LOST = "session lost"
    PING_MISSED = "ping missed"
    PING_ANSWERED = "ping answered"
    STALLED = "stalled"
    WORKED = "worked"
    # of what was decided
    POSTPONED = "postponed"  # what it needs is away: its engine, a key
    AGAIN = "again"  # it will be started again
    GIVEN_UP = "given up"
    FINISHED = "finished"  # it ended, and its policy asks for no more
    TOLD_TO_END = "told to end"
    ENDED = "ended"  # as it was told to
    ASLEEP = "asleep"  # likewise, until there is work
    WOKEN = "woken"


_OF_SESSION = (
    Fact.READY,
    Fact.SESSION_LOST,
    Fact.PING_MISSED,
    Fact.PING_ANSWERED,
    Fact.STALLED,
    Fact.WORKED,
)
_OF_END = {Fact.EXITED: State.EXITED, Fact.OOM: State.OOM, Fact.HUNG: State.HUNG}
_AT_REST = {  # there is no container
    Fact.BEGUN: State.STARTING,
    Fact.AGAIN: State.RESTARTING,
    Fact.TOLD_TO_END: State.STOPPING,
    Fact.ENDED: State.STOPPED,
}
_RUNS = {  # while there is a container
    **_OF_END,
    Fact.TOLD_TO_END: State.STOPPING,
    Fact.ENGINE_LOST: State.UNKNOWN,
}
_GOES = {  # its container ended by itself and is being removed
    Fact.POSTPONED: State.RESTARTING,
    Fact.AGAIN: State.RESTARTING,
    Fact.GIVEN_UP: State.FAILED,
    Fact.FINISHED: State.STOPPED,
    Fact.TOLD_TO_END: State.STOPPING,
    Fact.ENDED: State.STOPPED,
}


def _stays(state: State, *facts: Fact) -> dict[Fact, State]:
    return dict.fromkeys(facts, state)


TRANSITIONS: Mapping[State, Mapping[Fact, State]] = MappingProxyType(
    {
        State.STOPPED: _AT_REST,
        State.FAILED: _AT_REST,
        State.RESTARTING: {**_AT_REST, Fact.GIVEN_UP: State.FAILED},
        State.STARTING: {
            **_OF_END,
            Fact.RUNS: State.RUNNING,
            Fact.READY: State.READY,  # it may say so before the engine says that it runs
            Fact.POSTPONED: State.RESTARTING,
            Fact.AGAIN: State.RESTARTING,
            Fact.GIVEN_UP: State.FAILED,
            Fact.TOLD_TO_END: State.STOPPING,
            Fact.ENDED: State.STOPPED,
        },
        State.RUNNING: {
            **_RUNS,
            Fact.READY: State.READY,
            Fact.SESSION_LOST: State.SUSPECT,  # while the engine was away
        },
        State.READY: {
            **_RUNS,
            Fact.SESSION_LOST: State.SUSPECT,
            Fact.PING_MISSED: State.SUSPECT,
            Fact.STALLED: State.STALLED,
            **_stays(State.READY, Fact.RUNS, Fact.READY, Fact.PING_ANSWERED, Fact.WORKED),
        },
        State.SUSPECT: {
            **_RUNS,
            Fact.READY: State.READY,
            Fact.PING_ANSWERED: State.READY,
            **_stays(State.SUSPECT, Fact.RUNS, Fact.SESSION_LOST, Fact.PING_MISSED, Fact.WORKED),
        },
        State.STALLED: {
            **_RUNS,
            Fact.READY: State.READY,  # another session: what it had in its hands is given to it again
            Fact.SESSION_LOST: State.SUSPECT,
            Fact.PING_MISSED: State.SUSPECT,
            Fact.WORKED: State.READY,
            **_stays(State.STALLED, Fact.PING_ANSWERED, Fact.STALLED),
        },
        State.UNKNOWN: {
            **_RUNS,
            Fact.ENGINE_BACK: State.RUNNING,
            **_stays(State.UNKNOWN, *_OF_SESSION),
        },
        State.HUNG: _GOES,
        State.EXITED: _GOES,
        State.OOM: _GOES,
        State.STOPPING: {
            Fact.POSTPONED: State.RESTARTING,
            Fact.AGAIN: State.RESTARTING,
            Fact.GIVEN_UP: State.FAILED,
            Fact.ENDED: State.STOPPED,
            Fact.ASLEEP: State.SLEEPING,
            **_stays(State.STOPPING, Fact.TOLD_TO_END, Fact.RUNS, *_OF_END, *_OF_SESSION),
            **_stays(State.STOPPING, Fact.ENGINE_LOST, Fact.ENGINE_BACK),
        },
        State.SLEEPING: {
            Fact.WOKEN: State.STARTING,
            Fact.TOLD_TO_END: State.STOPPING,
            Fact.AGAIN: State.RESTARTING,
            Fact.GIVEN_UP: State.FAILED,
            Fact.ENDED: State.STOPPED,
        },
    }
)
"""Where each fact leads. What is not in here cannot happen: such a fact is a bug, and moves nothing."""

RUNS = frozenset({State.RUNNING, State.READY, State.SUSPECT, State.STALLED, State.UNKNOWN})
"""It has a container that was made to run."""

AT_REST = frozenset({State.STOPPED, State.RESTARTING, State.FAILED, State.SLEEPING})
"""There is no container, and none is being made."""

ENDING = frozenset({State.HUNG, State.EXITED, State.OOM, State.STOPPING})
"""Its container ends or has ended, and is not removed yet."""
