"""Content nested so deep that no client could read it: it must cost neither a session nor the sync, and be told."""

from __future__ import annotations

import json
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armorclaw.events.event import Event
from armorclaw.matrix.answer import DEPTH_LIMIT, to_event
from tests.agent.conftest import KITS, FakeBridge, Kit

from .conftest import Bench, running, until
from .fake_homeserver import Asked, Reply, fake_homeserver
from .test_hostile import ROOM, Server, account
from .test_methods import methods_of


def deep_text(depth: int) -> bytes:
    return b'{"in":' * depth + b"1" + b"}" * depth


def depth_of(value: Any) -> int:
    # not for what is very deep
    if isinstance(value, dict | list):
        return 1 + max((depth_of(each) for each in (value.values() if isinstance(value, dict) else value)), default=0)
    return 0


def taken(content: Any, event_id: str = "$deep") -> Event:
    raw = {"type": "m.room.message", "sender": "@ann:x", "event_id": event_id, "content": content}
    event = to_event(raw, ROOM, "main", 5)
    assert event is not None
    return event


def exactly(depth: int) -> dict[str, Any]:
    """Content with so many brackets open at once."""
    content: dict[str, Any] = {"body": "deep"}
    for _ in range(depth - 1):
        content = {"body": "deep", "in": content}
    return content


def test_what_is_too_deep_is_told_of_and_named() -> None:
    assert depth_of(exactly(DEPTH_LIMIT)) == DEPTH_LIMIT
    kept = taken(exactly(DEPTH_LIMIT))
    assert (kept.type, kept.event_id) == ("m.room.message", "$deep")
    for depth in (DEPTH_LIMIT + 1, 300, 5_000):
        event = taken(exactly(depth))
        assert (event.type, event.event_id, event.severity) == ("gap", None, "warning")
        told = json.loads(event.content)
        assert (told["event_id"], told["sender"], told["room_id"]) == ("$deep", "@ann:x", ROOM)
        assert event.id == taken(exactly(depth)).id  # told once


@pytest.fixture(params=KITS, ids=["blocking", "asyncio"])
def kit(request: pytest.FixtureRequest) -> Iterator[tuple[Kit, FakeBridge]]:
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        bridge = FakeBridge(Path(folder) / "bridge.sock")
        bridge.start()
        kit: Kit = request.param(bridge)
        yield kit, bridge
        kit.stop()
        bridge.stop()


def test_an_agent_reads_whatever_the_journal_holds(kit: tuple[Kit, FakeBridge]) -> None:
    """Far more of them in a row than the bad frames after which a session gives up."""
    agent, bridge = kit
    heard = 0
    all_heard = threading.Event()

    async def hear(message: Any) -> None:
        nonlocal heard
        heard += 1
        if heard == 41:
            all_heard.set()

    agent.on_message(hear)
    agent.on_event("gap", hear)
    agent.start()
    bridge.wait_for("events.subscribe")
    for number, depth in enumerate([DEPTH_LIMIT, DEPTH_LIMIT + 1, 100, 400] * 10):
        wire = taken(exactly(depth), f"${number}").plain()
        bridge.say("", event_type=wire["type"], content=wire["content"])
    bridge.say("shallow")
    assert all_heard.wait(10)
    bridge.wait_acked(*range(1, 42))
    assert bridge.connections == 1
    assert not bridge.answers  # no frame was refused


async def test_a_whole_sync_survives_and_polling_too(bench: Bench) -> None:
    """One event of an answer is deeper than JSON readers go; another only deeper than our clients do."""
    texts = [
        deep_text(DEPTH_LIMIT),
        deep_text(DEPTH_LIMIT + 1),
        deep_text(500),
        deep_text(20_000),
        b'{"body":"good"}',
    ]
    events = b",".join(
        b'{"type":"m.room.message","sender":"@ann:x","event_id":"$%d","content":%b}' % (number, text)
        for number, text in enumerate(texts)
    )
    whole = b'{"next_batch":"s1","rooms":{"join":{"%b":{"timeline":{"events":[%b]}}}}}' % (ROOM.encode(), events)

    def odd(asked: Asked) -> Reply | None:
        return Reply(whole) if asked.path.endswith("/sync") and "since=s0" in asked.target else None

    async with fake_homeserver(Server(odd).answer) as fake:
        bench.grants.set("echo", "main", [ROOM])
        accounts = bench.accounts(account(fake))
        call = methods_of(bench, accounts)
        assert (await call("matrix.receive", agent="echo"))["count"] == 0
        async with running(accounts):
            await until(lambda: len(bench.events) == len(texts))
            assert [event.type == "gap" for event in bench.events] == [False, True, True, True, False]
            got = await call("matrix.receive", agent="echo", limit=10)
            assert [event["event_id"] for event in got["events"]] == ["$0", "$4"]
            # as it goes over the wire, in a batch: what every client reads
            assert depth_of([{"result": got}]) <= 64
            json.dumps(got)
