from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing

from armorclaw import client as client_module
from armorclaw.client import Client, connect
from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call, Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from armorclaw.rpc.unix import bind_unix, serve_unix


@attrs.frozen
class Subscribe:
    name: str | None = None
    filter: dict[str, Any] = attrs.field(factory=dict)
    from_: Literal["now"] | int = "now"


@attrs.frozen
class Ack:
    subscription: str
    seq: int


@attrs.frozen
class Unsubscribe:
    subscription: str


class Bridge:
    """What a bridge says and hears, as far as a client can tell."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.peer: Peer | None = None
        self.asked: list[Subscribe] = []
        self.acked: list[int] = []
        self.unsubscribed = trio.Event()
        self.at_once = 0  # events pushed before the subscription is answered
        method = self.registry.method
        method("events.subscribe", params=Subscribe, result=dict, roles=[Role.OPERATOR])(self.subscribe)
        method("events.ack", params=Ack, roles=[Role.OPERATOR])(self.ack)
        method("events.unsubscribe", params=Unsubscribe, roles=[Role.OPERATOR])(self.unsubscribe)
        method("add", params=Numbers, result=dict, roles=[Role.OPERATOR])(self.add)
        method("sleep", roles=[Role.OPERATOR])(self.sleep)
        method("hang.up", roles=[Role.OPERATOR])(self.hang_up)

    async def subscribe(self, call: Call, params: Subscribe) -> dict[str, Any]:
        self.peer = call.peer
        self.asked.append(params)
        for seq in range(1, self.at_once + 1):
            self.push(seq)
        await trio.lowlevel.checkpoint()
        return {"subscription": "s1", "cursor": 0}

    def push(self, seq: int, subscription: str = "s1") -> None:
        assert self.peer is not None
        content = {"body": f"message {seq}"}
        event = {"subscription": subscription, "seq": seq, "type": "t", "content": content, "redelivered": 0}
        self.peer.notify("event", {**event, "some_later_field": 1})

    def ack(self, call: Call, params: Ack) -> None:
        self.acked.append(params.seq)

    def unsubscribe(self, call: Call, params: Unsubscribe) -> None:
        self.unsubscribed.set()

    def add(self, call: Call, params: Numbers) -> dict[str, Any]:
        return {"sum": params.a + params.from_}

    async def sleep(self, call: Call, params: NoParams) -> None:
        await trio.sleep(5)

    def hang_up(self, call: Call, params: NoParams) -> None:
        call.peer.close("because")


@attrs.frozen
class Numbers:
    a: int
    from_: int


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        yield Path(folder) / "bridge.sock"


@pytest.fixture
async def bridge(path: Path, nursery: trio.Nursery) -> Bridge:
    made = Bridge()
    listener = bind_unix(path)

    async def serve(*, task_status: trio.TaskStatus[None]) -> None:
        await serve_unix(
            listener, made.registry, role=Role.OPERATOR, around=Surroundings(), path=path, task_status=task_status
        )

    await nursery.start(serve)
    return made


@pytest.fixture
async def client(path: Path, bridge: Bridge) -> AsyncIterator[Client]:
    async with connect(path) as connected:
        yield connected


async def test_calls(client: Client) -> None:
    assert await client.call("add", a=1, from_=2) == {"sum": 3}
    with pytest.raises(ArmorclawError) as refused:
        await client.call("add", a="1", from_=2)
    assert (refused.value.name, refused.value.data["fields"]) == ("invalid_params", ["a"])
    with pytest.raises(ArmorclawError) as late:
        await client.call("sleep", timeout=0.02)
    assert late.value.name == "timed_out"


async def test_many_calls_at_once(client: Client) -> None:
    sums: list[int] = []

    async def ask(i: int) -> None:
        sums.append((await client.call("add", a=i, from_=i))["sum"])

    async with trio.open_nursery() as nursery:
        for i in range(200):
            nursery.start_soon(ask, i)
    assert sorted(sums) == [2 * i for i in range(200)]


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(ArmorclawError) as caught:
        async with connect(path):
            pass
    assert caught.value.name == "daemon_unreachable"


async def test_errors_in_the_block_come_out_as_they_are(bridge: Bridge, path: Path) -> None:
    with pytest.raises(KeyError):
        async with connect(path):
            raise KeyError("x")


async def test_a_bridge_that_ends(client: Client) -> None:
    assert await client.call("hang.up") == {}
    with pytest.raises(ArmorclawError) as gone:
        await client.call("add", a=1, from_=1)
    assert gone.value.name == "unavailable"


async def test_a_named_subscription_acknowledges_what_was_taken(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive", types=["m.room.*"], start=5) as events:
        for seq in (6, 7, 8):
            bridge.push(seq)
        async for event in events:
            assert event["content"]["body"] == f"message {event['seq']}"
            assert event["redelivered"] == 0
            if event["seq"] == 8:
                break
    wanted: dict[str, list[str]] = {"types": ["m.room.*"], "rooms": [], "senders": [], "agents": []}
    assert bridge.asked == [Subscribe("archive", wanted, 5)]
    with trio.fail_after(2):
        await bridge.unsubscribed.wait()
    assert bridge.acked == [6, 7]  # the last one was not done with


async def test_without_a_name_nothing_is_acknowledged(client: Client, bridge: Bridge) -> None:
    async with client.subscribe() as events:
        bridge.push(1)
        bridge.push(2)
        assert [(await anext(events))["seq"], (await anext(events))["seq"]] == [1, 2]
    await bridge.unsubscribed.wait()
    assert bridge.acked == []
    assert bridge.asked[0].name is None


async def test_events_that_are_faster_than_the_answer(client: Client, bridge: Bridge) -> None:
    bridge.at_once = 3
    async with client.subscribe("x") as events:
        assert [(await anext(events))["seq"] for _ in range(3)] == [1, 2, 3]
    bridge.push(4)
    bridge.push(5, subscription="of nobody")
    await client.call("add", a=1, from_=1)
    assert client._early == {}


async def test_a_subscription_that_the_bridge_ends(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("x") as events:
        bridge.push(1)
        assert bridge.peer is not None
        bridge.peer.notify("events.closed", {"subscription": "s1", "reason": "replaced"})
        assert (await anext(events))["seq"] == 1
        with pytest.raises(ArmorclawError, match="replaced") as ended:
            await anext(events)
    assert ended.value.name == "unavailable"


async def test_a_connection_that_ends_under_a_subscription(client: Client, bridge: Bridge) -> None:
    async with client.subscribe() as events:
        assert bridge.peer is not None
        bridge.peer.close("stopping")
        with pytest.raises(ArmorclawError) as ended, trio.fail_after(2):
            await anext(events)
    assert ended.value.name == "unavailable"


async def test_a_reader_that_takes_nothing_is_told(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "MAX_WAITING", 5)
    async with client.subscribe() as events:
        for seq in range(10):
            bridge.push(seq)
        await client.call("add", a=1, from_=1)
        assert [(await anext(events))["seq"] for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ArmorclawError) as told:
            await anext(events)
    assert told.value.name == "queue_full"
