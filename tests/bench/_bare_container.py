"""An agent's container kept by hand, with the engine's API alone: what the restarts of the bridge are compared with.

Nothing is watched, recorded or limited to what is allowed; the container itself is the same one.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import trio

from armorclaw.containers.engines.config import container_config
from armorclaw.containers.engines.http import Engine
from armorclaw.containers.spec import ContainerSpec
from armorclaw.errors import ERRORS

_SECRETS_TAKEN = {"code": ERRORS["secrets_taken"].code, "message": "taken"}
"""It goes on without: no memory file to be made."""


@attrs.frozen
class Death:
    """Seconds from the kill to the end of the session, to the engine's verdict, to the `agent.ready` of the next."""

    gone: float
    verdict: float
    ready: float


class BareContainer:
    """One at a time; `die` has the next one made."""

    def __init__(self, engine: Engine, spec: ContainerSpec, folder: Path) -> None:
        self._engine = engine
        self._spec = attrs.evolve(spec, socket_dir=folder)
        self._config = container_config(self._spec, engine.version.kind)
        self._ready = trio.Event()
        self._kill = trio.Event()
        self._killed_at = self._gone_at = self._verdict_at = self._ready_at = 0.0

    @classmethod
    @asynccontextmanager
    async def running(cls, engine: Engine, spec: ContainerSpec, folder: Path) -> AsyncIterator[BareContainer]:
        """The agent of `spec`, ready; `folder` is where its socket is made, open to its uid."""
        path = folder / f"{spec.name}.sock"
        listener = trio.socket.socket(trio.socket.AF_UNIX)
        await listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(8)
        bare = cls(engine, spec, folder)
        with listener:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.serve_listeners, bare._serve, [trio.SocketListener(listener)])
                nursery.start_soon(bare._keep)
                with trio.fail_after(30):
                    await bare._ready.wait()
                yield bare
                nursery.cancel_scope.cancel(reason="measured")

    async def die(self) -> Death:
        """Kill it, and wait for the next one."""
        self._ready = trio.Event()
        self._kill.set()
        with trio.fail_after(30):
            await self._ready.wait()
        times = self._gone_at, self._verdict_at, self._ready_at
        return Death(*(each - self._killed_at for each in times))

    async def _keep(self) -> None:
        engine = self._engine
        while True:
            container, _ = await engine.create("bare-agent", self._config)
            try:
                async with engine.waiting(container, "next-exit") as ended:
                    await engine.start(container)
                    pid = (await engine.inspect(container))["State"]["Pid"]
                    await self._kill.wait()
                    self._kill = trio.Event()
                    self._killed_at = time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    await ended()
                    self._verdict_at = time.monotonic()
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
                    await engine.remove(container)

    async def _serve(self, stream: trio.SocketStream) -> None:
        received = b""
        try:
            async for chunk in stream:
                *lines, received = (received + chunk).split(b"\n")
                for line in lines:
                    await stream.send_all(json.dumps(self._answer(json.loads(line))).encode() + b"\n")
        except trio.BrokenResourceError:
            pass  # it was killed
        self._gone_at = time.monotonic()

    def _answer(self, request: dict[str, object]) -> dict[str, object]:
        reply = {"jsonrpc": "2.0", "id": request["id"]}
        if request["method"] == "secrets.take":
            return reply | {"error": _SECRETS_TAKEN}
        if request["method"] == "agent.ready":
            self._ready_at = time.monotonic()
            self._ready.set()
        return reply | {"result": {"subscription": "main"}}
