"""One container of an engine, from its creation to its removal."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import trio

from armorclaw.containers.engines.events import Marks
from armorclaw.containers.engines.http import Engine, EngineFault, faults, refused
from armorclaw.containers.peers import pid_namespace
from armorclaw.containers.resources.usage import Usage, usage_told
from armorclaw.containers.runtime import Peer
from armorclaw.containers.spec import Exit
from armorclaw.errors import ArmorclawError

_ID_IN_CGROUP = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?=[./]|$)")


class EngineContainer:
    """One container; implements `runtime.Running`."""

    def __init__(
        self,
        engine: Engine,
        marks: Marks,
        container: str,
        name: str,
        uid: int,
        ended: Callable[[], Awaitable[int]],
        *,
        adopted: bool = False,
    ) -> None:
        self.id = container
        self._engine = engine
        self._marks = marks
        self._name = name
        self._uid = uid
        self._adopted = adopted
        self._ended: Callable[[], Awaitable[int]] | None = ended
        self._turn = trio.Lock()  # one reads the engine's answer, the others get what it read
        self._exit: Exit | None = None
        self._pid: int | None = None
        self._namespace: int | None = None  # of its processes; once that is known

    def __repr__(self) -> str:
        return f"<EngineContainer {self._name} {self.id[:12]}>"

    async def start(self) -> None:
        """See `Running.start`."""
        if self._adopted:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._engine.start(self.id)
        except EngineFault as fault:
            hint = "check the agent's command, image and mounts"
            raise ArmorclawError(
                "start_failed", f"the agent {self._name} does not start", why=fault.message, hint=hint
            ) from fault
        if self._engine.version.kind == "podman":
            await self.main_pid()  # `owns` may need it, and cannot ask

    async def wait(self) -> Exit:
        """See `Running.wait`."""
        async with self._turn:
            if self._exit is None:
                self._exit = Exit.of(await self._status(), oom=await self._oom())
            return self._exit

    async def _status(self) -> int:
        if self._ended is not None:
            # The stream opened before the start can be read once; whoever is cancelled in it has used it up.
            ended, self._ended = self._ended, None
            return await ended()
        with faults(f"the engine cannot wait for {self._name}"):
            async with self._engine.waiting(self.id, "not-running") as ended:
                return await ended()

    async def _oom(self) -> bool | None:
        try:
            killed = (await self._engine.inspect(self.id))["State"].get("OOMKilled")
        except EngineFault:  # removed by someone else
            return None
        if self.id in self._marks.oom:
            return True
        # Podman keeps False through real cases (seen with runc on cgroup v1), so its False says nothing.
        return True if killed else (False if self._engine.version.kind == "docker" else None)

    async def main_pid(self) -> int | None:
        """See `Running.main_pid`."""
        if self._pid is None:
            try:
                self._pid = int((await self._engine.inspect(self.id))["State"].get("Pid") or 0) or None
            except EngineFault:  # removed by someone else
                return None
            namespace = None if self._pid is None else pid_namespace(self._pid)
            self._namespace = None if namespace == pid_namespace(os.getpid()) else namespace
        return self._pid

    def owns(self, peer: Peer) -> bool:
        """See `Running.owns`: by the container's id in the process's cgroup, and its uid as seen from the host."""
        process = Path("/proc") / str(peer.pid)
        try:
            innermost = {ids[-1] for line in (process / "cgroup").read_text().splitlines() if (ids := _ids(line))}
            uids = _outer_uids((process / "uid_map").read_text(), self._uid)
        except OSError:  # it has ended, or is hidden from us
            return False
        if not innermost and self._engine.version.kind == "podman":
            # Without root and with cgroup v1 it has no control group of its own; its processes have a namespace.
            innermost = {self.id} if self._shares_namespace(peer.pid) else set()
        return innermost == {self.id} and peer.uid in uids

    def _shares_namespace(self, pid: int) -> bool:
        return self._namespace is not None and self._namespace == pid_namespace(pid)

    async def stop(self, grace: float) -> None:
        """See `Running.stop`; engines count whole seconds, so `grace` is rounded up."""
        self._marks.ending.add(self.id)
        try:
            await self._engine.stop(self.id, math.ceil(grace))
        except EngineFault as fault:
            if await self._runs():
                raise refused(f"the engine cannot stop {self._name}", fault) from fault

    def release(self) -> None:
        """See `Running.release`."""
        self._marks.staying.add(self.id)

    async def usage(self) -> Usage:
        """See `Running.usage`."""
        try:
            return usage_told(await self._engine.stats(self.id))
        except EngineFault:  # it ended or was removed meanwhile
            return Usage()

    async def inspect(self) -> dict[str, Any]:
        """See `isolation.Inspected`."""
        try:
            return await self._engine.inspect(self.id)
        except EngineFault as fault:
            what = f"the container {self.id[:12]} of {self._name} is gone"
            raise ArmorclawError("container_not_found", what, why=fault.message) from fault

    async def _runs(self) -> bool:
        try:
            return bool((await self._engine.inspect(self.id))["State"]["Running"])
        except EngineFault:
            return False


def _ids(line: str) -> list[str]:
    return _ID_IN_CGROUP.findall(line.rpartition(":")[2])


def _outer_uids(uid_map: str, uid: int) -> set[int]:
    """What `uid` inside is outside (Docker's userns-remap, rootless engines), from /proc/PID/uid_map."""
    found = set()
    for line in uid_map.splitlines():
        inside, outside, count = (int(number) for number in line.split())
        if inside <= uid < inside + count:
            found.add(outside + uid - inside)
    return found
