from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.blocking import Connection, call
from armorclaw.rpc.call import Call
from armorclaw.rpc.flow import WINDOW
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from tests.rpc.conftest import House


async def test_calls_a_bridge(short: Path, house: House) -> None:
    def ask() -> None:
        path = str(short / "s")
        assert call(path, "echo", {"text": "é"}) == {"text": "é"}
        assert call(path, "note") == {}
        assert len(call(path, "big", {"size": 1_000_000})["data"]) == 1_000_000
        with pytest.raises(ArmorclawError) as refused:
            call(path, "refuse")
        assert (refused.value.name, refused.value.hint, refused.value.data) == ("conflict", "do that", {"more": 5})
        with pytest.raises(ArmorclawError) as late:
            call(path, "sleep", {"seconds": 60}, timeout=0.1)
        assert late.value.name == "timed_out"

    listener = bind_unix(short / "s")
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_unix(
                listener, house.registry, role=Role.OPERATOR, around=Surroundings(), task_status=task_status
            )
        )
        await trio.to_thread.run_sync(ask)
        nursery.cancel_scope.cancel()


def failure(path: Path, timeout: float = 20.0) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        call(str(path), "status", timeout=timeout)
    assert all(caught.value.lines())
    return caught.value


def test_who_has_to_wait_to_be_let_in_waits(short: Path) -> None:
    """In the kernel's queue, as long as a call may take: a backlog is full whenever many come at once."""
    path = str(short / "s")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)  # the backlog is full now
        began = time.monotonic()
        error = failure(short / "s", timeout=0.2)
        assert (error.name, error.why) == ("timed_out", "it is too busy")
        assert time.monotonic() - began > 0.19

        def serve() -> None:
            listener.accept()[0].close()  # the one who was first
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.send(b'{"jsonrpc":"2.0","id":1,"result":{}}\n')

        thread = threading.Timer(0.2, serve)
        thread.start()
        assert call(path, "status", timeout=20.0) == {}
        thread.join()


async def test_nothing_there(short: Path) -> None:
    assert failure(short / "s").name == "daemon_unreachable"
    assert failure(short / "x" / "s").name == "daemon_unreachable"
    bind_unix(short / "s").socket.close()
    assert failure(short / "s").name == "daemon_unreachable"
    assert failure(short / ("x" * 200)).name == "path_too_long"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user for a moment: sudo pytest")
async def test_not_for_this_user(short: Path) -> None:
    listener = bind_unix(short / "s")
    program = f"""
import os, sys
sys.path[:0] = {sys.path!r}
import armorclaw.rpc.denied, armorclaw.rpc.failure
from armorclaw.rpc.blocking import call
os.setgid(12345)
os.setuid(12345)
try:
    call({str(short / "s")!r}, "x")
except armorclaw.rpc.failure.ArmorclawError as error:
    print(error.name)
"""
    done = await trio.run_process([sys.executable, "-c", program], capture_stdout=True)
    assert done.stdout == b"socket_denied\n"
    await listener.aclose()


@contextmanager
def server(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens, but is no bridge."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_a_bridge_that_ends_in_the_middle(short: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.send(b'{"jsonrpc":')

    with server(short / "s", answer):
        assert failure(short / "s").name == "unavailable"


def test_an_answer_in_small_pieces_does_not_stretch_the_time(short: Path) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        try:
            while not threading.Event().wait(0.02):
                connection.send(b" ")
        except OSError:
            pass

    with server(short / "s", answer):
        assert failure(short / "s", timeout=0.2).name == "timed_out"


@asynccontextmanager
async def bridge_at(path: Path, registry: Registry) -> AsyncIterator[None]:
    listener = bind_unix(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_unix(
                listener, registry, role=Role.OPERATOR, around=Surroundings(), task_status=task_status
            )
        )
        yield
        nursery.cancel_scope.cancel()


class Counting:
    """A method that streams numbers, and how far it got."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.sent = 0
        self.cancelled = trio.Event()
        self.registry.method("count", result=dict, chunk=int, roles=[Role.OPERATOR])(self.count)
        self.registry.method("fail", result=dict, chunk=int, roles=[Role.OPERATOR])(self.fail)
        self.registry.method("plain", result=dict, roles=[Role.OPERATOR])(self.plain)

    async def count(self, call: Call, params: object) -> dict[str, int]:
        """Count to a hundred."""
        try:
            for number in range(100):
                await call.send(number)
                self.sent = number + 1
            call.progress(100, 100, "all of them")
            return {"sent": self.sent}
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def fail(self, call: Call, params: object) -> dict[str, int]:
        """Send one, and fail."""
        await call.send(1)
        raise ArmorclawError("conflict", "no more")

    def plain(self, call: Call, params: object) -> dict[str, int]:
        """No stream."""
        return {"plain": 1}


async def test_a_stream_in_its_pieces(short: Path) -> None:
    """Many times the window, so credit is granted; then other calls on the same connection."""
    counting = Counting()

    def take() -> None:
        with Connection(short / "s") as bridge:
            messages = list(bridge.stream("count"))
            chunks = [each["params"]["data"] for each in messages if each.get("method") == "$/chunk"]
            assert chunks == list(range(100))
            assert messages[-2]["params"] == {"id": 1, "done": 100, "total": 100, "message": "all of them"}
            assert messages[-1]["result"] == {"sent": 100}
            assert [each["result"] for each in bridge.stream("plain")] == [{"plain": 1}]
            assert bridge.call("plain") == {"plain": 1}
            stream = bridge.stream("fail")
            assert next(stream)["params"]["data"] == 1
            with pytest.raises(ArmorclawError) as refused:
                next(stream)
            assert refused.value.name == "conflict"
            assert bridge.call("plain") == {"plain": 1}

    async with bridge_at(short / "s", counting.registry):
        await trio.to_thread.run_sync(take)


async def test_a_reader_that_stops_holds_the_sender(short: Path) -> None:
    """At its window; and closing the stream cancels the call, though the connection stays."""
    counting = Counting()
    async with bridge_at(short / "s", counting.registry):
        bridge = await trio.to_thread.run_sync(Connection, short / "s")
        with bridge:
            stream = bridge.stream("count")
            await trio.to_thread.run_sync(next, stream)
            for _ in range(20):  # each a chance for the sender to go on
                assert await trio.to_thread.run_sync(bridge.call, "plain") == {"plain": 1}
            assert counting.sent == WINDOW
            stream.close()
            with trio.fail_after(20):
                await counting.cancelled.wait()


@pytest.mark.parametrize(
    "line, name",
    [
        (b'{"jsonrpc":"2.0","method":"$/chunk","params":{"id":1,"seq":1,"data":0}}', "remote_failed"),
        (b'{"jsonrpc":"2.0","method":"$/chunk","params":{"id":1,"data":0}}', "remote_failed"),
        (b"HTTP/1.1 400 Bad Request", "unavailable"),
        (b"[]", "unavailable"),
        (b"[" * 100_000, "unavailable"),
        (b'{"jsonrpc":"2.0","id":1,"error":"no"}', "remote_failed"),
        (b'{"jsonrpc":"2.0","id":1,"error":{"code":5,"message":"x"}}', "remote_failed"),
    ],
)
def test_something_that_is_no_bridge(short: Path, line: bytes, name: str) -> None:
    def answer(connection: socket.socket) -> None:
        connection.recv(1000)
        connection.sendall(line + b"\n")
        connection.recv(1000)

    with server(short / "s", answer), Connection(short / "s", timeout=20) as bridge:
        with pytest.raises(ArmorclawError) as caught:
            list(bridge.stream("x"))
    assert caught.value.name == name


def test_what_the_import_brings() -> None:
    """The command line waits for it: nothing but the standard library, and little of that."""
    program = "import sys, armorclaw.rpc.blocking; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"trio", "attrs", "attr", "msgspec", "cattrs", "structlog", "armorclaw.rpc.framing", "asyncio", "re2"}
    assert not heavy & set(modules)
