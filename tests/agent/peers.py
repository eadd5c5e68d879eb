"""A bridge of the real parts, a registry behind a listener for agents, on Trio in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from armorclaw.rpc.unix import bind_unix, serve_unix

T = TypeVar("T")
AGENT = [Role.AGENT]
PATIENCE = 30.0  # seconds a test waits for what must happen


@attrs.frozen
class Via:
    via: str


@attrs.frozen
class Count:
    to: int
    fail: bool = False


class RealBridge:
    """Serves while its block lasts; `do` runs a function on its loop, from the thread of the test."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.sent = 0  # pieces of `count` that were let go
        self.received: list[bytes] = []
        self.cancelled: list[str] = []
        self.session: Peer | None = None
        self.registry = Registry()
        self._token: trio.lowlevel.TrioToken | None = None
        self._changed = threading.Condition()
        self._scope = trio.CancelScope()
        self._register()

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=trio.run, args=(self._serve,), daemon=True)
        thread.start()
        self.wait(lambda: self._token, "a bridge")
        try:
            yield
        finally:
            self.do(self._stop)
            thread.join(PATIENCE)
            assert not thread.is_alive()
            self._token = None

    def do(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        return trio.from_thread.run(self._timely, function, *arguments, trio_token=self._token)

    def wait(self, true: Callable[[], object], what: str) -> None:
        with self._changed:
            assert self._changed.wait_for(true, PATIENCE), f"waited in vain for {what}"

    def ask(self, method: str, params: Any = None) -> Any:
        """`agent.call`, and what the agent answers."""
        self.wait(lambda: self.session, "the agent")

        async def ask() -> Any:
            assert self.session is not None
            async with self.session.stream("agent.call", {"method": method, "params": params}) as stream:
                return await stream.result()

        return self.do(ask)

    def lose(self) -> None:
        """End the connection of the agent."""

        async def lose() -> None:
            assert self.session is not None
            peer, self.session = self.session, None
            peer.close("lost")
            await peer.closed.wait()

        self.do(lose)

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    async def _timely(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        with trio.fail_after(PATIENCE):
            return await function(*arguments)

    async def _stop(self) -> None:
        self._scope.cancel()

    async def _serve(self) -> None:
        self._scope = trio.CancelScope()
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._listen)
                self._token = trio.lowlevel.current_trio_token()
                self.changed()

    async def _listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        listener = bind_unix(self.path)
        await serve_unix(
            listener,
            self.registry,
            role=Role.AGENT,
            agent="tester",
            around=Surroundings(),
            path=self.path,
            task_status=task_status,
        )

    def _register(self) -> None:
        method = self.registry.method

        @method("secrets.take", params=Via, result=dict, roles=AGENT)
        def take(call: Call, params: Via) -> dict[str, Any]:
            if params.via == "fd":
                raise ArmorclawError("invalid_params", "inline, please")
            return {"secrets": '{"keys":{}}'}

        @method("agent.ready", roles=AGENT, open=True)
        def ready(call: Call, params: NoParams) -> None:
            pass

        @method("events.subscribe", result=dict, roles=AGENT, open=True)
        def subscribe(call: Call, params: NoParams) -> dict[str, Any]:
            self.session = call.peer
            self.changed()
            return {"subscription": "main"}

        @method("events.ack", roles=AGENT, open=True)
        def ack(call: Call, params: NoParams) -> None:
            pass

        @method("count", params=Count, result=dict, chunk=int, roles=AGENT)
        async def count(call: Call, params: Count) -> dict[str, Any]:
            async with self._noting("count"):
                for number in range(params.to):
                    call.progress(number, params.to, "counting")
                    await call.send(number)
                    self.sent += 1
                    self.changed()
                if params.fail:
                    raise ArmorclawError("conflict", "it went wrong")
                return {"counted": params.to}

        @method("store", result=dict, upload=bytes, roles=AGENT)
        async def store(call: Call, params: NoParams) -> dict[str, Any]:
            async with self._noting("store"):
                async for piece in call.uploads():
                    self.received.append(piece)
                    self.changed()
                    if piece == b"wait":
                        await trio.sleep_forever()
                    if piece == b"bad":
                        raise ArmorclawError("conflict", "not that one")
                return {"pieces": len(self.received)}

        @method("wait", roles=AGENT)
        async def wait(call: Call, params: NoParams) -> None:
            async with self._noting("wait"):
                self.received.append(b"wait")
                self.changed()
                await trio.sleep_forever()

    @asynccontextmanager
    async def _noting(self, name: str) -> AsyncIterator[None]:
        try:
            yield
        except trio.Cancelled:
            self.cancelled.append(name)
            self.changed()
            raise


async def until(true: Callable[[], object]) -> None:
    """For what happens in the agent, on another thread."""
    while not true():  # noqa: ASYNC110
        await trio.sleep(0.005)
