"""The caller's side of streams, peer to peer."""

from __future__ import annotations

import base64
import hashlib
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import BYTES_MAX, CHUNK_MAX, WINDOW
from armorclaw.rpc.local import LocalStream
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.stream import Stream
from armorclaw.rpc.streaming import MAX_STREAMS
from armorclaw.rpc.unix import bind_unix, serve_unix
from tests.rpc.conftest import Raw
from tests.rpc.streaming_house import StreamingHouse
from tests.rpc.test_streaming import note, serving

Ends = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]
Streams = tuple[trio.SocketStream, trio.SocketStream]
Taking = Stream | LocalStream


@pytest.fixture
def streaming() -> StreamingHouse:
    return StreamingHouse()


@pytest.fixture(params=["memory", "socket", "listener"])
async def client(
    request: pytest.FixtureRequest, socket_pair: Streams, streaming: StreamingHouse, short: Path
) -> AsyncIterator[Peer]:
    """A peer whose other side has the methods."""
    async with trio.open_nursery() as nursery:
        if request.param == "listener":
            listener = bind_unix(short / "s")
            serve = partial(
                serve_unix, listener, streaming.registry, role=Role.OPERATOR, around=Surroundings(), path=short / "s"
            )
            await nursery.start(serve)
            mine: trio.abc.Stream = await trio.open_unix_socket(short / "s")
        else:
            mine, theirs = trio.testing.memory_stream_pair() if request.param == "memory" else socket_pair
            peer = Peer(theirs, streaming.registry, role=Role.OPERATOR, around=Surroundings())
            await nursery.start(peer.serve)
        async with serving(mine, Registry()) as client:
            yield client
        nursery.cancel_scope.cancel()


async def settled(streaming: StreamingHouse) -> None:
    with trio.fail_after(20):
        while streaming.running:
            await trio.testing.wait_all_tasks_blocked(0.001)


async def take_all(stream: Taking, into: list[Any] | None = None) -> None:
    async for piece in stream:
        if into is not None:
            into.append(piece)


async def pour(stream: Taking) -> None:
    while True:
        await stream.send(0)


async def test_pieces_then_a_result(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("count", {"count": 50}) as stream:
        assert [number async for number in stream] == list(range(50))
        assert await stream.result() == {"count": 50, "size": 0, "digest": ""}
        assert await stream.result() == {"count": 50, "size": 0, "digest": ""}
        assert [number async for number in stream] == []


async def test_pieces_as_the_caller_wants_them(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("items", {"count": 1}) as stream:
        assert [item async for item in stream] == [{"name": "é0", "size": 0}]
    for kind, expected in ((Any, "AAA="), (bytes, b"\0\0")):
        async with client.stream("blob", {"count": 1, "size": 2}, chunk=kind) as stream:
            assert [piece async for piece in stream] == [expected]
    async with client.stream("blob", {"count": 1, "size": 2}, chunk=msgspec.Raw) as stream:
        assert [bytes(piece) async for piece in stream] == [b'"AAA="']
    async with client.stream("count", {"count": 1}, chunk=bytes) as stream:
        with pytest.raises(ArmorclawError, match="not what it should be") as odd:
            await stream.__anext__()
        assert odd.value.name == "remote_failed"


async def test_large_pieces_of_bytes_are_decoded_as_they_come(client: Peer, streaming: StreamingHouse) -> None:
    """In one pass; others wait as text."""
    for kind, expected in ((bytes, bytes), (Any, msgspec.Raw)):
        async with client.stream("blob", {"count": 1, "size": BYTES_MAX}, chunk=kind) as stream:
            with trio.fail_after(20):
                while not stream._in._pieces:
                    await trio.testing.wait_all_tasks_blocked(0.001)
            assert type(stream._in._pieces[0]) is expected
            assert len(await stream.__anext__()) == (BYTES_MAX if kind is bytes else CHUNK_MAX)


async def test_the_result_alone(client: Peer, streaming: StreamingHouse) -> None:
    """Nobody iterates, and yet the other side gets its credit."""
    async with client.stream("count", {"count": 100}) as stream:
        assert (await stream.result())["count"] == 100


async def test_a_method_that_does_not_stream(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("plain", {"count": 3}) as stream:
        assert [piece async for piece in stream] == []
        assert (await stream.result())["count"] == 3


async def test_much_arrives_whole_both_ways(client: Peer, streaming: StreamingHouse) -> None:
    size, count = BYTES_MAX - 7, 40
    digest = hashlib.sha256()
    async with client.stream("blob", {"count": count, "size": size}, chunk=bytes) as stream:
        async for piece in stream:
            digest.update(piece)
        assert await stream.result() == {"count": count, "size": size * count, "digest": digest.hexdigest()}
    digest = hashlib.sha256()
    async with client.stream("keep") as stream:
        for _ in range(count):
            piece = os.urandom(size)
            digest.update(piece)
            await stream.send(piece)
        await stream.end()
        assert await stream.result() == {"count": count, "size": size * count, "digest": digest.hexdigest()}


async def test_eight_at_once_in_both_directions(client: Peer, streaming: StreamingHouse) -> None:
    """Large pieces cross each other; neither end may wait for the other to read first."""
    count = 24
    done = []

    async def mirror(number: int) -> None:
        sent = bytes([number]) * BYTES_MAX
        async with client.stream("mirror", chunk=bytes) as stream, trio.open_nursery() as nursery:

            @nursery.start_soon
            async def feed() -> None:
                for _ in range(count):
                    await stream.send(sent)
                await stream.end()

            async for piece in stream:
                assert piece == sent
            done.append((await stream.result())["count"])

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for number in range(MAX_STREAMS):
                nursery.start_soon(mirror, number)
    assert done == [count] * MAX_STREAMS


async def test_both_ends_stream_to_each_other(socket_pair: Streams) -> None:
    houses = StreamingHouse(), StreamingHouse()
    got = []

    async def take(peer: Peer) -> None:
        async with peer.stream("blob", {"count": 60, "size": BYTES_MAX}, chunk=bytes) as stream:
            got.append(len([piece async for piece in stream]))

    async with serving(socket_pair[0], houses[0].registry) as one, serving(socket_pair[1], houses[1].registry) as two:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for peer in (one, two) * 4:
                    nursery.start_soon(take, peer)
    assert got == [60] * 8


async def test_a_slow_consumer_holds_the_writer_at_its_window(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("forever") as stream:
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert streaming.sent == WINDOW
        assert len(stream._in._pieces) == WINDOW
        for number in range(WINDOW // 2 - 1):
            assert await stream.__anext__() == number
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert streaming.sent == WINDOW
        assert await stream.__anext__() == WINDOW // 2 - 1
        await trio.testing.wait_all_tasks_blocked(0.02)
        assert streaming.sent == WINDOW + WINDOW // 2
    await settled(streaming)


async def test_a_slow_taker_holds_its_uploader_at_its_window(client: Peer, streaming: StreamingHouse) -> None:
    sent = 0
    async with client.stream("never") as stream, trio.open_nursery() as nursery:

        async def send() -> None:
            nonlocal sent
            while True:
                await stream.send(1)
                sent += 1

        nursery.start_soon(send)
        with trio.fail_after(20):
            while sent < WINDOW:
                await trio.testing.wait_all_tasks_blocked(0.001)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert sent == WINDOW
        nursery.cancel_scope.cancel()
    await settled(streaming)


async def test_an_error_after_pieces(client: Peer, streaming: StreamingHouse) -> None:
    got: list[Any] = []
    async with client.stream("refuse") as stream:
        with pytest.raises(ArmorclawError) as refused:
            await take_all(stream, got)
        assert (refused.value.name, refused.value.hint) == ("conflict", "do that")
        with pytest.raises(ArmorclawError, match="no"):
            await stream.result()
    assert got == [1]


async def test_a_call_that_cannot_be_made(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("nothing") as stream:
        with pytest.raises(ArmorclawError) as unknown:
            await stream.result()
        assert unknown.value.name == "method_not_found"


@pytest.mark.parametrize("way", ["break", "raise", "cancel", "nothing"])
async def test_leaving_early_cancels_the_handler(client: Peer, streaming: StreamingHouse, way: str) -> None:
    try:
        with trio.CancelScope() as scope:
            async with client.stream("forever") as stream:
                if way == "cancel":
                    scope.cancel()
                if way != "nothing":
                    async for number in stream:
                        if number == 20 and way == "raise":
                            raise LeaveError
                        if number == 20:
                            break
    except LeaveError:
        assert way == "raise"
    await settled(streaming)
    assert streaming.cancelled in (["forever"], [])  # it may not have begun
    assert (await client.request("plain", timeout=20))["count"] == 3


class LeaveError(Exception):
    pass


async def test_an_upload_and_what_came_of_it(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("sum") as stream:
        for number in range(100):
            await stream.send(number)
        await stream.end()
        assert await stream.result() == {"count": 100, "size": 4950, "digest": ""}


async def test_an_upload_that_is_refused_midway(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("first") as stream:
        with pytest.raises(ArmorclawError, match="not 0"), trio.fail_after(20):
            await pour(stream)
        with pytest.raises(ArmorclawError, match="not 0"):
            await stream.result()
        await stream.end()


async def test_an_upload_of_which_less_was_enough(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("enough") as stream:
        with trio.fail_after(20):
            for number in range(100):
                await stream.send(number)
            await stream.end()
        assert (await stream.result())["count"] == 1


async def test_a_piece_that_is_too_large_to_upload(client: Peer, streaming: StreamingHouse) -> None:
    async with client.stream("keep") as stream:
        with pytest.raises(ArmorclawError) as large:
            await stream.send(b"x" * (BYTES_MAX + 1))
        assert large.value.name == "too_large"
        await stream.send(b"x" * BYTES_MAX)
        await stream.end()
        assert (await stream.result())["count"] == 1


async def test_progress_is_told_to_who_waits(client: Peer, streaming: StreamingHouse) -> None:
    told: list[tuple[float, float | None, str]] = []

    def note_down(done: float, total: float | None, message: str) -> None:
        told.append((done, total, message))

    async with client.stream("report", {"count": 3, "size": 1}, on_progress=note_down) as stream:
        assert [piece async for piece in stream] == [0]
    assert told[-1:] == [(3, None, "")]
    assert set(told) <= {(0, 3, "x"), (1, 3, "x"), (2, 3, "x"), (3, None, "")}

    def upset(*news: object) -> None:
        raise RuntimeError("the caller's own")

    async with client.stream("report", on_progress=upset) as stream:
        with pytest.raises(RuntimeError, match="own"):
            await stream.result()
    assert (await client.request("plain", timeout=20))["count"] == 3


@pytest.mark.parametrize("act", ["iterate", "result", "send"])
async def test_the_end_of_the_connection_ends_the_stream(
    socket_pair: Streams, streaming: StreamingHouse, act: str
) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x") as stream:
            number = (await raw.line())["id"]
            await raw.send(note("chunk", number, seq=0, data=5))
            async with trio.open_nursery() as nursery:

                @nursery.start_soon
                async def leave() -> None:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                    await socket_pair[1].send_eof()

                if act == "iterate":
                    assert await stream.__anext__() == 5
                acts: dict[str, Callable[[Stream], Awaitable[Any]]] = {
                    "iterate": take_all,
                    "result": Stream.result,
                    "send": pour,
                }
                with pytest.raises(ArmorclawError) as gone:
                    await acts[act](stream)
                assert gone.value.name == "unavailable"
        with pytest.raises(ArmorclawError):
            async with client.stream("x"):
                raise AssertionError("there is nobody to call")


MISUSE: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "seq": [("chunk", {"seq": 1, "data": 1})],
    "too many": [("chunk", {"seq": seq, "data": 1}) for seq in range(WINDOW + 1)],
    "too large": [("chunk", {"seq": 0, "data": "x" * 300_000})],
    "no data": [("chunk", {"seq": 0})],
    "credit": [("uploadCredit", {"chunks": "5"})],
}


async def test_what_comes_behind_the_answer_takes_nothing_from_it(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x") as stream:
            number = (await raw.line())["id"]
            await raw.send(note("chunk", number, seq=0, data="a", end=True))  # an end is of uploads
            await raw.send({"jsonrpc": "2.0", "id": number, "result": "good"})
            await raw.send(note("chunk", number, seq=1, data="b"), note("uploadCredit", number, chunks="x"))
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert [piece async for piece in stream] == ["a"]
            assert await stream.result() == "good"


async def test_an_end_in_a_piece_of_a_result_means_nothing(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x") as stream:
            number = (await raw.line())["id"]
            await raw.send(note("chunk", number, seq=0, data="a", end=True), note("chunk", number, seq=1, data="b"))
            assert [await anext(stream), await anext(stream)] == ["a", "b"]


async def test_the_first_broken_rule_is_the_one_that_is_told(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x") as stream:
            number = (await raw.line())["id"]
            await raw.send(*[note("chunk", number, seq=seq, data=1) for seq in range(WINDOW + 3)])
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(ArmorclawError, match=f"more pieces came than were granted, {WINDOW}"):
                await stream.result()
        assert await raw.line() == note("cancelRequest", number)


@pytest.mark.parametrize("case", MISUSE)
async def test_a_callee_that_breaks_the_rules_is_given_up(socket_pair: Streams, case: str) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x") as stream:
            number = (await raw.line())["id"]
            for name, params in MISUSE[case]:
                await raw.send(note(name, number, **params))
            await trio.testing.wait_all_tasks_blocked(0.01)
            with pytest.raises(ArmorclawError, match="broke the rules of streams") as broken:
                await take_all(stream)
            assert broken.value.name == "remote_failed"
            with pytest.raises(ArmorclawError, match="broke the rules"):
                await stream.send(1)
        while (line := await raw.line())["method"] == "$/credit":
            pass
        assert line == note("cancelRequest", number)


@pytest.mark.parametrize(
    "params", [{"done": "1"}, {"done": True}, {}, {"done": 1, "total": "2"}, {"done": 1, "message": 5}]
)
async def test_progress_that_is_none_is_ignored(socket_pair: Streams, params: dict[str, Any]) -> None:
    told: list[Any] = []
    async with serving(socket_pair[0], Registry()) as client:
        raw = Raw(socket_pair[1])
        async with client.stream("x", on_progress=lambda *news: told.append(news)) as stream:
            number = (await raw.line())["id"]
            await raw.send(note("progress", number, **params), {"jsonrpc": "2.0", "id": number, "result": 1})
            assert await stream.result() == 1
    assert told == []


async def test_the_bytes_of_a_caller(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as client:
        async with client.stream("x", {"a": 1}) as stream:
            await stream.send(b"abc")
            await stream.send({"é": math.pi})
            await stream.end()
        data = b""
        while data.count(b"\n") < 5:
            data += await socket_pair[1].receive_some()
    assert data.splitlines() == [
        b'{"jsonrpc":"2.0","id":1,"method":"x","params":{"a":1}}',
        b'{"jsonrpc":"2.0","method":"$/upload","params":{"id":1,"seq":0,"data":"%s"}}' % base64.b64encode(b"abc"),
        b'{"jsonrpc":"2.0","method":"$/upload","params":{"id":1,"seq":1,"data":{"\\u00e9":3.141592653589793}}}',
        b'{"jsonrpc":"2.0","method":"$/upload","params":{"id":1,"seq":2,"end":true}}',
        b'{"jsonrpc":"2.0","method":"$/cancelRequest","params":{"id":1}}',
    ]


async def test_nothing_is_left_of_many_streams(
    client: Peer, streaming: StreamingHouse, open_fds: Callable[[], int]
) -> None:
    before = open_fds()
    tasks = trio.lowlevel.current_statistics().tasks_living
    for _ in range(50):
        async with client.stream("count", {"count": 3}) as stream:
            await stream.result()
        async with client.stream("forever"):
            pass
        async with client.stream("never") as stream:
            await stream.send(1)
    await client.request("plain", timeout=20)
    await settled(streaming)
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert trio.lowlevel.current_statistics().tasks_living == tasks
    assert open_fds() == before
