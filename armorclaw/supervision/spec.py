"""The words of supervision: what a child is, how it is kept alive, and what can be told about it."""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable

import attrs

from armorclaw.supervision.backoff import Backoff


class Restart(enum.Enum):
    """Which ends of a child are followed by another start (OTP's restart types)."""

    PERMANENT = "permanent"
    """Every end."""
    TRANSIENT = "transient"
    """Only a crash; a child that returns has finished."""
    TEMPORARY = "temporary"
    """None. A temporary child is forgotten as soon as it ends, so that one-off children do not pile up."""


class Strategy(enum.Enum):
    """Which children are restarted together (OTP's strategies)."""

    ONE_FOR_ONE = "one_for_one"
    """Only the one that ended."""
    REST_FOR_ONE = "rest_for_one"
    """It and those after it, which may depend on it: stopped in reverse order, started in order."""


class ChildState(enum.Enum):
    """Where a child stands. STOPPED, FINISHED and FAILED are at rest: nothing happens until somebody asks."""

    STARTING = "starting"
    """Runs, has not called `task_status.started()` yet."""
    RUNNING = "running"
    """Ready."""
    BACKING_OFF = "backing_off"
    """Ended and will be started again: after a delay (which may be none), or once those before it are ready."""
    STOPPING = "stopping"
    """Asked to end, or cancelled."""
    STOPPED = "stopped"
    """Ended because it was told to, and stays so."""
    FINISHED = "finished"
    """Returned, and its restart type asks for no more."""
    FAILED = "failed"
    """Crashed, and is not started again: temporary, or over its limits."""
    STUCK = "stuck"
    """Was cancelled and goes on all the same. Still waited for: a task cannot be abandoned."""


@attrs.frozen
class ChildSpec:
    """How to run one child, and what to do when it ends."""

    name: str = attrs.field(validator=attrs.validators.min_len(1))
    """Unique within its supervisor."""
    run: Callable[..., Awaitable[object]]
    """``async def run(*, task_status)``: calls ``task_status.started()`` when truly ready and returns when it has
    nothing left to do. Called again for each generation."""
    restart: Restart = Restart.PERMANENT
    backoff: Backoff | None = None
    """None: restarted at once, and counted in the intensity of its supervisor."""
    start_timeout: float = attrs.field(default=30.0, validator=attrs.validators.gt(0.0))
    """Seconds until it must be ready. A generation that is not has crashed."""
    grace: float = attrs.field(default=5.0, validator=attrs.validators.gt(0.0))
    """Seconds it has to end once asked, and again once cancelled. `math.inf` for a child that is a supervisor: it
    waits for children of its own, each with its grace. (With `ask_stop`, infinite grace means never cancelled.)"""
    ask_stop: Callable[[], object] | None = None
    """Called, never awaited, to ask a child that is ready to end by itself. None: cancelled at once."""


@attrs.frozen
class ChildChange:
    """One change of a child's state."""

    supervisor: str
    child: str
    state: ChildState
    at: float
    """Monotonic seconds."""
    reason: str
    error: BaseException | None = attrs.field(default=None, repr=False, eq=False)
    """What it crashed with, for whoever logs the traceback."""


@attrs.frozen
class ChildSnapshot:
    name: str
    state: ChildState
    restarts: int
    """How often its own end was followed by another start."""
    since: float
    """Monotonic seconds of the last change of state."""
    last_error: str | None
    children: SupervisorSnapshot | None
    """The tree below, if the child is a supervisor."""


@attrs.frozen
class SupervisorSnapshot:
    name: str
    strategy: Strategy
    children: tuple[ChildSnapshot, ...]
