"""A bridge in the test's own Trio loop with agents to be harmed, and one beside them that must not notice.

What is looked at comes over the bridge's real socket; who is harmed is a real process, in a container of any kind.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

import armorclaw
from armorclaw.bridge import Bridge, open_bridge
from armorclaw.client import Client, Subscription
from armorclaw.config import Config
from armorclaw.events.event import Event
from armorclaw.testing.engines import EngineWithImage

PATIENT = Path(__file__).with_name("patient.py")
WITNESS = "witness"

FAST = {"period": 1.0}
"""Health in fast mode, for those who are to be found hung: a ping a second, three of them to be missed. All others
have what agents have by default, as a busy machine may keep anybody from an answer for three seconds."""

POLL = 0.02
"""Seconds between looks at what says nothing by itself, such as a process."""

SECONDS = 30.0
"""Most that anything may take; nearly all of it takes far less."""


@attrs.frozen
class Place:
    """Where the harmed live: a kind of container and, for those of an engine, the engine."""

    kind: str
    engine: EngineWithImage | None = None

    def agent(self, **more: Any) -> dict[str, Any]:
        """A patient, as a configuration has it."""
        image = {} if self.engine is None else {"image": self.engine.image}
        return {"runtime": self.kind, "code": str(PATIENT), **image, **more}


def processes(folder: Path, agent: str) -> list[int]:
    """The processes that run the code of an agent of the bridge in `folder`, the main one first."""
    mark = f"{folder.name}/run/mounts/{agent} "
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            if b"--" in words or b"/agent/patient.py" not in words or mark not in (entry / "mountinfo").read_text():
                continue  # bubblewrap, and the init of an engine, have the agent's command behind "--"
            status = (entry / "status").read_text()
        except OSError:
            continue
        inner = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[-1]
        found.append((int(inner), int(entry.name)))
    return [pid for _, pid in sorted(found)]


class Ward:
    """The bridge, its client, and all events since the beginning."""

    def __init__(self, bridge: Bridge, client: Client, folder: Path) -> None:
        self.bridge = bridge
        self.client = client
        self.folder = folder
        self.events: list[Mapping[str, Any]] = []
        self._news = trio.Event()

    async def listen(self, subscription: Subscription) -> None:
        async for event in subscription:
            self.events.append(event)
            self._news.set()
            self._news = trio.Event()

    def of(self, agent: str, kind: str) -> list[Mapping[str, Any]]:
        """The contents of the events of one kind about one agent, oldest first."""
        return [event["content"] for event in self.events if (event["agent"], event["type"]) == (agent, kind)]

    def states(self, agent: str) -> list[str]:
        """The states it has gone through."""
        return [content["to"] for content in self.of(agent, "agent.state")]

    async def until(self, true: Callable[[], Any], what: str, *, seconds: float = SECONDS) -> Any:
        """The first true answer of `true`, asked at every event. Fails with what there was instead."""
        with trio.move_on_after(seconds):
            while not (answer := true()):
                await self._news.wait()
            return answer
        seen = [(event["agent"], event["type"], event["content"]) for event in self.events]
        raise AssertionError(f"{what}: not within {seconds:g} s\n" + "\n".join(map(str, seen[-30:])))

    async def until_state(self, agent: str, state: str, *, times: int = 1, seconds: float = SECONDS) -> None:
        """Until it has been told to be in `state` so often."""
        await self.until(
            lambda: self.states(agent).count(state) >= times, f"{agent} is {state} ({times})", seconds=seconds
        )

    async def until_alert(self, agent: str) -> None:
        """Until a person is told of it."""
        await self.until(lambda: self.of(agent, "alert"), f"somebody is told of {agent}")

    async def until_warned(self, agent: str, of: str) -> None:
        """Until it is told what it uses of something."""
        await self.until(
            lambda: [facts for facts in self.of(agent, "agent.resources") if of in str(facts)],
            f"what {agent} uses of {of} is told",
        )

    async def inspect(self, agent: str) -> dict[str, Any]:
        found: dict[str, Any] = await self.client.call("containers.inspect", name=agent)
        return found

    async def until_ready(self, agent: str, *, generation: int = 1, seconds: float = SECONDS) -> dict[str, Any]:
        """Until it is ready in its `generation`-th life or a later one; how it is."""

        def ready(now: Mapping[str, Any]) -> bool:
            return bool(now["ready"]) and now["generation"] >= generation

        return await self.until_so(agent, ready, f"is ready in generation {generation}", seconds=seconds)

    async def until_so(
        self, agent: str, true: Callable[[Mapping[str, Any]], bool], what: str, *, seconds: float = SECONDS
    ) -> dict[str, Any]:
        """Until what `containers.inspect` says of it is as wanted; that."""
        now: dict[str, Any] = {}
        with trio.move_on_after(seconds):
            while not true(now := await self.inspect(agent)):  # noqa: ASYNC110 - facts have ages, and no event
                await trio.sleep(POLL)
            return now
        raise AssertionError(f"{agent} {what}: not within {seconds:g} s, but {now}")

    async def ended(self, agent: str, *, times: int = 1) -> dict[str, Any]:
        """Until so many of its generations have ended; the record of the last of them."""

        now = await self.until_so(agent, lambda now: len(now["ends"]) >= times, f"has ended {times} times")
        end: dict[str, Any] = now["ends"][-1]
        return end

    async def ask(self, agent: str, method: str, **params: Any) -> Any:
        """A call of the agent's own."""
        return await self.client.call("agent.call", agent=agent, method=method, params=params, timeout=SECONDS)

    async def work(self, agent: str, number: int, **content: Any) -> None:
        """An event for it, as one of a room would be."""
        now = self.bridge.around.clock.now_ms()
        event = Event.make("test.work", {"n": number, **content}, at_ms=now, agent=agent)
        await self.bridge.journal.record([event])

    async def until_handled(self, agent: str, wanted: list[tuple[int, int]]) -> list[tuple[int, int, float]]:
        """Until it has handled just these, each a number and how often it had come before; with the time of each."""
        handled: list[tuple[int, int, float]] = []
        with trio.move_on_after(SECONDS):
            while len(handled) < len(wanted):
                await trio.sleep(POLL)
                await self.until_ready(agent)
                handled = [tuple(each) for each in await self.ask(agent, "handled")]
        assert [(number, before) for number, before, _ in handled] == wanted
        return handled

    def main(self, agent: str) -> int:
        """Its main process, as the host has it."""
        return processes(self.folder, agent)[0]

    def kill(self, *agents: str, number: int = signal.SIGKILL) -> float:
        """A signal to their main processes, all in one instant; when."""
        pids = [self.main(agent) for agent in agents]
        now = time.monotonic()
        for pid in pids:
            os.kill(pid, number)
        return now

    async def until_gone(self, agent: str) -> None:
        """Until none of its processes is left."""
        with trio.fail_after(SECONDS):
            while processes(self.folder, agent):  # noqa: ASYNC110 - processes say nothing when they go
                await trio.sleep(POLL)

    @asynccontextmanager
    async def others_served(self, *, pause: float = 0.05) -> AsyncIterator[list[float]]:
        """All the while another agent answers, each time, and lives its first life; gives the seconds each took."""
        took: list[float] = []

        async def keep_asking() -> None:
            while True:
                began = time.perf_counter()
                assert await self.ask(WITNESS, "echo", n=len(took)) == {"n": len(took)}
                took.append(time.perf_counter() - began)
                await trio.sleep(pause)

        async with self._watching(keep_asking):
            yield took
        assert took

    @asynccontextmanager
    async def events_reach_others(self, *, pause: float = 0.05) -> AsyncIterator[list[float]]:
        """All the while another agent gets events; at the end, the seconds from before each was recorded until its
        handler ran. The clock is the host's, on which both look."""
        sent: list[float] = []
        took: list[float] = []

        async def keep_telling() -> None:
            while True:
                sent.append(time.monotonic())
                await self.work(WITNESS, len(sent) - 1)
                await trio.sleep(pause)

        async with self._watching(keep_telling):
            yield took
        with trio.fail_after(SECONDS):
            while len(handled := await self.ask(WITNESS, "handled")) < len(sent):  # noqa: ASYNC110 - its own affair
                await trio.sleep(POLL)
        assert [number for number, _, _ in handled] == list(range(len(sent)))
        took += [at - sent[number] for number, _, at in handled]

    @asynccontextmanager
    async def _watching(self, watch: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel(reason="looked at long enough")
        assert (await self.inspect(WITNESS))["generation"] == 1


@asynccontextmanager
async def ward(folder: Path, place: Place, agents: Mapping[str, Any]) -> AsyncIterator[Ward]:
    """With these agents, and the witness; all who can get ready, are, or have been: who is idle may sleep by then."""
    witness = {"runtime": "sandbox", "code": str(PATIENT)}
    sections: dict[str, Any] = {
        "bridge": {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")},
        "agents": {WITNESS: witness, **agents},
    }
    if place.engine is not None:
        sections["bridge"]["engine_socket"] = place.engine.socket_path
    config = Config.parse(sections)
    async with open_bridge(config) as bridge, armorclaw.connect(config.bridge.socket) as client:
        async with client.subscribe(start=0) as subscription, trio.open_nursery() as nursery:
            made = Ward(bridge, client, folder)
            nursery.start_soon(made.listen, subscription)
            await made.until_state(WITNESS, "ready")
            for name, declared in agents.items():
                if "BORN" not in declared.get("env", {}):
                    await made.until_state(name, "ready")
            yield made
            nursery.cancel_scope.cancel(reason="the test is over")
