"""What is told of one agent: the sections below `[agents.NAME]`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from armorclaw.config.checks import at_least_one, between, no_less_than_zero, positive, rooms, share
from armorclaw.hosts import HostPattern
from armorclaw.structure import FaultError, Size

RuntimeName = Literal["auto", "docker", "podman", "sandbox", "process", "attached"]


MIB = 1024 * 1024


EGRESS = "egress"
"""The name of the socket beside an agent's own by which it reaches the hosts it may."""

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def _env(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
    for name in value:
        if not _ENV_NAME.fullmatch(name):
            raise FaultError(f"{name!r} is not the name of a variable", "use letters, digits and _")
        if name.startswith("ARMORCLAW_"):
            raise FaultError(f"{name} is the bridge's to set", "remove it")


def _names(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        # not quoted: what looks least like an id is a key itself, pasted here
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) or text.startswith(("sk-", "ghp_", "AKIA")):
            raise FaultError(
                "an entry is not the id of a key", "name keys as armorclaw keys ls shows them; never the key itself"
            )


def _egress(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        HostPattern.parse(text)


@attrs.frozen
class AgentLimits:
    """What one container may use at most: bytes of memory and of /tmp, cores, processes, open files."""

    memory: Size = attrs.field(default=Size(512 * MIB), validator=positive)
    cpus: float = attrs.field(default=1.0, validator=positive)
    pids: int = attrs.field(default=128, validator=positive)
    files: int = attrs.field(default=1024, validator=positive)
    tmp: Size = attrs.field(default=Size(64 * MIB), validator=positive)


def _seconds(given: Mapping[str, Any], key: str, default: float) -> float:
    """What is given, or 0 for what is no number and has a fault of its own."""
    value = given.get(key, default)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


@attrs.frozen
class AgentHealth:
    """How an agent's life is watched, in seconds.

    Each `period` it is asked over its session whether its loop runs; `failures` in a row that took longer than
    `timeout` are a hang. `reconnect` is how long its session may be away. One that has had events in its hands for
    `stalled_after` without a sign of work is stalled, and over `stalled_limit` started again (0: never for that).
    """

    period: float = attrs.field(default=10.0, validator=between(0.1, 3600))
    timeout: float = attrs.field(default=1.0, validator=positive)
    failures: int = attrs.field(default=3, validator=at_least_one)
    reconnect: float = attrs.field(default=10.0, validator=positive)
    stalled_after: float = attrs.field(default=120.0, validator=positive)
    stalled_limit: float = attrs.field(default=600.0, validator=no_less_than_zero)

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self))

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell."""
        period, timeout = _seconds(given, "period", 10.0), _seconds(given, "timeout", 1.0)
        if 0 < period < timeout:
            raise FaultError(
                f"timeout {timeout:g} is longer than period {period:g}", "give a longer period, or a shorter timeout"
            )
        after, limit = _seconds(given, "stalled_after", 120.0), _seconds(given, "stalled_limit", 600.0)
        if 0 < limit < after:
            raise FaultError(
                f"stalled_limit {limit:g} is below stalled_after {after:g}",
                f"give stalled_limit, too: more than {after:g}, or 0 for never",
            )


RestartPolicy = Literal["always", "on-failure", "never"]


@attrs.frozen
class AgentRestart:
    """What follows the end of an agent that nobody asked for.

    The first start after it is at once, each further one after a pause that grows, at most `longest_pause` seconds,
    until one has lived for `stable` seconds. After `in_row` that did not, or `per_hour` ends of any kind within an
    hour, it is given up; 0 is no such limit. With "on-failure" exit status 0 is an end that stays.
    """

    policy: RestartPolicy = "always"
    in_row: int = attrs.field(default=6, validator=no_less_than_zero)
    per_hour: int = attrs.field(default=20, validator=no_less_than_zero)
    stable: float = attrs.field(default=600.0, validator=positive)
    longest_pause: float = attrs.field(default=60.0, validator=positive)


@attrs.frozen
class AgentQuota:
    """What an agent may do in any minute, over all its connections and restarts; 0 is no limit.

    `events` are those it publishes (agent.event, .status, .error and what is recorded of its progress), `messages`
    those it sends into rooms, `bytes` what is read from it, `calls` all its calls, `media` the bytes of files it has
    uploaded and downloaded: one that has begun is finished. At the share `soft` of one there is a warning. Beyond it
    is
    refused; with "stop" an agent that goes on regardless is ended, and stays so.
    """

    events: int = attrs.field(default=1_200, validator=no_less_than_zero)
    messages: int = attrs.field(default=1_200, validator=no_less_than_zero)
    bytes: Size = attrs.field(default=Size(1024 * MIB), validator=no_less_than_zero)
    calls: int = attrs.field(default=60_000, validator=no_less_than_zero)
    media: Size = attrs.field(default=Size(256 * MIB), validator=no_less_than_zero)
    soft: float = attrs.field(default=0.8, validator=share)
    on_exceeded: Literal["refuse", "stop"] = "refuse"


@attrs.frozen
class AgentData:
    """How much an agent may keep at /data: over `soft` there is a warning, over `hard` it is ended, and stays so.

    A file or folder counts with the room it takes on the disk and 4 KiB.
    """

    soft: Size = attrs.field(default=Size(256 * MIB), validator=positive)
    hard: Size = attrs.field(default=Size(1024 * MIB), validator=positive)

    def __attrs_post_init__(self) -> None:
        if self.soft > self.hard:
            raise FaultError(f"soft {self.soft} is above hard {self.hard}", "lower soft, or raise hard")


@attrs.frozen
class Agent:
    """One agent: what to run, where, and what it is granted.

    `code` is a file or folder of the host, copied and mounted read-only at /agent; with it the default command is
    `python3 /agent/main.py` (or the one file). `python` is a virtual environment of the host that an agent without an
    image runs in, read-only. `rooms` are the only rooms it hears and may write to; `keys` the only
    secrets it is given; `egress` the only hosts it may connect to, with a port each (`armorclaw.hosts`).
    `ready_timeout` is how many seconds it has to say it is ready; 0 never demands it.
    `on_restart` is what a starting bridge does with a container of it that an earlier bridge left. `lifetime` is how
    many seconds after its start it is stopped, for good; `idle_timeout` after how many without work it is put to
    sleep, until there is some, or stopped for good, as `on_idle` says. 0 is no such limit.
    Runtime "attached" is for one that lives in the program that embeds the bridge (`Bridge.attach`): declared, it
    misses nothing while that program is down.
    """

    image: str | None = None
    runtime: RuntimeName = "auto"
    command: tuple[str, ...] = ()
    code: Path | None = None
    python: Path | None = None
    rooms: tuple[str, ...] = attrs.field(default=(), validator=rooms)
    keys: tuple[str, ...] = attrs.field(default=(), validator=_names)
    egress: tuple[str, ...] = attrs.field(default=(), validator=_egress)
    account: str = "main"
    env: Mapping[str, str] = attrs.field(factory=dict, validator=_env)
    limits: AgentLimits = attrs.field(factory=AgentLimits)
    quota: AgentQuota = attrs.field(factory=AgentQuota)
    health: AgentHealth = attrs.field(factory=AgentHealth)
    restart: AgentRestart = attrs.field(factory=AgentRestart)
    data: AgentData = attrs.field(factory=AgentData)
    on_restart: Literal["adopt", "kill"] = "adopt"
    lifetime: float = attrs.field(default=0.0, validator=no_less_than_zero)
    idle_timeout: float = attrs.field(default=0.0, validator=no_less_than_zero)
    on_idle: Literal["sleep", "stop"] = "sleep"
    uid: int | None = None
    ready_timeout: float = attrs.field(default=30.0, validator=no_less_than_zero)
    name: str = ""

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self, recurse=False))

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell; `given` may hold values that are wrong by themselves."""
        runtime, image = given.get("runtime"), given.get("image")
        has_work = bool(given.get("command") or given.get("code") or image)
        if runtime == "attached":
            if has_work:
                raise FaultError("an attached agent runs in a program of its own", "remove image, command and code")
            if given.get("lifetime") or given.get("idle_timeout"):
                raise FaultError("an attached agent is not the bridge's to end", "remove lifetime and idle_timeout")
            if given.get("egress"):
                raise FaultError("an attached agent has the network of its program", "remove egress")
        elif not has_work:
            raise FaultError("there is nothing to run", "give an image, a command or code")
        if runtime in ("docker", "podman") and image is None:
            raise FaultError(f'runtime "{runtime}" needs an image', 'add image = "…", or use runtime = "sandbox"')
        if given.get("python") is not None and (image is not None or runtime in ("docker", "podman", "attached")):
            raise FaultError(
                "python is a virtual environment of this host, for runtime sandbox or process",
                "remove it; into an image libraries come by armorclaw image build -r requirements.txt",
            )
        if runtime in ("sandbox", "process") and image is not None:
            raise FaultError(f'runtime "{runtime}" has no images', 'remove image, or use runtime = "docker"')
