"""Child processes that live and die with the bridge.

`trio.run_process` and `trio.lowlevel.open_process` fork in a worker thread. The death signal that `bwrap
--die-with-parent` and `setpriv --pdeathsig` ask the kernel for fires when the *thread* that forked ends, and Trio
ends a worker thread after 10 idle seconds: such a child would be killed for no visible reason. So this forks on the
thread that runs Trio, which costs it one or two milliseconds, and waits by pidfd.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from typing import Any

import trio

from armorclaw.errors import ArmorclawError

KILL_DEADLINE = 8.0
"""Seconds that leaving `spawned` waits for a killed child; only one stuck in the kernel needs longer."""


class Gate:
    """Holds a command back until the bridge is ready for it: prefix it with `WORDS`.

    A shell that has got as far as it can (namespaces, limits and filters are in place) says so on its standard input,
    a socket, and waits there for a line; then it becomes the command, with /dev/null as input. If the bridge dies
    before, it ends.
    """

    WORDS = ("/bin/sh", "-c", 'echo >&0 && read -r _ && exec "$@" </dev/null', "gate")

    def __init__(self) -> None:
        self._ours, self._theirs = socket.socketpair()
        self._ours.setblocking(False)

    async def reached(self) -> bool:
        """Wait until the shell is there; False if it never will be, as its end of the socket is closed."""
        await trio.lowlevel.wait_readable(self._ours)
        try:
            return self._ours.recv(16) != b""
        except ConnectionResetError:
            return False

    def open(self) -> None:
        """Let the command run. Raises BrokenPipeError if the shell has gone."""
        self._ours.send(b"\n")

    def close(self) -> None:
        self._ours.close()
        self._theirs.close()

    def _handed_over(self) -> None:
        self._theirs.close()


class Child:
    """One child process, leader of its own session and group; made by `spawned`. When it ends, so does its group.

    `returncode` is None while it runs, then its status as `subprocess` tells it: negative for death by signal.
    """

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        return self._popen.pid

    @property
    def returncode(self) -> int | None:
        return self._popen.returncode

    async def wait(self) -> int:
        """Until it has ended; any number of tasks may. Returns its `returncode`."""
        if self._popen.returncode is None:
            await ended(self._pidfd)
            self.send_signal_to_group(signal.SIGKILL)  # now or never: once collected, its number may be another's
        else:
            await trio.lowlevel.checkpoint()
        return self._popen.wait()  # it has ended: this collects the status, without waiting

    def send_signal(self, number: int) -> None:
        """Signal this process alone; nothing happens if it has ended."""
        if self._popen.returncode is None:
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                pass  # ended, not yet collected

    def send_signal_to_group(self, number: int) -> None:
        """Signal its process group, which who called setsid(2) has left; nothing happens once it is collected."""
        if self._popen.returncode is None:
            try:
                os.killpg(self._popen.pid, number)
            except ProcessLookupError:
                pass

    def close(self) -> None:
        os.close(self._pidfd)


async def ended(pidfd: int) -> None:
    """Until the process of `pidfd` has ended; any number of tasks may wait for one."""
    fd = os.dup(pidfd)  # Trio lets one task wait for a descriptor
    try:
        await trio.lowlevel.wait_readable(fd)
    finally:
        os.close(fd)


@asynccontextmanager
async def spawned(
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    user: tuple[int, int] | None = None,
    gate: Gate | None = None,
    output: int | None = None,
    pass_fds: Sequence[int] = (),
) -> AsyncIterator[Child]:
    """Run `command` in "/"; leaving the block kills its process group and collects it, also under cancellation.

    The child gets exactly `env`, the descriptors `pass_fds`, the gate or /dev/null as input and `output` (None:
    /dev/null) as output and errors; `user` is the uid and gid to take on, without supplementary groups, which only
    root can give. Raises `start_failed` if the command cannot be executed.
    """
    child = _spawn(command, env, user, gate, output, pass_fds)
    with closing(child):
        try:
            yield child
        finally:
            with trio.move_on_after(KILL_DEADLINE, shield=True):
                child.send_signal_to_group(signal.SIGKILL)
                await child.wait()


def _spawn(
    command: Sequence[str],
    env: Mapping[str, str],
    user: tuple[int, int] | None,
    gate: Gate | None,
    output: int | None,
    pass_fds: Sequence[int],
) -> Child:
    identity: dict[str, Any] = {}
    if user is not None:
        identity = {"user": user[0], "group": user[1], "extra_groups": []}
    printed = subprocess.DEVNULL if output is None else output
    try:
        popen: subprocess.Popen[bytes] = subprocess.Popen(
            command,
            env=dict(env),
            cwd="/",
            stdin=subprocess.DEVNULL if gate is None else gate._theirs.fileno(),
            stdout=printed,
            stderr=printed,
            pass_fds=pass_fds,
            start_new_session=True,
            **identity,
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise ArmorclawError("start_failed", f"{command[0]} could not be started", why=why or "") from error
    if gate is not None:
        gate._handed_over()
    return Child(popen)
