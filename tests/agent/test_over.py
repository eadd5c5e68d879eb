"""What is over is over for everybody: no driver lets somebody wait for what cannot come any more."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from armorclaw.agent import AgentError, AsyncAgent
from armorclaw.agent.callbacks import MAX_CALLS, Callbacks
from armorclaw.rpc.jsoncodec import JsonCodec
from armorclaw.rpc.jsonrpc import Core, Request

from .conftest import AnyCall, AnyMessage, AsyncKit, FakeBridge, Kit, Pieces, eventually
from .peers import RealBridge

Uses = Callable[[Pieces], Awaitable[Any]]


async def _iterate(stream: Pieces) -> None:
    await stream.next()


async def _result(stream: Pieces) -> None:
    await stream.result()


async def _send(stream: Pieces) -> None:
    while True:
        await stream.send(b"x")


def close_soon(kit: Kit, stream: Pieces) -> None:
    """From another thread or task, while somebody waits."""
    close = stream.stream.close
    if isinstance(kit, AsyncKit):
        asyncio.get_running_loop().call_later(0.1, close)
    else:
        threading.Timer(0.1, close).start()


@pytest.mark.parametrize("when", ["before", "meanwhile", "behind the block"])
@pytest.mark.parametrize("uses", [_iterate, _result, _send])
def test_a_closed_stream_says_so(real_kit: Kit, real: RealBridge, uses: Uses, when: str) -> None:
    kit = real_kit
    told: list[AgentError] = []

    async def steps() -> None:
        async with kit.stream("store") as stream:
            await stream.send(b"wait")
            if when == "before":
                stream.stream.close()
            elif when == "meanwhile":
                close_soon(kit, stream)
            if when != "behind the block":
                await use(stream)
        await use(stream)

    async def use(stream: Pieces) -> None:
        try:
            await uses(stream)
        except AgentError as error:
            told.append(error)

    kit.start()
    thread = threading.Thread(target=lambda: kit.do(steps()), daemon=True)  # it may hang
    thread.start()
    thread.join(5)
    assert not thread.is_alive(), "it hangs"
    assert len(told) == (1 if when == "behind the block" else 2)
    assert {error.name for error in told} == {"cancelled"}
    assert str(told[0]) == "store: the stream was closed (use it within its block)"


def test_a_stream_that_ended_by_itself_keeps_its_outcome(real_kit: Kit, real: RealBridge) -> None:
    async def steps() -> Any:
        async with real_kit.stream("count", to=3) as stream:
            assert await stream.result() == {"counted": 3}
        return await stream.result(), await stream.next()

    real_kit.start()
    assert real_kit.do(steps()) == ({"counted": 3}, None)


def test_a_stream_opened_while_the_bridge_is_away_ends_with_the_agent(bridge: FakeBridge) -> None:
    bridge.stop()
    agent = AsyncAgent(bridge.path)

    async def steps() -> None:
        async with agent.stream("store") as stream:
            await stream.result()

    async def main() -> None:
        serving = asyncio.create_task(agent.serve())
        await asyncio.sleep(0)
        waiting = asyncio.create_task(steps())
        await asyncio.sleep(0.05)
        agent.stop()
        await asyncio.wait_for(serving, 5)
        with pytest.raises(AgentError, match="the agent is stopping"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(main())


# handlers


def test_a_cancellation_that_is_not_ours_is_a_failure_of_the_handler(kit: Kit, bridge: FakeBridge) -> None:
    """Such as of a task that it waits for: its room and its caller must not wait for ever."""

    async def message(msg: AnyMessage) -> None:
        if msg.body == "bad":
            raise asyncio.CancelledError

    async def call(call: AnyCall) -> None:
        raise asyncio.CancelledError

    kit.on_message(message)
    kit.on_call("bad", call)
    kit.start()
    bridge.wait(lambda: bridge._subscriber, "the agent")
    bad = bridge.say("bad")
    bridge.wait_acked(bridge.say("good"))
    assert [(ack["seq"], ack.get("nack_ms")) for ack in bridge.of("events.ack")] == [(bad, 1000), (bad + 1, None)]
    answer = bridge.ask("agent.call", {"method": "bad"})
    assert answer["error"]["data"]["name"] == "remote_failed"
    assert answer["error"]["message"] == "CancelledError"


def test_a_call_that_comes_with_the_end_is_refused_at_once(kit: Kit, bridge: FakeBridge) -> None:
    begun: list[AnyCall] = []

    async def call(call: AnyCall) -> None:
        begun.append(call)

    kit.on_call("late", call)
    kit.start()
    bridge.wait(lambda: bridge._subscriber, "the agent")
    assert kit.agent._session is not None
    session = kit.agent._session
    eventually(lambda: session.serving, "the agent")
    assert bridge._session is not None
    messages: list[dict[str, Any]] = [{"id": 5, "method": "agent.call", "params": {"method": "late"}}]
    messages.append({"method": "agent.shutdown"})
    both = b"".join(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n" for message in messages)
    bridge._session._sock.sendall(both)  # in one read
    kit.join(2)
    bridge.wait(lambda: bridge.answers, "an answer")
    assert bridge.answers[0]["error"]["data"]["name"] == "unavailable"
    assert begun == []


def test_what_is_cancelled_before_it_begins_leaves_nothing_behind() -> None:
    out = bytearray()
    callbacks = Callbacks({"x": None}, out, print)
    core = Core(JsonCodec())

    def ask(number: int) -> None:
        request = {"jsonrpc": "2.0", "id": number, "method": "agent.call", "params": {"method": "x"}}
        (asked,) = core.feed(json.dumps(request).encode() + b"\n")
        assert isinstance(asked, Request)
        callbacks.asked(asked)

    def answers() -> list[str]:
        names = [json.loads(line)["error"]["data"]["name"] for line in out.splitlines()]
        out.clear()
        return names

    for number in range(3 * MAX_CALLS):  # each has its place, though nobody took any
        ask(number)
        callbacks.heard("$/cancelRequest", {"id": number})
    assert answers() == ["cancelled"] * 3 * MAX_CALLS
    ask(100)
    callbacks.stop()
    ask(101)
    assert answers() == ["unavailable"] * 2
    callbacks._stopping = False
    ask(102)
    callbacks.disconnected()
    assert (callbacks.take(), callbacks.running, callbacks._here, answers()) == ([], set(), {}, [])
