"""The runtimes of this host, each opened when the first agent needs it and kept for all."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path

import trio

from armorclaw import config
from armorclaw.containers.detect import candidates
from armorclaw.containers.engine import EngineRuntime
from armorclaw.containers.process import ProcessRuntime
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.sandbox import SandboxRuntime
from armorclaw.errors import ArmorclawError


class Runtimes:
    """Hands out runtimes by name while `run` runs.

    `engine_socket` names the one engine to use; without it the usual places are tried, Docker's first.
    """

    def __init__(self, engine_socket: Path | None, logs: Path) -> None:
        self._engine_socket = engine_socket
        self._logs = logs
        self._open: dict[str, Runtime] = {}
        self._opening = trio.Lock()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what is opened open, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None
                self._open.clear()

    async def choose(self, declared: config.Agent) -> Runtime:
        """The runtime an agent asks for: by name, or by whether it has an image.

        Raises engine_unreachable or runtime_missing, with what would help. It never falls back to a weaker one.
        """
        if declared.runtime in ("sandbox", "process"):
            return await self.get(declared.runtime)
        if declared.runtime == "auto" and declared.image is None:
            return await self.get("sandbox")
        return await self.get("engine" if declared.runtime == "auto" else declared.runtime)

    async def get(self, kind: str) -> Runtime:
        """ "docker", "podman", "sandbox", "process", or "engine" for whichever of the first two there is."""
        async with self._opening:
            if kind not in self._open:
                if self._nursery is None:
                    raise ArmorclawError("unavailable", "the containers are restarting")
                self._open[kind] = await self._nursery.start(self._hold, await self._opener(kind))
            return self._open[kind]

    async def every_engine(self) -> list[Runtime]:
        """The engines that answer now, for finding what an earlier life of the bridge left in them."""
        engines = {}
        for kind in ("docker", "podman"):
            try:
                engines[kind] = await self.get(kind)
            except ArmorclawError as error:
                if error.name not in ("engine_unreachable", "runtime_missing"):
                    raise
        return list(engines.values())

    async def _hold(
        self,
        opener: Callable[[], AbstractAsyncContextManager[Runtime]],
        *,
        task_status: trio.TaskStatus[Runtime],
    ) -> None:
        async with opener() as runtime:
            task_status.started(runtime)
            await trio.sleep_forever()

    async def _opener(self, kind: str) -> Callable[[], AbstractAsyncContextManager[Runtime]]:
        if kind == "sandbox":
            return lambda: nullcontext[Runtime](SandboxRuntime(self._logs))
        if kind == "process":
            return lambda: nullcontext[Runtime](ProcessRuntime(self._logs))
        path = self._engine_socket if self._engine_socket is not None else await self._find(kind)
        return lambda: EngineRuntime.open(path)

    async def _find(self, kind: str) -> str:
        found = await candidates()
        wanted = [one for one in found if kind in ("engine", one.kind)]
        for one in wanted:
            if one.usable:
                return one.socket_path
        reasons = "; ".join(f"{one.socket_path}: {one.text}" for one in wanted) or "none was found"
        hint = next((one.hint for one in wanted if one.hint), "")
        name = {"docker": "Docker", "podman": "Podman"}.get(kind, "container engine")
        raise ArmorclawError("engine_unreachable", f"no {name} to run agents in", why=reasons, hint=hint)
