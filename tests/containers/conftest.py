"""One `runtime` fixture over every way to run an agent, so that one set of tests holds them all to one contract."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Self

import attrs
import pytest
import trio

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.local.group import Groups, NoGroups, Parent
from armorclaw.containers.local.process import ProcessRuntime
from armorclaw.containers.local.sandbox import SandboxRuntime
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec, Found, Limits, Mount
from armorclaw.testing.engines import EngineWithImage, Kind, engine_with_image, why_missing
from armorclaw.testing.plugin import missing

LOCAL: dict[str, Callable[[Path], Runtime]] = {"sandbox": SandboxRuntime, "process": ProcessRuntime}
KINDS = ["docker", "podman", *LOCAL]
UID = 10001

# What every script begins with: a connection to the bridge, from inside.
HELLO = """
import json, os, signal, socket, sys, time
door = socket.socket(socket.AF_UNIX)
door.connect(os.environ["ARMORCLAW_SOCKET"])
"""

Opener = Callable[[], AbstractAsyncContextManager[Runtime]]


@contextmanager
def engine(kind: Kind) -> Iterator[EngineWithImage]:
    if reason := why_missing(kind):
        missing(reason)
    with engine_with_image(kind) as made:
        yield made


@pytest.fixture
def engine_maker() -> Callable[[Kind], AbstractContextManager[EngineWithImage]]:
    """For a test that needs an engine all of its own."""
    return engine


@pytest.fixture(params=KINDS)
def runtime_kind(request: pytest.FixtureRequest) -> str:
    """Which runtime; override with @pytest.mark.parametrize("runtime_kind", [...], indirect=True)."""
    return str(request.param)


@pytest.fixture
def private(request: pytest.FixtureRequest, runtime_kind: str) -> EngineWithImage:
    """The engine behind `runtime`, for tests of engines."""
    made = request.getfixturevalue(runtime_kind)
    assert isinstance(made, EngineWithImage)
    return made


@pytest.fixture
def open_runtime(request: pytest.FixtureRequest, runtime_kind: str, folder: Path) -> Opener:
    """Opens another runtime of the same kind over the same containers, as a second life of the bridge does."""
    if runtime_kind in LOCAL:
        if runtime_kind == "sandbox" and shutil.which("bwrap") is None:
            missing("bubblewrap is not installed; apt install bubblewrap")
        return lambda: nullcontext[Runtime](LOCAL[runtime_kind](folder / "logs"))
    socket_path = request.getfixturevalue(runtime_kind).socket_path
    return lambda: EngineRuntime.open(socket_path)


@pytest.fixture
async def runtime(open_runtime: Opener) -> AsyncIterator[Runtime]:
    async with open_runtime() as opened:
        yield opened


@pytest.fixture
async def engine_runtime(runtime: Runtime) -> EngineRuntime:
    """The same, for tests that look at it with an engine's eyes."""
    assert isinstance(runtime, EngineRuntime)
    return runtime


@pytest.fixture
def without_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the bridge may not make control groups."""

    def find() -> Parent:
        raise NoGroups("the test says so")

    monkeypatch.setattr(Parent, "find", find)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path that an agent's uid may pass through: a socket's path has 107 bytes at most."""
    made = Path(tempfile.mkdtemp(prefix="ac-", dir="/tmp"))
    made.chmod(0o711)
    yield made
    with suppress(NoGroups):
        for kind in LOCAL:  # what killed bridges left: there will be no other of this instance
            trio.run(Groups(kind, Parent.find()).clean, made.name)
    shutil.rmtree(made)


MakeSpec = Callable[..., ContainerSpec]


@pytest.fixture
def make_spec(request: pytest.FixtureRequest, runtime_kind: str, folder: Path) -> MakeSpec:
    """`make_spec(script)`: a container of this runtime that runs `script`; each test has an instance of its own."""
    image = None if runtime_kind in LOCAL else request.getfixturevalue(runtime_kind).image
    instance = folder.name

    def make(
        script: str = "",
        *,
        name: str = "ada",
        env: Mapping[str, str] | None = None,
        mounts: tuple[Mount, ...] = (),
        limits: Limits | None = None,
        hello: bool = True,
        **others: Any,
    ) -> ContainerSpec:
        socket_dir = folder / name
        socket_dir.mkdir(mode=0o711, exist_ok=True)
        source = (HELLO if hello else "") + textwrap.dedent(script)
        fields: dict[str, Any] = {
            "instance": instance,
            "name": name,
            "image": image,
            "command": ("/usr/bin/python3", "-S", "-c", source),
            "env": {"ARMORCLAW_SOCKET": f"{SOCKET_DIR}/{name}.sock", **(env or {})},
            "uid": UID,
            "gid": UID,
            "socket_dir": socket_dir,
            "mounts": mounts,
            "limits": limits or Limits(memory=64 * 1024 * 1024),
        }
        return ContainerSpec(**(fields | others))

    return make


@attrs.frozen
class Peer:
    """Who connected, as the kernel says."""

    pid: int
    uid: int

    @classmethod
    def of(cls, stream: trio.SocketStream) -> Peer:
        raw = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        assert isinstance(raw, bytes)
        pid, uid, _ = struct.unpack("3i", raw)
        return cls(pid, uid)

    def gone(self) -> bool:
        """Whether the process has ended; a zombie has."""
        try:
            stat = Path(f"/proc/{self.pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True
        return stat.rpartition(")")[2].split()[0] == "Z"

    async def ended(self) -> None:
        """Until the process has ended."""
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return
        try:
            with trio.fail_after(30):
                await trio.lowlevel.wait_readable(pidfd)
        finally:
            os.close(pidfd)


class Door:
    """The bridge's end of one agent's socket."""

    def __init__(self, spec: ContainerSpec) -> None:
        self._path = spec.socket_dir / f"{spec.name}.sock"
        self._socket = trio.socket.socket(trio.socket.AF_UNIX)
        self._streams: list[trio.SocketStream] = []

    async def __aenter__(self) -> Self:
        await self._socket.bind(str(self._path))
        self._path.chmod(0o666)
        self._socket.listen(8)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._socket.close()
        for stream in self._streams:
            stream.socket.close()

    async def accept(self) -> tuple[trio.SocketStream, Peer]:
        with trio.fail_after(30):
            connection, _ = await self._socket.accept()
        stream = trio.SocketStream(connection)
        self._streams.append(stream)
        return stream, Peer.of(stream)

    async def report(self) -> Any:
        """The one JSON value that a script sends."""
        stream, _ = await self.accept()
        return json.loads(b"".join([chunk async for chunk in stream]))


@pytest.fixture
def door() -> type[Door]:
    return Door


_BRIDGE = """
import sys, pickle, trio
from armorclaw.containers.engines.runtime import EngineRuntime
async def main():
    socket_path, spec = pickle.load(sys.stdin.buffer)
    async with EngineRuntime.open(socket_path) as runtime, runtime.launch(spec) as running:
        await running.start()
        print(running.id, flush=True)
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture
def leave_survivor(private: EngineWithImage) -> Callable[[ContainerSpec], Found]:
    """Launch in a bridge that is then killed: what SIGKILL leaves behind."""
    import pickle

    def leave(spec: ContainerSpec) -> Found:
        with subprocess.Popen(
            [sys.executable, "-c", _BRIDGE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as bridge:
            assert bridge.stdin is not None
            assert bridge.stdout is not None
            bridge.stdin.write(pickle.dumps((private.socket_path, spec)))
            bridge.stdin.close()
            container = bridge.stdout.readline().decode().strip()
            bridge.send_signal(signal.SIGKILL)
        assert container
        return Found(container, spec.name, spec.digest(), running=True)

    return leave
