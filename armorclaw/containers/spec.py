"""What is to run, and what became of it: plain values that every runtime shares."""

from __future__ import annotations

import hashlib
import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path

import attrs

from armorclaw.config import MIB
from armorclaw.errors import ArmorclawError

SOCKET_DIR = "/run/armorclaw/containers"
"""Where the agent's own socket directory appears inside, read-only; no other agent's socket is in it."""

# What an init process inside or a shell says of a command it could not run.
_SHELL_MEANS = {126: " (the command cannot be executed)", 127: " (the command was not found)"}

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}\Z")


def check_name(what: str, name: str) -> str:
    """Return `name` if it may become part of a path, a label and a container's name; else raise `invalid_params`."""
    if not _NAME.match(name):
        raise ArmorclawError(
            "invalid_params",
            f"{what} {name[:80]!r} is not a usable name",
            why="it becomes part of paths and of the container's name",
            hint="use 1 to 63 of a-z, 0-9, '_', '.', '-', beginning with a letter or digit",
        )
    return name


@attrs.frozen
class Mount:
    """A file or directory of the host shown inside at the absolute path `target`; read-only unless `writable`."""

    source: Path
    target: str
    writable: bool = False


@attrs.frozen
class Limits:
    """What one agent may use; a runtime that cannot hold it to one of these says so in its `check`.

    `memory` and `tmp` are bytes (no swap comes on top; `tmp` is the size of its /tmp), `cpus` is processor time per
    time, `pids` counts processes and threads, `files` is open files per process.
    """

    memory: int = 512 * MIB
    cpus: float = 1.0
    pids: int = 128
    files: int = 1024
    tmp: int = 64 * MIB


def _checked_name(_: object, attribute: attrs.Attribute[str], value: str) -> None:
    check_name(attribute.name, value)


@attrs.frozen
class ContainerSpec:
    """Everything that makes one container what it is. It is shown by `docker inspect`: no secret belongs in it.

    `instance` is this installation, `name` the agent. `image` is None for runtimes without images; an empty
    `command` means the image's own. `uid` and `gid` are those inside, never 0. `socket_dir` is the host directory
    that is mounted at SOCKET_DIR.
    """

    instance: str = attrs.field(validator=_checked_name)
    name: str = attrs.field(validator=_checked_name)
    image: str | None
    command: tuple[str, ...]
    env: Mapping[str, str]
    uid: int = attrs.field(validator=attrs.validators.gt(0))
    gid: int = attrs.field(validator=attrs.validators.gt(0))
    socket_dir: Path
    mounts: tuple[Mount, ...] = ()
    limits: Limits = attrs.field(factory=Limits)

    def digest(self) -> str:
        """64 hex digits that change whenever any field does; a survivor with the same digest may be adopted."""
        plain = attrs.asdict(self, value_serializer=lambda _, __, value: _plain(value))
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    return value


@attrs.frozen
class Exit:
    """How a container's main process ended: by `code` or by `signal`, one of them None.

    `oom`: some process in it was killed for want of memory; None where the runtime cannot tell. `text` says all of
    it in a few words.
    """

    code: int | None
    signal: int | None
    oom: bool | None
    text: str

    @classmethod
    def of(cls, status: int, *, oom: bool | None = None, exact: bool = False) -> Exit:
        """From a shell's status: unless it is `exact`, 129 to 192 is taken for death by signal, and says so.

        Neither an engine nor bubblewrap tells the two apart.
        """
        if not exact and 128 < status <= 128 + signal.NSIG - 1:
            end = cls.killed(status - 128, oom=oom)
            return end if oom else attrs.evolve(end, text=f"{end.text} (or exit {status})")
        meaning = _SHELL_MEANS.get(status, "")
        return cls(status, None, oom, f"exit {status}{meaning}" + (", out of memory seen" if oom else ""))

    @classmethod
    def killed(cls, number: int, *, oom: bool | None = None) -> Exit:
        """Ended by signal `number`."""
        try:
            name = signal.Signals(number).name
        except ValueError:
            name = f"signal {number}"
        return cls(None, number, oom, f"killed by {name}" + (", out of memory" if oom else ""))


@attrs.frozen
class Found:
    """A container of ours that an earlier life of the bridge left: its agent's name and its spec's digest.

    `made_ms` is when it was made, exact to a second, if that is known.
    """

    id: str
    name: str
    digest: str
    running: bool
    made_ms: int | None = attrs.field(default=None, eq=False)


@attrs.frozen
class News:
    """Something that happened to a container of ours and that we did not do: `what` in a word, `detail` if there is.

    `what` is "oom" (some process in it was killed for want of memory), or a change by hand: paused, unpaused,
    signalled, stopped, removed, restarted, updated, renamed.
    """

    container: str
    agent: str
    what: str
    detail: str = ""
