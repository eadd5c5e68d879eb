"""Deadlines, a client that goes away, answers in pieces, streams handed over; and an end at every point of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from armorclaw.web.exchange import PIPELINE_LIMIT, Exchange, WebLimits
from armorclaw.web.head import Form
from armorclaw.web.messages import HttpError, Response
from armorclaw.web.server import serve_stream
from tests.web.smuggling import GOOD, POST
from tests.web.talk import converse, echo

GET = b"GET /a?b=c HTTP/1.1\r\nHost: x\r\n\r\n"
CONNECT = b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example:443\r\n\r\n"
LIMITS = WebLimits(idle=60, head=10, body=20, write=30)

Handler = Callable[[Exchange], Awaitable[Response | None]]


class Connection:
    """One connection to the server, and what became of it."""

    def __init__(self, nursery: trio.Nursery, handler: Handler, **more: Any) -> None:
        self.ours, theirs = trio.testing.memory_stream_pair()
        self.scope = trio.CancelScope()
        self.ended = trio.Event()
        nursery.start_soon(self._serve, theirs, handler, more)

    async def _serve(self, stream: trio.abc.Stream, handler: Handler, more: dict[str, Any]) -> None:
        with self.scope:
            await serve_stream(stream, handler, limits=LIMITS, **more)
        self.ended.set()

    async def all(self) -> bytes:
        """Until it is closed."""
        return b"".join([bytes(data) async for data in self.ours])


async def tick(ours: Any, data: bytes, pause: float) -> None:
    try:
        for at in range(len(data)):
            await ours.send_all(data[at : at + 1])
            await trio.sleep(pause)
    except trio.BrokenResourceError:
        pass  # it was cut


# -- time


async def test_a_slow_head_is_cut(nursery: trio.Nursery, autojump_clock: object) -> None:
    connection = Connection(nursery, echo)
    await trio.sleep(30)  # idle is no crime yet
    began = trio.current_time()
    nursery.start_soon(tick, connection.ours, GET, 3)
    assert (await connection.all()).startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)


async def test_a_slow_body_is_cut(nursery: trio.Nursery, autojump_clock: object) -> None:
    connection = Connection(nursery, echo)
    began = trio.current_time()
    await connection.ours.send_all(POST + b"Content-Length: 100\r\n\r\n")
    nursery.start_soon(tick, connection.ours, b"x" * 50, 1)
    assert (await connection.all()).startswith(b"HTTP/1.1 408 ")
    assert trio.current_time() - began == pytest.approx(20, abs=0.1)


@pytest.mark.parametrize("before", [b"", GET])
async def test_an_idle_connection_is_closed(before: bytes, nursery: trio.Nursery, autojump_clock: object) -> None:
    connection = Connection(nursery, echo)
    if before:
        await connection.ours.send_all(before)
    said = await connection.all()
    assert trio.current_time() == pytest.approx(60, abs=0.1)
    assert said.count(b"HTTP/1.1 ") == bool(before)


async def test_a_client_that_does_not_read_is_cut(nursery: trio.Nursery, autojump_clock: object) -> None:
    ours, theirs = trio.testing.lockstep_stream_pair()
    failed = trio.Event()

    async def long(exchange: Exchange) -> None:
        try:
            async with exchange.streaming() as send:
                while True:
                    await send(b"x" * 1000)
        finally:
            failed.set()

    began = trio.current_time()
    nursery.start_soon(lambda: serve_stream(theirs, long, limits=LIMITS))
    await ours.send_all(GET)
    await failed.wait()
    assert trio.current_time() - began == pytest.approx(30)


# -- the client


async def test_the_handler_is_cancelled_when_the_client_leaves(nursery: trio.Nursery, autojump_clock: object) -> None:
    began, cancelled = trio.Event(), trio.Event()

    async def wait(exchange: Exchange) -> None:
        began.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    connection = Connection(nursery, wait)
    await connection.ours.send_all(GET)
    await began.wait()
    await connection.ours.aclose()
    with trio.fail_after(1):
        await cancelled.wait()
        await connection.ended.wait()


async def test_the_client_is_watched_once_its_body_is_read(nursery: trio.Nursery, autojump_clock: object) -> None:
    cancelled = trio.Event()

    async def wait(exchange: Exchange) -> None:
        assert await exchange.body() == b'{"model":"small","messages":[]}'
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    connection = Connection(nursery, wait)
    await connection.ours.send_all(GOOD)
    await trio.testing.wait_all_tasks_blocked()
    await connection.ours.aclose()
    with trio.fail_after(1):
        await cancelled.wait()


async def test_who_sends_too_much_ahead_is_cut(nursery: trio.Nursery, autojump_clock: object) -> None:
    async def wait(exchange: Exchange) -> None:
        await trio.sleep_forever()

    connection = Connection(nursery, wait)
    await connection.ours.send_all(GET + b"x" * PIPELINE_LIMIT)
    with trio.move_on_after(1):
        await connection.ended.wait()
    assert not connection.ended.is_set()
    await connection.ours.send_all(b"x")
    with trio.fail_after(1):
        assert await connection.all() == b""


async def test_half_a_request_and_gone(nursery: trio.Nursery, autojump_clock: object) -> None:
    for sent in (
        b"",
        GET[:10],
        POST + b"Content-Length: 5\r\n\r\nab",
        POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\n",
    ):
        connection = Connection(nursery, echo)
        await connection.ours.send_all(sent)
        await connection.ours.send_eof()
        assert await connection.all() == b""


# -- answers


async def test_in_pieces(autojump_clock: object) -> None:
    async def count(exchange: Exchange) -> None:
        async with exchange.streaming(200, (("content-type", "text/event-stream"),)) as send:
            for number in range(3):
                await send(b"%d\n" % number)

    answer = await converse([GET, GET], count)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert answer.raw == (head + b"2\r\n0\n\r\n2\r\n1\n\r\n2\r\n2\n\r\n0\r\n\r\n") * 2
    assert not answer.closed


async def test_pieces_that_end_early_are_no_whole(autojump_clock: object) -> None:
    async def fail(exchange: Exchange) -> None:
        async with exchange.streaming() as send:
            await send(b"1")
            raise HttpError(502, "upstream broke")

    answer = await converse([GET], fail)
    assert answer.raw.endswith(b"\r\n\r\n1\r\n1\r\n")
    assert answer.closed


async def test_to_head_no_body_is_sent(autojump_clock: object) -> None:
    async def pieces(exchange: Exchange) -> Response | None:
        if exchange.request.path == "/plain":
            return Response.plain(200, "1234")
        async with exchange.streaming() as send:
            await send(b"1234")
        return None

    answer = await converse(
        [b"HEAD /plain HTTP/1.1\r\nHost: x\r\n\r\n", b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n"], pieces
    )
    assert answer.statuses == [200, 200]
    assert b"content-length: 4\r\n" in answer.raw
    assert b"1234" not in answer.raw


async def test_what_a_handler_sees(autojump_clock: object) -> None:
    seen: list[Any] = []

    async def look(exchange: Exchange) -> Response:
        request = exchange.request
        seen.extend([request.method, request.path, request.query, request.header("x-a"), request.header("x-b")])
        seen.append(await exchange.body())
        return Response(204)

    sent = b"GET /a%2Fb/../c?d=%20e HTTP/1.1\r\nHOST: x\r\nX-a: 1\r\nX-B:  2\t \r\nx-b: 3\r\n\r\n"
    answer = await converse([sent], look)
    assert seen == ["GET", "/a%2Fb/../c", "d=%20e", "1", None, b""]  # nothing decoded, nothing resolved
    assert answer.raw == b"HTTP/1.1 204 No Content\r\n\r\n"


async def test_a_refusal_goes_on_if_all_was_read(autojump_clock: object) -> None:
    async def refuse(exchange: Exchange) -> Response:
        if exchange.request.method == "GET":
            raise HttpError(404, "there is nothing", headers=(("x-a", "b"),))
        raise HttpError(403, "not you")

    answer = await converse([GET, GET, GOOD, GET], refuse)
    assert answer.statuses == [404, 404, 403]  # the body of the third was not read
    assert answer.closed
    assert b"x-a: b\r\n" in answer.raw
    assert b"armorclaw: there is nothing\n" in answer.raw


async def test_a_larger_body_where_the_handler_allows_it(autojump_clock: object) -> None:
    async def take(exchange: Exchange) -> Response:
        return Response.plain(200, str(len(await exchange.body(2_000_000))))

    long = POST + b"Content-Length: 1500000\r\n\r\n" + b"x" * 1_500_000
    assert (await converse([long], take)).raw.endswith(b"1500000")
    assert (await converse([long])).statuses == [413]


async def test_a_fault_of_ours_is_500_and_no_trace(autojump_clock: object) -> None:
    async def fail(exchange: Exchange) -> Response:
        raise KeyError("a secret")

    with structlog.testing.capture_logs() as logs:
        answer = await converse([GET, GET], fail)
    assert answer.statuses == [500, 500]
    assert b"secret" not in answer.raw
    assert [(each["event"], "KeyError" in each["trace"]) for each in logs] == [("request failed", True)]


async def test_words_beside_the_status(autojump_clock: object) -> None:
    async def answer_so(exchange: Exchange) -> Response:
        return Response(403, reason="no, because\r\nX-Evil: ẋ")

    assert (await converse([GET], answer_so)).raw.startswith(b"HTTP/1.1 403 no, because??X-Evil: ?\r\n")


# -- streams handed over


async def tunnel(exchange: Exchange) -> None:
    stream, early = await exchange.take_over(200, reason="Connection established")
    await stream.send_all(b"early:" + early)
    while data := await stream.receive_some():
        await stream.send_all(bytes(data).upper())


@pytest.mark.parametrize("version", [b"1.1", b"1.0"])
async def test_connect(version: bytes, nursery: trio.Nursery, autojump_clock: object) -> None:
    """As Python's own client asks before 3.12, too: HTTP/1.0 and no Host."""
    connect = CONNECT if version == b"1.1" else b"CONNECT a.example:443 HTTP/1.0\r\n\r\n"
    connection = Connection(nursery, tunnel, accepts={Form.AUTHORITY})
    await connection.ours.send_all(connect + b"hello")
    await trio.testing.wait_all_tasks_blocked()
    await connection.ours.send_all(b"there\r\n\r\n\0")
    await trio.testing.wait_all_tasks_blocked()
    await connection.ours.send_eof()
    said = await connection.all()
    head, _, rest = said.partition(b"\r\n\r\n")
    assert head.lower() in (
        b"http/1.1 200 connection established",
        b"http/1.1 200 connection established\r\nconnection: close",
    )
    assert rest == b"early:helloTHERE\r\n\r\n\0"


async def test_an_upgrade(nursery: trio.Nursery, autojump_clock: object) -> None:
    async def upgrade(exchange: Exchange) -> None:
        stream, early = await exchange.take_over(101, (("upgrade", "echo"), ("connection", "upgrade")))
        await stream.send_all(early or b"none")

    connection = Connection(nursery, upgrade)
    await connection.ours.send_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n")
    said = await connection.all()
    assert said.startswith(b"HTTP/1.1 101 Switching Protocols\r\n")
    assert said.endswith(b"\r\n\r\nnone")


async def test_a_stream_taken_over_is_not_watched(nursery: trio.Nursery, autojump_clock: object) -> None:
    """What comes late is the handler's, none of it lost to whoever looked whether the client is still there."""

    async def slow(exchange: Exchange) -> None:
        await trio.sleep(5)
        await tunnel(exchange)

    connection = Connection(nursery, slow, accepts={Form.AUTHORITY})
    await connection.ours.send_all(CONNECT)
    for letter in b"abcdefghij":
        await connection.ours.send_all(bytes([letter]))
        await trio.sleep(1)
    await connection.ours.send_eof()
    assert (await connection.all()).partition(b"\r\n\r\n")[2].lower() == b"early:abcdefghij"


# -- an end at every point


async def _nothing(ours: Any) -> None:
    pass


def _sends(*pieces: bytes) -> Callable[[Any], Awaitable[None]]:
    async def send(ours: Any) -> None:
        for piece in pieces:
            await ours.send_all(piece)
            await trio.testing.wait_all_tasks_blocked()

    return send


async def _sleeps(exchange: Exchange) -> None:
    await trio.sleep_forever()


async def _streams(exchange: Exchange) -> None:
    async with exchange.streaming() as send:
        while True:
            await send(b"x" * 1000)


PHASES: dict[str, tuple[Handler, Callable[[Any], Awaitable[None]]]] = {
    "idle": (echo, _nothing),
    "in the head": (echo, _sends(GET[:9])),
    "in the body": (echo, _sends(POST + b"Content-Length: 9\r\n\r\nabc")),
    "in a chunk": (echo, _sends(POST + b"Transfer-Encoding: chunked\r\n\r\n9\r\nabc")),
    "in the handler": (_sleeps, _sends(GET)),
    "in an answer nobody reads": (_streams, _sends(GET)),
    "between two requests": (echo, _sends(GET)),
    "lingering": (echo, _sends(b"nonsense\r\n")),
    "in a tunnel": (tunnel, _sends(CONNECT)),
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["cancelled", "left"])
async def test_the_end(phase: str, how: str, nursery: trio.Nursery, autojump_clock: object) -> None:
    """Nothing holds up the end of the server, and the end of a client is noticed wherever it comes."""
    handler, begin = PHASES[phase]
    ours, theirs = (
        trio.testing.lockstep_stream_pair() if "nobody reads" in phase else trio.testing.memory_stream_pair()
    )
    done = trio.Event()
    scope = trio.CancelScope()

    async def serve() -> None:
        with scope:
            await serve_stream(theirs, handler, accepts=frozenset(Form))
        done.set()

    nursery.start_soon(serve)
    await begin(ours)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    if how == "cancelled":
        scope.cancel()
    else:
        await ours.aclose()
    await done.wait()
    assert trio.current_time() == began
    with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
        await theirs.send_all(b"x")  # it is closed
