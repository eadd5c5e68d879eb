"""A bridge as far as a client can tell: a registry behind a real socket, which can go away and come back."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.client import Client, connect
from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from armorclaw.rpc.unix import bind_unix, serve_unix


@attrs.frozen
class Subscribe:
    name: str | None = None
    filter: dict[str, Any] = attrs.field(factory=dict)
    from_: str | int = "now"


@attrs.frozen
class Ack:
    subscription: str
    seq: int


@attrs.frozen
class Unsubscribe:
    subscription: str


class Bridge:
    """What a bridge says and hears. `journal` is what happened: a subscription is pushed what is behind its start."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        self.path = path
        self.registry = Registry()
        self.peer: Peer | None = None
        self.connections = 0
        self.asked: list[Subscribe] = []
        self.acked: list[int] = []
        self.settled: set[int] = set()
        self.journal: list[int] = []
        self.added: list[int] = []
        self.refuse: dict[str, list[ArmorclawError]] = {}  # what to answer first
        self.mute: set[str] = set()  # methods that are never answered
        self.deaf: trio.Event | None = None  # until then it subscribes in spite of being asked to stop
        self.at_once = 0  # events pushed before the subscription is answered
        self.cancelled: list[str] = []
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._stopped = trio.Event()
        self._changed = trio.Event()
        self.unsubscribed = trio.Event()
        self.left: list[str] = []
        method = self.registry.method
        method("events.subscribe", params=Subscribe, result=dict, roles=[Role.OPERATOR])(self.subscribe)
        method("events.ack", params=Ack, roles=[Role.OPERATOR])(self.ack)
        method("events.unsubscribe", params=Unsubscribe, roles=[Role.OPERATOR])(self.unsubscribe)
        method("add", params=Numbers, result=dict, roles=[Role.OPERATOR])(self.add)
        method("sleep", roles=[Role.OPERATOR])(self.sleep)
        method("hang.up", roles=[Role.OPERATOR])(self.hang_up)
        method("count", params=Count, result=dict, chunk=int, roles=[Role.OPERATOR])(self.count)

    async def start(self) -> None:
        listener = bind_unix(self.path)
        await self._nursery.start(self._serve, listener)

    async def stop(self) -> None:
        """As a crash would: nothing said."""
        self._scope.cancel()
        await self._stopped.wait()
        self.peer = None
        self.path.unlink(missing_ok=True)

    async def subscribed(self, times: int) -> None:
        """Until somebody has been so often."""
        await self.until(lambda: len(self.asked) == times and self.peer is not None)

    async def until(self, true: Callable[[], object]) -> None:
        with trio.fail_after(20):
            while not true():
                await self._changed.wait()

    def happen(self, seq: int) -> None:
        """Something that is in the journal, and pushed to whoever is subscribed."""
        self.journal.append(seq)
        if self.peer is not None and not self.peer.closed.is_set():
            self.push(seq)

    def push(self, seq: int, subscription: str = "s1") -> None:
        assert self.peer is not None
        content = {"body": f"message {seq}"}
        event = {"subscription": subscription, "seq": seq, "id": f"e{seq}", "type": "t", "content": content}
        self.peer.notify("event", {**event, "redelivered": 0, "some_later_field": 1})

    async def subscribe(self, call: Call, params: Subscribe) -> dict[str, Any]:
        self.peer = None
        self.asked.append(params)
        await self._pass("events.subscribe")
        if self.deaf is not None:
            with trio.CancelScope(shield=True):
                await self.deaf.wait()
        self.peer = call.peer
        for seq in range(1, self.at_once + 1):
            self.push(seq)
        for seq in self.journal:
            if seq not in self.settled and (
                params.name is not None or (isinstance(params.from_, int) and seq > params.from_)
            ):
                self.push(seq)
        self._wake()
        return {"subscription": "s1", "cursor": max(self.journal, default=0)}

    async def ack(self, call: Call, params: Ack) -> None:
        self.acked.append(params.seq)
        self._wake()
        await self._pass("events.ack")
        self.settled.add(params.seq)

    def unsubscribe(self, call: Call, params: Unsubscribe) -> None:
        self.unsubscribed.set()
        self.left.append(params.subscription)
        self._wake()

    async def add(self, call: Call, params: Numbers) -> dict[str, Any]:
        self.added.append(params.a)
        await self._pass("add")
        return {"sum": params.a + params.from_}

    async def sleep(self, call: Call, params: NoParams) -> None:
        await self._forever("sleep")

    def hang_up(self, call: Call, params: NoParams) -> None:
        call.peer.close("because")

    async def count(self, call: Call, params: Count) -> dict[str, Any]:
        for number in range(params.to):
            call.progress(number, params.to, "counting")
            await call.send(number)
        if params.stay:
            await self._forever("count")
        return {"counted": params.to}

    async def _pass(self, method: str) -> None:
        self._wake()
        await trio.lowlevel.checkpoint()
        if self.refuse.get(method):
            raise self.refuse[method].pop(0)
        if method in self.mute:
            await self._forever(method)

    async def _forever(self, method: str) -> None:
        self.added.append(-1)
        self._wake()
        try:
            await trio.sleep_forever()
        finally:
            self.cancelled.append(method)
            self._wake()

    async def _serve(self, listener: trio.SocketListener, *, task_status: trio.TaskStatus[None]) -> None:
        self._stopped = trio.Event()
        with trio.CancelScope() as self._scope:
            await serve_unix(
                listener, self.registry, role=Role.OPERATOR, around=Surroundings(), task_status=task_status
            )
        self._stopped.set()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@attrs.frozen
class Numbers:
    a: int
    from_: int
    idempotency_key: str = ""


@attrs.frozen
class Count:
    to: int
    stay: bool = False


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        yield Path(folder) / "bridge.sock"


@pytest.fixture
async def bridge(path: Path, nursery: trio.Nursery) -> Bridge:
    made = Bridge(path, nursery)
    await made.start()
    return made


@pytest.fixture
async def client(path: Path, bridge: Bridge) -> AsyncIterator[Client]:
    async with connect(path) as connected:
        yield connected
