"""The whole way of an event, from the homeserver to an agent and of the answer back: who runs what, and where."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw import open_bridge
from armorclaw.clock import Surroundings
from armorclaw.config import Account, BridgeSection, Config
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.relay import Relay
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.matrix.postman import Postman
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from armorclaw.structure import Secret
from tests.matrix.fake_homeserver import Asked, FakeHomeserver, Reply, fake_homeserver

ROOM, USER = "!room:x", "@bridge:x"


class Homeserver:
    """Has one room, gives the message that it is told to, and takes messages."""

    def __init__(self) -> None:
        self.says, self._messages = trio.open_memory_channel[str](10)
        self.heard, self.sent = trio.open_memory_channel[dict[str, Any]](10)
        self._batch = 0

    async def answer(self, asked: Asked) -> Reply:
        if asked.path.endswith("/whoami"):
            return Reply({"user_id": USER, "device_id": "DEVICE"})
        if "/send/m.room.message/" in asked.path:
            await self.heard.send(asked.json)
            return Reply({"event_id": "$answer"})
        if not asked.path.endswith("/sync"):
            return Reply({})
        events: list[dict[str, Any]] = []
        if "timeout=0" not in asked.target and self._batch:
            body = await self._messages.receive()
            content = {"msgtype": "m.text", "body": body}
            event = {"type": "m.room.message", "sender": "@person:x", "origin_server_ts": 1, "event_id": "$one"}
            events = [{**event, "content": content}]
        self._batch += 1
        timeline = {"events": events, "prev_batch": "p", "limited": False}
        return Reply({"next_batch": f"s{self._batch}", "rooms": {"join": {ROOM: {"timeline": timeline}}}})


class Hops:
    """Writes down in which task each step was taken."""

    def __init__(self) -> None:
        self.steps: list[tuple[str, trio.lowlevel.Task, Any]] = []

    def watch(self, patch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        former = getattr(owner, name)

        def step(watched: Any, *args: Any, **more: Any) -> Any:
            self.steps.append((f"{owner.__name__}.{name}", trio.lowlevel.current_task(), (watched, *args)))
            return former(watched, *args, **more)

        patch.setattr(owner, name, step)

    def of(self, name: str) -> Iterator[tuple[trio.lowlevel.Task, Any]]:
        return ((task, args) for step, task, args in self.steps if step == name)


def within(task: trio.lowlevel.Task, nursery: trio.Nursery) -> bool:
    """Whether the task lives in the nursery, or in one below it."""
    above: trio.Nursery | None = task.parent_nursery
    while above is not None and above is not nursery:
        above = above.parent_task.parent_nursery
    return above is nursery


async def line(stream: trio.SocketStream) -> Any:
    data = b""
    while not data.endswith(b"\n"):
        data += await stream.receive_some()
    return [json.loads(each) for each in data.splitlines()]


async def call(stream: trio.SocketStream, method: str, **params: Any) -> Any:
    request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
    await stream.send_all(json.dumps(request).encode() + b"\n")
    return await line(stream)


@pytest.mark.mission("P1.1", "P1.3", "R.1", "R.4")
async def test_events_cross_from_nursery_to_nursery_through_channels_alone(
    armorclaw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    homeserver, hops = Homeserver(), Hops()
    for owner, name in (
        *((Journal, "publish"), (Relay, "tell"), (Subscription, "offer"), (Peer, "push")),
        (Postman, "put"),
    ):
        hops.watch(monkeypatch, owner, name)
    async with fake_homeserver(homeserver.answer) as fake, trio.open_nursery() as agents:
        async with open_bridge(config(fake, armorclaw_folder)) as bridge:
            bridge.grants.set("probe", "main", [ROOM])
            listener = bind_unix(armorclaw_folder / "a.sock")
            serve = partial(serve_unix, role=Role.AGENT, agent="probe", around=Surroundings())
            await agents.start(serve, listener, bridge.registry)
            await bridge.until_connected()
            with trio.fail_after(20):
                async with await trio.open_unix_socket(str(armorclaw_folder / "a.sock")) as agent:
                    await call(agent, "events.subscribe", name="main")
                    await homeserver.says.send("hello")
                    (told,) = await line(agent)
                    assert told["params"]["content"]["body"] == "hello"
                    sent = await call(agent, "matrix.send", room_id=ROOM, message="and back")
                    assert sent
                    assert (await homeserver.sent.receive())["body"] == "and back"
        agents.cancel_scope.cancel(reason="the test is over")

    def is_message(event: Event) -> bool:
        return event.type == "m.room.message"

    # the commit: not where the agent's connections live, and nothing of theirs was called from there
    committed = [task for task, (_, events) in hops.of("Journal.publish") if any(map(is_message, events))]
    told_by = [task for task, (_, events, _) in hops.of("Relay.tell") if any(map(is_message, events))]
    assert committed
    assert told_by
    assert not any(within(task, agents) for task in (*committed, *told_by))

    # from the relay on: in the nursery of the agent's listener, and each peer's own
    offered = [
        (task, follower) for task, (follower, events) in hops.of("Subscription.offer") if is_message(events[0])
    ]
    ((relay, _),) = [(task, follower) for task, follower in offered if follower.owner == "probe"]
    pushed = [(task, peer) for task, (peer, frame) in hops.of("Peer.push") if b'"m.room.message"' in frame]
    assert [(task, peer.agent) for task, peer in pushed] == [(relay, "probe")]
    for task, peer in pushed:
        assert task.parent_nursery is peer.commons
        assert within(task, agents)

    # and back: what the agent asked for is done by the session's task, not by the agent's
    ((sender, _),) = hops.of("Postman.put")
    assert not within(sender, agents)


def config(fake: FakeHomeserver, folder: Path) -> Config:
    account = Account(homeserver=fake.url, user=USER, access_token=Secret("token"))
    where = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")
    return Config(bridge=where, accounts={"main": account})
