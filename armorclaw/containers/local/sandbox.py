"""Agents under bubblewrap: the runtime for hosts without a container engine.

What an agent has there: namespaces of its own, no network but an unconnected loopback, no capabilities, a system call
filter, no way to gain privileges, read-only system files, its own /tmp of bounded size, and beside it
only its /data to write to.
What it shares, and `check` says: the host's kernel and the sight of its /usr.

Where the bridge may make control groups (group.py), memory, processes and processor time are limited for the whole of
an agent, and it is told when one of its processes was killed for want of memory. Elsewhere memory is limited per
process (RLIMIT_AS) and per file in memory (RLIMIT_FSIZE), not for all of them together, and processor time not at
all; `check` says which of the two it is.

The first process in there is bubblewrap's own. It has the agent's uid, so an agent may write to its memory and make
it run anything: that is why it is under the agent's limits as well, besides the filter and the namespaces.

Run by root, bubblewrap itself runs as the agent's uid, in a user namespace (as root, `--uid` would leave it the
host's uid 0 outside); so all it mounts must be readable by that uid, the folders above included. Run by anyone else,
agents run as that user.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import msgspec
import trio

from armorclaw.containers.local.base import (
    ENV,
    LocalContainer,
    LocalRuntime,
    confine,
    find_program,
    require_command,
    require_plain_words,
    resource_limits,
)
from armorclaw.containers.local.group import Group, NoGroups
from armorclaw.containers.local.log_file import LogFile
from armorclaw.containers.local.output import Output, captured
from armorclaw.containers.local.seccomp import denied_calls, filter_fd
from armorclaw.containers.local.spawn import KILL_DEADLINE, Child, Gate, ended, spawned
from armorclaw.containers.peers import children_of, descends_from, pid_namespace
from armorclaw.containers.runtime import Peer, Running
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec
from armorclaw.errors import ArmorclawError

SETUP_DEADLINE = 10.0
"""Seconds for bubblewrap to make its namespaces and mounts; it takes some 20 ms."""

_NOBODY = 65534
_SYSTEM_FOLDERS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_SYSTEM_FILES = ("/etc/alternatives", "/etc/ld.so.cache", "/etc/localtime")


class SandboxRuntime(LocalRuntime):
    """The Runtime that needs bubblewrap only."""

    kind = "sandbox"

    async def check(self) -> str:
        """Try it, filter and limits and all, as an unprivileged user; one line of what an agent gets.

        Raises `runtime_missing` with bubblewrap's own reason and, where it can be told, the setting to change.
        """
        trial = ContainerSpec("trial", "trial", None, ("/bin/true",), {}, _NOBODY, _NOBODY, Path("/usr"))
        try:
            async with self._made(trial, log=None) as running:
                await running.start()
                end = await running.wait()
        except ArmorclawError as error:
            if error.name == "runtime_missing":
                raise
            raise ArmorclawError(
                "runtime_missing", "bubblewrap does not work here", why=error.why, hint=_what_to_change()
            ) from error
        if end.code != 0:
            raise ArmorclawError("runtime_missing", "bubblewrap does not work here", why=end.text)
        return (
            f"sandbox: {await _version()}, own namespaces, no network, no capabilities, "
            f"{len(denied_calls())} system calls refused; shares the kernel; {self._what_is_limited()}"
        )

    def _what_is_limited(self) -> str:
        groups = self._groups_here()
        if isinstance(groups, NoGroups):
            return (
                "memory limited per process and per file but NOT in total, processor time NOT limited: "
                f"no control group, as {groups}"
            )
        return f"memory, processes and processor time limited in total (control groups, version {groups.version})"

    @asynccontextmanager
    async def launch(self, spec: ContainerSpec) -> AsyncIterator[Running]:
        """As the protocol says: the sandbox stands, with the command held back until `start`.

        Raises `config_invalid`, `runtime_missing`, and `engine_refused` with bubblewrap's reason.
        """
        async with self._made(spec, log=self._log_of(spec.name)) as running:
            yield running

    @asynccontextmanager
    async def _made(self, spec: ContainerSpec, log: LogFile | None) -> AsyncIterator[_Sandboxed]:
        require_plain_words(spec)
        bwrap = find_program("bwrap", "bubblewrap")
        user = (spec.uid, spec.gid) if os.geteuid() == 0 else None
        uid, gid = user or (os.geteuid(), os.getegid())
        async with self._group(spec) as group, captured(log) as output:
            with closing(Gate()) as gate, ExitStack() as inherited, ExitStack() as ours:
                info, info_writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                ours.callback(os.close, info)
                inherited.callback(os.close, info_writer)
                fds = _Descriptors(inherited)
                words = ["--info-fd", str(info_writer), *_sandbox_words(spec, uid, gid, fds)]
                # By descriptor, as everybody on the host may read a command line, but not an agent's environment.
                words_fd = fds.holding("\0".join(words).encode() + b"\0")
                command = [
                    bwrap,
                    "--args",
                    str(words_fd),
                    "--",
                    *resource_limits(_limits(spec, group)),
                    *Gate.WORDS,
                    *spec.command,
                ]
                async with spawned(
                    command,
                    env={},
                    user=user,
                    gate=gate,
                    output=output.fd,
                    pass_fds=(info_writer, *fds.all),
                ) as child:
                    inherited.close()
                    output.handed_over()
                    async with _standing(spec, user, child, output, gate, info, group) as running:
                        yield running


class _Descriptors:
    """Memory files for bubblewrap to read, closed with `stack`."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.all: list[int] = []

    def keep(self, fd: int) -> int:
        self._stack.callback(os.close, fd)
        self.all.append(fd)
        return fd

    def holding(self, data: bytes) -> int:
        fd = self.keep(os.memfd_create("armorclaw-sandbox", os.MFD_CLOEXEC))
        with open(fd, "wb", closefd=False) as file:
            file.write(data)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def _sandbox_words(spec: ContainerSpec, uid: int, gid: int, fds: _Descriptors) -> list[str]:
    """What bubblewrap is told, but for its command. Later mounts lie over earlier ones."""
    words = [
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--seccomp", str(fds.keep(filter_fd())), "--hostname", spec.name, "--chdir", "/"),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in _SYSTEM_FOLDERS:
        folder = Path("/", name)
        if folder.is_symlink():
            words += ["--symlink", os.readlink(folder), str(folder)]
        elif folder.is_dir():
            words += ["--ro-bind", str(folder), str(folder)]
    for path in _SYSTEM_FILES:
        words += ["--ro-bind-try", path, path]
    accounts = {
        "/etc/passwd": f"agent:x:{uid}:{gid}:agent:/tmp:/bin/sh\n",
        "/etc/group": f"agent:x:{gid}:\n",
    }
    for path, line in accounts.items():
        words += ["--perms", "0444", "--ro-bind-data", str(fds.holding(line.encode())), path]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    words += ["--size", str(spec.limits.tmp), "--tmpfs", "/tmp"]  # noqa: S108  # the agent's own
    for mount in spec.mounts:
        words += ["--bind" if mount.writable else "--ro-bind", str(mount.source), mount.target]
    words += ["--ro-bind", str(spec.socket_dir), SOCKET_DIR, "--remount-ro", "/", "--clearenv"]
    for name, value in {**ENV, **spec.env}.items():
        words += ["--setenv", name, value]
    return words


def _limits(spec: ContainerSpec, group: Group | None) -> dict[str, int]:
    """For each process inside; not around bubblewrap, where those of the same uid outside would count too.

    Where there is a control group that is all but for open files: processes are counted twice, as it costs nothing.
    Else a file in memory (memfd_create) is no process's memory until it is mapped: a limit of its own keeps it as
    small. It holds for the files in /tmp, too, which must be able to fill it, and for those in /data.
    """
    limits = spec.limits
    each = {"nofile": limits.files, "nproc": limits.pids}
    if group is None:
        each |= {"as": limits.memory, "fsize": max(limits.memory, limits.tmp)}
    return each


def _host_path(spec: ContainerSpec, path: Path) -> Path | None:
    """Where something inside lies on the host; None if it does not."""
    targets = {Path(mount.target): mount.source for mount in spec.mounts}
    for folder in (path, *path.parents):
        if folder in targets:
            return targets[folder] / path.relative_to(folder)
    return path if path.parts[1:2] and path.parts[1] in ("usr", *_SYSTEM_FOLDERS) else None


@asynccontextmanager
async def _standing(
    spec: ContainerSpec,
    user: tuple[int, int] | None,
    child: Child,
    output: Output,
    gate: Gate,
    info: int,
    group: Group | None,
) -> AsyncIterator[_Sandboxed]:
    """Wait until the sandbox stands; leaving ends all that is in it."""
    stands = False
    with trio.move_on_after(SETUP_DEADLINE):
        stands = await gate.reached()
    try:
        if not stands:
            raise ProcessLookupError
        said = _Info.read(info)
        first = os.pidfd_open(said.child_pid)
    except (OSError, msgspec.MsgspecError):
        raise await _refused(spec, child, output) from None
    uid = os.geteuid() if user is None else user[0]
    running = _Sandboxed(spec, uid, child, gate, said, first, group)
    try:
        if group is not None:
            confine(spec, group, said.child_pid, *children_of(said.child_pid))
        if why := await _limited(said.child_pid, spec, user, group):
            raise await _refused(spec, child, output, f"its first process cannot be limited: {why}")
        yield running
    finally:
        with trio.move_on_after(KILL_DEADLINE, shield=True):
            running.kill()
            await ended(first)  # the first process ends last: the kernel ends all others in its namespace before
            await child.wait()
        os.close(first)


async def _limited(first: int, spec: ContainerSpec, user: tuple[int, int] | None, group: Group | None) -> str:
    """Put the first process under the agent's limits, too, as its uid: "", or why that did not work."""
    async with captured(None) as output:
        command = resource_limits(_limits(spec, group), pid=first)
        async with spawned(command, env={}, user=user, output=output.fd) as child:
            output.handed_over()
            return "" if await child.wait() == 0 else await output.last_line() or "prlimit failed"


async def _refused(spec: ContainerSpec, child: Child, output: Output, reason: str = "") -> ArmorclawError:
    child.send_signal_to_group(signal.SIGKILL)
    await child.wait()
    reason = reason or (await output.last_line()).removeprefix("bwrap: ")
    hint = f"uid {spec.uid} must be able to read it, and to pass every folder above" if "denied" in reason else ""
    return ArmorclawError(
        "engine_refused",
        f"the sandbox of agent {spec.name!r} could not be made",
        why=reason or f"bubblewrap took more than {SETUP_DEADLINE:.0f} s",
        hint=hint,
    )


class _Info(msgspec.Struct, rename="kebab"):
    """What bubblewrap tells about a sandbox by --info-fd: pids and namespaces as the bridge sees them."""

    child_pid: int
    pid_namespace: int

    @classmethod
    def read(cls, fd: int) -> _Info:
        return msgspec.json.decode(os.read(fd, 4096), type=cls)


class _Sandboxed(LocalContainer):
    """One sandbox. `first` is the pidfd of its first process, bubblewrap's own, that holds its namespaces."""

    def __init__(
        self,
        spec: ContainerSpec,
        uid: int,
        child: Child,
        gate: Gate,
        info: _Info,
        first: int,
        group: Group | None,
    ) -> None:
        super().__init__("sandbox", spec, uid, child, gate, group)
        self._info = info
        self._first = first

    @property
    def _first_pid(self) -> int:
        return self._info.child_pid

    def _require_program(self) -> None:
        require_command(self._spec, self._spec.command[0], lambda path: _host_path(self._spec, path))

    def owns(self, peer: Peer) -> bool:
        if not self._may_own(peer):
            return False
        # A process that made itself undumpable shows its namespaces to root only; its parents it shows to all.
        namespace = pid_namespace(peer.pid)
        if namespace is None:
            return descends_from(peer.pid, self._info.child_pid)
        return namespace == self._info.pid_namespace

    async def stop(self, grace: float) -> None:
        # bubblewrap would take the agent along at once if it got the SIGTERM: the agent's own process gets it.
        if self._started and self._child.returncode is None:
            for pid in children_of(self._info.child_pid)[:1]:
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    pass
            with trio.move_on_after(grace):
                await self._child.wait()
        self.kill()
        await self._child.wait()

    def kill(self) -> None:
        """End every process inside, whatever session it is in."""
        try:
            signal.pidfd_send_signal(self._first, signal.SIGKILL)
        except ProcessLookupError:
            pass


async def _version() -> str:
    async with captured(None) as output:
        async with spawned([find_program("bwrap", "bubblewrap"), "--version"], env={}, output=output.fd):
            output.handed_over()
            return await output.last_line()


def _what_to_change() -> str:
    """Which of the settings that hosts forbid user namespaces by is set here; "" if none of them."""
    settings = {
        "kernel.apparmor_restrict_unprivileged_userns": "1",
        "kernel.unprivileged_userns_clone": "0",
        "user.max_user_namespaces": "0",
    }
    for name, forbidding in settings.items():
        try:
            value = Path("/proc/sys", *name.split(".")).read_text().strip()
        except OSError:
            continue
        if value == forbidding:
            return f"user namespaces are forbidden by {name}={value}: change it with sysctl, or use Docker or Podman"
    return "bubblewrap 0.8 or newer with user namespaces is needed; Docker or Podman would do as well"
