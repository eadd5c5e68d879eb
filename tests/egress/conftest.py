"""A door of real parts: its socket, a store, hosts on this machine, and names that mean what a test says."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import attrs
import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.egress.door import EgressDoor
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.hosts import Address
from armorclaw.rpc.unix import PeerCredentials, bind_unix
from armorclaw.store import Database
from tests.containers.fakes import declared
from tests.events.inline_store import InlineDatabase


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, that an agent's uid may pass through."""
    with TemporaryDirectory(prefix="ac-", dir="/tmp") as made:
        Path(made).chmod(0o711)
        yield Path(made)


class Names:
    """A resolver: each name has a list of answers, given in turn, the last one for ever."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Sequence[str] | OSError]] = {}
        self.asked: list[str] = []
        self.hangs = False

    async def __call__(self, host: str, port: int, places: trio.CapacityLimiter) -> list[Address]:
        await trio.lowlevel.checkpoint()
        self.asked.append(host)
        if self.hangs:
            await trio.sleep_forever()
        answers = self.answers.get(host, [socket.gaierror(-2, "Name or service not known")])
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return [ip_address(text) for text in answer]


@attrs.define
class House:
    """What stands around one door."""

    path: Path
    nursery: trio.Nursery
    names: Names = attrs.field(factory=Names)
    inline: InlineDatabase = attrs.field(factory=InlineDatabase)
    notes: list[tuple[str, dict[str, object], str | None]] = attrs.field(factory=list)
    worked: list[str] = attrs.field(factory=list)
    around: Surroundings = attrs.field(factory=Surroundings)
    allow: Callable[[PeerCredentials], bool] = lambda peer: True
    fails: ArmorclawError | None = None
    audit: AuditLog = attrs.field(init=False)
    door: EgressDoor = attrs.field(init=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope)
    ended: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        self.audit = AuditLog(self.around)
        self.door = EgressDoor(
            cast(Database, self.inline),
            self.audit,
            self.note,
            self.around,
            resolve=self.names,
            worked=self.worked.append,
        )

    async def note(self, type: str, content: Mapping[str, object], *, agent: str | None) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        if self.fails is not None:
            raise self.fails
        self.notes.append((type, dict(content), agent))

    async def open(self, *egress: str) -> None:
        """Serve the door of agent ada, which may connect to these."""
        agent = attrs.evolve(declared("ada"), egress=egress)
        assert self.door.wanted(agent)
        listener = bind_unix(self.path)

        async def serve(*, task_status: trio.TaskStatus[None]) -> None:
            with self.scope:
                await self.door.serve("ada", agent, listener, lambda peer: self.allow(peer), task_status=task_status)
            self.ended.set()

        await self.nursery.start(serve)

    async def dial(self) -> trio.SocketStream:
        return await trio.open_unix_socket(self.path)

    async def connect(self, target: str) -> tuple[trio.SocketStream, str]:
        """Ask for a tunnel: the stream and the head of the answer."""
        stream = await self.dial()
        await stream.send_all(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
        head = b""
        with trio.fail_after(30):
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some(1)
                assert data, head
                head += data
        return stream, head.decode()

    async def refused(self, target: str) -> str:
        """The first line of a refusal, after which the connection is closed."""
        stream, head = await self.connect(target)
        async with stream:
            rest = b"".join([bytes(data) async for data in stream])
        line = head.splitlines()[0].removeprefix("HTTP/1.1 ")
        assert rest.decode() == line[4:] + "\n"  # the same sentence for those who read bodies
        return line

    def records(self) -> list[dict[str, Any]]:
        """What is in the audit trail."""
        found = self.audit.tail(cast(Any, self.inline.conn), 1000)
        return [{"kind": each.kind, **each.fields} for each in found]


@pytest.fixture
async def house(folder: Path) -> AsyncIterator[House]:
    async with trio.open_nursery() as nursery:
        made = House(folder / "egress.sock", nursery)
        yield made
        nursery.cancel_scope.cancel()
    made.inline.close()


@attrs.define
class Host:
    """A host that echoes what it hears, in capitals, until that ends."""

    port: int
    heard: bytearray = attrs.field(factory=bytearray)
    connections: int = 0
    open: int = 0

    async def serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async for data in stream:
                self.heard += data
                await stream.send_all(bytes(data).upper())
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        finally:
            self.open -= 1


@pytest.fixture
async def host(nursery: trio.Nursery) -> Host:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    made = Host(listeners[0].socket.getsockname()[1])
    nursery.start_soon(trio.serve_listeners, made.serve, listeners)
    return made


@attrs.frozen
class Certificate:
    """Of the name api.test and the address 127.0.0.1; it vouches for itself."""

    path: Path
    key: Path

    def context(self) -> ssl.SSLContext:
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(self.path, self.key)
        return made


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("tls")
    made = Certificate(folder / "cert.pem", folder / "key.pem")
    words = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=api.test"
    names = ["-addext", "subjectAltName=DNS:api.test,IP:127.0.0.1"]
    subprocess.run(
        [*words.split(), *names, "-keyout", made.key, "-out", made.path], check=True, capture_output=True, timeout=30
    )
    return made
