"""What an agent does for those who call it, against the bridge's own end of the wire."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from typing import Any

import pytest
import trio

from armorclaw.agent import AgentError, CallCancelledError
from armorclaw.agent.callbacks import MAX_CALLS, Callbacks
from armorclaw.agent.streams import Progress
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import WINDOW
from armorclaw.rpc.jsoncodec import JsonCodec
from armorclaw.rpc.jsonrpc import Core, Request
from armorclaw.rpc.peer import Peer

from .conftest import KITS, AnyCall, AnyMessage, AsyncKit, FakeBridge, Kit, eventually
from .peers import RealBridge, until


@pytest.fixture
def kit(real_kit: Kit) -> Kit:
    return real_kit


def test_a_call_has_params_progress_chunks_and_a_result(kit: Kit, real: RealBridge) -> None:
    async def summarise(call: AnyCall) -> Any:
        call.progress(0, 2)
        for number, word in enumerate(call.params["words"]):
            await kit.chunk(call, {"word": word})
            call.progress(number + 1, 2, word)
        await kit.chunk(call, b"\0\xff")
        return {"method": call.method, "cancelled": call.cancelled}

    kit.on_call("summarise", summarise)
    kit.start()
    real.wait(lambda: real.session, "the agent")
    seen: list[Any] = []

    async def ask() -> Any:
        assert real.session is not None
        params = {"method": "summarise", "params": {"words": ["one", "two ☀"]}}
        progress = lambda *news: seen.append(news)  # noqa: E731
        async with real.session.stream("agent.call", params, on_progress=progress) as stream:
            return [chunk async for chunk in stream], await stream.result()

    chunks, result = real.do(ask)
    assert chunks == [{"word": "one"}, {"word": "two ☀"}, "AP8="]
    assert result == {"method": "summarise", "cancelled": False}
    assert seen[-1] == (2, 2, "two ☀")


@pytest.mark.parametrize("params", [{}, {"method": 5}, [], {"method": "nobody's"}], ids=repr)
def test_what_nobody_handles_is_refused(kit: Kit, real: RealBridge, params: Any) -> None:
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        assert real.session is not None
        await real.session.request("agent.call", params, timeout=30)

    with pytest.raises(ArmorclawError) as refused:
        real.do(ask)
    assert refused.value.name == ("method_not_found" if params == {"method": "nobody's"} else "invalid_params")


def test_a_name_has_one_handler(kit: Kit, real: RealBridge) -> None:
    async def handler(call: AnyCall) -> None: ...

    kit.on_call("x", handler)
    with pytest.raises(ValueError, match="x has a handler already"):
        kit.on_call("x", handler)


def test_a_handler_that_raises(kit: Kit, real: RealBridge, capfd: pytest.CaptureFixture[str]) -> None:
    """Its caller is told in one line; where it was is for the log of the agent alone."""

    async def raises(call: AnyCall) -> None:
        if call.params == "ours":
            raise AgentError(-32005, "conflict", "busy with another", "come back")
        raise LookupError("no page 7\nsecond line")

    kit.on_call("raises", raises)
    kit.start()
    with pytest.raises(ArmorclawError) as failed:
        real.ask("raises")
    assert (failed.value.name, str(failed.value)) == ("remote_failed", "LookupError: no page 7")
    said = capfd.readouterr().err
    assert "Traceback" in said
    assert "test_calls.py" in said
    with pytest.raises(ArmorclawError) as refused:
        real.ask("raises", "ours")
    assert (refused.value.name, refused.value.what, refused.value.hint) == (
        "conflict",
        "busy with another",
        "come back",
    )
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    "what", [object(), "\ud800", float("nan"), "x" * 1_100_000], ids=["object", "half", "nan", "long"]
)
def test_a_result_that_cannot_be_sent(kit: Kit, real: RealBridge, what: Any) -> None:
    async def odd(call: AnyCall) -> Any:
        return what

    kit.on_call("odd", odd)
    kit.start()
    with pytest.raises(ArmorclawError) as failed:
        real.ask("odd")
    assert failed.value.name == ("too_large" if type(what) is str and len(what) > 1 else "remote_failed")


def test_a_chunk_that_cannot_be_sent(kit: Kit, real: RealBridge) -> None:
    async def odd(call: AnyCall) -> Any:
        refused = []
        for chunk in (object(), "\ud800", "x" * 300_000, b"x" * 200_000):
            try:
                await kit.chunk(call, chunk)
            except AgentError as error:
                refused.append(error.name)
        await kit.chunk(call, b"x" * 192 * 1024)
        return refused

    kit.on_call("odd", odd)
    kit.start()
    assert real.ask("odd") == ["invalid_params", "invalid_params", "too_large", "too_large"]


def test_a_caller_who_reads_slowly_holds_the_handler_not_memory(kit: Kit, real: RealBridge) -> None:
    sent: list[int] = []

    async def many(call: AnyCall) -> int:
        for number in range(60):
            await kit.chunk(call, str(number) * 50_000)
            sent.append(number)
        return len(sent)

    kit.on_call("many", many)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        assert real.session is not None
        async with real.session.stream("agent.call", {"method": "many"}) as stream:
            await until(lambda: len(sent) >= WINDOW)
            await trio.sleep(0.1)  # for more to come, if more would
            assert len(sent) == WINDOW
            got = [chunk async for chunk in stream]
            assert got == [str(number) * 50_000 for number in range(60)]
            assert await stream.result() == 60

    real.do(ask)


@pytest.mark.parametrize("phase", ["sending", "computing"])
def test_a_caller_who_leaves(kit: Kit, real: RealBridge, capfd: pytest.CaptureFixture[str], phase: str) -> None:
    """The handler is told where it can be: it raises, or is cancelled. No traceback: it is nobody's fault."""
    ended: list[str] = []
    begun = threading.Event()
    free = threading.Event()

    async def endless(call: AnyCall) -> None:
        begun.set()
        try:
            if phase == "computing":
                await kit.wait(free)
                assert call.cancelled
            while True:
                call.progress(1)
                await kit.chunk(call, "x")
        except (CallCancelledError, asyncio.CancelledError) as error:
            ended.append(type(error).__name__)
            raise

    kit.on_call("endless", endless)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        assert real.session is not None
        async with real.session.stream("agent.call", {"method": "endless"}) as stream:
            if phase == "sending":
                await anext(stream)
            else:
                await trio.to_thread.run_sync(begun.wait)

    real.do(ask)
    assert kit.agent._session is not None
    running = kit.agent._session.callbacks.running
    eventually(lambda: all(each.request is None for each in tuple(running)), "the word that it is over")
    free.set()
    eventually(lambda: ended, "the end of the handler")
    assert ended == ["CancelledError" if isinstance(kit, AsyncKit) else "CallCancelledError"]
    eventually(lambda: not running, "a free place")
    assert "Traceback" not in capfd.readouterr().err


def test_a_cancelled_call_is_answered_so(kit: Kit, real: RealBridge) -> None:
    free = threading.Event()

    async def slow(call: AnyCall) -> str:
        await kit.wait(free)
        return "late"

    kit.on_call("slow", slow)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        peer = real.session
        assert peer is not None
        async with peer.stream("agent.call", {"method": "slow"}) as stream:
            number = next(iter(peer._asking.streams))
            peer.notify("$/cancelRequest", {"id": number})
            with pytest.raises(ArmorclawError) as cancelled:
                await stream.result()
            assert cancelled.value.name == "cancelled"

    real.do(ask)
    free.set()


@pytest.mark.parametrize("note", [{"chunks": 0}, {"chunks": "8"}, {}], ids=repr)
def test_credit_that_is_none_ends_the_call(kit: Kit, real: RealBridge, note: dict[str, Any]) -> None:
    async def endless(call: AnyCall) -> None:
        while True:
            await kit.chunk(call, "x")

    kit.on_call("endless", endless)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        peer = real.session
        assert peer is not None
        async with peer.stream("agent.call", {"method": "endless"}) as stream:
            peer.notify("$/credit", {"id": next(iter(peer._asking.streams)), **note})
            with pytest.raises(ArmorclawError) as refused:
                await stream.result()
            assert refused.value.name == "invalid_params"

    real.do(ask)


def test_as_many_at_once_as_promised_and_one_more_is_refused(kit: Kit, real: RealBridge) -> None:
    """They run beside each other and beside the messages, and places become free."""
    free = threading.Event()
    running: list[int] = []

    async def slow(call: AnyCall) -> int:
        running.append(call.params)
        await kit.wait(free)
        return int(call.params)

    kit.on_call("slow", slow)
    kit.start()
    real.wait(lambda: real.session, "the agent")
    results: list[int] = []

    async def ask() -> None:
        peer = real.session
        assert peer is not None

        async def one(number: int) -> None:
            results.append(await peer.request("agent.call", {"method": "slow", "params": number}, timeout=30))

        async with trio.open_nursery() as nursery:
            for number in range(MAX_CALLS):
                nursery.start_soon(one, number)
            await until(lambda: len(running) == MAX_CALLS)
            with pytest.raises(ArmorclawError) as refused:
                await peer.request("agent.call", {"method": "slow", "params": 99}, timeout=30)
            assert refused.value.name == "queue_full"
            free.set()
        results.append(await peer.request("agent.call", {"method": "slow", "params": 99}, timeout=30))

    real.do(ask)
    assert sorted(results) == [*range(MAX_CALLS), 99]


def test_a_message_in_hand_does_not_hold_up_calls(kit: Kit, real: RealBridge) -> None:
    free, begun = threading.Event(), threading.Event()

    async def message(msg: AnyMessage) -> None:
        begun.set()
        await kit.wait(free)

    async def quick(call: AnyCall) -> str:
        return "here"

    kit.on_message(message)
    kit.on_call("quick", quick)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def say() -> None:
        assert real.session is not None
        content = {"body": "x"}
        event = {"subscription": "main", "seq": 1, "id": "e1", "type": "m.room.message", "content": content}
        real.session.notify("event", event)

    real.do(say)
    assert begun.wait(30)
    assert real.ask("quick") == "here"
    free.set()


def test_a_connection_that_ends_is_the_end_of_its_calls(kit: Kit, real: RealBridge) -> None:
    ended: list[str] = []
    begun = threading.Event()

    async def endless(call: AnyCall) -> None:
        begun.set()
        try:
            while True:
                await kit.chunk(call, "x")
        except (CallCancelledError, asyncio.CancelledError):
            ended.append("yes")
            raise

    kit.on_call("endless", endless)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        assert real.session is not None
        async with real.session.stream("agent.call", {"method": "endless"}) as stream:
            await anext(stream)
            real.session.close("lost")
            with pytest.raises(ArmorclawError) as gone:
                await stream.result()
            assert gone.value.name == "unavailable"
        real.session = None

    real.do(ask)
    assert begun.is_set()
    eventually(lambda: ended, "the end of the handler")
    real.wait(lambda: real.session, "the agent again")


def test_a_stop_lets_calls_finish_and_begins_no_other(kit: Kit, real: RealBridge) -> None:
    free, begun = threading.Event(), threading.Event()

    async def slow(call: AnyCall) -> str:
        begun.set()
        await kit.wait(free)
        return "done"

    kit.on_call("slow", slow)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        peer = real.session
        assert peer is not None
        answers: list[str] = []

        async def one() -> None:
            answers.append(await peer.request("agent.call", {"method": "slow"}, timeout=30))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one)
            await trio.to_thread.run_sync(begun.wait)
            kit.agent.stop()
            await refused(peer)
            free.set()
        assert answers == ["done"]

    async def refused(peer: Peer) -> None:
        session = kit.agent._session
        assert session is not None
        await until(lambda: session.stopping)
        with pytest.raises(ArmorclawError) as late:
            await peer.request("agent.call", {"method": "slow"}, timeout=30)
        assert late.value.name == "unavailable"

    real.do(ask)
    kit.join()


def test_a_handler_that_does_not_end_is_left_behind(
    kit: Kit, real: RealBridge, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("armorclaw.agent.agent.STOP_GRACE", 0.2)
    monkeypatch.setattr("armorclaw.agent.aio.STOP_GRACE", 0.2)
    free, begun = threading.Event(), threading.Event()

    async def stuck(call: AnyCall) -> None:
        begun.set()
        await kit.wait(free)

    kit.on_call("stuck", stuck)
    kit.start()
    real.wait(lambda: real.session, "the agent")

    async def ask() -> None:
        peer = real.session
        assert peer is not None
        with contextlib.suppress(ArmorclawError):
            async with peer.stream("agent.call", {"method": "stuck"}) as stream:
                await trio.to_thread.run_sync(begun.wait)
                kit.agent.stop()
                await stream.result()

    real.do(ask)
    kit.join()
    free.set()
    assert "1 handlers did not finish within 0.2 s" in capfd.readouterr().err


def test_an_id_in_use_is_refused(bridge: FakeBridge) -> None:
    kit = AsyncKit(bridge)
    free = threading.Event()

    async def slow(call: AnyCall) -> str:
        await kit.wait(free)
        return "done"

    kit.on_call("slow", slow)
    kit.start()
    bridge.wait(lambda: bridge._session, "the agent")
    assert bridge._session is not None
    for _ in range(2):
        bridge._session.send({"id": "a", "method": "agent.call", "params": {"method": "slow"}})
    bridge.wait(lambda: bridge.answers, "an answer")
    assert bridge.answers[0]["error"]["data"]["name"] == "invalid_request"
    free.set()
    bridge.wait(lambda: len(bridge.answers) == 2, "the other answer")
    assert bridge.answers[1]["result"] == "done"
    kit.stop()


@pytest.mark.parametrize("make", KITS, ids=["blocking", "asyncio"])
def test_a_connection_that_takes_nothing_holds_the_handler_in_spite_of_credit(
    bridge: FakeBridge, make: type[Kit]
) -> None:
    kit = make(bridge)
    sent: list[int] = []

    async def many(call: AnyCall) -> int:
        for number in range(100):
            call.progress(number)
            await kit.chunk(call, "x" * 100_000)
            sent.append(number)
        return len(sent)

    kit.on_call("many", many)
    kit.start()
    bridge.wait(lambda: bridge._session, "the agent")
    assert bridge._session is not None
    bridge.reads.clear()
    bridge._session.send({"id": 1, "method": "agent.call", "params": {"method": "many"}})
    bridge._session.send({"method": "$/credit", "params": {"id": 1, "chunks": 1000}})
    eventually(lambda: len(sent) > 2, "some chunks")
    time.sleep(0.3)  # for more to come, if more would
    assert len(sent) < 20
    assert kit.agent._link is not None
    assert kit.agent._link._connection is not None
    assert len(kit.agent._link._connection._unsent) < 400_000
    bridge.reads.set()
    bridge.wait(lambda: bridge.answers, "an answer")
    assert bridge.answers[0]["result"] == 100
    assert [each["seq"] for each in bridge.of("$/chunk")] == list(range(100))
    progress = [each["done"] for each in bridge.of("$/progress")]
    assert progress == sorted(progress)
    kit.stop()


@pytest.mark.parametrize("make", KITS, ids=["blocking", "asyncio"])
def test_of_progress_that_cannot_be_sent_the_newest_counts(bridge: FakeBridge, make: type[Kit]) -> None:
    kit = make(bridge)
    unsent: list[int] = []

    async def busy(call: AnyCall) -> None:
        link = kit.agent._link
        assert link is not None
        while link.has_room():  # bytes of the socket, and ours
            await kit.chunk(call, "x" * 100_000)
        for number in range(5_000):
            call.progress(number, 5_000, "long text " * 10)
        assert link._connection is not None
        unsent.append(len(link._connection._unsent))

    kit.on_call("busy", busy)
    kit.start()
    bridge.wait(lambda: bridge._session, "the agent")
    assert bridge._session is not None
    bridge.reads.clear()
    bridge._session.send({"id": 1, "method": "agent.call", "params": {"method": "busy"}})
    bridge._session.send({"method": "$/credit", "params": {"id": 1, "chunks": 1000}})
    eventually(lambda: unsent, "the end of the handler")
    bridge.reads.set()
    bridge.wait(lambda: bridge.answers, "an answer")
    assert bridge.of("$/progress")[-1]["done"] == 4_999
    assert max(unsent) < 400_000
    kit.stop()


def test_progress_waits_for_room_and_goes_before_the_result() -> None:
    out = bytearray()
    callbacks = Callbacks({"x": None}, out, print)
    core = Core(JsonCodec())
    for number in (1, 2):
        request = {"jsonrpc": "2.0", "id": number, "method": "agent.call", "params": {"method": "x"}}
        (asked,) = core.feed(json.dumps(request).encode() + b"\n")
        assert isinstance(asked, Request)
        callbacks.asked(asked)
    first, second = callbacks.take()
    for done in range(5):
        callbacks.progress(first, Progress(done, None, ""))
        callbacks.progress(second, Progress(done, None, ""))
    assert out == b""
    callbacks.answer(first, None)
    callbacks.send_chunk(second, b"1")
    callbacks.tell_progress()
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line.get("method", "answer") for line in lines] == ["$/progress", "answer", "$/progress", "$/chunk"]
    assert [line["params"]["done"] for line in lines[::2]] == [4, 4]
