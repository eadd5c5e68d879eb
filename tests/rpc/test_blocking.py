from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.blocking import call
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from tests.rpc.conftest import House


async def test_calls_a_bridge(short: Path, house: House) -> None:
    def ask() -> None:
        path = str(short / "s")
        assert call(path, "echo", {"text": "é"}) == {"text": "é"}
        assert call(path, "note") == {}
        assert len(call(path, "big", {"size": 3_000_000})["data"]) == 3_000_000
        with pytest.raises(ArmorclawError) as refused:
            call(path, "refuse")
        assert (refused.value.name, refused.value.hint, refused.value.data) == ("conflict", "do that", {"more": 5})
        with pytest.raises(ArmorclawError) as late:
            call(path, "sleep", {"seconds": 5}, timeout=0.1)
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


def failure(path: Path, timeout: float = 1.0) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        call(str(path), "status", timeout=timeout)
    assert all(caught.value.lines())
    return caught.value


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
import armorclaw.rpc.failure
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


def test_what_the_import_brings() -> None:
    """The command line waits for it: nothing but the standard library, and little of that."""
    program = "import sys, armorclaw.rpc.blocking; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"trio", "attrs", "attr", "msgspec", "cattrs", "structlog", "armorclaw.rpc.framing", "asyncio", "re2"}
    assert not heavy & set(modules)
