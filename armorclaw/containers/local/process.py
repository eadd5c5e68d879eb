"""Agents as plain processes: unsafe, for development only, and never chosen unless asked for by name.

What holds: an agent that crashes hurts nobody, its resource limits, and the end of its main process with the bridge.
Nothing else: it sees the host's files, network and processes.

Where the bridge may make control groups (group.py) the limits are those of the whole agent, and all it ever started
ends with it; when the bridge itself is killed, the kernel ends the main process alone, and the next bridge the rest.
Elsewhere memory is limited per process, the number of processes only if the agent has a uid of its own, and what it
started may outlive it: the bridge ends its process group, which a child leaves by setsid(2) or setpgid(2).

Run by root, it gets the spec's uid; run by anyone else, it is that user.

Nothing can be mounted here. So that one command and environment do for every runtime, each mount's target is
replaced by its source wherever it begins a path in a word of the command or a value of the environment: at the start,
or after one of ``: = ,`` a quote or a space. PYTHONPATH=/opt/armorclaw thus becomes the library's place on the host,
and ARMORCLAW_SOCKET that of the agent's socket.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

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
from armorclaw.containers.local.output import captured
from armorclaw.containers.local.spawn import Child, Gate, spawned
from armorclaw.containers.peers import descends_from, session
from armorclaw.containers.runtime import Peer, Running
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec
from armorclaw.errors import ArmorclawError

START_DEADLINE = 10.0
"""Seconds for the helper programs to take on uid and limits; it takes some 5 ms."""


class ProcessRuntime(LocalRuntime):
    """The unsafe Runtime."""

    kind = "process"

    async def check(self) -> str:
        """Raises `runtime_missing` where setpriv and prlimit are not there or too old."""
        command = [*_end_with_us(), *resource_limits({}), "/bin/true"]
        async with captured(None) as output, spawned(command, env={}, output=output.fd) as child:
            output.handed_over()
            if await child.wait() != 0:
                raise ArmorclawError(
                    "runtime_missing", "plain processes do not work here", why=await output.last_line()
                )
        groups = self._groups_here()
        limited = (
            f"limited per process only, as {groups}, and what it starts may outlive it"
            if isinstance(groups, NoGroups)
            else f"limited in total (control groups, version {groups.version})"
        )
        return f"process: UNSAFE, sees the files, network and processes of this host; {limited}"

    @asynccontextmanager
    async def launch(self, spec: ContainerSpec) -> AsyncIterator[Running]:
        """As the protocol says. Raises `config_invalid`, `runtime_missing`, `start_failed`."""
        require_plain_words(spec)
        spec_words, env = on_host(spec)
        user = (spec.uid, spec.gid) if os.geteuid() == 0 else None
        async with self._group(spec) as group, captured(self._log_of(spec.name)) as output:
            limits = {"nofile": spec.limits.files}
            if group is None:
                limits["as"] = spec.limits.memory
            if user is not None:  # else all that this user runs would count
                limits["nproc"] = spec.limits.pids
            command = [*_end_with_us(), *resource_limits(limits), *Gate.WORDS, *spec_words]
            with closing(Gate()) as gate:
                async with spawned(command, env=env, user=user, gate=gate, output=output.fd) as child:
                    output.handed_over()
                    reached = False
                    with trio.move_on_after(START_DEADLINE):
                        reached = await gate.reached()
                    if reached and group is not None:
                        confine(spec, group, child.pid)
                    if not reached:
                        child.send_signal_to_group(signal.SIGKILL)
                        raise ArmorclawError(
                            "start_failed",
                            f"agent {spec.name!r} cannot be started",
                            why=await output.last_line(),
                        )
                    yield _Plain(spec, child, gate, group)


def on_host(spec: ContainerSpec) -> tuple[list[str], dict[str, str]]:
    """The spec's command and environment with the targets of its mounts replaced by their sources."""
    places = {mount.target.rstrip("/"): str(mount.source) for mount in spec.mounts}
    places[SOCKET_DIR] = str(spec.socket_dir)
    targets = "|".join(re.escape(target) for target in sorted(places, key=len, reverse=True))
    beginning = re.compile(rf"(?:^|(?<=[\s:=,'\"]))({targets})(?=$|[/\s:,'\"])")

    def moved(text: str) -> str:
        return beginning.sub(lambda match: places[match[1]], text)

    env = {name: moved(value) for name, value in {**ENV, **spec.env}.items()}
    return [moved(word) for word in spec.command], env


def _end_with_us() -> list[str]:
    return [find_program("setpriv", "util-linux"), "--pdeathsig", "KILL", "--no-new-privs", "--"]


class _Plain(LocalContainer):
    """One process, with those it started; `id` tells this generation from others."""

    _tells_signals = True  # whatever was put in front of its command has become it

    def __init__(self, spec: ContainerSpec, child: Child, gate: Gate, group: Group | None) -> None:
        super().__init__("process", spec, spec.uid if os.geteuid() == 0 else os.geteuid(), child, gate, group)

    @property
    def _first_pid(self) -> int:
        return self._child.pid

    def _require_program(self) -> None:
        command, _ = on_host(self._spec)
        require_command(self._spec, command[0], lambda path: path)

    def owns(self, peer: Peer) -> bool:
        if not self._may_own(peer):
            return False
        return session(peer.pid) == self._child.pid or descends_from(peer.pid, self._child.pid)

    async def stop(self, grace: float) -> None:
        if self._started:
            self._child.send_signal(signal.SIGTERM)
            with trio.move_on_after(grace):
                await self._child.wait()
        self._child.send_signal_to_group(signal.SIGKILL)
        await self._child.wait()
