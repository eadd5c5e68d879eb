"""A registry to call, and a raw client that sees every byte."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import EVERYONE, NoParams, Registry, Role


@attrs.frozen
class Text:
    text: str = ""


@attrs.frozen
class Seconds:
    seconds: float = 1.0


@attrs.frozen
class Size:
    size: int


class House:
    """Methods to try a peer with, and what they saw."""

    def __init__(self) -> None:
        self.registry = Registry()
        self.seen: list[str] = []
        self.running = 0
        self.most_running = 0
        self.cancelled = 0
        self.idle = trio.Event()
        self.callers: list[Call] = []
        method = self.registry.method
        method("echo", params=Text, result=Text, roles=EVERYONE)(self.echo)
        method("sleep", params=Seconds, result=Seconds, roles=EVERYONE)(self.sleep)
        method("note", params=Text, roles=EVERYONE)(self.note)
        method("anote", params=Text, roles=EVERYONE)(self.anote)
        method("boom", params=Text, roles=EVERYONE)(self.boom)
        method("aboom", params=Text, roles=EVERYONE)(self.aboom)
        method("refuse", roles=EVERYONE)(self.refuse)
        method("odd", roles=EVERYONE)(self.odd)
        method("group", roles=EVERYONE)(self.group)
        method("slow", roles=EVERYONE)(self.slow)
        method("wrong", roles=EVERYONE)(self.wrong)
        method("fd", params=Text, roles=EVERYONE)(self.fd)
        method("afd", params=Text, roles=EVERYONE)(self.afd)
        method("big", params=Size, result=dict, roles=EVERYONE)(self.big)
        method("operators", roles=[Role.OPERATOR])(self.note)
        method("who", result=dict, roles=EVERYONE)(self.who)

    def echo(self, call: Call, params: Text) -> Text:
        return params

    async def sleep(self, call: Call, params: Seconds) -> Seconds:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            await trio.sleep(params.seconds)
            self.seen.append(f"slept {params.seconds:g}")
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1
            if not self.running:
                self.idle.set()
        return params

    def note(self, call: Call, params: Text) -> None:
        self.seen.append(params.text)

    async def anote(self, call: Call, params: Text) -> None:
        self.seen.append(params.text)

    def boom(self, call: Call, params: Text) -> None:
        raise RuntimeError(f"it burst: {params.text}")

    async def aboom(self, call: Call, params: Text) -> None:
        raise RuntimeError(f"it burst: {params.text}")

    def refuse(self, call: Call, params: NoParams) -> None:
        raise ArmorclawError("conflict", "no", why="because", hint="do that", more=5)

    def odd(self, call: Call, params: NoParams) -> None:
        raise ArmorclawError("conflict", "a name like \ud800", more=object())

    async def group(self, call: Call, params: NoParams) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._refuse)

    async def _refuse(self) -> None:
        raise ArmorclawError("conflict", "no")

    async def slow(self, call: Call, params: NoParams) -> None:
        with trio.fail_after(1):
            await trio.sleep_forever()

    def wrong(self, call: Call, params: NoParams) -> object:
        return {"a": object()}

    def fd(self, call: Call, params: Text) -> None:
        call.attach_fd(memory_file(params.text))
        if params.text == "boom":
            raise ArmorclawError("conflict", "no")

    async def afd(self, call: Call, params: Text) -> None:
        await trio.lowlevel.checkpoint()
        call.attach_fd(memory_file(params.text))

    def big(self, call: Call, params: Size) -> dict[str, Any]:
        return {"data": "x" * params.size}

    def who(self, call: Call, params: NoParams) -> dict[str, Any]:
        self.callers.append(call)
        return {"role": call.role, "agent": call.agent, "uid": call.uid, "pid": call.pid}


def memory_file(text: str) -> int:
    fd = os.memfd_create("test")
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


class Raw:
    """The other end, byte by byte."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._received = b""

    async def send(self, *messages: Any) -> None:
        """Text and bytes as they are, anything else as a line of JSON."""
        data = b""
        for message in messages:
            if isinstance(message, str):
                data += message.encode()
            elif isinstance(message, bytes):
                data += message
            else:
                data += json.dumps(message).encode() + b"\n"
        await self.stream.send_all(data)

    async def line(self) -> Any:
        """The next line, decoded; fails after 20 s."""
        with trio.fail_after(20):
            while b"\n" not in self._received:
                data = await self.stream.receive_some(65536)
                assert data, f"the stream ended after {self._received[:100]!r}"
                self._received += data
        line, self._received = self._received.split(b"\n", 1)
        assert line.isascii()
        return json.loads(line)

    async def rest(self) -> bytes:
        """Everything until the other side closes."""
        data = self._received
        with trio.fail_after(20):
            while more := await self.stream.receive_some(65536):
                data += more
        self._received = b""
        return data

    async def rest_lines(self) -> list[Any]:
        return [json.loads(line) for line in (await self.rest()).splitlines()]

    async def ask(self, method: str, **params: Any) -> Any:
        await self.send(call(method, **params))
        return await self.line()


def call(method: str, id: Any = 1, **params: Any) -> dict[str, Any]:  # noqa: A002
    return {"jsonrpc": "2.0", "id": id, "method": method, **({"params": params} if params else {})}


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture
def around() -> Surroundings:
    return Surroundings()


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
async def socket_pair() -> AsyncIterator[tuple[trio.SocketStream, trio.SocketStream]]:
    """Two ends of a Unix connection."""
    ends = []
    for end in socket.socketpair():
        end.setblocking(False)
        ends.append(trio.SocketStream(trio.socket.from_stdlib_socket(end)))
    yield ends[0], ends[1]
    for stream in ends:
        await trio.aclose_forcefully(stream)


@pytest.fixture
def open_fds() -> Callable[[], int]:
    return lambda: len(os.listdir("/proc/self/fd"))
