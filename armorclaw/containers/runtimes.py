"""The runtimes of this host, each opened when the first agent needs it and kept for all."""

from __future__ import annotations

from pathlib import Path

import trio

from armorclaw import config
from armorclaw.clock import Clock
from armorclaw.containers.engines.detect import candidates
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.local.process import ProcessRuntime
from armorclaw.containers.local.sandbox import SandboxRuntime
from armorclaw.containers.runtime import Runtime
from armorclaw.errors import ArmorclawError


class Runtimes:
    """Hands out runtimes by name while `run` runs.

    `engine_socket` names the one engine to use; without it the usual places are tried, Docker's first. There is one
    runtime per engine, whatever names lead to it.
    """

    def __init__(self, engine_socket: Path | None, logs: Path, clock: Clock | None = None) -> None:
        self._engine_socket = engine_socket
        self._logs = logs
        self._clock = clock
        self._open: dict[str, Runtime] = {}  # by socket path, or "sandbox", "process"
        self._engines: dict[str, str] = {}  # "docker", "podman", "engine" → socket path
        self._opening = trio.Lock()
        self._closed = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what is opened open until `close`, also while cancelled: containers are removed through it last.

        Whoever runs this calls `close` however it ends itself; a cancelled `run` waits for that.
        """
        self._closed = trio.Event()
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    task_status.started()
                    await self._closed.wait()
                finally:
                    self._nursery = None  # what is open is still used to remove containers; nothing more is opened
        finally:
            self._open.clear()

    def close(self) -> None:
        """Let `run` end; when no agent is left."""
        self._closed.set()

    async def choose(self, declared: config.Agent) -> Runtime:
        """The runtime an agent asks for: by name, or by whether it has an image.

        Raises engine_unreachable or runtime_missing, with what would help. It never falls back to a weaker one.
        """
        if declared.runtime == "auto":
            return await self.get("sandbox" if declared.image is None else "engine")
        return await self.get(declared.runtime)

    async def get(self, kind: str) -> Runtime:
        """ "docker", "podman", "sandbox", "process", or "engine" for whichever of the first two there is."""
        if kind in ("sandbox", "process"):  # nothing to open: no engine that hangs holds these up
            if kind not in self._open:
                make = SandboxRuntime if kind == "sandbox" else ProcessRuntime
                self._open[kind] = make(self._logs, self._clock)
            await trio.lowlevel.checkpoint()
            return self._open[kind]
        async with self._opening:
            key = await self._engine(kind)
            if key not in self._open:
                if self._nursery is None:
                    raise ArmorclawError("unavailable", "the containers are restarting")
                self._open[key] = await self._nursery.start(self._hold, key)
            return self._open[key]

    @property
    def engine_kinds(self) -> tuple[str, ...]:
        """What `get` takes for each engine that there may be."""
        return ("engine",) if self._engine_socket is not None else ("docker", "podman")

    def may_be_for(self, declared: config.Agent, runtime: Runtime) -> bool:
        """Whether this engine, which is open, is what `choose` chooses, as far as that is known by now."""
        kind = declared.runtime
        if kind in ("sandbox", "process", "attached") or declared.image is None:
            return False
        if self._engine_socket is not None:
            return True
        chosen = self._engines.get("engine" if kind == "auto" else kind)
        return chosen is None or self._open.get(chosen) in (None, runtime)

    async def every_engine(self) -> list[Runtime]:
        """The engines that answer now."""
        found: list[Runtime] = []
        for kind in self.engine_kinds:
            try:
                found.append(await self.get(kind))
            except ArmorclawError as error:
                if error.name != "engine_unreachable":
                    raise
        return found

    async def _hold(self, socket_path: str, *, task_status: trio.TaskStatus[Runtime]) -> None:
        async with EngineRuntime.open(socket_path) as runtime:
            task_status.started(runtime)
            await trio.lowlevel.checkpoint_if_cancelled()  # who wanted it has gone: it was not taken over
            with trio.CancelScope(shield=True):  # until `close`, which comes when no agent is left
                await self._closed.wait()

    async def _engine(self, kind: str) -> str:
        """The socket of the engine that `kind` means. Raises engine_unreachable, saying why not for each place."""
        if self._engine_socket is not None:
            return str(self._engine_socket)
        if kind not in self._engines:
            wanted = [one for one in await candidates() if kind in ("engine", one.kind)]
            usable = [one for one in wanted if one.usable]
            if not usable:
                reasons = "; ".join(f"{one.socket_path}: {one.text}" for one in wanted) or "none was found"
                hint = next((one.hint for one in wanted if one.hint), "")
                name = {"docker": "Docker", "podman": "Podman"}.get(kind, "container engine")
                raise ArmorclawError("engine_unreachable", f"no {name} to run agents in", why=reasons, hint=hint)
            self._engines[kind] = usable[0].socket_path
        return self._engines[kind]
