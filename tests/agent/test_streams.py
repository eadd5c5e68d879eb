"""What an agent calls that streams, and what it leaves: against the bridge's own end of the wire."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from armorclaw.agent import AgentError, AsyncAgent
from armorclaw.agent.session import Session
from armorclaw.agent.streams import Progress, Streaming, notification, piece
from armorclaw.rpc.flow import WINDOW

from .conftest import ROOM, AnyMessage, AsyncKit, BlockingKit, FakeBridge, Kit, Pieces, Refuse, eventually
from .peers import RealBridge


@pytest.fixture
def kit(real_kit: Kit) -> Kit:
    return real_kit


def test_pieces_progress_and_a_result(kit: Kit, real: RealBridge) -> None:
    seen: list[Any] = []

    async def steps() -> Any:
        async with kit.stream("count", to=100, on_progress=lambda *news: seen.append(news)) as stream:
            return [await stream.rest(), await stream.result(), await stream.next()]

    kit.start()
    assert kit.do(steps()) == [list(range(100)), {"counted": 100}, None]
    assert seen[-1] == (99, 100, "counting")


def test_the_result_alone(kit: Kit, real: RealBridge) -> None:
    async def steps() -> Any:
        async with kit.stream("count", to=100) as stream:
            return await stream.result()

    kit.start()
    assert kit.do(steps()) == {"counted": 100}


def test_an_error_comes_behind_the_pieces(kit: Kit, real: RealBridge) -> None:
    async def steps() -> list[int]:
        found: list[int] = []
        async with kit.stream("count", to=3, fail=True) as stream:
            with pytest.raises(AgentError, match="it went wrong") as failed:
                await stream.rest(found)
            assert failed.value.name == "conflict"
            with pytest.raises(AgentError, match="it went wrong"):
                await stream.result()
        return found

    kit.start()
    assert kit.do(steps()) == [0, 1, 2]


def test_an_unknown_method(kit: Kit, real: RealBridge) -> None:
    async def steps() -> None:
        async with kit.stream("nothing") as stream:
            with pytest.raises(AgentError) as failed:
                await stream.next()
        assert failed.value.name == "method_not_found"

    kit.start()
    kit.do(steps())


def test_who_takes_nothing_is_sent_no_more_than_a_window(kit: Kit, real: RealBridge) -> None:
    gate = threading.Event()
    waiting = threading.Event()

    async def steps() -> list[int]:
        async with kit.stream("count", to=200) as stream:
            first = await stream.next()
            waiting.set()
            await kit.wait(gate)
            return [first, *await stream.rest()]

    kit.start()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(kit.do(steps())), daemon=True)
    thread.start()
    assert waiting.wait(30)
    real.wait(lambda: real.sent >= WINDOW, "a window of pieces")
    time.sleep(0.1)  # for more to come, if more would
    assert real.sent <= WINDOW + WINDOW // 2
    gate.set()
    thread.join(10)
    assert found == list(range(200))


def test_leaving_early_ends_it_at_the_bridge(kit: Kit, real: RealBridge) -> None:
    async def steps() -> Any:
        async with kit.stream("count", to=1_000_000) as stream:
            return await stream.next()

    kit.start()
    assert kit.do(steps()) == 0
    real.wait(lambda: real.cancelled == ["count"], "the end of it at the bridge")
    assert_nothing_is_left(kit)


def assert_nothing_is_left(kit: Kit) -> None:
    session = kit.agent._session
    assert session is not None
    eventually(lambda: not (session._asked or session._parked or session._later), "the last answer")


def test_upload(kit: Kit, real: RealBridge) -> None:
    sent = [bytes([n]) * 100_000 for n in range(40)]

    async def steps() -> Any:
        async with kit.stream("store") as stream:
            for each in sent:
                await stream.send(each)
            await stream.end()
            return await stream.result()

    kit.start()
    assert kit.do(steps()) == {"pieces": 40}
    assert real.received == sent


def test_an_upload_waits_for_a_bridge_that_takes_nothing(kit: Kit, real: RealBridge) -> None:
    count = 0

    async def steps() -> None:
        nonlocal count
        async with kit.stream("store") as stream:
            await stream.send(b"wait")
            for count in range(1000):  # noqa: B007
                await stream.send(b"x")

    kit.start()
    outcome: list[str] = []

    def run() -> None:
        try:
            kit.do(steps())
        except AgentError as error:
            outcome.append(error.name)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    real.wait(lambda: real.received, "the first piece")
    time.sleep(0.1)  # for more to go, if more would
    assert count <= 2 * WINDOW
    real.lose()
    thread.join(10)
    assert outcome == ["unavailable"]


def test_a_bridge_that_wants_no_more_of_an_upload(kit: Kit, real: RealBridge) -> None:
    async def steps() -> None:
        async with kit.stream("store") as stream:
            await stream.send(b"bad")
            with pytest.raises(AgentError, match="not that one"):
                await send_on(stream)

    async def send_on(stream: Pieces) -> None:
        while True:
            await stream.send(b"x")

    kit.start()
    kit.do(steps())


@pytest.mark.parametrize(
    "value", [object(), "\ud800", "x" * 300_000, b"x" * 200_000], ids=["object", "half", "text", "bytes"]
)
def test_a_piece_that_cannot_be_sent(kit: Kit, real: RealBridge, value: Any) -> None:
    async def steps() -> None:
        async with kit.stream("store") as stream:
            with pytest.raises(AgentError) as refused:
                await stream.send(value)
            assert refused.value.name == ("too_large" if len(str(value)) > 100 else "invalid_params")
            await stream.send(b"x" * 192 * 1024)
            await stream.end()
            assert await stream.result() == {"pieces": 1}

    kit.start()
    kit.do(steps())


def test_a_stream_is_over_with_its_connection(kit: Kit, real: RealBridge) -> None:
    """What came before is still there; nothing is sent again."""
    gate, waiting = threading.Event(), threading.Event()

    async def steps() -> list[int]:
        found = []
        async with kit.stream("count", to=1_000_000) as stream:
            found.append(await stream.next())
            waiting.set()
            await kit.wait(gate)
            with pytest.raises(AgentError) as lost:
                await stream.rest(found)
            assert lost.value.name == "unavailable"
            assert lost.value.retryable
        async with kit.stream("count", to=2) as stream:
            return [*found, *await stream.rest()]

    kit.start()
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(kit.do(steps())), daemon=True)
    thread.start()
    assert waiting.wait(30)
    real.wait(lambda: real.sent >= WINDOW, "a window of pieces")
    real.lose()
    real.wait(lambda: real.session, "the agent again")
    gate.set()
    thread.join(10)
    assert found[-2:] == [0, 1]
    assert found[:-2] == list(range(len(found) - 2))
    assert WINDOW <= len(found) - 2 <= 2 * WINDOW


def test_a_call_that_takes_too_long_is_cancelled(kit: Kit, real: RealBridge) -> None:
    async def steps() -> None:
        with pytest.raises(AgentError) as late:
            await kit.call("wait", timeout=0.1)
        assert late.value.name == "timed_out"

    kit.start()
    kit.do(steps())
    real.wait(lambda: real.cancelled == ["wait"], "the end of it at the bridge")
    assert_nothing_is_left(kit)


# asyncio's cancellation, wherever a task can wait

Waits = Callable[[AsyncAgent, RealBridge], Coroutine[Any, Any, object]]


async def _call(agent: AsyncAgent, real: RealBridge) -> None:
    await agent.call("wait")


async def _next(agent: AsyncAgent, real: RealBridge) -> None:
    async with agent.stream("store") as stream:
        await stream.send(b"wait")
        await anext(stream)


async def _result(agent: AsyncAgent, real: RealBridge) -> None:
    async with agent.stream("store") as stream:
        await stream.send(b"wait")
        await stream.result()


async def _credit(agent: AsyncAgent, real: RealBridge) -> None:
    async with agent.stream("store") as stream:
        await stream.send(b"wait")
        while True:
            await stream.send(b"x")


@pytest.mark.parametrize("waits", [_call, _next, _result, _credit])
def test_a_task_that_is_cancelled_leaves_nothing_behind(real: RealBridge, waits: Waits) -> None:
    kit = AsyncKit(real)
    assert isinstance(kit.agent, AsyncAgent)
    agent = kit.agent

    async def steps() -> None:
        task = asyncio.create_task(waits(agent, real))
        while not real.received:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    kit.start()
    kit.do(steps())
    real.wait(lambda: real.cancelled, "the end of it at the bridge")
    assert_nothing_is_left(kit)
    kit.stop()


@pytest.mark.parametrize("waits", [_call, _next])
def test_a_task_that_is_cancelled_while_the_bridge_is_away(
    bridge: FakeBridge, real: RealBridge, waits: Waits
) -> None:
    bridge.stop()
    kit = AsyncKit(bridge)
    assert isinstance(kit.agent, AsyncAgent)
    agent = kit.agent

    async def steps() -> None:
        task = asyncio.create_task(waits(agent, real))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    kit.start()
    kit.do(steps())
    assert_nothing_is_left(kit)
    kit.stop()


# limits


@pytest.mark.parametrize("make", [BlockingKit, AsyncKit])
def test_what_came_too_fast_is_sent_again_when_the_bridge_says(bridge: FakeBridge, make: type[Kit]) -> None:
    """Acknowledgements, and what may be sent twice; of anything else its caller decides."""
    kit = make(bridge)
    outcome: list[Any] = []
    times: dict[str, list[float]] = {"events.ack": [], "matrix.send": []}

    def limited(method: str) -> Callable[[Any], Any]:
        def answer(params: Any) -> Any:
            times[method].append(time.monotonic())
            if len(times[method]) == 1:
                refusal = Refuse(-32008, "rate_limited", retryable=True)
                refusal.payload["data"]["retry_after"] = 0.2  # type: ignore[index]
                raise refusal
            return bridge.plain(method)(params)

        return answer

    for method in times:
        bridge.script[method] = limited(method)

    def status(params: Any) -> Any:
        refusal = Refuse(-32008, "rate_limited", retryable=True)
        refusal.payload["data"]["retry_after"] = 7.5  # type: ignore[index]
        raise refusal

    bridge.script["status"] = status

    async def steps(msg: AnyMessage) -> None:
        try:
            await kit.call("status")
        except AgentError as error:
            outcome.append((error.name, error.retry_after))
        outcome.append((await kit.reply(msg, "hello")).status)

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x", room=ROOM))
    assert outcome == [("rate_limited", 7.5), "sent"]
    for method, when in times.items():
        assert len(when) == 2, method
        assert 0.2 <= when[1] - when[0] < 5, method
    kit.stop()


# without a wire


def test_a_bridge_that_breaks_the_rules_of_a_stream_is_left() -> None:
    for bad in ({"seq": 1, "data": 0}, {"seq": 0}, {"seq": "0", "data": 0}):
        state = Streaming("x")
        with pytest.raises(ValueError, match="piece"):
            state.heard("$/chunk", bad)
    state = Streaming("x")
    for seq in range(WINDOW):
        state.heard("$/chunk", {"seq": seq, "data": seq})
    with pytest.raises(ValueError, match="more pieces came"):
        state.heard("$/chunk", {"seq": WINDOW, "data": 0})


@pytest.mark.parametrize(
    ("params", "progress"),
    [
        ({"done": 1, "total": 2.5, "message": "m"}, Progress(1, 2.5, "m")),
        ({}, Progress(0, None, "")),
        ({"done": "x", "total": True, "message": None}, Progress(0, None, "")),
    ],
)
def test_progress_as_it_comes(params: dict[str, Any], progress: Progress) -> None:
    assert Progress.from_params(params) == progress


def test_notes_about_nothing_are_left_alone() -> None:
    session = Session()
    session.connected()
    session.take_bytes()
    numbers: list[Any] = [1, "1", None, [], {}, True, 2.5]
    for method in ("$/chunk", "$/progress", "$/uploadCredit", "$/credit", "$/cancelRequest", "$/upload", "$/new"):
        for number in numbers:
            session.received(notification(method, number, seq=0, data=1, chunks=1))
        session.received(b'{"jsonrpc":"2.0","method":"%s","params":[1]}\n' % method.encode())
    assert session.take_bytes() == b""


def test_bytes_are_base64_and_the_rest_json() -> None:
    assert piece(b"\0\xff") == b'"AP8="'
    assert piece({"a": [1, "ü"]}) == b'{"a":[1,"\\u00fc"]}'
