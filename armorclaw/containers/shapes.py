"""What the methods of agents and their containers take and answer."""

from __future__ import annotations

from typing import Any, Literal

import attrs

from armorclaw.config import RuntimeName
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
    broke), unknown (its engine is lost), restarting, stopping, failed. `since_ms` is when its container started,
    `generation` counts its containers, and `last_end` says why the last one ended."""

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
class Inspection:
    """All that is known of an agent, but no secret.

    What it was told to be: `runtime` as declared and `runs_on` as it came out (docker, podman, sandbox, process; null
    while there is no container), `image`, `command`, `code`, `account`, `rooms`, the ids of its `keys`, the names of
    the variables in `env`, `limits`, `ready_timeout` in seconds. What it is now: `state` as in containers.list;
    `wanted`, false once stopped by hand; `digest`, which changes with anything that makes the container what it is;
    `adopted`, if an earlier bridge started it; `restarts`, how often its own end was followed by another start.
    """

    name: str
    state: str
    wanted: bool
    ready: bool
    generation: int
    restarts: int
    last_end: str
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
    """What one agent uses, or all: a reading at once, then one each `interval_ms`, `count` in all (null: no end)."""

    name: str | None = None
    interval_ms: int = attrs.field(default=1000, validator=between(100, 3_600_000))
    count: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, 1_000_000)))


@attrs.frozen
class AgentStats:
    """One reading of one agent. Null is what cannot be told: all while nothing runs, limit and disks outside of
    engines, `cpu_percent` before there are two readings of a container.

    `cpu_ns` is processor time since its container started, `cpu_percent` that of one processor since the reading
    before. `memory_bytes` leaves out what the kernel could drop (Podman's does not), `memory_limit` is that of the
    whole container, `pids` counts processes and threads; `read_bytes` and `written_bytes` are from and to disks.
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
