"""What the runtimes without an engine, sandbox and process, have in common."""

from __future__ import annotations

import os
import resource
import secrets
import shutil
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Self

import trio

from armorclaw.clock import Clock
from armorclaw.containers.local.group import Group, Groups, NoGroups, Parent
from armorclaw.containers.local.log_file import FileLog, LogFile
from armorclaw.containers.local.spawn import Child, Gate
from armorclaw.containers.printed import LogReader, LogWanted
from armorclaw.containers.resources.usage import Usage, usage_below
from armorclaw.containers.runtime import Peer, Running
from armorclaw.containers.spec import ContainerSpec, Exit, Found, News
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

PROGRAMS = "/usr/local/bin:/usr/bin:/bin"
"""PATH of an agent whose spec has none, and where helper programs are looked for besides the bridge's own PATH."""

ENV = {"PATH": PROGRAMS, "HOME": "/tmp"}  # noqa: S108  # its own /tmp, in the sandbox
"""What an image would have set; the spec's environment comes on top."""


class LocalRuntime:
    """The part of the Runtime protocol that is the same for all whose agents end with the bridge and have no image.

    What agents print goes to `log_dir`/NAME.log.
    """

    kind: str
    survives = False

    def __init__(self, log_dir: Path, clock: Clock | None = None) -> None:
        self._log_dir = log_dir
        self._clock = clock
        self._logs: dict[str, LogFile] = {}  # by agent, over its generations
        self._groups: Groups | NoGroups | None = None

    def _log_of(self, agent: str) -> LogFile:
        if agent not in self._logs:
            self._logs[agent] = LogFile(self._log_dir / f"{agent}.log", clock=self._clock)
        return self._logs[agent]

    def _groups_here(self) -> Groups | NoGroups:
        """The control groups for agents of this runtime, or why it has to do without; found out once."""
        if self._groups is None:
            try:
                self._groups = Groups(self.kind, Parent.find())
            except NoGroups as why:
                self._groups = why
                log.warning("agents are limited per process, not as a whole", runtime=self.kind, why=str(why))
        return self._groups

    @asynccontextmanager
    async def _group(self, spec: ContainerSpec) -> AsyncIterator[Group | None]:
        """One generation's control group, if there can be one; leaving ends all that is in it."""
        groups = self._groups_here()
        if isinstance(groups, NoGroups):
            yield None
            return
        async with groups.group(spec.instance, new_id(self.kind, spec.name), spec.limits) as group:
            yield group

    @asynccontextmanager
    async def logs(self, agent: str, container: str | None, wanted: LogWanted) -> AsyncIterator[LogReader]:
        """Of all generations together: to follow is to go on into those to come."""
        yield FileLog(self._log_of(agent), wanted)

    async def check_image(self, image: str) -> str:
        """There are no images here: the name is answered as it is."""
        return image

    def adopt(self, found: Found) -> AbstractAsyncContextManager[Running]:
        """Raises `container_not_found`."""
        raise ArmorclawError("container_not_found", f"{found.id} ended with the bridge that ran it")

    async def survivors(self, instance: str) -> list[Found]:
        return []

    async def discard(self, found: Found) -> None:
        return None

    async def ping(self) -> None:
        await trio.lowlevel.checkpoint()

    @asynccontextmanager
    async def news(self, instance: str) -> AsyncIterator[AsyncIterator[News]]:
        """No engine, no news: reading it lasts until cancelled."""
        yield _Silence()


class LocalContainer(ABC):
    """What a sandbox and a plain process have in common: a child that waits behind a gate until it is started."""

    def __init__(
        self, kind: str, spec: ContainerSpec, uid: int, child: Child, gate: Gate, group: Group | None
    ) -> None:
        self.id = new_id(kind, spec.name) if group is None else group.name
        self._group = group
        self._spec = spec
        self._uid = uid
        self._child = child
        self._gate = gate
        self._started = False

    async def start(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._started:
            return
        self._require_program()
        try:
            self._gate.open()
        except BrokenPipeError:
            raise ArmorclawError(
                "start_failed", f"agent {self._spec.name!r} cannot be started", why="what was made for it has gone"
            ) from None
        self._started = True

    async def wait(self) -> Exit:
        status = await self._child.wait()
        kills = None if self._group is None else self._group.oom_kills()
        oom = None if kills is None else kills > 0
        if status < 0:
            return Exit.killed(-status, oom=oom)
        return Exit.of(status, oom=oom, exact=self._tells_signals)

    async def usage(self) -> Usage:
        """Of its control group, else summed over the processes that run in it; None once it has ended."""
        if self._child.returncode is not None or self._group is not None:
            await trio.lowlevel.checkpoint()
            return Usage() if self._group is None or self._child.returncode is not None else self._group.usage()
        return await trio.to_thread.run_sync(usage_below, self._first_pid)

    async def main_pid(self) -> int | None:
        await trio.lowlevel.checkpoint()
        return None if self._child.returncode is not None else self._first_pid

    def release(self) -> None:  # noqa: B027 - nothing to do
        """See `Running.release`: its output is read, and its end waited for, within its block."""

    _tells_signals = False
    """Whether the child's status is the agent's own, in which an exit is not taken for a signal."""

    @property
    @abstractmethod
    def _first_pid(self) -> int:
        """The process that all others in it descend from."""

    def _may_own(self, peer: Peer) -> bool:
        """The part of `owns` that needs no look at the process."""
        return peer.uid == self._uid and self._child.returncode is None

    @abstractmethod
    def _require_program(self) -> None:
        """Raise `start_failed` if the spec's program cannot be there."""


class _Silence:
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        await trio.sleep_forever()


def new_id(kind: str, name: str) -> str:
    """An id for one generation of agent `name`."""
    return f"{kind}-{name}-{secrets.token_hex(4)}"


def find_program(name: str, package: str) -> str:
    """The absolute path of a helper program. Raises `runtime_missing`, naming the Debian package that has it."""
    path = shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), PROGRAMS]))
    if path is None:
        raise ArmorclawError(
            "runtime_missing", f"{name} was not found", why="it is not in PATH", hint=f"apt install {package}"
        )
    return os.path.abspath(path)


def require_command(spec: ContainerSpec, program: str, host_path: Callable[[Path], Path | None]) -> None:
    """Raise `start_failed` if `program` cannot be there; `host_path` says where a path inside really lies.

    It is run through others that set its limits, whose failure would look like its own.
    """
    places = [program]
    if "/" not in program:
        path = {**ENV, **spec.env}["PATH"]
        places = [os.path.join(folder, program) for folder in path.split(":")]
    for place in places:
        found = host_path(Path(os.path.normpath(os.path.join("/", place))))
        if found is not None and os.path.lexists(found):
            return
    raise ArmorclawError(
        "start_failed",
        f"agent {spec.name!r} cannot be started",
        why=f"its program {program} is not there",
        hint="name a program below /usr, or mount the folder that has it",
    )


def require_plain_words(spec: ContainerSpec) -> None:
    """Raise `config_invalid` for a spec that has no command, or a NUL, which no process can be given, anywhere."""
    if not spec.command:
        raise ArmorclawError(
            "config_invalid", f"agent {spec.name!r} has no command", why="only an image brings one of its own"
        )
    words = [*spec.command, *spec.env.keys(), *spec.env.values()]
    words += [part for mount in spec.mounts for part in (mount.target, str(mount.source))]
    if any("\0" in word for word in words) or any("=" in name or not name for name in spec.env):
        raise ArmorclawError("config_invalid", f"the command or environment of agent {spec.name!r} has a NUL in it")


def confine(spec: ContainerSpec, group: Group, *pids: int) -> None:
    """Take processes that wait behind a gate into the agent's control group. Raises `engine_refused`."""
    try:
        for pid in pids:
            group.add(pid)
    except OSError as error:
        what = f"agent {spec.name!r} cannot be limited"
        raise ArmorclawError("engine_refused", what, why=f"its control group: {error.strerror}") from error


def resource_limits(limits: Mapping[str, int], *, pid: int | None = None) -> list[str]:
    """Words to put in front of a command so that prlimit(1) starts it under `limits`; never above what we have.

    With `pid` they are a command themselves, which limits that process, but none of its children: whoever has its
    uid and gid may, and root with CAP_SYS_RESOURCE only. Names are those of prlimit's long options. Core files are
    always off: they would hold secrets.
    """
    words = [find_program("prlimit", "util-linux"), "--core=0"]
    for name, wanted in limits.items():
        _, hard = resource.getrlimit(getattr(resource, f"RLIMIT_{name.upper()}"))
        words.append(f"--{name}={wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)}")
    return [*words, "--"] if pid is None else [*words, f"--pid={pid}"]
