"""Connections of a real socket: how many, from whom, how fast; and that one hurts no other."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.rpc.unix import PeerCredentials, bind_unix
from armorclaw.web.exchange import Exchange, WebLimits
from armorclaw.web.messages import Response
from armorclaw.web.server import TURN_AWAYS, serve_http
from tests.web.smuggling import POST
from tests.web.talk import echo

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.fixture
def path() -> Iterator[Path]:
    with TemporaryDirectory(prefix="ac-", dir="/tmp") as folder:
        yield Path(folder) / "s"


@asynccontextmanager
async def serving(path: Path, handler: Any = echo, **more: Any) -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        listener = bind_unix(path)
        await nursery.start(
            lambda task_status: serve_http(listener, handler, name="web", task_status=task_status, **more)
        )
        yield nursery
        nursery.cancel_scope.cancel()


async def ask(path: Path, data: bytes = GET) -> bytes:
    async with await trio.open_unix_socket(path) as stream:
        await stream.send_all(data)
        return bytes(await stream.receive_some())


async def test_a_page(path: Path) -> None:
    async with serving(path):
        assert (await ask(path)).startswith(b"HTTP/1.1 200 OK\r\n")


async def test_who_may_not_is_told_before_a_byte_is_read(path: Path) -> None:
    seen: list[PeerCredentials] = []

    def allow(peer: PeerCredentials) -> bool:
        seen.append(peer)
        return False

    async with serving(path, allow=allow):
        async with await trio.open_unix_socket(path) as stream:
            said = b"".join([bytes(data) async for data in stream])  # nothing is sent
    assert said.startswith(b"HTTP/1.1 403 ")
    assert (seen[0].pid, seen[0].uid) == (os.getpid(), os.getuid())


async def test_one_too_many_is_told_so(path: Path) -> None:
    async with serving(path, limits=WebLimits(connections=2)):
        async with await trio.open_unix_socket(path), await trio.open_unix_socket(path):
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert (await ask(path)).startswith(b"HTTP/1.1 503 ")
        with trio.fail_after(5):
            while not (await ask(path)).startswith(b"HTTP/1.1 200 "):
                pass


async def test_who_comes_while_another_ends_waits_for_its_place(path: Path) -> None:
    async with serving(path, limits=WebLimits(connections=1, room=30.0)):
        first = await trio.open_unix_socket(path)
        await trio.testing.wait_all_tasks_blocked(0.01)
        async with await trio.open_unix_socket(path) as second:
            await second.send_all(GET)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await first.aclose()
            with trio.fail_after(5):
                assert (await second.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_nobody_waits_for_a_place_for_long(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with serving(path, limits=WebLimits(connections=1, room=3.0)):
        async with await trio.open_unix_socket(path):
            began = trio.current_time()
            assert (await ask(path)).startswith(b"HTTP/1.1 503 ")
            assert 3.0 <= trio.current_time() - began < 4.0


async def test_its_end_is_the_end_of_who_waits_for_a_place(path: Path) -> None:
    async with serving(path, limits=WebLimits(connections=0, room=30.0)) as nursery:
        async with await trio.open_unix_socket(path) as stream:
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True), trio.fail_after(5):
                assert await stream.receive_some() == b""


async def test_many_too_many_are_closed(path: Path) -> None:
    async with serving(path, limits=WebLimits(connections=0)):
        clients = [await trio.open_unix_socket(path) for _ in range(TURN_AWAYS + 2)]
        await trio.testing.wait_all_tasks_blocked(0.01)
        said = [bytes(await client.receive_some()) for client in clients]
        assert [bool(each) for each in said] == [True] * TURN_AWAYS + [False] * 2
        for client in clients:
            await client.aclose()


async def test_accepting_can_be_slowed(path: Path, autojump_clock: trio.testing.MockClock) -> None:
    pauses = iter([0.0, 3.0, 0.0, 0.0])
    async with serving(path, pause=lambda: next(pauses)):
        began = trio.current_time()
        await ask(path)
        await ask(path)
        assert trio.current_time() - began >= 3.0


async def test_a_fault_stays_with_its_connection(path: Path) -> None:
    async def handle(exchange: Exchange) -> Response:
        if exchange.request.method == "POST":
            raise RuntimeError
        return await echo(exchange)

    async with serving(path, handle):
        async with await trio.open_unix_socket(path) as other:
            await other.send_all(GET)
            await other.receive_some()
            assert (await ask(path, POST + b"\r\n")).startswith(b"HTTP/1.1 500 ")
            await other.send_all(GET)
            assert (await other.receive_some()).startswith(b"HTTP/1.1 200 ")


async def test_who_is_refused_while_it_sends_can_read_why() -> None:
    """Over TCP, where closing before all was read would reset the connection and take the answer back."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    port = listener.socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve_http(listener, echo, name="web", task_status=task_status))

        def upload() -> bytes:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.sendall(POST + b"Content-Length: 3000000\r\n\r\n" + b"x" * 3_000_000)
                return client.recv(4096)

        assert (await trio.to_thread.run_sync(upload)).startswith(b"HTTP/1.1 413 ")
        nursery.cancel_scope.cancel()
