"""A runtime without processes, for faults and timing, and a house of real parts around it.

What a container does is up to the test: it starts, ends, hangs or loses its engine when told. The agent inside is the
test itself, over the agent's real socket.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.agent import Agent
from armorclaw.containers.fleet import Fleet
from armorclaw.containers.methods import register
from armorclaw.containers.printed import LogPiece, LogWanted
from armorclaw.containers.resources.usage import Usage
from armorclaw.containers.runtime import Peer as Credentials
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.runtimes import Runtimes
from armorclaw.containers.secrets import secrets_payload
from armorclaw.containers.services import Services
from armorclaw.containers.spec import ContainerSpec, Exit, Found, News
from armorclaw.containers.states import TRANSITIONS, Fact
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.grants import Grants
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.limits import Limits
from armorclaw.rpc.call import Call
from armorclaw.rpc.local import LocalStream, call_local, stream_local
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import NoParams, Registry, Role
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

_numbers = itertools.count(1)


class FakeContainer:
    """One container; implements `runtime.Running`."""

    def __init__(self, runtime: FakeRuntime, spec: ContainerSpec | None, id: str, name: str) -> None:  # noqa: A002
        self.id = id
        self.name = name
        self.spec = spec
        self.running = False
        self.removed = False
        self.released = False
        self.digest = spec.digest() if spec else ""
        self.stops: list[float] = []
        self.uses = Usage(cpu_ns=0)
        self.printed: list[LogPiece] = []
        self._runtime = runtime
        self._exit: Exit | None = None
        self._changed = trio.Event()
        self.pid: int | None = None

    def __repr__(self) -> str:
        return f"<FakeContainer {self.id}>"

    async def start(self) -> None:
        await self._runtime.step("start")
        self.running = True
        found = re.search(r"raise SystemExit\((\d+)\)", " ".join(self.spec.command)) if self.spec else None
        if found:
            self.end(int(found[1]))

    @property
    def ended(self) -> bool:
        return self._exit is not None

    def end(self, status: int) -> None:
        """Its main process ends."""
        if self._exit is None:
            self.running = False
            self._exit = Exit.of(status)
            self.wake()

    async def changed(self) -> None:
        await self._changed.wait()
        if self._runtime.lost:
            raise ArmorclawError("engine_unreachable", "the engine is gone")

    def wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def wait(self) -> Exit:
        while self._exit is None:
            if self._runtime.lost:
                await trio.lowlevel.checkpoint()
                raise ArmorclawError("engine_unreachable", "the engine is gone")
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return self._exit

    def prints(self, text: str, at_ms: int | None = None) -> None:
        self.printed.append(LogPiece("stdout", at_ms, text.encode()))
        self.wake()

    async def usage(self) -> Usage:
        await self._runtime.step("usage")
        return self.uses if self.running else Usage()

    async def main_pid(self) -> int | None:
        await self._runtime.step("main_pid")
        return self.pid if self.running else None

    def release(self) -> None:
        self.released = self._runtime.survives

    def owns(self, peer: Credentials) -> bool:
        return self.running and peer.pid == os.getpid() and self._runtime.trusts

    async def stop(self, grace: float) -> None:
        await self._runtime.step("stop")
        self.stops.append(grace)
        if self._runtime.heeds_sigterm:
            self.end(143)
        with trio.move_on_after(grace):
            await self.wait()
        self.end(137)


class FakeLog:
    """What one fake container prints, until it ends."""

    truncated = None

    def __init__(self, container: FakeContainer | None, wanted: LogWanted) -> None:
        self._container = container
        self._wanted = wanted
        printed = [] if container is None else container.printed
        self._next = 0 if wanted.tail is None else max(0, len(printed) - wanted.tail)

    def __aiter__(self) -> FakeLog:
        return self

    async def __anext__(self) -> LogPiece:
        await trio.lowlevel.checkpoint()
        container = self._container
        if container is None:
            raise StopAsyncIteration
        while self._next >= len(container.printed):
            if not (self._wanted.follow and container.running):
                raise StopAsyncIteration
            await container.changed()
        self._next += 1
        return container.printed[self._next - 1]


class FakeRuntime:
    """Implements `runtime.Runtime`.

    `errors` and `hangs`, by the name of a step (check, check_image, launch, start, stop, remove, adopt, survivors,
    discard), have that step raise, or wait until it is cancelled.
    """

    def __init__(self, kind: str = "sandbox") -> None:
        self.kind = kind
        self.survives = kind in ("docker", "podman")
        self.containers: list[FakeContainer] = []
        self.left: list[Found] = []
        self.kept: dict[str, FakeContainer] = {}  # of those left, the ones that were released
        self.tell, self._news = trio.open_memory_channel[News](16)
        self.discarded: list[str] = []
        self.steps: list[str] = []
        self.errors: dict[str, ArmorclawError] = {}
        self.hangs: set[str] = set()
        self.takes: dict[str, float] = {}
        self.wanted: list[LogWanted] = []
        self.lost = False
        self.trusts = True
        self.heeds_sigterm = True

    @property
    def live(self) -> list[FakeContainer]:
        return [each for each in self.containers if not each.removed]

    @property
    def last(self) -> FakeContainer:
        return self.containers[-1]

    async def step(self, name: str) -> None:
        self.steps.append(name)
        await trio.lowlevel.checkpoint()
        if name in self.hangs:
            await trio.sleep_forever()
        if name in self.takes:
            await trio.sleep(self.takes[name])
        if self.lost:
            raise ArmorclawError("engine_unreachable", "the engine is gone")
        if name in self.errors:
            raise self.errors[name]

    def lose(self, lost: bool = True) -> None:
        """The engine goes, or comes back."""
        self.lost = lost
        for container in self.containers:
            container.wake()

    async def check(self) -> str:
        await self.step("check")
        return f"{self.kind}: of no substance"

    async def check_image(self, image: str) -> str:
        await self.step("check_image")
        return f"sha256:{image}"

    @asynccontextmanager
    async def launch(self, spec: ContainerSpec) -> AsyncIterator[Running]:
        await self.step("launch")
        yield_ = FakeContainer(self, spec, f"{self.kind}-{spec.name}-{next(_numbers):08x}", spec.name)
        async with self._held(yield_):
            yield yield_

    @asynccontextmanager
    async def adopt(self, found: Found) -> AsyncIterator[Running]:
        await self.step("adopt")
        if found not in self.left:
            raise ArmorclawError("container_not_found", f"{found.id} is gone")
        self.left.remove(found)
        container = self.kept.pop(found.id, None) or FakeContainer(self, None, found.id, found.name)
        container.running = not container.ended
        container.released = False
        container.digest = found.digest
        async with self._held(container):
            yield container

    @asynccontextmanager
    async def _held(self, container: FakeContainer) -> AsyncIterator[None]:
        self.containers.append(container)
        try:
            yield
        finally:
            if container.released:
                self.steps.append("release")
                self.containers.remove(container)
                self.kept[container.id] = container
                self.left.append(Found(container.id, container.name, container.digest, running=True))
            else:
                await self._remove(container)

    async def _remove(self, container: FakeContainer) -> None:
        with trio.CancelScope(shield=True):
            self.steps.append("remove")
            await trio.sleep(self.takes.get("remove", 0))
            container.end(137)
            container.removed = True

    @asynccontextmanager
    async def logs(self, agent: str, container: str | None, wanted: LogWanted) -> AsyncIterator[FakeLog]:
        """As engines do it: of one container, and of one that was removed the same as before."""
        await self.step("logs")
        found = [each for each in self.containers if each.name == agent and container in (None, each.id)]
        self.wanted.append(wanted)
        yield FakeLog(found[-1] if found else None, wanted)

    async def ping(self) -> None:
        await self.step("ping")

    @asynccontextmanager
    async def news(self, instance: str) -> AsyncIterator[AsyncIterator[News]]:
        """What a test puts into `tell`; it breaks when the engine is lost, and does not end by itself."""
        await self.step("news")
        yield FakeNews(self, self._news)

    async def survivors(self, instance: str) -> list[Found]:
        await self.step("survivors")
        return list(self.left)

    async def discard(self, found: Found) -> None:
        await self.step("discard")
        self.discarded.append(found.id)
        if found in self.left:
            self.left.remove(found)


class FakeNews:
    """What a test tells, until the engine is lost."""

    def __init__(self, runtime: FakeRuntime, told: trio.MemoryReceiveChannel[News]) -> None:
        self._runtime = runtime
        self._told = told

    def __aiter__(self) -> FakeNews:
        return self

    async def __anext__(self) -> News:
        while not self._runtime.lost:
            with trio.move_on_after(0.05):
                return await self._told.receive()
        raise ArmorclawError("engine_unreachable", "the engine is gone")


class FakeRuntimes:
    """Hands out fakes as `Runtimes` does the real ones."""

    def __init__(self, *runtimes: FakeRuntime) -> None:
        self.by_kind = {each.kind: each for each in runtimes}
        self._closed = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        self._closed = trio.Event()
        task_status.started()
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True):
            await self._closed.wait()

    def close(self) -> None:
        self._closed.set()

    async def choose(self, declared: config.Agent) -> Runtime:
        await trio.lowlevel.checkpoint()
        kind = declared.runtime if declared.runtime != "auto" else "docker" if declared.image else "sandbox"
        return self.by_kind[kind]

    @property
    def engine_kinds(self) -> list[str]:
        return [kind for kind, each in self.by_kind.items() if each.survives]

    async def get(self, kind: str) -> Runtime:
        await trio.lowlevel.checkpoint()
        runtime = self.by_kind[kind]
        if getattr(runtime, "lost", False):
            raise ArmorclawError("engine_unreachable", "the engine is gone")
        return runtime

    def may_be_for(self, declared: config.Agent, runtime: Runtime) -> bool:
        return declared.image is not None and declared.runtime in ("auto", runtime.kind)

    async def every_engine(self) -> list[Runtime]:
        await trio.lowlevel.checkpoint()
        return [each for each in self.by_kind.values() if each.survives and not getattr(each, "lost", False)]


class Inside:
    """One connection from inside a container."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    async def call(self, method: str, **params: Any) -> Any:
        """The result. Raises the error."""
        return await self.peer.request(method, params, timeout=5)

    def close(self) -> None:
        self.peer.close("the test says so")


@attrs.define
class Cursors:
    """What waits for agents, as the test says."""

    ensured: list[str] = attrs.field(factory=list)
    held: dict[str, tuple[int, float | None]] = attrs.field(factory=dict)
    waiting: set[str] = attrs.field(factory=set)
    changed: trio.Event = attrs.field(factory=trio.Event)

    async def ensure(self, owner: str, name: str) -> None:
        await trio.lowlevel.checkpoint()
        self.ensured.append(owner)

    def unsettled(self, owner: str) -> tuple[int, float | None]:
        return self.held.get(owner, (0, None))

    async def has_work(self, owner: str) -> bool:
        await trio.lowlevel.checkpoint()
        return owner in self.waiting

    async def until_work(self, owner: str) -> None:
        while owner not in self.waiting:
            await self.changed.wait()
        await trio.lowlevel.checkpoint()

    def bring(self, owner: str) -> None:
        """An event comes for that agent."""
        self.waiting.add(owner)
        self.changed.set()
        self.changed = trio.Event()


class FakeHouse:
    """A fleet on fake runtimes, with a real store, keystore, registry and real sockets.

    `folder` is to be short. `shutdown` says what agents do when they are asked to end over their session.
    """

    def __init__(self, folder: Path, nursery: trio.Nursery, db: InlineDatabase | None = None) -> None:
        self.folder = folder
        self.nursery = nursery
        self.around = Surroundings()
        self.inline = db or InlineDatabase()
        self.db = cast(Database, self.inline)
        self.runtime = FakeRuntime()
        self.docker = FakeRuntime("docker")
        self.runtimes = FakeRuntimes(self.runtime, self.docker, FakeRuntime("process"))
        self.grants = Grants()
        self.cursors = Cursors()
        self.is_closing = True
        """Whether the end of the fleet is that of the bridge."""
        self.audit = AuditLog(self.around)
        self.keystore = KeyStore(self.db, self.audit, self.around)
        self.registry = Registry()
        self.notes: list[tuple[str, str | None, dict[str, object]]] = []
        self.alerts: list[tuple[str | None, str, str]] = []
        """Agent, name and text of each."""
        self.shutdown: Callable[[], object] = lambda: self.runtime.last.end(0)
        self.fleet = self.new_fleet()
        self._scope = trio.CancelScope()
        self._ended = trio.Event()
        self._ended.set()

    def new_fleet(self) -> Fleet:
        self.registry = Registry()
        services = Services(
            instance="inst",
            state_dir=self.folder / "state",
            runtime_dir=self.folder / "run",
            uid_base=10001,
            db=self.db,
            audit=self.audit,
            alerts=Alerts(self._alert, self.audit),
            keystore=self.keystore,
            grants=self.grants,
            work=self.cursors,
            is_closing=lambda: self.is_closing,
            note=self._note,
            registry=self.registry,
            limits=Limits(self.around.clock),
            around=self.around,
        )
        self.fleet = Fleet(cast(Runtimes, self.runtimes), services)
        register(self.registry, self.fleet)
        return self.fleet

    async def _note(self, type: str, content: Mapping[str, object], *, agent: str | None) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.notes.append((type, agent, dict(content)))

    async def _alert(self, type: str, content: Mapping[str, object], *, agent: str | None, also: object) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.alerts.append((agent, str(content["name"]), str(content["text"])))

    def kinds(self, agent: str = "ada") -> list[str]:
        """What was recorded of it, without its changes of state."""
        return [kind for kind, who, _ in self.notes if who == agent and kind != "agent.state"]

    def moves(self, agent: str = "ada") -> list[str]:
        """The states it went to, as they were recorded."""
        return [str(facts["to"]) for kind, who, facts in self.notes if who == agent and kind == "agent.state"]

    def facts(self, kind: str, agent: str = "ada") -> dict[str, object]:
        """What was recorded with the last change of that kind."""
        return [facts for each, who, facts in self.notes if (each, who) == (kind, agent)][-1]

    async def up(self, *declared: config.Agent) -> None:
        """The fleet runs, with these in the configuration."""
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self.nursery.start(self._run, {each.name: each for each in declared})

    async def _run(self, declared: dict[str, config.Agent], *, task_status: trio.TaskStatus[None]) -> None:
        try:
            with self._scope:
                await self.fleet.run(declared, task_status=task_status)
        finally:
            self._ended.set()

    async def down(self) -> None:
        """The fleet is told to end, and has."""
        self._scope.cancel(reason="the test says so")
        await self._ended.wait()

    async def call(self, method: str, **params: Any) -> Any:
        return await call_local(self.registry, method, params, role=Role.OPERATOR)

    def stream(self, method: str, /, **params: Any) -> AbstractAsyncContextManager[LocalStream]:
        return stream_local(self.registry, method, params, role=Role.OPERATOR)

    async def until(self, *states: str, agent: str = "ada", generation: int = 0) -> None:
        known = self.fleet.get(agent)
        with trio.fail_after(3600):
            while known.state not in states or known.generations < generation:
                await known.progress.wait()

    async def connect(self, agent: str = "ada") -> Inside:
        """A connection from inside."""
        registry = Registry()

        @registry.method("agent.shutdown", params=NoParams, roles={Role.OPERATOR})
        def shutdown(call: Call, params: object) -> None:
            self.shutdown()

        stream = await trio.open_unix_socket(self.fleet.get(agent).socket.path)
        peer = Peer(stream, registry, role=Role.OPERATOR, around=self.around)
        await self.nursery.start(peer.serve)
        return Inside(peer)

    async def ready(self, agent: str = "ada", **params: Any) -> Inside:
        """The agent's session, once its container runs."""
        await self.until("running", "suspect", agent=agent)
        inside = await self.connect(agent)
        await inside.call("agent.ready", **params)
        return inside

    def sockets(self) -> list[Path]:
        """What is left of sockets, and of links to them."""
        return [path for path in self.folder.rglob("*") if path.is_socket() or path.is_symlink()]

    async def store_key(self, id: str, token: str = "canary") -> bytes:  # noqa: A002
        """Stores a key; the payload of an agent that is granted it alone."""
        await self.keystore.store(id=id, provider="openai", token=token)
        return bytes(secrets_payload([await self.keystore.get(id)]))


def declared(name: str = "ada", **fields: Any) -> config.Agent:
    given: dict[str, Any] = {"command": ("agent",), "ready_timeout": 0.0, **fields}
    return config.Agent(name=name, **given)


async def inline(function: Callable[..., Any], *args: Any, **_: Any) -> Any:
    """In place of a thread, whose real time a clock that jumps would not wait for."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@asynccontextmanager
async def house_in(folder: Path, monkeypatch: Any) -> AsyncIterator[FakeHouse]:
    """A house for one test, on a clock that jumps; whatever the test leaves, nothing of it may outlive the house."""
    monkeypatch.setattr(trio.to_thread, "run_sync", inline)
    learn, strange = Agent.learn, []

    def learned(agent: Agent, fact: Fact, why: str = "") -> None:
        if fact not in TRANSITIONS[agent.state]:
            strange.append((agent.state, fact, why))
        learn(agent, fact, why)

    monkeypatch.setattr(Agent, "learn", learned)
    async with trio.open_nursery() as nursery:
        house = FakeHouse(folder, nursery)
        yield house
        await house.down()
        assert house.runtime.live == house.docker.live == []
        assert house.sockets() == []
        nursery.cancel_scope.cancel(reason="the test is over")
    house.inline.close()
    assert strange == []  # a fact that the table of states does not know is a bug


def tasks_below(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    for nursery in task.child_nurseries:
        for child in nursery.child_tasks:
            yield child
            yield from tasks_below(child)
