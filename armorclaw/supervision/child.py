"""What a supervisor remembers about one child and about the generation of it that is alive. No decisions here."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from armorclaw.supervision.backoff import BackoffRecord, Intensity
from armorclaw.supervision.spec import ChildSnapshot, ChildSpec, ChildState

if TYPE_CHECKING:
    from armorclaw.supervision.supervisor import Supervisor

ALIVE = frozenset({ChildState.STARTING, ChildState.RUNNING, ChildState.STOPPING, ChildState.STUCK})


class Generation:
    """One life of a child: the wait before it, its start, its run and its end, all under one cancel scope.

    It is the `task_status` that the child's run() gets, one per life, so that a call kept from an earlier life cannot
    make a later one look ready.
    """

    __slots__ = ("again", "asked", "child", "late", "pressed", "ready", "ready_at", "scope")

    def __init__(self, child: Child, ready: Callable[[Generation, object], None]) -> None:
        self.child = child
        self.ready = ready
        # Shielded: when the supervisor is cancelled, it stops its children one by one instead of all being cancelled.
        self.scope = trio.CancelScope(shield=True)
        self.ready_at: float | None = None
        self.asked: str | None = None  # why we want it to end; the end is then never counted
        self.again = False  # by hand: even a temporary child is started again
        self.pressed = False  # cancelled
        self.late = False  # cancelled because it was not ready in time

    def started(self, value: object = None) -> None:
        """The child is ready. Pass a `Supervisor` to have its children shown below this child."""
        if self.child.generation is not self:
            raise RuntimeError(f"child {self.child.spec.name!r} called started() after its end")
        if self.ready_at is not None:
            raise RuntimeError(f"child {self.child.spec.name!r} called started() twice")
        self.ready(self, value)


class Child:
    """A child and its record. Owned and changed by its supervisor only."""

    __slots__ = (
        "backing",
        "due",
        "forget",
        "generation",
        "intensity",
        "last_error",
        "on_trial",
        "pause",
        "restarts",
        "settled",
        "since",
        "spec",
        "start_error",
        "state",
        "subtree",
        "wanted",
    )

    def __init__(self, spec: ChildSpec, now: float, *, on_trial: bool) -> None:
        self.spec = spec
        self.state = ChildState.BACKING_OFF  # until its turn comes
        self.since = now
        self.restarts = 0
        self.last_error: str | None = None
        self.subtree: Supervisor | None = None
        self.generation: Generation | None = None  # None: at rest
        self.due = 0.0  # earliest start of the next generation, in monotonic seconds; 0: at once
        self.pause = trio.CancelScope()  # the wait until `due`
        self.wanted = True  # false once stopped by hand
        self.forget = False  # removed: dropped as soon as it is at rest
        self.on_trial = (
            on_trial  # somebody waits for the first start and is told of its failure; no restart until then
        )
        self.settled = False  # the first start has come to something
        self.start_error: BaseException | None = None
        self.clear_limits()

    def clear_limits(self) -> None:
        """Forgets what was counted against the child's limits."""
        self.backing: BackoffRecord | None = None
        self.intensity: Intensity | None = None

    def delay(self, now: float, ready_for: float, limits: Intensity, chance: random.Random) -> float | None:
        """Counts the end of a generation: seconds until the next, or None if too many have ended."""
        if self.spec.backoff is None:
            return 0.0 if limits.allows(now) else None
        if self.backing is None:
            self.backing = BackoffRecord(self.spec.backoff)
        return self.backing.ended(now, ready_for, chance)

    def snapshot(self) -> ChildSnapshot:
        below = None if self.subtree is None else self.subtree.snapshot()
        return ChildSnapshot(self.spec.name, self.state, self.restarts, self.since, self.last_error, below)
