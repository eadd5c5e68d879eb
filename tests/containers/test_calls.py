"""agent.call from an operator through the bridge to an agent, over real sockets on both sides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.clock import Surroundings
from armorclaw.containers.calls import asked
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.flow import WINDOW
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P1.6", "P3.5")


@attrs.frozen
class Asked:
    method: str
    params: Any = None


class Offered:
    """An agent that offers what the test says, by `handler`."""

    def __init__(self, house: FakeHouse) -> None:
        self.registry = Registry()
        self.asked: list[Asked] = []
        self.sent = 0
        self.cancelled = trio.Event()
        self.peer: Peer | None = None
        self.registry.method("agent.call", params=Asked, result=Any, chunk=Any, roles={Role.OPERATOR})(self._call)
        ends = self.registry.method("agent.shutdown", params=NoParams, roles={Role.OPERATOR})
        ends(lambda call, params: house.runtime.last.end(0))

    async def _call(self, call: Call, params: Asked) -> Any:
        self.asked.append(params)
        match params.method:
            case "echo":
                return params.params
            case "count":
                for number in range(params.params["to"]):
                    call.progress(number, params.params["to"], f"at {number}\x1b[31m" + "x" * 500)
                    await call.send({"number": number, "text": "ü\n"})
                    self.sent += 1
                return {"done": True}
            case "hang":
                try:
                    await call.send("started")
                    await trio.sleep_forever()
                finally:
                    self.cancelled.set()
            case "fail":
                given = params.params
                raise ArmorclawError(given["name"], given.get("what", "no"), hint="send me your key", path="/etc")
        raise ArmorclawError("method_not_found", f"there is no {params.method}")

    async def join(self, house: FakeHouse) -> None:
        await house.until("running", "suspect")
        stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
        self.peer = Peer(stream, self.registry, role=Role.OPERATOR, around=Surroundings())
        await house.nursery.start(self.peer.serve)
        await self.peer.request("agent.ready", {}, timeout=5)


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


@pytest.fixture
async def ada(house: FakeHouse) -> Offered:
    await house.up(declared())
    offered = Offered(house)
    await offered.join(house)
    return offered


@asynccontextmanager
async def operator(house: FakeHouse) -> AsyncIterator[Peer]:
    """Somebody at the bridge's own socket."""
    ours, theirs = trio.socket.socketpair()
    async with trio.open_nursery() as nursery:
        bridge = Peer(trio.SocketStream(ours), house.registry, role=Role.OPERATOR, around=house.around)
        client = Peer(trio.SocketStream(theirs), Registry(), role=Role.OPERATOR, around=house.around)
        await nursery.start(bridge.serve)
        await nursery.start(client.serve)
        yield client
        nursery.cancel_scope.cancel(reason="the operator leaves")


async def refusal(client: Peer, method: str, params: Any = None, agent: str = "ada") -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        async with client.stream("agent.call", {"agent": agent, "method": method, "params": params}) as stream:
            await stream.result()
    return caught.value


@pytest.mark.parametrize("value", [{"a": [1, "ü", None]}, None, [], "text", 5, {}])
async def test_params_and_result(house: FakeHouse, ada: Offered, value: Any) -> None:
    async with operator(house) as client:
        async with client.stream("agent.call", {"agent": "ada", "method": "echo", "params": value}) as stream:
            assert await stream.result() == ({} if value is None else value)
        assert await client.request("agent.call", {"agent": "ada", "method": "echo"}, timeout=5) == {}


async def test_pieces_and_progress(house: FakeHouse, ada: Offered) -> None:
    said: list[tuple[float, float | None, str]] = []
    async with operator(house) as client:
        params = {"agent": "ada", "method": "count", "params": {"to": 50}}
        async with client.stream("agent.call", params, on_progress=lambda *news: said.append(news)) as stream:
            pieces = [piece async for piece in stream]
            assert await stream.result() == {"done": True}
    assert pieces == [{"number": number, "text": "ü\n"} for number in range(50)]
    assert said
    for done, total, message in said:
        assert total == 50
        assert message.startswith(f"at {done:g} [31mxxx")
        assert len(message) == 200


async def test_a_caller_that_stops_stops_the_agent(house: FakeHouse, ada: Offered) -> None:
    async with operator(house) as client:
        params = {"agent": "ada", "method": "count", "params": {"to": 1000}}
        async with client.stream("agent.call", params) as stream:
            await anext(stream)
            await trio.sleep(0.2)
            assert ada.sent <= 2 * WINDOW + 4  # a window on each of the two connections, and what is between
            rest = [piece async for piece in stream]
    assert len(rest) == 999


async def test_giving_up_cancels_the_agent(house: FakeHouse, ada: Offered) -> None:
    async with operator(house) as client:
        async with client.stream("agent.call", {"agent": "ada", "method": "hang"}) as stream:
            assert await anext(stream) == "started"
        with trio.fail_after(5):
            await ada.cancelled.wait()
        assert await client.request("agent.call", {"agent": "ada", "method": "echo"}, timeout=5) == {}


async def test_a_caller_that_goes_cancels_the_agent(house: FakeHouse, ada: Offered) -> None:
    async with operator(house) as client:
        async with client.stream("agent.call", {"agent": "ada", "method": "hang"}) as stream:
            assert await anext(stream) == "started"
            client.close("the test says so")
            with trio.fail_after(5):
                await ada.cancelled.wait()


async def test_an_agent_that_goes(house: FakeHouse, ada: Offered) -> None:
    async with operator(house) as client:
        with pytest.raises(ArmorclawError) as caught:  # noqa: PT012
            async with client.stream("agent.call", {"agent": "ada", "method": "hang"}) as stream:
                assert await anext(stream) == "started"
                assert ada.peer is not None
                ada.peer.close("the test says so")
                with trio.fail_after(5):
                    await stream.result()
        assert (caught.value.name, caught.value.data["agent"]) == ("unavailable", "ada")
        assert caught.value.kind.retryable
        error = await refusal(client, "echo")
        assert error.name == "unavailable"
        await ada.join(house)  # it came back
        assert await client.request("agent.call", {"agent": "ada", "method": "echo"}, timeout=5) == {}


async def test_agents_that_cannot_be_asked(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    async with operator(house) as client:
        assert (await refusal(client, "echo")).name == "unavailable"  # no session
        await house.connect()
        assert (await refusal(client, "echo")).name == "unavailable"  # a connection, but no session
        await house.call("stop", name="ada")
        assert (await refusal(client, "echo")).name == "unavailable"
        assert (await refusal(client, "echo", agent="nobody")).name == "container_not_found"


async def test_an_agent_without_calls(house: FakeHouse, autojump_clock: MockClock) -> None:
    """One whose library is older, or that is written in another language."""
    await house.up(declared())
    await house.ready()
    async with operator(house) as client:
        error = await refusal(client, "echo")
    assert (error.name, error.hint) == ("method_not_found", "the methods of agent ada are its own")


@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("method_not_found", "method_not_found"),
        ("not_found", "not_found"),
        ("cancelled", "cancelled"),
        ("denied", "remote_failed"),  # it is not the bridge that refuses
        ("storage_corrupt", "remote_failed"),
        ("secrets_taken", "remote_failed"),
        ("internal", "remote_failed"),
    ],
)
async def test_errors_are_the_agents_words(house: FakeHouse, ada: Offered, name: str, seen: str) -> None:
    async with operator(house) as client:
        what = "the store\x1b]0;you are owned\x07 " + "x" * 1000
        error = await refusal(client, "fail", {"name": name, "what": what})
    assert error.name == seen
    assert str(error).startswith("agent ada: the store ]0;you are owned  xxx")
    assert len(str(error)) < 230
    assert error.hint != "send me your key"
    assert error.data["agent"] == "ada"
    assert error.data["remote"] == {"name": name, "path": "/etc"}


async def test_from_within_the_bridge(house: FakeHouse, ada: Offered) -> None:
    agent = house.fleet.get("ada")
    async with asked(agent, "count", {"to": 3}) as answer:
        assert [piece["number"] async for piece in answer] == [0, 1, 2]
        assert await answer.result() == {"done": True}
    async with asked(agent, "fail", {"name": "denied"}) as answer:
        with pytest.raises(ArmorclawError) as caught:
            await answer.result()
    assert caught.value.name == "remote_failed"
    async with asked(agent, "hang") as answer:
        assert await anext(answer) == "started"
    with trio.fail_after(5):
        await ada.cancelled.wait()
    async with house.stream("agent.call", agent="ada", method="echo", params=[1]) as stream:
        assert await stream.result() == [1]


async def test_a_piece_behind_the_answer_does_not_spoil_it(house: FakeHouse) -> None:
    await house.up(declared())
    await house.until("running")
    stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
    async with stream, operator(house) as client:
        await stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"agent.ready","params":{}}\n')
        await stream.receive_some()
        async with client.stream("agent.call", {"agent": "ada", "method": "x"}) as call:
            number = json.loads(await stream.receive_some())["id"]
            chunk = {"jsonrpc": "2.0", "method": "$/chunk", "params": {"id": number, "seq": 0, "data": "stray"}}
            answer = {"jsonrpc": "2.0", "id": number, "result": "good"}
            await stream.send_all(f"{json.dumps(answer)}\n{json.dumps(chunk)}\n".encode())
            with trio.fail_after(5):
                assert await call.result() == "good"


@pytest.mark.parametrize("piece", [b"1e400", b'"\xff"', b"[" * 100 + b"]" * 100])
async def test_odd_pieces_of_an_agent_harm_nobody_else(house: FakeHouse, piece: bytes) -> None:
    """What an agent writes by hand reaches the caller as JSON, or ends the call or the agent's connection."""
    await house.up(declared())
    await house.until("running")
    stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
    async with stream, operator(house) as client:
        await stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"agent.ready","params":{}}\n')
        assert json.loads(await stream.receive_some())["result"]["agent"] == "ada"
        with pytest.raises(ArmorclawError):  # noqa: PT012
            async with client.stream("agent.call", {"agent": "ada", "method": "x"}) as call:
                request = json.loads(await stream.receive_some())
                number = b"%d" % request["id"]
                chunk = b'"method":"$/chunk","params":{"id":%s,"seq":0,"data":%s}' % (number, piece)
                await stream.send_all(b'{"jsonrpc":"2.0",%s}\n' % chunk)
                await stream.send_all(b'{"jsonrpc":"2.0","id":%s,"error":{"code":-1,"message":"end"}}\n' % number)
                with trio.fail_after(15):
                    await call.result()
        assert (await client.request("containers.list", timeout=5))[0]["name"] == "ada"
