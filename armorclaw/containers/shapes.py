"""What the methods of agents and their containers take and answer."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal

import attrs

from armorclaw.config import AgentHealth, AgentRestart, RuntimeName
from armorclaw.containers.ends import End
from armorclaw.rpc.jsonrpc import MAX_METHOD
from armorclaw.rpc.shape import FieldError, between, omit_none

PROTOCOL = 1
"""The version of the wire that the agent library speaks."""


@attrs.frozen
class Start:
    """What to start: a declared agent by `name` (or `agent_type`), or a new one.

    A new one lasts as long as the bridge; if it cannot be started nothing of it is kept. One that is at rest may be
    described anew. `code` is a file or folder of the host that becomes /agent. `key_id` is one more key to grant,
    `keys` are all of them.
    """

    name: str = ""
    key_id: str = ""
    agent_type: str = ""
    image: str | None = None
    runtime: RuntimeName = "auto"
    command: list[str] = attrs.field(factory=list)
    code: str | None = None
    rooms: list[str] = attrs.field(factory=list)
    keys: list[str] = attrs.field(factory=list)
    account: str = "main"
    env: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Started:
    """`endpoint` is the agent's own socket; `ready` is whether it has said so already. Mostly it has not: then an
    `agent.call` is answered with unavailable, and may be tried again."""

    container_id: str
    container_name: str
    status: str
    endpoint: str
    name: str
    ready: bool


@attrs.frozen
class Stop:
    container_id: str = ""
    name: str = ""


@attrs.frozen
class Stopped:
    """`status` is "stopped", or "stopping" when that takes longer than the caller would wait."""

    status: str
    container_id: str
    container_name: str
    name: str


@attrs.frozen
class TakeSecrets:
    """`via` "fd": sealed memory comes with the answer as a file descriptor; "inline": as text in it."""

    via: Literal["fd", "inline"] = "fd"


@attrs.frozen
class Ready:
    """`fingerprint` is the SHA-256 of the secrets taken, in hex, or null when none were."""

    protocol: int = PROTOCOL
    library: str = ""
    fingerprint: str | None = None


@attrs.frozen
class Welcome:
    protocol: int
    agent: str
    rooms: list[str]


@attrs.frozen
class Standing:
    """How an agent stands. `state` is one of stopped, starting, running, ready, suspect (it runs, but its session
    broke or a ping went unanswered), stalled (it answers, but nothing of what it was given gets done), hung, exited,
    oom (its container is being removed), unknown (its engine is lost), restarting, stopping, failed, sleeping (until
    there is work). `since_ms` is when its container started, `generation` counts its containers, `restarts` how often
    its own end was followed by another start, and `last_end` says why the last one ended. `status` is what it says it
    is doing. `cpu_percent` of one processor and `memory_bytes` are those of the last reading, null where there is
    none."""

    name: str
    state: str
    runtime: str
    image: str | None
    container_id: str | None
    generation: int
    since_ms: int | None
    ready: bool
    last_end: str
    rooms: list[str]
    account: str
    restarts: int
    status: str
    cpu_percent: float | None
    memory_bytes: int | None


@attrs.frozen
class Which:
    """`name` of an agent, or the id or name of its container."""

    name: str


@attrs.frozen
class Limits:
    """What one container may use at most: bytes of memory and of /tmp, cores, processes, open files."""

    memory: int
    cpus: float
    pids: int
    files: int
    tmp: int


@attrs.frozen
class HealthFacts:
    """What is known of the life of a running agent, each with its age in milliseconds. Null is what is not known.

    `engine` is "running", or "lost" when it cannot be asked; `session` is "open", "lost" (it may come back) or "none"
    (it never had one, and is sent no pings). `ping_ms` is how long the last ping took that was answered,
    `pings_missed` how many in a row were not. `unacknowledged` counts the events in its hands; `work_age_ms` is since
    when there was no sign of work.
    """

    engine: Literal["running", "lost"]
    engine_age_ms: int
    session: Literal["open", "lost", "none"]
    session_age_ms: int
    ping_ms: float | None
    ping_age_ms: int | None
    pings_missed: int
    unacknowledged: int
    oldest_unacknowledged_ms: int | None
    work_age_ms: int
    reading_age_ms: int | None


@attrs.frozen
class Figures:
    """What a container uses, or the most it ever used. `cpu_percent` is of one processor; null is what cannot be
    told."""

    cpu_percent: float | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    tmp_bytes: int | None = None
    data_bytes: int | None = None


@attrs.frozen
class DataLimits:
    """Bytes of /data: from `soft` on there is a warning, at `hard` the agent is ended."""

    soft: int
    hard: int


@attrs.frozen
class QuotaLimits:
    """What an agent may do in any minute, 0 is no limit; at the share `soft` there is a warning. `bytes` are those
    read from it, `media` those of files it uploads and downloads."""

    events: int
    messages: int
    bytes: int
    calls: int
    media: int
    soft: float
    on_exceeded: str


@attrs.frozen
class Inspection:
    """All that is known of an agent, but no secret.

    What it was told to be: `runtime` as declared and `runs_on` as it came out (docker, podman, sandbox, process; null
    while there is no container), `image`, `command`, `code`, `account`, `rooms`, the ids of its `keys`, the names of
    the variables in `env`, what it may reach by `egress`, `limits`, `data`, `quota`, and with times in seconds
    `ready_timeout`, `lifetime`, `idle_timeout` (0 is none), `patience` and `restart_policy`; `on_restart` and
    `on_idle` as declared. What it is now: `state` as in containers.list; `wanted`, false once stopped by hand;
    `digest`, which changes with anything that makes the container what it is; `adopted`, if an earlier bridge started
    it; `restarts`, how often its own end was followed by another start; `health` and `usage`, null while no container
    runs, or nothing was read; `peaks` of this container, or the last; `ends`, why its last 20 containers ended, the
    oldest first.
    """

    name: str
    state: str
    wanted: bool
    ready: bool
    generation: int
    restarts: int
    last_end: str
    status: str
    container_name: str
    container_id: str | None
    since_ms: int | None
    digest: str | None
    adopted: bool | None
    runs_on: str | None
    runtime: str
    image: str | None
    command: list[str]
    code: str | None
    uid: int
    socket: str
    account: str
    rooms: list[str]
    keys: list[str]
    env: list[str]
    limits: Limits
    ready_timeout: float
    patience: AgentHealth
    restart_policy: AgentRestart
    on_restart: str
    lifetime: float
    idle_timeout: float
    on_idle: str
    python: str | None
    egress: list[str]
    data: DataLimits
    quota: QuotaLimits
    health: HealthFacts | None
    usage: Figures | None
    peaks: Figures
    ends: list[End]


@attrs.frozen
class IsolationFact:
    """One thing that confines a running agent: what armorclaw claims of it, beside what was found.

    `claimed` is null where nothing is. `holds` is null where nothing is claimed, or where it could not be found out:
    `found` then says why. `source` is who was asked.
    """

    what: str
    claimed: str | None
    found: str
    holds: bool | None
    source: str


_TAIL: int | None = 100


@attrs.frozen
class Logs:
    """What an agent printed: the last `tail` lines (null: all that is kept) of those since `since_ms`.

    With `follow` also what it prints from then on, over restarts, until the agent is removed or the call cancelled.
    With `timestamps` chunks say when they were written.
    """

    name: str
    follow: bool = False
    tail: int | None = attrs.field(default=_TAIL, validator=attrs.validators.optional(between(0, 100_000)))
    since_ms: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(0, 2**53)))
    timestamps: bool = False


@omit_none
@attrs.frozen
class LogChunk:
    """Some text as the agent wrote it; what is no UTF-8 is replaced. A chunk may end within a line.

    `stream` is stdout or stderr; output where both are one, as in the sandbox; bridge for what the bridge says in
    between: that another container of the agent began, or how much was lost. `at_ms`, only if asked for, is exact to
    a second (Podman), to 0.1 s (sandbox, process) or to 1 ms, and absent where it is not known.
    """

    stream: Literal["stdout", "stderr", "output", "bridge"]
    text: str
    at_ms: int | None = None


@attrs.frozen
class LogsEnd:
    """How much there was, of the agent's own. `truncated`: something that was asked for may be kept no more, or came
    faster than it was read; null where an engine does not tell."""

    lines: int
    bytes: int
    truncated: bool | None


@attrs.frozen
class Stats:
    """What one agent uses, or all: a reading at once, then one each `interval_ms`, `count` in all (null: no end).

    With `history` first those of the last ten minutes, one a second, many of one agent in a chunk, oldest first; they
    do not count. Of those `state` is running, and `cpu_ns`, `memory_limit`, `throttled_ns`, `oom_kills` and peaks are
    null.
    """

    name: str | None = None
    interval_ms: int = attrs.field(default=1000, validator=between(100, 3_600_000))
    count: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, 1_000_000)))
    history: bool = False


@attrs.frozen
class AgentStats:
    """One reading of one agent. Null is what cannot be told: all while nothing runs, `cpu_percent` before there are
    two readings of a container, and what its runtime does not account for: docs/resources.md has a table.

    `cpu_ns` is processor time since its container started, `cpu_percent` that of one processor since the reading
    before. `memory_bytes` leaves out what the kernel could drop, `memory_limit` is that of the whole container,
    `pids` counts processes and threads; `read_bytes` and `written_bytes` are from and to disks. `throttled_ns` is how
    long its limit of processor time held it back, `oom_kills` how many of its processes were killed for want of
    memory, both since its container started; `tmp_bytes` is what its /tmp holds, `data_bytes` its /data, measured
    seldom. Peaks are those that the bridge saw since its container started, looking once a second.
    """

    name: str
    state: str
    at_ms: int
    cpu_ns: int | None = None
    cpu_percent: float | None = None
    memory_bytes: int | None = None
    memory_limit: int | None = None
    pids: int | None = None
    read_bytes: int | None = None
    written_bytes: int | None = None
    throttled_ns: int | None = None
    oom_kills: int | None = None
    tmp_bytes: int | None = None
    data_bytes: int | None = None
    cpu_peak_percent: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None


@attrs.frozen
class StatsEnd:
    """`readings` is how many there were."""

    readings: int


def _is_method(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not 0 < len(value) <= MAX_METHOD:
        raise FieldError(field, f"must have 1 to {MAX_METHOD} characters")


@attrs.frozen
class AgentCall:
    """What to ask an agent: a method that it offers, and its params, null as {}."""

    agent: str
    method: str = attrs.field(validator=_is_method)
    params: Any = None


STATUS_LIMIT = 500
"""Characters of a status, and of the message of a progress."""

MESSAGE_LIMIT = 4 * 1024
"""Bytes of the message of an error, in UTF-8."""

TRACEBACK_LIMIT = 32 * 1024
"""Bytes of a traceback, in UTF-8."""

DATA_LIMIT = 48 * 1024
"""Bytes of the data of an event, as the compact ASCII JSON that subscribers get."""

NAME_LIMIT = 64
"""Characters of the name of an event, and of a task."""

_EVENT_NAME = re.compile(rf"[a-z0-9._-]{{1,{NAME_LIMIT}}}")


def _characters(low: int, high: int) -> Callable[[object, attrs.Attribute[str], str], None]:
    def check(_params: object, field: attrs.Attribute[str], value: str) -> None:
        if not low <= len(value) <= high:
            raise FieldError(field, f"must have {low} to {high} characters")

    return check


def _utf8(low: int, high: int) -> Callable[[object, attrs.Attribute[str], str], None]:
    def check(_params: object, field: attrs.Attribute[str], value: str) -> None:
        if not low <= len(value.encode("utf-8", "surrogatepass")) <= high:
            raise FieldError(field, f"must have {low} to {high} bytes")

    return check


def _event_name(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not _EVENT_NAME.fullmatch(value):
        raise FieldError(field, f"must have 1 to {NAME_LIMIT} characters of a-z, 0-9, '.', '_' and '-'")


def _small_json(_params: object, field: attrs.Attribute[Any], value: Any) -> None:
    try:
        size = len(json.dumps(value, separators=(",", ":"), allow_nan=False))  # in ASCII, as events are written
    except (TypeError, ValueError, RecursionError):
        raise FieldError(field, "must be JSON") from None
    if size > DATA_LIMIT:
        raise FieldError(field, f"must have at most {DATA_LIMIT} bytes as JSON")


def _finite(_params: object, field: attrs.Attribute[float], value: float) -> None:
    if not math.isfinite(value):
        raise FieldError(field, "must be a finite number")


@attrs.frozen
class AgentStatus:
    """What an agent is at, in its own words: `text` of at most 500 characters, "" for nothing to say."""

    text: str = attrs.field(validator=_characters(0, STATUS_LIMIT))


@attrs.frozen
class AgentError:
    """Something went wrong in an agent: `message` of at most 4 KiB, `traceback` of at most 32 KiB."""

    message: str = attrs.field(validator=_utf8(1, MESSAGE_LIMIT))
    severity: Literal["info", "warning", "error", "critical"] = "error"
    traceback: str = attrs.field(default="", validator=_utf8(0, TRACEBACK_LIMIT))


@attrs.frozen
class AgentEvent:
    """Something happened that others may want to know: `name` of 1 to 64 characters (a-z, 0-9, `.`, `_`, `-`), and
    any JSON as `data`, of at most 48 KiB."""

    name: str = attrs.field(validator=_event_name)
    data: Any = attrs.field(default=None, validator=_small_json)


@attrs.frozen
class AgentProgress:
    """How far an agent is with a `task` of its: `done` of `total`, in any unit; null where nobody knows the end."""

    done: float = attrs.field(validator=_finite)
    total: float | None = attrs.field(default=None, validator=attrs.validators.optional(_finite))
    message: str = attrs.field(default="", validator=_characters(0, STATUS_LIMIT))
    task: str = attrs.field(default="", validator=_characters(0, NAME_LIMIT))
