"""The composition: what a program gets that embeds a bridge."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw import Bridge, connect, open_bridge
from armorclaw.agent.events import Event
from armorclaw.agent.messages import AsyncMessage
from armorclaw.config import Account, Agent, BridgeSection, Config, EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event as JournalEvent
from armorclaw.events.stream import EventStream
from armorclaw.rpc.blocking import call
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Role
from armorclaw.supervision import ChildState


def config_in(folder: Path, **sections: Any) -> Config:
    return Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"), **sections)


@pytest.mark.mission("C.status", "C.health")
async def test_status_and_health(armorclaw_folder: Path) -> None:
    """The members that clients of every version read, and ours; over the socket and in the program alike."""
    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        here = await bridge.call("status")
        path = bridge.config.bridge.socket
        there = await trio.to_thread.run_sync(call, path, "status")
        assert {**there, "uptime_s": 0} == {**here, "uptime_s": 0} == {**attrs.asdict(bridge.status()), "uptime_s": 0}
        assert 0 <= here["uptime_s"] < 60
        assert {**here, "uptime_s": 0} == {
            "version": "0.1.0",
            "state": "running",
            "socket": str(path),
            "containers": 0,
            "container_ids": [],
            "uptime_s": 0,
            "accounts": [],
            "agents": [],
        }
        assert await bridge.call("health") == {"status": "healthy", "reasons": []}
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.mission("C.health")
async def test_health_names_what_is_wrong(armorclaw_folder: Path) -> None:
    account = Account(homeserver="http://127.0.0.1:9", user="@bot:x")
    sick = Agent(command=("no-such-program",), runtime="process")
    config = config_in(armorclaw_folder, accounts={"main": account}, agents={"sick": sick})
    async with open_bridge(config) as bridge:
        with trio.fail_after(20):
            while len(bridge.health().reasons) < 2:  # noqa: ASYNC110 - of two features that tell nobody
                await trio.sleep(0.01)
        health = bridge.health()
        assert health.status == "degraded"
        assert health.reasons[0].startswith("agent sick is ")
        assert health.reasons[1].startswith("matrix main is ")


async def test_everything_stops_in_reverse(armorclaw_folder: Path) -> None:
    """First nobody can connect any more, then agents and sessions end, last the store closes."""
    ended: list[str] = []
    async with AsyncExitStack() as stack:
        bridge = await stack.enter_async_context(open_bridge(config_in(armorclaw_folder)))
        with bridge._root.changes() as changes:
            await stack.aclose()
            async with trio.open_nursery() as nursery:

                async def read() -> None:
                    async for change in changes:
                        ended.extend([change.child] if change.state is ChildState.STOPPED else [])

                nursery.start_soon(read)
                await trio.testing.wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
    assert ended == ["listeners", "features", "store"]
    assert not bridge.config.bridge.socket.exists()


async def test_two_bridges_in_one_program(armorclaw_folder: Path) -> None:
    async with (
        open_bridge(config_in(armorclaw_folder / "a")) as a,
        open_bridge(config_in(armorclaw_folder / "b")) as b,
    ):
        await a.call("store_key", id="k", provider="openai", token="of a")
        with pytest.raises(ArmorclawError) as caught:
            await b.call("get_key", id="k")
        assert caught.value.name == "key_not_found"
        assert a.instance != b.instance


async def test_what_keeps_it_from_starting_comes_out_as_it_is(armorclaw_folder: Path) -> None:
    config = config_in(armorclaw_folder)
    async with open_bridge(config) as bridge:
        with pytest.raises(ArmorclawError) as caught:
            async with open_bridge(config):
                raise AssertionError("there are two")
        assert caught.value.name == "already_running"
        assert bridge.health().status == "healthy"


async def test_what_the_block_raises_comes_out_as_it_is(armorclaw_folder: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        async with open_bridge(config_in(armorclaw_folder)):
            _ = 1 / 0


async def test_cancelled_while_it_starts(armorclaw_folder: Path) -> None:
    """At any moment; the next start finds nothing in its way."""
    config = config_in(armorclaw_folder)
    for seconds in (0.0, 0.005, 0.02, 0.05, 0.1):
        with trio.move_on_after(seconds):
            async with open_bridge(config):
                await trio.sleep_forever()
        assert not config.bridge.socket.exists()
    async with open_bridge(config) as bridge:
        assert (await bridge.call("status"))["state"] == "running"


async def test_the_program_may_cancel_and_close_in_any_task(armorclaw_folder: Path) -> None:
    """A bridge kept in a task of the program's own nursery ends with it."""
    opened: list[Bridge] = []

    async def hold(*, task_status: trio.TaskStatus[None]) -> None:
        async with open_bridge(config_in(armorclaw_folder)) as bridge:
            opened.append(bridge)
            task_status.started()
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(hold)
        nursery.cancel_scope.cancel()
    assert not opened[0].config.bridge.socket.exists()
    with pytest.raises(ArmorclawError) as caught:
        await opened[0].call("list_keys")
    assert caught.value.name == "unavailable"


async def _another_millisecond() -> None:
    """Until whatever comes has another time than what was."""
    began = datetime.now(UTC)
    while datetime.now(UTC) - began < timedelta(milliseconds=2):  # noqa: ASYNC110 - it is the clock that is waited for
        await trio.sleep(0.001)


async def _seen(events: EventStream[Event], count: int) -> list[str]:
    with trio.fail_after(20):
        return [(await anext(events)).type for _ in range(count)]


@pytest.mark.mission("P1.1", "P1.3")
async def test_events_are_taken_with_async_for(armorclaw_folder: Path) -> None:
    """As an agent has them; from now, from a number or from a time."""
    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        stream = bridge.events(types=["app.*"], severities=["warning"])
        await bridge.call("events.publish", type="app.one", content={"n": 1})
        told = await bridge.call("events.publish", type="app.two", content={"n": 2}, severity="warning")
        async for event in stream:
            assert (event.type, event.seq, event.severity) == ("app.two", told["seq"], "warning")
            assert (event.content, event.redelivered, event.erased) == ({"n": 2}, 0, False)
            break
        await _another_millisecond()
        between = datetime.now(UTC)
        await _another_millisecond()
        await bridge.call("events.publish", type="app.three")
        for from_ in (told["seq"], between, between.isoformat()):
            async with bridge.events(types=["app.*"], from_=from_) as events:
                assert await _seen(events, 1) == ["app.three"]
        assert await _seen(bridge.events(types=["app.*"], from_=0), 3) == ["app.one", "app.two", "app.three"]
        for wrong in ({"name": "a b"}, {"types": ["*" * 99]}):
            with pytest.raises(ArmorclawError, match=r"name|types"):
                bridge.events(**wrong)
        with pytest.raises(ArmorclawError, match="from"):
            await anext(bridge.events(from_="yesterday"))


@pytest.mark.mission("P1.2")
async def test_a_reader_with_a_name_misses_nothing_over_restarts(armorclaw_folder: Path) -> None:
    config = config_in(armorclaw_folder)
    async with open_bridge(config) as bridge:
        async with bridge.events(types=["app.*"], name="archive") as events:
            for name in ("one", "two", "three"):
                await bridge.call("events.publish", type=f"app.{name}")
            assert await _seen(events, 2) == ["app.one", "app.two"]
    async with open_bridge(config) as bridge:
        await bridge.call("events.publish", type="app.four")
        events = bridge.events(types=["app.*"], name="archive")
        assert await _seen(events, 3) == ["app.two", "app.three", "app.four"]
        async with connect(config.bridge.socket) as client, client.subscribe("archive"):
            with pytest.raises(ArmorclawError) as caught:
                await anext(events)
            assert caught.value.name == "conflict"


@pytest.mark.mission("P3.1", "P3.3")
async def test_an_event_that_nobody_can_handle_is_given_up_with_an_alert(armorclaw_folder: Path) -> None:
    """Later ones are handled meanwhile; and it comes once more if somebody wants that."""
    config = config_in(armorclaw_folder, events=EventsSection(max_deliveries=2))
    heard: list[str] = []
    poisonous = True

    async def handle(message: AsyncMessage) -> None:
        heard.append(message.body)
        if message.body == "poison" and poisonous:
            raise ValueError("cannot")

    async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
        agent = bridge.attach("inside", rooms=["!r:x"])
        agent.on_message(handle)
        await nursery.start(agent.run)
        alerts = bridge.events(types=["alert"])
        for text in ("poison", "wine"):
            content = {"msgtype": "m.text", "body": text}
            where = {"account": "main", "room_id": "!r:x", "sender": "@a:x", "event_id": f"${text}"}
            await bridge.journal.record([JournalEvent.make("m.room.message", content, at_ms=0, **where)])
        with trio.fail_after(20):
            async for alert in alerts:
                if alert.content["name"] == "dead_letter":
                    break
        assert alert.severity == "error"
        assert alert.content.items() >= {"subscription": "main", "given": 2, "count": 1}.items()
        assert (heard.count("poison"), heard.count("wine")) == (2, 1)
        (letter,) = await bridge.call("events.dead_letters", agent="inside")
        assert (letter["seq"], letter["event_id"]) == (alert.content["seq"], "$poison")
        poisonous = False
        await bridge.call("events.redrive", agent="inside", subscription="main", seq=letter["seq"])
        with trio.fail_after(20):
            while await bridge.call("events.dead_letters"):  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        assert heard.count("poison") == 3
        nursery.cancel_scope.cancel()


# Everything of a process that a library might be tempted to change.
_FACTS = """
import asyncio, gc, json, locale, logging, os, resource, signal, socket, sys, threading, warnings
from pathlib import Path

def facts():
    umask = os.umask(0)
    os.umask(umask)
    import structlog
    return {
        "umask": umask,
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in dir(resource)
                   if name.startswith("RLIMIT_")},
        "logging": [str(logging.root.handlers), logging.root.level, logging.root.manager.disable],
        "structlog": structlog.is_configured(),
        "policy": str(type(asyncio.get_event_loop_policy())),
        "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.unraisablehook), str(sys.displayhook)],
        "environ": dict(os.environ),
        "cwd": os.getcwd(),
        "timeout": socket.getdefaulttimeout(),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings": str(warnings.filters),
        "gc": [gc.isenabled(), gc.get_threshold()],
        "recursion": sys.getrecursionlimit(),
        "streams": [str(sys.stdin), str(sys.stdout), str(sys.stderr)],
        "dumpable": Path("/proc/self/status").stat().st_uid == os.geteuid(),
        "subreaper": Path("/proc/self/stat").read_text().rpartition(")")[2].split()[2:5],
    }
"""

_EMBEDDED = {
    "trio": """
import trio
from armorclaw import open_bridge
async def main():
    before = facts()
    async with open_bridge(config) as bridge:
        await bridge.call("health")
        inside = facts()
    return before, inside, facts()
before, inside, after = trio.run(main)
""",
    "thread": """
from armorclaw import run_in_thread
before = facts()
with run_in_thread(config) as bridge:
    bridge.call("health")
    inside = facts()
after = facts()
""",
}


@pytest.mark.parametrize("way", _EMBEDDED)
def test_embedding_changes_nothing_of_the_process(way: str, armorclaw_folder: Path) -> None:
    program = f"""
{_FACTS}
from armorclaw.config import Account, Agent, BridgeSection, Config
folder = Path({str(armorclaw_folder)!r})
config = Config(
    bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"),
    accounts={{"main": Account(homeserver="http://127.0.0.1:9", user="bot")}},
    agents={{"a": Agent(command=("sleep", "60"), runtime="process", ready_timeout=0)}},
)
import trio, structlog, armorclaw.bridge
{_EMBEDDED[way]}
print(json.dumps([before, inside, after]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    before, inside, after = json.loads(done.stdout.splitlines()[-1])
    assert inside == before
    assert after == before


async def test_a_room_added_to_the_configuration_is_heard_from_then_on(armorclaw_folder: Path) -> None:
    """Also when what was said there, to others, waits in the journal behind the place of the agent."""

    def said(room: str, text: str) -> JournalEvent:
        content = {"msgtype": "m.text", "body": text}
        return JournalEvent.make(
            "m.room.message",
            content,
            at_ms=0,
            account="main",
            room_id=room,
            sender="@alice:x",
            event_id=f"${text}",
        )

    def config(*rooms: str) -> Config:
        agents = {
            "ada": Agent(runtime="attached", rooms=rooms),
            "eve": Agent(runtime="attached", rooms=("!a:x", "!b:x")),
        }
        return config_in(armorclaw_folder, agents=agents)

    async with open_bridge(config("!a:x")) as bridge:
        await bridge.journal.record([said("!a:x", "1"), said("!b:x", "2"), said("!a:x", "3")])
    heard: list[str] = []
    async with open_bridge(config("!a:x", "!b:x")) as bridge, trio.open_nursery() as nursery:
        agent, done = bridge.attach("ada"), trio.Event()

        async def hear(message: AsyncMessage) -> None:
            heard.append(message.body)
            if len(heard) == 3:
                done.set()

        agent.on_message(hear)
        await nursery.start(agent.run)
        await bridge.journal.record([said("!b:x", "4")])
        with trio.fail_after(20):
            await done.wait()
        nursery.cancel_scope.cancel(reason="seen")
    assert sorted(heard) == ["1", "3", "4"]
    async with open_bridge(config("!a:x", "!b:x")) as bridge:
        await bridge.journal.record([said("!a:x", "5"), said("!c:x", "6")])
    async with open_bridge(config("!a:x", "!b:x", "!c:x")) as bridge:
        await bridge.journal.record([said("!c:x", "7")])
        polled = await call_local(bridge.registry, "matrix.receive", {}, role=Role.AGENT, agent="ada")
        assert [event["event_id"] for event in polled["events"]] == ["$5", "$7"]
