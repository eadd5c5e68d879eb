"""The callee's side of streams: what a raw client sees, and what its handlers live through."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.rpc import peer as peer_module
from armorclaw.rpc.flow import BYTES_MAX, CHUNK_MAX, WINDOW
from armorclaw.rpc.peer import HOLD_LIMIT, STREAM_ROOM, Peer
from armorclaw.rpc.registry import Method, Registry, Role
from armorclaw.rpc.streaming import MAX_STREAMS
from tests.rpc.conftest import Raw, call
from tests.rpc.streaming_house import StreamingHouse

Ends = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]
Streams = tuple[trio.SocketStream, trio.SocketStream]


def note(name: str, id: Any = 1, **params: Any) -> dict[str, Any]:  # noqa: A002
    return {"jsonrpc": "2.0", "method": f"$/{name}", "params": {"id": id, **params}}


@pytest.fixture
def streaming() -> StreamingHouse:
    return StreamingHouse()


@pytest.fixture(params=["memory", "socket"])
async def ends(request: pytest.FixtureRequest, socket_pair: Streams) -> Ends:
    return trio.testing.memory_stream_pair() if request.param == "memory" else socket_pair


@asynccontextmanager
async def serving(stream: trio.abc.Stream, registry: Registry, **more: Any) -> AsyncIterator[Peer]:
    """A peer that must have nothing left of its streams when its connection has ended."""
    peer = Peer(stream, registry, role=Role.OPERATOR, around=Surroundings(), **more)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.serve)
        yield peer
        nursery.cancel_scope.cancel()
    streams = peer._streams
    assert (streams.calls, streams.made, streams._running, streams._faults, streams._late) == ({}, {}, {}, {}, {})
    assert (peer._in_flight, len(peer._asking)) == (0, 0)


async def still_works(raw: Raw) -> None:
    """And nothing came meanwhile."""
    answer = await raw.ask("plain", count=7)
    assert answer == {"jsonrpc": "2.0", "id": 1, "result": {"count": 7, "size": 0, "digest": ""}}


# pieces of a result


async def test_pieces_come_before_the_answer(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("count", id="a", count=2))
        lines = [await raw.line() for _ in range(3)]
        await still_works(raw)
    assert lines == [
        note("chunk", "a", seq=0, data=0),
        note("chunk", "a", seq=1, data=1),
        {"jsonrpc": "2.0", "id": "a", "result": {"count": 2, "size": 0, "digest": ""}},
    ]


async def test_the_bytes_of_a_stream(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry):
        await Raw(socket_pair[1]).send('{"jsonrpc":"2.0","id":"\xe9","method":"items","params":{"count":1}}')
        data = b""
        while data.count(b"\n") < 2:
            data += await socket_pair[1].receive_some()
    assert data == (
        b'{"jsonrpc":"2.0","method":"$/chunk","params":{"id":"\\u00e9","seq":0,"data":{"name":"\\u00e90","size":0}}}\n'
        b'{"jsonrpc":"2.0","id":"\\u00e9","result":{}}\n'
    )


async def test_bytes_are_base64(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("blob", count=2, size=BYTES_MAX))
        for seq in range(2):
            params = (await raw.line())["params"]
            assert (params["seq"], len(params["data"])) == (seq, CHUNK_MAX)
            assert base64.b64decode(params["data"]) == bytes([seq]) * BYTES_MAX
        assert (await raw.line())["result"]["size"] == 2 * BYTES_MAX


async def test_without_credit_a_window_comes_and_no_more(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("count", count=20))
        for credit in (0, 3, 1, 100):
            if credit:
                await raw.send(note("credit", chunks=credit))
            await trio.testing.wait_all_tasks_blocked(0.01)
            expected = {0: WINDOW, 3: WINDOW + 3, 1: WINDOW + 4, 100: 20}[credit]
            assert streaming.sent == expected
        assert [(await raw.line())["params"]["data"] for _ in range(20)] == list(range(20))
        assert (await raw.line())["result"]["count"] == 20


async def test_a_half_closed_caller_gets_all_of_it(ends: Ends, streaming: StreamingHouse) -> None:
    """As of socat: it can grant nothing."""
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("count", count=500))
        await ends[1].send_eof()
        lines = await raw.rest_lines()
    assert [line["params"]["data"] for line in lines[:-1]] == list(range(500))
    assert lines[-1]["result"]["count"] == 500


async def test_a_half_closed_caller_that_does_not_read_holds_the_sender(
    socket_pair: Streams, streaming: StreamingHouse
) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        await Raw(socket_pair[1]).send(call("texts", count=1000, size=50_000))
        await socket_pair[1].send_eof()
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert 0 < streaming.sent < 50
        assert peer._out.buffered <= peer_module.SOFT_LIMIT - STREAM_ROOM + 51_000


async def test_a_slow_reader_holds_the_writer_at_the_connections_room(
    socket_pair: Streams, streaming: StreamingHouse
) -> None:
    """Credit for everything does not fill the memory of the bridge."""
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("blob", count=100, size=BYTES_MAX), note("credit", chunks=100))
        most = 0
        for _ in range(100):
            await trio.testing.wait_all_tasks_blocked(0)
            most = max(most, peer._out.buffered)
            assert (await raw.line())["method"] == "$/chunk"
        assert 0 < most < HOLD_LIMIT
        assert "result" in await raw.line()


async def test_a_stream_does_not_hold_up_other_calls(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("forever", id=5))
        for seq in range(WINDOW):
            assert (await raw.line())["params"]["seq"] == seq
        await still_works(raw)


async def test_a_piece_that_is_too_large_is_the_handlers_error(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("texts", count=1, size=CHUNK_MAX))
        assert len((await raw.line())["params"]["data"]) == CHUNK_MAX
        await raw.line()
        assert (await raw.ask("texts", count=1, size=CHUNK_MAX + 1))["error"]["data"]["name"] == "too_large"
        assert (await raw.ask("blob", count=1, size=BYTES_MAX + 1))["error"]["data"]["limit"] == CHUNK_MAX
        await still_works(raw)


async def test_errors_after_pieces(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        assert (await raw.ask("refuse"))["params"]["data"] == 1
        assert (await raw.line())["error"]["data"]["name"] == "conflict"
        with structlog.testing.capture_logs():
            assert (await raw.ask("boom"))["params"]["data"] == 1
            assert (await raw.line())["error"]["code"] == -32603
            assert (await raw.ask("confused"))["error"]["code"] == -32603
        await still_works(raw)


async def test_a_plain_method_may_not_stream(streaming: StreamingHouse) -> None:
    from armorclaw.rpc.call import Call

    plain: Any = Call(None, "x")  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="x was registered"):
        await plain.send(1)
    with pytest.raises(RuntimeError, match="x was registered"):
        plain.progress(1)
    with pytest.raises(RuntimeError, match="x was registered"):
        plain.uploads()
    with pytest.raises(TypeError, match="not async"):
        Method("x", lambda call, params: None, chunk=int)


async def test_a_stream_has_no_deadline(autojump_clock: trio.testing.MockClock, streaming: StreamingHouse) -> None:
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, streaming.registry):
        raw = Raw(theirs)
        await raw.send(call("asleep", id=5))
        await trio.sleep(100 * peer_module.CALL_DEADLINE)
        await still_works(raw)
        assert streaming.running == 1


async def test_what_a_stream_was_called_with_does_not_hold_up_the_reader(
    socket_pair: Streams, streaming: StreamingHouse
) -> None:
    """Else its credit would never be read."""
    pad = " " * (peer_module.PARAMS_IN_FLIGHT // 2)
    async with serving(socket_pair[0], streaming.registry):
        raw = Raw(socket_pair[1])
        for number in (1, 2):
            await raw.send(f'{{"jsonrpc":"2.0","id":{number},"method":"count","params":{{"count":9{pad}}}}}\n')
        await raw.send(note("credit", 1, chunks=1), note("credit", 2, chunks=1))
        answers = [line for line in [await raw.line() for _ in range(20)] if "result" in line]
        assert [answer["result"]["count"] for answer in answers] == [9, 9]


# progress


async def test_progress(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("report", count=2, size=3))
        assert [await raw.line() for _ in range(4)] == [
            note("progress", done=0, total=2, message="xxx"),
            note("progress", done=1, total=2, message="xxx"),
            note("progress", done=2),
            note("chunk", seq=0, data=0),
        ]
        assert (await raw.line())["result"] == {}


async def test_the_newest_progress_replaces_what_could_not_be_sent(
    socket_pair: Streams, streaming: StreamingHouse
) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("report", count=10_000, size=200))
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert peer._out.buffered < peer_module.SOFT_LIMIT + 1000
        seen = []
        while (line := await raw.line()).get("method") == "$/progress":
            seen.append(line["params"]["done"])
        assert seen[0] == 0
        assert seen[-1] == 10_000
        assert 100 < len(seen) < 5000
        assert seen == sorted(set(seen))
        assert line["method"] == "$/chunk"
        assert (await raw.line())["result"] == {}


# uploads


async def test_an_upload(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("sum"), *[note("upload", seq=seq, data=seq) for seq in range(WINDOW)])
        assert await raw.line() == note("uploadCredit", chunks=4)
        assert await raw.line() == note("uploadCredit", chunks=4)
        await raw.send(note("upload", seq=8, data=50, end=None), note("upload", seq=9, data=50, end=True))
        assert (await raw.line())["result"] == {"count": 10, "size": 128, "digest": ""}


async def test_the_end_of_an_upload_may_come_alone_and_costs_no_credit(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        notes = [note("upload", seq=seq, data=1) for seq in range(WINDOW)]
        await raw.send(call("sum"), *notes, note("upload", seq=WINDOW, end=True))
        while (line := await raw.line()).get("method"):
            assert line["method"] == "$/uploadCredit"
        assert line["result"]["count"] == WINDOW
        await raw.send(call("keep"), note("upload", seq=0, end=True))
        assert (await raw.line())["result"]["count"] == 0


async def test_an_upload_of_bytes(ends: Ends, streaming: StreamingHouse) -> None:
    data = base64.b64encode(b"ab" * (BYTES_MAX // 2)).decode()
    escaped = '"Y\\u0057I\\u003D"'
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, call("keep"), note("upload", seq=0, data=data))
            await trio.testing.wait_all_tasks_blocked(0.01)
        last = json.dumps(note("upload", seq=1, data=5, end=True)).replace(" 5", escaped)
        await raw.send(last)
        assert (await raw.line())["result"]["size"] == BYTES_MAX + 2


async def test_an_uploaded_piece_is_of_its_class(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("take"), note("upload", seq=0, data={"name": "é", "size": 2}))
        await raw.send(note("upload", seq=1, data={"name": "x", "siz": 2}, end=True))
        error = (await raw.line())["error"]
        assert (error["data"]["name"], error["data"]["fields"]) == ("invalid_params", ["siz"])
        assert [type(item).__name__ for item in streaming.got] == ["Item"]


async def test_an_upload_both_ways(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("twice"))
        for seq in range(3):
            await raw.send(note("upload", seq=seq, data=seq))
            assert await raw.line() == note("chunk", seq=seq, data=2 * seq)
        await raw.send(note("upload", seq=3, end=True))
        assert (await raw.line())["result"] == {}


async def test_an_answer_before_the_upload_has_ended(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("first"), *[note("upload", seq=seq, data=seq) for seq in range(5)])
        assert (await raw.line())["error"]["message"] == "not 0"
        await raw.send(note("upload", seq=5, data=5))  # it could not know
        await still_works(raw)


async def test_an_upload_cut_short(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("sum"), note("upload", seq=0, data=7))
        await ends[1].send_eof()
        [answer] = await raw.rest_lines()
        assert answer["error"]["message"] == "the upload to sum was cut short"
        assert streaming.got == [7]


async def test_an_upload_that_nobody_reads_costs_a_window(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("never"), *[note("upload", seq=seq, data=seq) for seq in range(WINDOW)])
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert len(peer._streams.calls[1]._in._pieces) == WINDOW
        await raw.send(note("upload", seq=WINDOW, data=1))
        assert "than were granted" in (await raw.line())["error"]["message"]


# breaking the rules

MISUSE = {
    "seq from 1": ("sum", [note("upload", seq=1, data=1)], "seq 0 was due"),
    "seq twice": ("sum", [note("upload", seq=0, data=1), note("upload", seq=0, data=1)], "seq 1 was due"),
    "seq is missing": ("sum", [note("upload", data=1)], "seq 0 was due"),
    "seq is a text": ("sum", [note("upload", seq="0", data=1)], "seq 0 was due"),
    "too many": ("never", [note("upload", seq=seq, data=1) for seq in range(9)], "than were granted, 8"),
    "too large": ("never", [note("upload", seq=0, data="x" * (CHUNK_MAX + 1))], "larger than 262144 bytes"),
    "no data": ("sum", [note("upload", seq=0)], "has no data"),
    "end is a number": ("sum", [note("upload", seq=0, end=1)], "end is true or false"),
    "end is a text": ("sum", [note("upload", seq=0, data=1, end="true")], "end is true or false"),
    "end is a list": ("never", [note("upload", seq=0, data=1, end=[])], "end is true or false"),
    "end is null": ("sum", [note("upload", seq=0, end=None)], "has no data"),
    "end with a wrong seq": ("sum", [note("upload", seq=3, end=True)], "the end with seq 0"),
    "after the end": ("never", [note("upload", seq=0, end=True), note("upload", seq=1, data=1)], "after the last"),
    "not what it takes": ("sum", [note("upload", seq=0, data="x")], "must be a whole number"),
    "not base64": ("keep", [note("upload", seq=0, data="%%%%")], "is not base64"),
    "half of base64": ("keep", [note("upload", seq=0, data="QUJ")], "is not base64"),
    "base64 over two lines": ("keep", [note("upload", seq=0, data="QUJD\nQUJD")], "is not base64"),
    "bytes as a number": ("keep", [note("upload", seq=0, data=5)], "is not base64"),
    "it takes none": ("forever", [note("upload", seq=0, data=5)], "takes no pieces"),
    "credit of 0": ("forever", [note("credit", chunks=0)], "credit is a whole number"),
    "credit below 0": ("forever", [note("credit", chunks=-5)], "credit is a whole number"),
    "credit is a text": ("forever", [note("credit", chunks="5")], "credit is a whole number"),
    "credit is missing": ("forever", [note("credit")], "credit is a whole number"),
    "credit of too much": ("forever", [note("credit", chunks=2**53)], "credit is a whole number"),
}

UNUSABLE = ("must be a whole number", "is not base64")  # found by whoever takes the piece


@pytest.mark.parametrize("case", MISUSE)
async def test_misuse_ends_the_call_and_nothing_else(
    socket_pair: Streams, streaming: StreamingHouse, case: str
) -> None:
    method, notes, words = MISUSE[case]
    async with serving(socket_pair[0], streaming.registry):
        raw = Raw(socket_pair[1])
        rest = [] if words in UNUSABLE else notes  # is ignored
        sent = [call(method), *notes, *rest]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, *sent)
            while (line := await raw.line()).get("method"):
                assert line["method"] in ("$/chunk", "$/uploadCredit")
        assert line["id"] == 1
        assert line["error"]["data"]["name"] == "invalid_params"
        assert words in line["error"]["message"]
        assert streaming.running == 0
        await raw.send(*notes)
        await still_works(raw)


@pytest.mark.parametrize(
    "line",
    [
        note("credit", 77, chunks=1),
        note("upload", 77, seq=0, data=1),
        note("uploadCredit", 77, chunks=1),
        note("chunk", 77, seq=0, data=1),
        note("progress", 77, done=1),
        note("cancelRequest", 77),
        note("cancelRequest", True),  # not the call 1
        note("cancelRequest", {"a": 1}),
        note("cancelRequest", [1]),
        note("cancelRequest", 1.5),
        note("nothing", 1),
        {"jsonrpc": "2.0", "method": "$/cancelRequest"},
        {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": {}},
        {"jsonrpc": "2.0", "method": "$/cancelRequest", "params": [1]},
        {"jsonrpc": "2.0", "method": "$/", "params": {"id": 1}},
        '{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1e999}}\n',
    ],
    ids=json.dumps,
)
async def test_what_means_nothing_is_ignored(socket_pair: Streams, streaming: StreamingHouse, line: Any) -> None:
    async with serving(socket_pair[0], streaming.registry):
        raw = Raw(socket_pair[1])
        with structlog.testing.capture_logs() as logs:
            await raw.send(call("asleep"), line)
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert streaming.running == 1
        assert logs == []
        await raw.send(call("plain", id=2))
        assert (await raw.line())["id"] == 2


async def test_a_request_is_no_notification(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry):
        raw = Raw(socket_pair[1])
        await raw.send({"id": 5, **note("cancelRequest")})
        assert (await raw.line())["error"]["code"] == -32601


async def test_only_so_many_streams(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(*[call("asleep", id=number) for number in range(MAX_STREAMS + 1)])
        answer = await raw.line()
        assert (answer["id"], answer["error"]["data"]["name"]) == (MAX_STREAMS, "queue_full")
        await raw.send(note("cancelRequest", 3))
        assert (await raw.line())["id"] == 3
        await raw.send(call("count", id="new", count=1))
        assert (await raw.line())["params"] == {"id": "new", "seq": 0, "data": 0}


@pytest.mark.parametrize("method", ["asleep", "plain", "wait"])
async def test_an_id_in_use_is_refused(ends: Ends, streaming: StreamingHouse, method: str) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("asleep", id="a"), call(method, id="a"))
        assert (await raw.line())["error"]["data"]["name"] == "invalid_request"
        await trio.testing.wait_all_tasks_blocked()
        assert streaming.running == 1
        await raw.send(note("cancelRequest", "a"))
        assert (await raw.line())["error"]["data"]["name"] == "cancelled"
        await raw.send(call("count", id="a", count=1))  # free again
        assert (await raw.line())["params"] == {"id": "a", "seq": 0, "data": 0}


async def test_a_text_is_no_number_among_ids(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("asleep", id="1"), call("asleep", id=1), call("asleep", id=None))
        for number in ("1", None, 1):
            await raw.send(note("cancelRequest", number))
            assert (await raw.line())["id"] == number


async def test_streams_neither_in_a_batch_nor_as_a_notification(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send([call("count"), call("plain", id=2)])
        first, second = await raw.line()
        assert first["error"]["data"]["name"] == "invalid_request"
        assert second["result"]["count"] == 3
        await raw.send({"jsonrpc": "2.0", "method": "count"})
        await still_works(raw)
        assert streaming.sent == 0


# cancellation


@pytest.mark.parametrize(
    "method, phase",
    [
        ("forever", "waits for credit"),
        ("sum", "waits for a piece"),
        ("asleep", "waits for something else"),
        ("wait", "plain"),
    ],
)
async def test_a_call_is_cancelled_wherever_it_waits(
    ends: Ends, streaming: StreamingHouse, method: str, phase: str
) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call(method, id="c"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert streaming.running == 1
        await raw.send(note("cancelRequest", "c"), note("cancelRequest", "c"))
        while (line := await raw.line()).get("method") == "$/chunk":
            pass
        assert (line["id"], line["error"]["code"], line["error"]["data"]["name"]) == ("c", -32800, "cancelled")
        assert line["error"]["data"]["retryable"] is False
        assert streaming.cancelled == [method]
        assert streaming.running == 0
        await still_works(raw)


async def test_a_call_is_cancelled_while_it_waits_for_room(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("texts", count=50, size=100_000), note("credit", chunks=50))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert peer.room() < STREAM_ROOM
        await raw.send(note("cancelRequest"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert streaming.cancelled == ["texts"]
        while (line := await raw.line()).get("method") == "$/chunk":
            pass
        assert line["error"]["data"]["name"] == "cancelled"


@pytest.mark.parametrize("method", ["forever", "wait"])
async def test_a_cancellation_may_overtake_the_handlers_first_step(
    ends: Ends, streaming: StreamingHouse, method: str
) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call(method), note("cancelRequest"))
        assert (await raw.line())["error"]["data"]["name"] == "cancelled"
        assert streaming.sent == 0


async def test_a_cancellation_that_comes_too_late_is_ignored(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("count", count=1))
        assert "method" in await raw.line()
        assert "result" in await raw.line()
        await raw.send(note("cancelRequest"))
        await still_works(raw)
        await raw.send(note("cancelRequest"))
        await still_works(raw)


async def test_a_handler_that_ends_all_the_same_has_its_answer(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("stubborn"))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await raw.send(note("cancelRequest"))
        assert (await raw.line())["result"] == {}


async def test_calls_in_a_batch_are_cancelled_one_by_one(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send([call("wait", id=1), call("plain", id=2), note("cancelRequest", 1)])
        first, second = await raw.line()
        assert (first["id"], first["error"]["data"]["name"]) == (1, "cancelled")
        assert second["result"]["count"] == 3


async def test_who_uses_one_id_for_several_calls_cancels_them_all(ends: Ends, streaming: StreamingHouse) -> None:
    async with serving(ends[0], streaming.registry):
        raw = Raw(ends[1])
        await raw.send(call("wait"), call("wait"), call("wait", id=2))
        await trio.testing.wait_all_tasks_blocked(0.01)
        await raw.send(note("cancelRequest"))
        assert [(await raw.line())["error"]["code"] for _ in range(2)] == [-32800] * 2
        assert streaming.running == 1


async def test_the_deadline_is_no_cancellation(
    autojump_clock: trio.testing.MockClock, streaming: StreamingHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peer_module, "CALL_DEADLINE", 2)
    mine, theirs = trio.testing.memory_stream_pair()
    async with serving(mine, streaming.registry):
        raw = Raw(theirs)
        await raw.send(call("wait"))
        assert (await raw.line())["error"]["data"]["name"] == "timed_out"


# the end of the connection


@pytest.mark.parametrize("method", ["forever", "asleep", "sum", "texts"])
async def test_streams_end_with_their_connection(
    socket_pair: Streams, streaming: StreamingHouse, method: str
) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        more = {"count": 100, "size": 100_000} if method == "texts" else {}
        await raw.send(call(method, **more))
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert streaming.running == 1
        await socket_pair[1].aclose()
        with trio.fail_after(20):
            await peer.closed.wait()
        assert streaming.running == 0


async def test_a_half_closed_caller_that_leaves_ends_its_streams(
    socket_pair: Streams, streaming: StreamingHouse
) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        await Raw(socket_pair[1]).send(call("asleep"))
        await socket_pair[1].send_eof()
        with trio.fail_after(20):
            while not streaming.running:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert streaming.running == 1
        await socket_pair[1].aclose()
        with trio.fail_after(20):
            await peer.closed.wait()
        assert streaming.cancelled == ["asleep"]


@pytest.mark.parametrize(("method", "logged"), [("both", []), ("slips", ["handler failed"])])
async def test_who_leaves_in_the_middle_fails_its_call_and_not_the_connection(
    socket_pair: Streams, streaming: StreamingHouse, method: str, logged: list[str]
) -> None:
    """A handler with a nursery has two ends then: the upload is cut short, and the connection is cancelled."""
    with structlog.testing.capture_logs() as logs:
        async with serving(socket_pair[0], streaming.registry) as peer:
            await Raw(socket_pair[1]).send(call(method))
            await trio.testing.wait_all_tasks_blocked(0.01)
            await socket_pair[1].aclose()
            with trio.fail_after(20):
                await peer.closed.wait()
            assert streaming.running == 0
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == logged


async def test_a_bridge_that_stops_says_so(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("asleep"), call("sum", id=2))
        await trio.testing.wait_all_tasks_blocked(0.01)
        peer.close("the bridge is stopping")
        assert {line["error"]["data"]["name"] for line in await raw.rest_lines()} == {"unavailable"}


async def test_a_broken_message_ends_streams_with_an_answer(socket_pair: Streams, streaming: StreamingHouse) -> None:
    async with serving(socket_pair[0], streaming.registry) as peer:
        raw = Raw(socket_pair[1])
        await raw.send(call("asleep", id=9))
        await raw.send("!\n!\n!\n")
        lines = await raw.rest_lines()
        await peer.closed.wait()
    assert [line["error"]["code"] for line in lines] == [-32700] * 3 + [-32002]
    assert lines[-1]["id"] == 9
