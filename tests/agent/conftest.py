"""A bridge that does as it is told: a real Unix socket, real descriptors, JSON lines, and a script."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pytest

from armorclaw.agent import (
    Agent,
    AsyncAgent,
    AsyncCall,
    AsyncMessage,
    AsyncStream,
    Call,
    Message,
    Receipt,
    Stream,
)
from armorclaw.agent.secrets import sealed_memfd

from .peers import RealBridge

ROOT = Path(__file__).parent.parent.parent
ROOM = "!one:example.org"
KEYS = {"keys": {"openai-default": {"display_name": "", "provider": "openai", "token": "sk-canary-1"}}}
PAYLOAD = json.dumps(KEYS, sort_keys=True, separators=(",", ":")).encode()
FINGERPRINT = hashlib.sha256(PAYLOAD).hexdigest()
PATIENCE = 30.0  # seconds a test waits for what must happen

T = TypeVar("T")


class Refuse(Exception):  # noqa: N818 - it is an answer
    """What a scripted method raises to answer with an error."""

    def __init__(self, code: int, name: str = "", *, retryable: bool = False) -> None:
        self.payload = {"code": code, "message": f"refused: {name}", "data": {"name": name, "retryable": retryable}}


class Wire:
    """One connection of an agent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = threading.Lock()

    def send(self, message: dict[str, Any], fds: list[int] | None = None) -> None:
        data = json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"
        with self._lock, contextlib.suppress(OSError):
            if fds:
                socket.send_fds(self._sock, [data[:5]], fds)  # torn, as it may arrive
                data = data[5:]
            self._sock.sendall(data)

    def lines(self) -> Iterator[dict[str, Any]]:
        with contextlib.suppress(OSError), self._sock.makefile("rb") as file:
            for line in file:
                yield json.loads(line)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class FakeBridge:
    """Keeps a journal and redelivers like the real one; `script` overrides the answer of a method.

    `calls` holds every request of the agent, (method, params), in order of arrival.
    """

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.calls: list[tuple[str, Any]] = []
        self.script: dict[str, Callable[[Any], Any]] = {}
        self.answers: list[dict[str, Any]] = []  # of the agent, to our requests
        self.journal: list[dict[str, Any]] = []
        self.acked: set[int] = set()
        self.connections = 0
        self.reads = threading.Event()  # cleared: what the agent sends stays where it is
        self.reads.set()
        self._told: dict[int, int] = {}
        self._subscriber: Wire | None = None
        self._session: Wire | None = None
        self._wires: list[Wire] = []
        self._changed = threading.Condition()
        self._listener: socket.socket | None = None

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(8)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Gone, as a killed bridge is: nothing said."""
        assert self._listener is not None
        os.unlink(self.path)
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._changed:
            self._subscriber = self._session = None
            for wire in self._wires:
                wire.close()
            self._wires.clear()

    def say(self, body: str, *, room: str = ROOM, event_type: str = "m.room.message", **more: Any) -> int:
        """Somebody wrote; returns the seq."""
        with self._changed:
            seq = len(self.journal) + 1
            content = {"msgtype": "m.text", "body": body}
            event = {"seq": seq, "id": f"e{seq}", "type": event_type, "at_ms": 1000 + seq, "room_id": room}
            event |= {"sender": "@p:example.org", "event_id": f"${seq}", "content": content} | more
            self.journal.append(event)
            self._push(event)
        return seq

    def push_again(self, seq: int) -> None:
        with self._changed:
            self._push(self.journal[seq - 1])

    def ask(self, method: str, params: Any = None) -> Any:
        """A request to the agent; returns its reply once it is there."""
        assert self._session is not None
        number = len(self.answers) + 100
        self._session.send({"id": number, "method": method, "params": params or {}})
        self.wait(lambda: any(answer["id"] == number for answer in self.answers), f"an answer to {method}")
        return next(answer for answer in self.answers if answer["id"] == number)

    def tell(self, method: str, params: Any) -> None:
        assert self._session is not None
        self._session.send({"method": method, "params": params})

    def of(self, method: str) -> list[Any]:
        """The parameters of every call of a method so far."""
        return [params for name, params in self.calls if name == method]

    def wait(self, true: Callable[[], object], what: str = "something") -> None:
        with self._changed:
            assert self._changed.wait_for(true, PATIENCE), f"waited in vain for {what}; calls: {self.calls}"

    def wait_for(self, method: str, count: int = 1) -> list[Any]:
        self.wait(lambda: len(self.of(method)) >= count, f"{count} times {method}")
        return self.of(method)

    def wait_acked(self, *seqs: int) -> None:
        self.wait(lambda: self.acked >= set(seqs), f"acknowledgement of {seqs}")

    def changed(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            wire = Wire(sock)
            with self._changed:
                self.connections += 1
                self._wires.append(wire)
                self._changed.notify_all()
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: Wire) -> None:
        for message in wire.lines():
            self.reads.wait()
            with self._changed:
                if "method" not in message:
                    self.answers.append(message)
                else:
                    self.calls.append((message["method"], message.get("params")))
                self._changed.notify_all()
            if "method" in message and "id" in message:
                self._answer(wire, message)
        wire.close()

    def _answer(self, wire: Wire, message: dict[str, Any]) -> None:
        method, params = message["method"], message.get("params")
        answer = self.script.get(method) or self.plain(method)
        fds: list[int] = []
        try:
            result = answer(params)
        except Refuse as refusal:
            wire.send({"id": message["id"], "error": refusal.payload})
            return
        if result is None:
            return  # no answer
        if result == "fd":
            fds = [sealed_memfd(PAYLOAD)]
            result = {"size": len(PAYLOAD), "fds": 1}
        wire.send({"id": message["id"], "result": result}, fds)
        for fd in fds:
            os.close(fd)
        with self._changed:
            if method == "agent.ready":
                self._session = wire
            elif method == "events.subscribe":
                self._subscriber = wire
                for event in self.journal:
                    if event["seq"] not in self.acked:
                        self._push(event)
            self._changed.notify_all()

    def plain(self, method: str) -> Callable[[Any], Any]:
        """What it answers when the script has nothing else."""
        answer: Callable[[Any], Any] = getattr(self, "_" + method.replace(".", "_"), lambda params: {})
        return answer

    def _push(self, event: dict[str, Any]) -> None:
        if self._subscriber is not None:
            told = self._told.get(event["seq"], 0)
            self._told[event["seq"]] = told + 1
            self._subscriber.send(
                {"method": "event", "params": {"subscription": self._name, "redelivered": told, **event}}
            )

    @property
    def _name(self) -> str:
        return f"s{self.connections}"

    def _secrets_take(self, params: Any) -> Any:
        return "fd" if params["via"] == "fd" else {"secrets": PAYLOAD.decode()}

    def _events_subscribe(self, params: Any) -> Any:
        return {"subscription": self._name, "cursor": 0}

    def _events_ack(self, params: Any) -> Any:
        if "nack_ms" not in params and not params.get("working"):
            self.acked.add(params["seq"])
        return {}

    def _matrix_send(self, params: Any) -> Any:
        number = len(self.of("matrix.send"))
        return {"delivery_id": number, "room_id": params["room_id"], "status": "sent", "event_id": f"$sent{number}"}


@pytest.fixture
def bridge() -> Iterator[FakeBridge]:
    # not tmp_path: the path of a socket has at most 107 bytes
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        bridge = FakeBridge(Path(folder) / "bridge.sock")
        bridge.start()
        yield bridge
        with contextlib.suppress(FileNotFoundError):
            bridge.stop()


AnyMessage = Message | AsyncMessage
AnyCall = Call | AsyncCall
Steps = Callable[[AnyMessage], Coroutine[Any, Any, None]]
CallSteps = Callable[[AnyCall], Coroutine[Any, Any, Any]]


def run_through(steps: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never suspends."""
    try:
        steps.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    raise AssertionError("it suspended")


class Pieces:
    """A stream of either driver, awaited."""

    def __init__(self, stream: Stream | AsyncStream, end: type[Exception]) -> None:
        self.stream = stream
        self._end = end

    async def next(self) -> Any:
        """The next piece; None behind the last."""
        try:
            if isinstance(self.stream, Stream):
                return next(self.stream)
            return await anext(self.stream)
        except self._end:
            return None

    async def rest(self, found: list[Any] | None = None) -> list[Any]:
        found = [] if found is None else found
        while (piece := await self.next()) is not None:
            found.append(piece)
        return found

    async def send(self, value: Any) -> None:
        await self.done(self.stream.send(value))

    async def end(self) -> None:
        await self.done(self.stream.end())

    async def result(self) -> Any:
        return await self.done(self.stream.result())

    async def done(self, result: Any) -> Any:
        """What came of it, awaited where it has to be."""
        return await result if isinstance(result, Awaitable) else result


class Somewhere(Protocol):
    """A bridge, as far as an agent needs one to begin with."""

    path: str


class Kit:
    """The same test for either driver: handlers are coroutine functions that use the methods below.

    For the blocking agent nothing in them ever suspends, so one step runs such a coroutine from end to end.
    """

    agent: Agent | AsyncAgent

    def __init__(self, bridge: Somewhere) -> None:
        self.bridge = bridge
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def stop(self) -> None:
        self.agent.stop()
        self.join()

    def join(self, timeout: float = PATIENCE) -> None:
        self._thread.join(timeout)
        assert not self._thread.is_alive(), "the agent did not end"

    def on_message(self, steps: Steps) -> None:
        self.on_event("m.room.message", steps)

    def on_event(self, event_type: str, steps: Steps) -> None:
        raise NotImplementedError

    def on_delivery(self, steps: Callable[[Receipt], Coroutine[Any, Any, None]]) -> None:
        raise NotImplementedError

    def on_call(self, name: str, steps: CallSteps) -> None:
        raise NotImplementedError

    def do(self, steps: Coroutine[Any, Any, T]) -> T:
        """Run these steps beside the handlers, from the thread of the test, and wait for their end."""
        raise NotImplementedError

    def stream(self, method: str, **params: Any) -> AbstractAsyncContextManager[Pieces]:
        raise NotImplementedError

    async def chunk(self, call: AnyCall, chunk: Any) -> None:
        await self.done(call.send(chunk))

    async def reply(self, message: AnyMessage, text: str, **more: Any) -> Any:
        return await self.done(message.reply(text, **more))

    async def working(self, message: AnyMessage) -> None:
        await self.done(message.working())

    async def send(self, room: str, text: str, msgtype: str = "m.text", **more: Any) -> Any:
        return await self.done(self.agent.send(room, text, msgtype, **more))

    async def call(self, method: str, **params: Any) -> Any:
        return await self.done(self.agent.call(method, **params))

    async def done(self, result: Any) -> Any:
        """What came of it, awaited where it has to be."""
        return await result if isinstance(result, Awaitable) else result

    async def wait(self, event: threading.Event) -> None:
        raise NotImplementedError


class BlockingKit(Kit):
    def __init__(self, bridge: Somewhere, **options: Any) -> None:
        super().__init__(bridge)
        self.agent = Agent(bridge.path, **options)

    def on_event(self, event_type: str, steps: Steps) -> None:
        @self.agent.on_event(event_type)
        def handler(message: Message) -> None:
            run_through(steps(message))

    def on_delivery(self, steps: Callable[[Receipt], Coroutine[Any, Any, None]]) -> None:
        @self.agent.on_delivery
        def handler(receipt: Receipt) -> None:
            run_through(steps(receipt))

    def on_call(self, name: str, steps: CallSteps) -> None:
        @self.agent.on_call(name)
        def handler(call: Call) -> Any:
            return run_through(steps(call))

    def do(self, steps: Coroutine[Any, Any, T]) -> T:
        eventually(lambda: self.agent._link, "a link")
        return run_through(steps)

    @asynccontextmanager
    async def stream(self, method: str, **params: Any) -> AsyncIterator[Pieces]:
        assert isinstance(self.agent, Agent)
        with self.agent.stream(method, **params) as stream:
            yield Pieces(stream, StopIteration)

    async def wait(self, event: threading.Event) -> None:
        assert event.wait(PATIENCE)


class AsyncKit(Kit):
    def __init__(self, bridge: Somewhere, **options: Any) -> None:
        super().__init__(bridge)
        self.agent = AsyncAgent(bridge.path, **options)

    def on_event(self, event_type: str, steps: Steps) -> None:
        self.agent.on_event(event_type)(steps)

    def on_delivery(self, steps: Callable[[Receipt], Coroutine[Any, Any, None]]) -> None:
        self.agent.on_delivery(steps)

    def on_call(self, name: str, steps: CallSteps) -> None:
        self.agent.on_call(name)(steps)

    def do(self, steps: Coroutine[Any, Any, T]) -> T:
        assert isinstance(self.agent, AsyncAgent)
        eventually(lambda: self.agent._link, "a link")
        assert self.agent._loop is not None
        return asyncio.run_coroutine_threadsafe(steps, self.agent._loop).result(PATIENCE)

    @asynccontextmanager
    async def stream(self, method: str, **params: Any) -> AsyncIterator[Pieces]:
        assert isinstance(self.agent, AsyncAgent)
        async with self.agent.stream(method, **params) as stream:
            yield Pieces(stream, StopAsyncIteration)

    async def wait(self, event: threading.Event) -> None:
        # not in a thread: asyncio.run would wait for it in the end
        while not event.is_set():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


KITS = [BlockingKit, AsyncKit]


@pytest.fixture(params=KITS, ids=["blocking", "asyncio"])
def kit(request: pytest.FixtureRequest, bridge: FakeBridge) -> Iterator[Kit]:
    kit: Kit = request.param(bridge)
    yield kit
    if kit._thread.ident is not None:
        kit.stop()


@pytest.fixture
def real() -> Iterator[RealBridge]:
    """A bridge of the real parts instead of the scripted one."""
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        bridge = RealBridge(Path(folder) / "bridge.sock")
        with bridge.serving():
            yield bridge


@pytest.fixture(params=KITS, ids=["blocking", "asyncio"])
def real_kit(request: pytest.FixtureRequest, real: RealBridge) -> Iterator[Kit]:
    kit: Kit = request.param(real)
    yield kit
    if kit._thread.ident is not None:
        kit.stop()
        assert kit.error is None


# programs in processes of their own


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a container gets: only what the agent library may need."""
    folder = tmp_path_factory.mktemp("opt")
    core = ("flow.py", "framing.py", "jsoncodec.py", "jsonrpc.py")
    for part in ("__init__.py", "_version.py", "rpc/__init__.py", *(f"rpc/{name}" for name in core)):
        target = folder / "armorclaw" / part
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "armorclaw" / part, target)
    shutil.copytree(
        ROOT / "armorclaw/agent", folder / "armorclaw/agent", ignore=shutil.ignore_patterns("__pycache__")
    )
    return folder


def _oldest_python() -> str:
    """A Python 3.9 if this machine has one, else the one that runs the tests."""
    found = [shutil.which("python3.9"), *map(str, Path.home().glob(".pyenv/versions/3.9*/bin/python"))]
    for python in filter(None, found):
        if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode == 0:
            return python
    return sys.executable


@pytest.fixture(scope="session")
def python() -> str:
    return _oldest_python()


Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn(bridge: FakeBridge, package: Path, python: str) -> Iterator[Spawn]:
    """Starts Python with these arguments in the environment an agent gets; ends it with the test."""
    started: list[subprocess.Popen[str]] = []

    def spawn(*arguments: str, prefix: tuple[str, ...] = (), **env: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(package),
            "PYTHONDEVMODE": "1",
            "PYTHONWARNINGS": "error",
            "ARMORCLAW_SOCKET": bridge.path,
            "ARMORCLAW_AGENT": "tester",
            **env,
        }
        process = subprocess.Popen(
            [*prefix, python, "-S", *arguments],
            env={name: value for name, value in environment.items() if value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield spawn
    for process in started:
        for children in Path(f"/proc/{process.pid}/task").glob("*/children"):  # what a test that failed has left
            for child in children.read_text().split():
                os.kill(int(child), signal.SIGKILL)
        process.kill()
        process.communicate()


def no_warnings(stderr: str) -> None:
    assert "Warning" not in stderr, stderr


def sources() -> list[Path]:
    """Every file that is mounted into containers."""
    files = [ROOT / "armorclaw/__init__.py", ROOT / "armorclaw/_version.py", ROOT / "armorclaw/rpc/__init__.py"]
    files += [ROOT / "armorclaw/rpc" / name for name in ("flow.py", "framing.py", "jsoncodec.py", "jsonrpc.py")]
    return files + sorted((ROOT / "armorclaw/agent").glob("*.py"))


def syntax_of_3_9(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path), feature_version=(3, 9))


def eventually(true: Callable[[], object], what: str) -> None:
    """For what only the file system or the process table can tell."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, f"waited in vain for {what}"
        time.sleep(0.01)
