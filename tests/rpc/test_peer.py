from __future__ import annotations

import array
import json
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from functools import partial
from typing import Any

import msgspec
import pytest
import structlog
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc import outgoing
from armorclaw.rpc import peer as peer_module
from armorclaw.rpc.ears import Ears
from armorclaw.rpc.framing import MAX_FRAME
from armorclaw.rpc.jsonrpc import Request
from armorclaw.rpc.peer import MAX_IN_FLIGHT, PARAMS_IN_FLIGHT, SOFT_LIMIT, Peer
from armorclaw.rpc.registry import Registry, Role
from tests.rpc.conftest import House, Raw, call

Streams = tuple[trio.SocketStream, trio.SocketStream]


@asynccontextmanager
async def serving(
    stream: trio.abc.Stream, registry: Registry, role: Role = Role.OPERATOR, **more: Any
) -> AsyncIterator[Peer]:
    """With ears as the bridge's listeners have, but in tests that are run `alone`."""
    ears = Ears()
    peer = Peer(stream, registry, role=role, around=Surroundings(), ears=ears if with_ears else None, **more)
    with closing(ears):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ears.run)
            await nursery.start(peer.serve)
            yield peer
            nursery.cancel_scope.cancel()


with_ears = True


@pytest.fixture(params=["memory", "socket", "alone"])
async def ends(
    request: pytest.FixtureRequest, socket_pair: Streams, monkeypatch: pytest.MonkeyPatch
) -> tuple[trio.abc.Stream, trio.abc.Stream]:
    monkeypatch.setattr(sys.modules[__name__], "with_ears", request.param != "alone")
    return trio.testing.memory_stream_pair() if request.param == "memory" else socket_pair


Ends = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]


async def test_calls_are_answered_compactly(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send(call("echo", text="é"), call("note", id="b", text="n"), call("sleep", id=3, seconds=0))
        answers = [await raw.line() for _ in range(3)]
    assert answers == [
        {"jsonrpc": "2.0", "id": 1, "result": {"text": "é"}},
        {"jsonrpc": "2.0", "id": "b", "result": {}},
        {"jsonrpc": "2.0", "id": 3, "result": {"seconds": 0.0}},
    ]


async def test_the_bytes_of_an_answer(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry):
        await socket_pair[1].send_all(b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":"\xc3\xa9"}}')
        assert await socket_pair[1].receive_some() == b'{"jsonrpc":"2.0","id":1,"result":{"text":"\\u00e9"}}\n'


async def test_answers_of_one_read_go_out_in_one_write(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry):
        await Raw(socket_pair[1]).send(*[call("echo", id=i, text="x") for i in range(50)])
        data = await socket_pair[1].receive_some(65536)
    assert [json.loads(line)["id"] for line in data.splitlines()] == list(range(50))


async def test_half_closed_and_pretty_printed_and_without_newline(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry) as peer:
        raw = Raw(ends[1])
        await raw.send(json.dumps(call("echo", text="a"), indent=2), json.dumps(call("sleep", id=2, seconds=0.05)))
        await ends[1].send_eof()
        assert [answer["id"] for answer in await raw.rest_lines()] == [1, 2]
        with trio.fail_after(20):
            await peer.closed.wait()


async def test_half_a_request_at_the_end_is_said_to_be_one(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send(call("sleep", seconds=0.05), '{"jsonrpc":')
        await ends[1].send_eof()
        codes = [answer.get("error", {}).get("code") for answer in await raw.rest_lines()]
    assert codes == [-32700, None]


async def test_notifications_are_never_answered(ends: Ends, house: House) -> None:
    notes: list[dict[str, Any]] = [
        {"jsonrpc": "2.0", "method": "note", "params": {"text": "1"}},
        {"jsonrpc": "2.0", "method": "anote", "params": {"text": "2"}},
        {"jsonrpc": "2.0", "method": "nothing"},
        {"jsonrpc": "2.0", "method": "note", "params": {"text": 5}},
        {"jsonrpc": "2.0", "method": "refuse"},
        {"jsonrpc": "2.0", "method": "fd"},
    ]
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send(*notes, notes[:2])
        await ends[1].send_eof()
        assert await raw.rest() == b""
    assert sorted(house.seen) == ["1", "1", "2", "2"]


async def test_a_batch_is_answered_as_one(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send([call("sleep", seconds=0.05), call("echo", id=2), {"jsonrpc": "2.0", "method": "note"}, 1])
        answer = await raw.line()
    assert [each["id"] for each in answer] == [1, 2, None]
    assert "result" in answer[0]


async def test_roles_and_unknown_methods(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry, Role.AGENT, agent="a", uid=7, pid=8):
        raw = Raw(ends[1])
        assert (await raw.ask("operators"))["error"]["data"]["name"] == "denied"
        assert (await raw.ask("__class__"))["error"]["code"] == -32601
        assert (await raw.ask("who"))["result"] == {"role": "agent", "agent": "a", "uid": 7, "pid": 8}


async def test_errors_of_handlers(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        refused = (await raw.ask("refuse"))["error"]
        assert (refused["code"], refused["message"]) == (-32005, "no: because")
        assert refused["data"] == {"name": "conflict", "hint": "do that", "retryable": False, "more": 5}
        assert (await raw.ask("group"))["error"]["data"]["name"] == "conflict"
        assert (await raw.ask("odd"))["error"] == {"code": -32005, "message": "'a name like \\ud800'"}
        assert (await raw.ask("echo", text=5))["error"]["code"] == -32602
        assert (await raw.ask("echo"))["result"] == {"text": ""}


@pytest.mark.parametrize("method", ["boom", "aboom", "wrong"])
async def test_what_nobody_foresaw_is_told_by_number_only(ends: Ends, house: House, method: str) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        with structlog.testing.capture_logs() as logs:
            error = (await raw.ask(method, **({"text": "canary"} if "boom" in method else {})))["error"]
        assert (await raw.ask("echo", text="still here"))["result"] == {"text": "still here"}
    assert error["code"] == -32603
    assert "canary" not in json.dumps(error)
    [entry] = [entry for entry in logs if entry["event"] == "handler failed"]
    assert entry["error_id"] == error["data"]["error_id"]
    assert "Traceback" in entry["trace"]


async def test_params_out_of_range_are_a_parse_error(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send('{"jsonrpc":"2.0","id":5,"method":"sleep","params":{"seconds":1e999}}')
        answer = await raw.line()
    assert (answer["id"], answer["error"]["code"]) == (5, -32700)


async def test_a_handler_is_cut_at_its_deadline(autojump_clock: trio.testing.MockClock, house: House) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, house.registry):
        raw = Raw(theirs)
        await raw.send(call("sleep", seconds=1000))
        before = trio.current_time()
        while not raw._received:
            raw._received += await theirs.receive_some()
        assert (await raw.line())["error"]["data"]["name"] == "timed_out"
        assert trio.current_time() - before == pytest.approx(peer_module.CALL_DEADLINE)
        assert (await raw.ask("slow"))["error"]["data"]["name"] == "timed_out"


async def test_a_frame_that_is_not_finished_ends_the_connection(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, house.registry) as peer:
        raw = Raw(theirs)
        await raw.send('{"jsonrpc"')
        for _ in range(9):  # a byte each second does not help
            await trio.sleep(1)
            await raw.send(" ")
        with trio.fail_after(2):
            assert [answer["error"]["code"] for answer in await raw.rest_lines()] == [-32700]
        await peer.closed.wait()


async def test_a_whole_message_gives_the_next_its_own_time(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    text = json.dumps(call("echo"))
    async with serving(mine, house.registry):
        raw = Raw(theirs)
        await raw.send(text[:9])
        for _ in range(5):
            await trio.sleep(8)
            await raw.send(text[9:], text[:9])
            assert "result" in await raw.line()


async def test_an_idle_connection_may_idle(autojump_clock: trio.testing.MockClock, house: House) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, house.registry):
        await trio.sleep(80_000)
        assert "result" in await Raw(theirs).ask("echo")


async def test_too_large_a_message_is_answered_and_ends_the_connection(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry):
        raw = Raw(socket_pair[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, '{"a":"' + "x" * (MAX_FRAME + 200_000))
            [answer] = await raw.rest_lines()
    assert answer["error"]["code"] == -32600
    assert answer["id"] is None


async def test_a_browser_is_told_three_times(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry):
        raw = Raw(socket_pair[1])
        await raw.send("GET / HTTP/1.1\r\n" + "Header: x\r\n" * 20)
        assert [answer["error"]["code"] for answer in await raw.rest_lines()] == [-32700] * 3


async def test_only_so_many_handlers_at_once(ends: Ends, house: House) -> None:
    count = 3 * MAX_IN_FLIGHT
    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send(*[call("sleep", id=i, seconds=0.02) for i in range(count)])
        await ends[1].send_eof()
        assert len(await raw.rest_lines()) == count
    assert house.most_running == MAX_IN_FLIGHT


async def test_only_so_many_bytes_of_params_at_once(
    socket_pair: Streams, house: House, autojump_clock: trio.testing.MockClock
) -> None:
    """Calls that wait hold what they were given: a few large ones must hold up the reader as many small ones do."""
    size = PARAMS_IN_FLIGHT // 4
    line = '{"jsonrpc":"2.0","id":1,"method":"sleep","params":{' + " " * size + '"seconds":1}}\n'
    async with serving(socket_pair[0], house.registry) as peer:
        raw = Raw(socket_pair[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, *[line] * 12)
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert house.running == 4
            for _ in range(12):
                assert (await raw.line())["result"] == {"seconds": 1}
        assert house.most_running == 4
        assert peer._params_in_flight == 0


@pytest.mark.parametrize("method", ["anote", "note"])
async def test_the_text_of_params_is_dropped_once_read(socket_pair: Streams, house: House, method: str) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        message = Request(1, b"1", method, b'{"text":"x"}', None, 0)
        peer._call(message)
        assert message.params is None
        assert (await Raw(socket_pair[1]).line())["result"] == {}


async def test_notifications_that_fail_do_not_fill_the_log(socket_pair: Streams, house: House) -> None:
    lines = ['{"jsonrpc":"2.0","method":"refuse"}\n' * 100, '{"jsonrpc":"2.0","method":"boom"}\n' * 100]
    with structlog.testing.capture_logs() as logs:
        async with serving(socket_pair[0], house.registry, role=Role.AGENT):
            raw = Raw(socket_pair[1])
            await raw.send(*lines)
            await raw.ask("echo")
    assert sorted(entry["event"] for entry in logs) == ["handler failed", "notification failed"]


async def test_an_agent_that_answers_with_a_flood_is_cut_short(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry, role=Role.AGENT) as peer:
        raw = Raw(socket_pair[1])
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def answer() -> None:
                number = (await raw.line())["id"]
                await raw.send({"jsonrpc": "2.0", "id": number, "error": {"code": 5, "message": "x" * 900_000}})

            with pytest.raises(ArmorclawError) as caught:
                await peer.request("agent.shutdown", timeout=20)
    assert len(str(caught.value)) == 200


async def test_what_is_pushed_does_not_wait_for_handlers(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry) as peer:
        raw = Raw(ends[1])
        await raw.send(*[call("sleep", id=i, seconds=60) for i in range(MAX_IN_FLIGHT + 5)])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert house.running == MAX_IN_FLIGHT
        peer.notify("event")
        assert (await raw.line())["method"] == "event"


async def test_a_reader_that_is_slow_holds_up_only_itself(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        raw = Raw(socket_pair[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: raw.send(*[call("big", id=i, size=10_000) for i in range(1000)]))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert 0 < peer._out.buffered < 2 * SOFT_LIMIT
            assert peer.room() <= 0
            for i in range(1000):
                assert (await raw.line())["id"] == i
        with trio.fail_after(20):
            await peer.wait_room()
        assert peer.room() == SOFT_LIMIT


async def test_a_reader_that_stops_is_cut(
    socket_pair: Streams, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing, "WRITE_DEADLINE", 0.1)
    async with serving(socket_pair[0], house.registry) as peer:
        await Raw(socket_pair[1]).send(call("big", size=900_000))
        with trio.fail_after(20):
            await peer.closed.wait()
        assert peer._out.buffered == 0


async def test_a_little_may_wait_for_long(
    socket_pair: Streams, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind `| less`: what it costs is bounded."""
    monkeypatch.setattr(outgoing, "WRITE_DEADLINE", 0.01)
    raw = Raw(socket_pair[1])
    async with serving(socket_pair[0], house.registry) as peer:
        await raw.send(call("big", size=400_000))
        with trio.move_on_after(0.1):  # ten times what was patience
            await peer.closed.wait()
        assert 0 < peer._out.buffered <= SOFT_LIMIT
        assert len((await raw.line())["result"]["data"]) == 400_000


async def test_a_call_too_large_to_be_sent(ends: Ends, house: House) -> None:
    async with serving(ends[0], house.registry) as one, serving(ends[1], House().registry):
        with pytest.raises(ArmorclawError) as large:
            await one.request("echo", {"text": "é" * (MAX_FRAME // 6)}, timeout=20)  # six bytes each, as ASCII
        assert large.value.name == "too_large"
        assert await one.request("echo", {"text": "small"}, timeout=20) == {"text": "small"}


async def test_pushes_beyond_every_limit_cut_the_connection(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        for _ in range(200):
            peer.push(b"x" * 65535 + b"\n")
        with trio.fail_after(20):
            await peer.closed.wait()
        peer.push(b"late\n")
        peer.notify("late")
        await peer.wait_room()
        with trio.fail_after(20):
            await Raw(socket_pair[1]).rest()


async def test_what_is_pushed_comes_whole_and_in_order(ends: Ends, house: House) -> None:
    """Whatever the socket takes at once: all of it, a part, or nothing."""
    sizes = [10, 5_000, 60_000, 1, 400_000, 3, 70_000, 20]
    frames = [b"%d " % number + b"x" * size + b"\n" for number, size in enumerate(sizes * 3)]
    async with serving(ends[0], house.registry) as peer:
        got = b""
        for number in range(0, len(frames), 3):
            peer.push(frames[number])
            peer.push_all(frames[number + 1 : number + 3])
            if number % 2:
                got += await ends[1].receive_some(65536)
        with trio.fail_after(20):
            while len(got) < sum(map(len, frames)):
                got += await ends[1].receive_some(65536)
        assert got == b"".join(frames)
        await trio.testing.wait_all_tasks_blocked()
        assert peer.room() == SOFT_LIMIT


async def test_what_a_handler_pushes_comes_in_its_place(socket_pair: Streams, house: House) -> None:
    @house.registry.method("pushes", roles=[Role.OPERATOR])
    def pushes(call: Any, params: Any) -> None:
        call.peer.push(b'{"pushed":1}\n')

    async with serving(socket_pair[0], house.registry):
        raw = Raw(socket_pair[1])
        await raw.send(call("echo", id=1, text="x"), call("pushes", id=2), call("echo", id=3, text="x"))
        assert [(await raw.line()).get("id") for _ in range(4)] == [1, None, 2, 3]


async def test_a_call_that_can_be_answered_at_once_takes_no_task(ends: Ends, house: House) -> None:
    tasks: list[trio.lowlevel.Task] = []

    def at_once(call: Any, params: Any) -> dict[str, str] | None:
        tasks.append(trio.lowlevel.current_task())
        return {"by": "at once"} if call.agent is None else None

    @house.registry.method("either", result=dict, roles=[Role.OPERATOR, Role.AGENT], quick=at_once)
    async def either(call: Any, params: Any) -> dict[str, str]:
        tasks.append(trio.lowlevel.current_task())
        return {"by": "the task"}

    async with serving(ends[0], house.registry):
        raw = Raw(ends[1])
        await raw.send(call("either"))
        assert (await raw.line())["result"] == {"by": "at once"}
    assert len(tasks) == 1
    one, two = trio.testing.memory_stream_pair()
    async with serving(one, house.registry, Role.AGENT, agent="a"):
        raw = Raw(two)
        await raw.send(call("either"))
        assert (await raw.line())["result"] == {"by": "the task"}
    assert tasks[1] is not tasks[2]


async def test_a_client_that_vanishes_before_its_answer(socket_pair: Streams, house: House) -> None:
    """The call is carried through, the connection is known to be dead at once."""
    began, free, done = trio.Event(), trio.Event(), trio.Event()

    @house.registry.method("linger", roles=[Role.OPERATOR])
    async def linger(call: Any, params: Any) -> None:
        began.set()
        await free.wait()
        done.set()

    async with serving(socket_pair[0], house.registry) as peer:
        await Raw(socket_pair[1]).send(call("linger"), call("big", size=10))
        with trio.fail_after(10):
            await began.wait()
            await socket_pair[1].aclose()
            await peer.closed.wait()
            free.set()
            await done.wait()


async def test_a_client_that_vanishes_in_the_middle_of_an_answer(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        await Raw(socket_pair[1]).send(*[call("big", size=500_000) for _ in range(4)])
        await trio.testing.wait_all_tasks_blocked(0.01)
        await socket_pair[1].receive_some(1000)
        await socket_pair[1].aclose()
        with trio.fail_after(20):
            await peer.closed.wait()


async def test_cancelled_in_the_middle_of_a_call(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("sleep", seconds=100))
        await trio.testing.wait_all_tasks_blocked(0.01)
        peer.close("the bridge is stopping")
        [answer] = await raw.rest_lines()
        assert answer["error"]["data"]["name"] == "unavailable"
        await peer.closed.wait()
    assert house.cancelled == 1


async def test_what_belongs_to_the_connection_ends_with_it(socket_pair: Streams, house: House) -> None:
    ended = trio.Event()

    async def subscription() -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.set()

    closed: list[Peer] = []
    async with serving(socket_pair[0], house.registry, on_close=closed.append) as peer:
        peer.nursery.start_soon(subscription)
        peer.at_close(lambda _: 1 / 0)
        peer.at_close(closed.append)
        await socket_pair[1].send_eof()  # it may still listen, so nothing ends yet
        await trio.sleep(0.1)
        assert not ended.is_set()
        peer.push(b"event\n")
        assert await socket_pair[1].receive_some() == b"event\n"
        with structlog.testing.capture_logs():
            await socket_pair[1].aclose()
            with trio.fail_after(20):
                await ended.wait()
                await peer.closed.wait()
        with pytest.raises(ArmorclawError):
            peer.nursery.start_soon(subscription)
    assert closed == [peer, peer]


async def test_params_that_are_handed_on_unread(socket_pair: Streams, house: House) -> None:
    seen: list[bytes] = []

    @house.registry.method("forward", raw=True, roles=[Role.OPERATOR])
    def forward(call: Any, params: bytes) -> msgspec.Raw:
        seen.append(params)
        return msgspec.Raw(params)

    async with serving(socket_pair[0], house.registry):
        raw = Raw(socket_pair[1])
        await raw.send(b'{"jsonrpc":"2.0","id":1,"method":"forward","params":{"n" : 1e999,"t":"\xc3\xa9"}}\n')
        await raw.send(b'{"jsonrpc":"2.0",\n"id":2,\n"method":"forward",\n"params":[\n1,\n2]\n}')
        await raw.send(call("forward", id=3))
        await socket_pair[1].send_eof()
        lines = (await raw.rest()).splitlines()
    assert seen == [b'{"n" : 1e999,"t":"\xc3\xa9"}', b"[\n1,\n2]", b"{}"]
    assert lines == [
        rb'{"jsonrpc":"2.0","id":1,"result":{"n" : 1e999,"t":"\u00e9"}}',
        b'{"jsonrpc":"2.0","id":2,"result":[ 1, 2]}',
        b'{"jsonrpc":"2.0","id":3,"result":{}}',
    ]


async def test_peers_call_each_other(ends: Ends, house: House) -> None:
    other = House()
    async with serving(ends[0], house.registry) as one, serving(ends[1], other.registry) as two:
        assert await one.request("echo", {"text": "there"}, timeout=20) == {"text": "there"}
        assert await two.request("echo", {"text": "and back"}, timeout=20) == {"text": "and back"}
        with pytest.raises(ArmorclawError) as refused:
            await one.request("refuse", timeout=20)
        assert (refused.value.name, refused.value.hint, refused.value.data) == ("conflict", "do that", {"more": 5})
        one.notify("note", {"text": "by the way"})
        await one.request("echo", timeout=20)
        assert other.seen == ["by the way"]
        async with trio.open_nursery() as nursery:
            for i in range(20):
                nursery.start_soon(partial(one.request, "sleep", {"seconds": i / 1000}, timeout=20))
        with pytest.raises(ArmorclawError) as late:
            await one.request("sleep", {"seconds": 60}, timeout=0.02)
        assert late.value.name == "timed_out"


async def test_a_call_nobody_waits_for_is_cancelled(ends: Ends, house: House) -> None:
    """Whether our patience ended or whoever asked was cancelled: the other side stops."""
    began, ended = trio.open_memory_channel[str](2)
    other = House()

    async def hang(call: object, params: object) -> None:
        try:
            await trio.sleep_forever()
        finally:
            began.send_nowait("stopped")

    other.registry.method("hang", roles=[Role.OPERATOR])(hang)
    async with serving(ends[0], house.registry) as one, serving(ends[1], other.registry):
        with pytest.raises(ArmorclawError):
            await one.request("hang", timeout=0.01)
        with trio.move_on_after(0.01):
            await one.request("hang", timeout=60)
        with trio.fail_after(20):
            assert [await ended.receive(), await ended.receive()] == ["stopped"] * 2


async def test_a_call_of_ours_ends_with_the_connection(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ArmorclawError) as gone:
                await peer.request("ping", timeout=10)
            assert gone.value.name == "unavailable"

        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        await socket_pair[1].send_eof()  # it cannot answer any more
        with trio.fail_after(20):
            await peer.closed.wait()
        await ask()


# descriptors


def receive(sock: socket.socket, size: int = 65536) -> tuple[bytes, list[int]]:
    data, fds, flags, _ = socket.recv_fds(sock, size, 20, socket.MSG_CMSG_CLOEXEC)
    assert not flags & socket.MSG_CTRUNC
    return data, fds


@pytest.mark.parametrize("method", ["fd", "afd"])
async def test_an_answer_brings_a_descriptor(
    socket_pair: Streams, house: House, method: str, open_fds: Callable[[], int]
) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    async with serving(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), house.registry):
        before = open_fds()
        ours.send(json.dumps(call(method, text="a secret")).encode())
        await trio.lowlevel.wait_readable(ours)
        data, fds = receive(ours)
        assert json.loads(data)["result"] == {}
        [fd] = fds
        assert os.read(fd, 100) == b"a secret"
        os.close(fd)
        assert open_fds() <= before
    ours.close()


async def test_a_descriptor_never_comes_after_its_answer(house: House) -> None:
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with ours:
        async with serving(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)), house.registry):
            calls = [call("echo"), call("fd", id=2, text="two"), call("echo", id=3), call("fd", id=4, text="four")]
            ours.send("".join(map(json.dumps, calls)).encode())
            with_fd: dict[int, str] = {}
            seen: list[int] = []
            while len(seen) < 4:
                await trio.lowlevel.wait_readable(ours)
                data, fds = receive(ours)
                ids = [json.loads(line)["id"] for line in data.splitlines()]
                seen += ids
                assert len(fds) <= 1
                for fd in fds:
                    with_fd |= dict.fromkeys(ids, os.read(fd, 10).decode())
                    os.close(fd)
    assert seen == [1, 2, 3, 4]
    assert (with_fd[2], with_fd[4]) == ("two", "four")


async def test_no_descriptor_where_none_can_go(
    house: House, socket_pair: Streams, open_fds: Callable[[], int]
) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, house.registry), serving(socket_pair[0], house.registry):
        before = open_fds()
        assert (await Raw(theirs).ask("fd", text="x"))["error"]["data"]["name"] == "invalid_request"
        raw = Raw(socket_pair[1])
        await raw.send([call("fd", text="x")])
        assert (await raw.line())[0]["error"]["data"]["name"] == "invalid_request"
        assert (await raw.ask("fd", text="boom"))["error"]["data"]["name"] == "conflict"
        await raw.send({"jsonrpc": "2.0", "method": "fd", "params": {"text": "x"}}, call("echo"))
        await raw.line()
        assert open_fds() == before


async def test_descriptors_of_a_reader_that_is_gone_are_closed(
    house: House, socket_pair: Streams, open_fds: Callable[[], int]
) -> None:
    before = open_fds()
    async with serving(socket_pair[0], house.registry) as peer:
        within = open_fds()
        await Raw(socket_pair[1]).send(call("big", size=250_000), *[call("fd", text="x")] * 5)
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_fds() == within + 5
        await socket_pair[1].aclose()
        await peer.closed.wait()
    assert open_fds() == before - 2


async def test_descriptors_sent_to_us_are_dropped(
    house: House, socket_pair: Streams, open_fds: Callable[[], int]
) -> None:
    async with serving(socket_pair[0], house.registry):
        before = open_fds()
        null = os.open("/dev/null", os.O_RDONLY)
        raw = Raw(socket_pair[1])
        for _ in range(5):
            await socket_pair[1].socket.sendmsg(
                [json.dumps(call("echo")).encode()],
                [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [null] * 253))],
            )
            assert "result" in await raw.line()
        os.close(null)
        assert open_fds() == before


async def test_nothing_is_left_of_many_connections(house: House, open_fds: Callable[[], int]) -> None:
    before = open_fds()
    for _ in range(200):
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        ours.send(json.dumps(call("echo")).encode())
        ours.shutdown(socket.SHUT_WR)
        peer = Peer(
            trio.SocketStream(trio.socket.from_stdlib_socket(theirs)),
            house.registry,
            role=Role.AGENT,
            around=Surroundings(),
        )
        await peer.serve()
        assert b"result" in ours.recv(1000)
        ours.close()
    assert open_fds() == before
