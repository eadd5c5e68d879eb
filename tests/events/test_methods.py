"""Subscriptions over a real connection."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.cursor import CURSORS_LIMIT
from armorclaw.events.durable.dead_letters import DeadLetters
from armorclaw.events.journal import Journal
from armorclaw.events.methods import MAX_SUBSCRIPTIONS, register
from armorclaw.events.publishing import PUBLISH_BYTES
from armorclaw.events.publishing import register as register_publishing
from armorclaw.events.shapes import PUBLISH_LIMIT
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.grants import Grants
from armorclaw.rpc.local import call_local
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

Make = Callable[..., Any]


class Client:
    """One connection's other end: sends requests, and has every message in the order it came."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._number = 0
        self.messages: list[dict[str, Any]] = []

    async def read(self) -> dict[str, Any]:
        while b"\n" not in self._buffer:
            data = await self._stream.receive_some()
            assert data, "the connection ended"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\n", 1)
        self.messages.append(json.loads(line))
        return self.messages[-1]

    async def call(self, method: str, **params: Any) -> Any:
        """The result, or the name of the error."""
        self._number += 1
        params = {name.rstrip("_"): value for name, value in params.items()}
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        await self._stream.send_all(json.dumps(request).encode() + b"\n")
        while True:
            message = await self.read()
            if message.get("id") == self._number:
                return message["result"] if "result" in message else message["error"]["data"]["name"]

    async def event(self) -> tuple[int, int]:
        """(seq, redelivered) of the next message, which must be an event."""
        message = await self.read()
        assert message["method"] == "event", message
        return message["params"]["seq"], message["params"]["redelivered"]

    async def aclose(self) -> None:
        await self._stream.aclose()


class Bridge:
    """What is around the methods."""

    def __init__(self, db: Database, new_event: Make, nursery: trio.Nursery) -> None:
        self.new_event = new_event
        self.now = 1_700_000_000.0
        around = Surroundings(clock=Clock(wall=lambda: self.now))
        section = EventsSection(max_deliveries=2)
        self.journal = Journal(db, around.clock)
        self.subscriptions = Subscriptions(db, self.journal, around, section, DeadLetters(db, self.journal))
        self.grants = Grants(lambda: self.journal.known or 0)
        self.grants.set("echo", "main", ["!a:x"])
        self._registry = Registry()
        register(self._registry, self.subscriptions, self.grants)
        register_publishing(self._registry, self.subscriptions, self.journal, around.clock)
        self._nursery = nursery
        self.clients: list[Client] = []

    async def publish(self, room: str | None = "!a:x", addressed: tuple[str, ...] | None = None, **more: Any) -> int:
        made = attrs.evolve(self.new_event(room, **more), addressed=addressed)
        (event,) = await self.journal.record([made])
        return event.seq

    async def connect(self, agent: str | None = "echo") -> Client:
        ours, theirs = (trio.SocketStream(trio.socket.from_stdlib_socket(one)) for one in socket.socketpair())
        role = Role.OPERATOR if agent is None else Role.AGENT
        peer = Peer(ours, self._registry, role=role, agent=agent, around=Surroundings())
        await self._nursery.start(peer.serve)
        self.clients.append(Client(theirs))
        return self.clients[-1]


@pytest.fixture
async def bridge(db: Database, new_event: Make) -> AsyncIterator[Bridge]:
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            bridge = Bridge(db, new_event, nursery)
            yield bridge
            for client in bridge.clients:
                await client.aclose()
            nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.mission("P1.2")
async def test_subscribing_acknowledging_and_reconnecting(bridge: Bridge) -> None:
    one = await bridge.connect()
    assert await one.call("events.subscribe", name="main") == {"subscription": "main", "cursor": 0}
    for seq in (1, 2, 3):
        assert await bridge.publish() == seq
        assert await one.event() == (seq, 0)
    await one.call("events.ack", subscription="main", seq=2)
    await one.aclose()
    two = await bridge.connect()
    assert (await two.call("events.subscribe", name="main"))["cursor"] == 0
    assert [await two.event(), await two.event()] == [(1, 1), (3, 1)]
    await two.call("events.ack", subscription="main", seq=3, cumulative=True)
    await two.aclose()
    three = await bridge.connect()
    assert (await three.call("events.subscribe", name="main"))["cursor"] == 3


async def test_the_answer_comes_before_the_events(bridge: Bridge) -> None:
    for _ in range(3):
        await bridge.publish()
    for name in (None, "main"):
        client = await bridge.connect(None)
        answer = await client.call("events.subscribe", name=name, from_=1)
        assert len(client.messages) == 1
        assert await client.event() == (2, 0)
        assert client.messages[-1]["params"]["subscription"] == answer["subscription"]
        await client.aclose()


async def test_an_agent_hears_its_rooms_on_its_account_and_what_is_about_itself(bridge: Bridge) -> None:
    agent, operator = await bridge.connect(), await bridge.connect(None)
    await agent.call("events.subscribe", filter={"rooms": ["*"]})
    await agent.call("events.subscribe", name="all")
    await operator.call("events.subscribe")
    await bridge.publish("!b:x")
    await bridge.publish("!a:x", account="other")
    await bridge.publish(room=None, agent="somebody", type="agent.ready")
    await bridge.publish(room=None, agent="echo", type="agent.status")  # its own words
    own = await bridge.publish(room=None, agent="echo", type="agent.quota")
    granted = await bridge.publish("!a:x")
    assert [await agent.event(), await agent.event()] == [(own, 0), (granted, 0)]  # one has a filter for rooms
    assert await agent.event() == (granted, 0)
    assert [(await operator.event())[0] for _ in range(6)] == [1, 2, 3, 4, 5, 6]


async def test_an_agent_hears_what_is_addressed_to_it_and_an_operator_all(bridge: Bridge) -> None:
    agent, operator = await bridge.connect(), await bridge.connect(None)
    await agent.call("events.subscribe", name="main")
    await operator.call("events.subscribe")
    for names in (("somebody",), ("@bridge",), ()):
        await bridge.publish("!a:x", addressed=names)
    addressed = await bridge.publish("!a:x", addressed=("somebody", "echo"))
    everybody = await bridge.publish("!a:x")
    assert [await agent.event(), await agent.event()] == [(addressed, 0), (everybody, 0)]
    assert [(await operator.event())[0] for _ in range(5)] == [1, 2, 3, 4, 5]
    assert all("addressed" not in str(message) for message in operator.messages)
    again = await bridge.connect()  # what it was decided to be, it stays
    await again.call("events.subscribe", name="main")
    assert [await again.event(), await again.event()] == [(addressed, 1), (everybody, 1)]


async def test_putting_off(bridge: Bridge) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await bridge.publish()
    assert await client.event() == (1, 0)
    assert await client.call("events.ack", subscription="main", seq=1, nack_ms=10) == {"ok": True}
    assert await client.event() == (1, 1)


async def test_unsubscribing_ends_the_events_and_keeps_the_cursor(bridge: Bridge) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await client.call("events.unsubscribe", subscription="main")
    await bridge.publish()
    assert await client.call("events.unsubscribe", subscription="main") == "not_found"
    assert all("method" not in message for message in client.messages)
    await client.call("events.subscribe", name="main")
    assert await client.event() == (1, 0)


async def test_a_forgotten_name_begins_anew(bridge: Bridge) -> None:
    client = await bridge.connect(None)
    await client.call("events.subscribe", name="work")
    for _ in range(3):
        await bridge.publish()
        await client.event()
    await client.call("events.ack", subscription="work", seq=2)
    assert await client.call("events.forget", subscription="work") == {"ok": True}
    assert all(message.get("method") != "events.closed" for message in client.messages)
    assert await client.call("events.ack", subscription="work", seq=1) == "not_found"
    assert await client.call("events.forget", subscription="work") == "not_found"
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert bridge.subscriptions.open_count == 0
    assert await client.call("events.subscribe", name="work", from_=1) == {"subscription": "work", "cursor": 1}
    assert [await client.event(), await client.event()] == [(2, 0), (3, 0)]


async def test_forgetting_what_another_connection_has_or_none(bridge: Bridge) -> None:
    holder, other, stranger = await bridge.connect(None), await bridge.connect(None), await bridge.connect()
    await holder.call("events.subscribe", name="work")
    assert await stranger.call("events.forget", subscription="work") == "not_found"
    assert await other.call("events.forget", subscription="work") == {"ok": True}
    notice = await holder.read()
    assert notice["method"] == "events.closed"
    assert notice["params"] == {"subscription": "work", "reason": "its name was forgotten", "cursor": 0}
    await bridge.publish()
    assert await holder.call("events.unsubscribe", subscription="work") == "not_found"
    await other.call("events.subscribe", name="work", from_=0)
    await other.event()
    await other.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert await holder.call("events.forget", subscription="work") == {"ok": True}  # nobody has it, but it is kept
    assert await holder.call("events.forget", subscription="#1") == "invalid_params"


async def test_an_agent_keeps_its_own(bridge: Bridge) -> None:
    agent, operator = await bridge.connect(), await bridge.connect(None)
    for client in (agent, operator):
        await client.call("events.subscribe", name="main")
    assert await agent.call("events.forget", subscription="main") == "denied"
    await bridge.publish()
    assert await agent.event() == (1, 0)
    assert await operator.event() == (1, 0)
    assert await operator.call("events.forget", subscription="main") == {"ok": True}


async def test_forgetting_makes_room_for_another_name(bridge: Bridge) -> None:
    client = await bridge.connect(None)
    for number in range(CURSORS_LIMIT):
        await bridge.subscriptions.ensure("", f"n{number}")
    assert await client.call("events.subscribe", name="more") == "conflict"
    assert "events.forget" in client.messages[-1]["error"]["data"]["hint"]
    await client.call("events.forget", subscription="n7")
    assert "subscription" in await client.call("events.subscribe", name="more")
    assert await client.call("events.subscribe", name="n7") == "conflict"


async def test_an_acknowledgement_that_comes_too_late_for_its_name(bridge: Bridge) -> None:
    """Both are under way at once: in either order the name is forgotten, and the connection lives."""
    client = await bridge.connect()
    for _ in range(20):
        await client.call("events.subscribe", name="work")
        seq = await bridge.publish()
        await client.event()
        calls = [("events.forget", {"subscription": "work"}), ("events.ack", {"subscription": "work", "seq": seq})]
        lines = [{"jsonrpc": "2.0", "id": "x", "method": method, "params": params} for method, params in calls]
        await client._stream.send_all("\n".join(map(json.dumps, lines)).encode() + b"\n")
        answers = [await client.read(), await client.read()]
        names = [answer["error"]["data"]["name"] for answer in answers if "error" in answer]
        assert names in ([], ["not_found"])
        assert await client.call("events.forget", subscription="work") == "not_found"


async def test_a_late_acknowledgement_on_another_connection_counts(bridge: Bridge) -> None:
    one, two = await bridge.connect(), await bridge.connect()
    await one.call("events.subscribe", name="main")
    await bridge.publish()
    await one.event()
    assert await two.call("events.ack", subscription="main", seq=1) == {"ok": True}
    assert await two.call("events.ack", subscription="main", seq=1, nack_ms=1) == "not_found"
    assert await two.call("events.ack", subscription="other", seq=1) == "not_found"
    stranger = await bridge.connect("stranger")
    assert await stranger.call("events.ack", subscription="main", seq=1) == "not_found"


@pytest.mark.parametrize(
    "params",
    [
        {"name": "a b"},
        {"name": 1},
        {"filter": []},
        {"filter": {"types": "x"}},
        {"filter": {"kinds": []}},
        {"from_": "yesterday"},
        {"from_": True},
        {"more": 1},
    ],
)
async def test_wrong_params(bridge: Bridge, params: dict[str, Any]) -> None:
    client = await bridge.connect()
    assert await client.call("events.subscribe", **params) == "invalid_params"


async def test_a_connection_has_a_limited_number(bridge: Bridge) -> None:
    client = await bridge.connect()
    for _ in range(MAX_SUBSCRIPTIONS):
        await client.call("events.subscribe")
    assert await client.call("events.subscribe") == "queue_full"
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert bridge.subscriptions.open_count == 0


async def test_an_agent_has_a_limited_number_on_all_its_connections(bridge: Bridge) -> None:
    clients = [await bridge.connect() for _ in range(4)]
    for number in range(MAX_SUBSCRIPTIONS):
        assert "subscription" in await clients[number % 4].call("events.subscribe")
    assert await clients[0].call("events.subscribe") == "queue_full"
    other, operator = await bridge.connect("other"), await bridge.connect(None)
    assert "subscription" in await other.call("events.subscribe")
    assert "subscription" in await operator.call("events.subscribe")
    await clients[0].call("events.unsubscribe", subscription="#1")
    assert "subscription" in await clients[1].call("events.subscribe")
    assert await clients[0].call("events.subscribe") == "queue_full"
    await clients[3].aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    assert "subscription" in await clients[0].call("events.subscribe")


@pytest.mark.parametrize("from_", [0, 1, -5, 10**30])
async def test_an_agent_does_not_go_back_behind_its_own_beginning(bridge: Bridge, from_: int) -> None:
    """A room granted now may have been another agent's before."""
    await bridge.publish("!b:x")
    await bridge.subscriptions.ensure("echo", "main")
    await bridge.publish("!b:x")
    bridge.grants.set("echo", "main", ["!b:x"])
    client = await bridge.connect()
    for name in (None, "mine"):
        answer = await client.call("events.subscribe", name=name, from_=from_)
        assert answer["cursor"] == (1 if from_ < 2 else 2)
    fresh = await bridge.connect("fresh")
    bridge.grants.set("fresh", "main", ["!b:x"])
    for name in (None, "main"):
        assert (await fresh.call("events.subscribe", name=name, from_=0))["cursor"] == 2
    operator = await bridge.connect(None)
    assert (await operator.call("events.subscribe", from_=0))["cursor"] == 0


async def test_a_reader_that_stops_is_given_no_more_than_it_may_have_and_then_the_rest(bridge: Bridge) -> None:
    client = await bridge.connect()
    brisk = await bridge.connect()
    await client.call("events.subscribe")
    await brisk.call("events.subscribe")
    for seq in range(1, 41):
        await bridge.publish(body="x" * 50_000)
        assert await brisk.event() == (seq, 0)
    assert [(await client.event())[0] for _ in range(40)] == list(range(1, 41))


async def test_the_limit_holds_for_those_asked_for_at_once(bridge: Bridge) -> None:
    client = await bridge.connect()
    wanted = MAX_SUBSCRIPTIONS + 10
    lines = [json.dumps({"jsonrpc": "2.0", "id": n, "method": "events.subscribe"}) for n in range(wanted)]
    await client._stream.send_all("\n".join(lines).encode() + b"\n")
    answers = [await client.read() for _ in range(wanted)]
    refused = [answer["error"]["data"]["name"] for answer in answers if "error" in answer]
    assert refused == ["queue_full"] * 10
    assert bridge.subscriptions.open_count == MAX_SUBSCRIPTIONS


async def test_a_name_subscribed_again_on_the_same_connection_goes_on_there(bridge: Bridge) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await bridge.publish()
    assert await client.event() == (1, 0)
    await client.call("events.subscribe", name="main")
    assert await client.event() == (1, 1)
    assert await client.call("events.ack", subscription="main", seq=1) == {"ok": True}
    assert bridge.subscriptions.open_count == 1
    assert all(message.get("method") != "events.closed" for message in client.messages)


async def test_another_connection_takes_over_and_the_first_is_told(bridge: Bridge) -> None:
    one, two = await bridge.connect(), await bridge.connect()
    await one.call("events.subscribe", name="main")
    await two.call("events.subscribe", name="main")
    notice = await one.read()
    assert (notice["method"], notice["params"]["subscription"]) == ("events.closed", "main")
    assert await one.call("events.unsubscribe", subscription="main") == "not_found"
    await bridge.publish()
    assert await two.event() == (1, 0)


async def test_a_subscription_that_cannot_begin_is_none(bridge: Bridge) -> None:
    client = await bridge.connect()
    for _ in range(MAX_SUBSCRIPTIONS + 1):  # nor is it counted
        assert await client.call("events.subscribe", name="no name") == "invalid_params"
    assert await client.call("events.unsubscribe", subscription="no name") == "not_found"
    assert "subscription" in await client.call("events.subscribe", name="main")


async def test_where_another_could_not_begin_the_one_that_had_the_name_goes_on(
    bridge: Bridge, inline_db: InlineDatabase
) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await bridge.publish()
    assert await client.event() == (1, 0)
    inline_db.down = True
    assert await client.call("events.subscribe", name="main") == "unavailable"
    inline_db.down = False
    assert await client.call("events.ack", subscription="main", seq=1, working=True) == {"ok": True}
    assert await client.call("events.ack", subscription="main", seq=1, nack_ms=0) == {"ok": True}
    assert await client.event() == (1, 1)
    assert await client.call("events.unsubscribe", subscription="main") == {"ok": True}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("events.ack", {"subscription": "main"}),
        ("events.ack", {"subscription": "main", "seq": "1"}),
        ("events.ack", {"subscription": "main", "seq": True}),
        ("events.ack", {"subscription": "main", "seq": 99}),
        ("events.ack", {"subscription": "main", "seq": -1, "cumulative": 1}),
        ("events.ack", {"subscription": "main", "seq": 1, "nack_ms": -1}),
        ("events.ack", {"subscription": "main", "seq": 1, "nack_ms": 2**40}),
        ("events.unsubscribe", {}),
        ("events.unsubscribe", {"subscription": None}),
    ],
)
async def test_wrong_params_of_the_others(bridge: Bridge, method: str, params: dict[str, Any]) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await bridge.publish()
    await client.event()
    assert await client.call(method, **params) == "invalid_params"


async def test_without_a_connection_there_is_nothing_to_push_to(bridge: Bridge) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await call_local(bridge._registry, "events.subscribe", {}, role=Role.AGENT, agent="echo")
    assert caught.value.name == "invalid_request"


async def test_observers_and_remotes_hear_nothing(bridge: Bridge) -> None:
    names = [
        *("events.ack", "events.dead_letters", "events.drop", "events.forget", "events.publish", "events.redrive"),
        *("events.stats", "events.subscribe", "events.unsubscribe"),
    ]
    assert bridge._registry.names(Role.OPERATOR) == bridge._registry.names(Role.AGENT) == names
    assert bridge._registry.names(Role.OBSERVER) == bridge._registry.names(Role.REMOTE) == []


async def test_whatever_an_agent_answers_is_a_sign_of_work(bridge: Bridge) -> None:
    worked: list[str] = []
    bridge.subscriptions.on_work = worked.append
    agent, operator = await bridge.connect(), await bridge.connect(None)
    for client in (agent, operator):
        await client.call("events.subscribe", name="main")
        assert await bridge.publish()
    await operator.call("events.ack", subscription="main", seq=2)
    assert worked == []
    await agent.call("events.ack", subscription="main", seq=1, nack_ms=0)
    await agent.call("events.ack", subscription="main", seq=1)
    assert worked == ["echo", "echo"]


# --- replay from a time


async def test_a_replay_from_a_time(bridge: Bridge) -> None:
    times = ("2026-01-31T10:00:00+01:00", "2026-01-31T09:00:01Z", "2026-01-31T09:00:02.5Z")
    for bridge.now in (datetime.fromisoformat(time).timestamp() for time in times):
        await bridge.publish()
    operator = await bridge.connect(None)
    for time, first in ((times[0], 1), (times[1], 2), ("2026-01-31T09:00:01.001Z", 3), ("2027-01-31T09:00:00Z", 4)):
        answer = await operator.call("events.subscribe", from_=time)
        assert answer["cursor"] == first - 1
        for seq in range(first, 4):
            assert await operator.event() == (seq, 0)
    await bridge.subscriptions.ensure("echo", "main")  # behind all of them
    agent = await bridge.connect()
    assert (await agent.call("events.subscribe", from_=times[0]))["cursor"] == 3


@pytest.mark.parametrize(
    "time", ["2026-01-31", "2026-01-31T09:00:00", "later", "", "2026-01-31T09:00:00Z" + " " * 30]
)
async def test_what_is_no_time(bridge: Bridge, time: str) -> None:
    client = await bridge.connect(None)
    assert await client.call("events.subscribe", from_=time) == "invalid_params"
    assert client.messages[-1]["error"]["data"]["fields"] == ["from"]


# --- events of one's own


@pytest.mark.mission("P1.4")
async def test_what_is_published_is_heard_by_operators_and_by_no_agent(bridge: Bridge) -> None:
    agent, other = await bridge.connect(), await bridge.connect("other")
    operator, publisher = await bridge.connect(None), await bridge.connect(None)
    for client in (agent, other, operator):
        await client.call("events.subscribe")
        await client.call("events.subscribe", name="main")
    published = await agent.call("events.publish", type="app.done", content={"n": 1}, severity="warning")
    for _ in range(2):
        params = (await operator.read())["params"]
        assert (params["seq"], params["id"], params["type"]) == (published["seq"], published["id"], "app.done")
        assert (params["agent"], params["severity"], params["content"]) == ("echo", "warning", {"n": 1})
    by_operator = await publisher.call("events.publish", type="app.x", content={})
    assert by_operator["seq"] == 2
    assert [await operator.event() for _ in range(2)] == [(2, 0)] * 2
    assert "agent" not in operator.messages[-1]["params"]
    for client in (agent, other):  # what they hear next is behind all that
        last = await bridge.publish() if client is agent else None
        if last:
            assert [await client.event() for _ in range(2)] == [(last, 0)] * 2
    assert all("method" not in message for message in other.messages)


async def test_an_ephemeral_event_goes_to_those_without_a_name_and_is_kept_nowhere(
    bridge: Bridge, inline_db: InlineDatabase
) -> None:
    agent, operator = await bridge.connect(), await bridge.connect(None)
    await operator.call("events.subscribe", filter={"types": ["app.*"]})
    await operator.call("events.subscribe", name="durable")
    await operator.call("events.subscribe", filter={"types": ["other"]})
    writes = inline_db.writes
    published = await agent.call("events.publish", type="app.tick", content={"n": 1}, ephemeral=True)
    assert published["seq"] == 0
    assert await operator.event() == (0, 0)
    assert operator.messages[-1]["params"]["id"] == published["id"]
    assert inline_db.writes == writes
    await agent.call("events.publish", type="app.tick", content={"n": 2})
    assert [await operator.event() for _ in range(2)] == [(1, 0)] * 2  # the next that anybody hears


@pytest.mark.parametrize(
    "params",
    [
        {"type": "m.room.message"},
        {"type": "app."},
        {"type": "app.ä"},
        {"type": "app." + "x" * 61},
        {"type": "app.x", "content": []},
        {"type": "app.x", "severity": "bad"},
        {"type": "app.x", "agent": "other"},
    ],
)
async def test_what_cannot_be_published(bridge: Bridge, params: dict[str, Any]) -> None:
    client = await bridge.connect()
    assert await client.call("events.publish", **params) == "invalid_params"
    assert await bridge.journal.head() == 0


async def test_how_much_may_be_published(bridge: Bridge) -> None:
    agent, other = await bridge.connect(), await bridge.connect("other")
    large = {"x": "y" * (PUBLISH_LIMIT - 8)}
    assert await agent.call("events.publish", type="app.x", content={"x": large["x"] + "y"}) == "too_large"
    count = -(-PUBLISH_BYTES // PUBLISH_LIMIT)
    for number in range(count):
        assert (await agent.call("events.publish", type="app.x", content=large))["seq"] == number + 1
    assert await agent.call("events.publish", type="app.x", content={}) == "rate_limited"
    assert 0 < agent.messages[-1]["error"]["data"]["retry_after"] <= 65
    assert (await agent.call("events.publish", type="app.x", ephemeral=True))["seq"] == 0  # takes no room
    assert (await other.call("events.publish", type="app.x"))["seq"] == count + 1


# --- how they stand, and what was given up


async def test_how_subscriptions_stand(bridge: Bridge) -> None:
    await bridge.subscriptions.ensure("other", "main")
    agent, operator = await bridge.connect(), await bridge.connect(None)
    await agent.call("events.subscribe", name="main")
    await operator.call("events.subscribe", name="tail")
    await operator.call("events.subscribe")
    for _ in range(3):
        await bridge.publish()
        await agent.event()
    await agent.call("events.ack", subscription="main", seq=2)
    await agent.call("events.ack", subscription="main", seq=1, working=True)
    (main,) = await agent.call("events.stats")
    oldest = main.pop("oldest_s")
    assert 0 <= oldest < 20
    expected = {"owner": "echo", "subscription": "main", "named": True, "connected": True, "behind": 2, "in_hand": 2}
    assert main == expected | {"acknowledged": 1, "dead": 0, "redelivered": 0, "missed": 0}
    told = {(one["owner"], one["subscription"]): one for one in await operator.call("events.stats")}
    assert sorted(told) == [("", "#3"), ("", "tail"), ("echo", "main"), ("other", "main")]
    assert told["", "tail"]["in_hand"] == 3
    assert (told["other", "main"]["connected"], told["other", "main"]["behind"]) == (False, 3)
    assert (told["", "#3"]["named"], told["", "#3"]["behind"]) == (False, 0)
    await agent.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    told = {(one["owner"], one["subscription"]): one for one in await operator.call("events.stats")}
    assert told["echo", "main"]["connected"] is False


async def given_up(bridge: Bridge, agent: Client) -> int:
    """One event that was given twice, which is as often as it may be."""
    await agent.call("events.subscribe", name="main")
    seq = await bridge.publish()
    for times in range(2):
        assert await agent.event() == (seq, times)
        await agent.call("events.ack", subscription="main", seq=seq, nack_ms=0)
    while not await agent.call("events.dead_letters"):  # noqa: ASYNC110 - as a client would
        await trio.sleep(0.01)
    return seq


async def test_dead_letters_are_shown_given_again_and_dropped(bridge: Bridge) -> None:
    told: list[Any] = []
    bridge.subscriptions.on_dead = lambda *dead: told.append(dead)
    agent, operator, other = await bridge.connect(), await bridge.connect(None), await bridge.connect("other")
    seq = await given_up(bridge, agent)
    ((owner, name, event, given, lost, reason),) = told
    assert (owner, name, event.seq, given, lost) == ("echo", "main", seq, 2, 0)
    (letter,) = await operator.call("events.dead_letters")
    assert (letter["owner"], letter["subscription"], letter["seq"], letter["reason"]) == ("echo", "main", seq, reason)
    assert (letter["room_id"], letter["type"], letter["again"]) == ("!a:x", "m.room.message", False)
    assert "content" not in letter
    assert await operator.call("events.dead_letters", agent="other") == []
    assert await other.call("events.dead_letters") == []
    assert await other.call("events.dead_letters", agent="echo") == "denied"
    which = {"subscription": "main", "seq": seq}
    assert await other.call("events.redrive", **which) == "not_found"
    assert await other.call("events.drop", agent="echo", **which) == "denied"
    assert await operator.call("events.redrive", **which) == "not_found"  # its own
    assert await operator.call("events.redrive", agent="echo", **which) == {"ok": True}
    assert (await agent.event())[0] == seq
    await agent.call("events.ack", **which)
    assert await agent.call("events.dead_letters") == []

    seq = await given_up(bridge, agent)
    assert await agent.call("events.drop", subscription="main", seq=seq) == {"ok": True}
    assert await agent.call("events.drop", subscription="main", seq=seq) == "not_found"
    assert await operator.call("events.dead_letters") == []


@pytest.mark.parametrize(
    "params",
    [{"cumulative": True, "working": True}, {"nack_ms": 0, "working": True}, {"nack_ms": 0, "cumulative": True}],
)
async def test_answers_that_exclude_each_other(bridge: Bridge, params: dict[str, Any]) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    await bridge.publish()
    await client.event()
    assert await client.call("events.ack", subscription="main", seq=1, **params) == "invalid_params"


async def test_working_on_what_is_not_in_hand(bridge: Bridge) -> None:
    client = await bridge.connect()
    await client.call("events.subscribe", name="main")
    assert await client.call("events.ack", subscription="main", seq=1, working=True) == "not_found"
    await client.call("events.subscribe")
    assert await client.call("events.ack", subscription="#2", seq=1, working=True) == "invalid_params"


async def test_what_becomes_of_its_messages_is_heard_by_the_agent_that_sent_them(bridge: Bridge) -> None:
    agent, other = await bridge.connect(), await bridge.connect("other")
    for client in (agent, other):
        await client.call("events.subscribe", name="main")
    await bridge.publish(room=None, agent="echo", type="delivery")
    assert await agent.event() == (1, 0)
    assert await other.call("events.stats") != []
    assert all("method" not in message for message in other.messages)


# --- grants have a beginning ---


@pytest.mark.parametrize("name", ["main", "mine"])
async def test_what_was_said_before_its_grant_is_not_for_an_agent(bridge: Bridge, name: str) -> None:
    """However far behind it is: its floor lags, and what was said meanwhile was for others."""
    client = await bridge.connect()
    await client.call("events.subscribe", name=name)
    first = await bridge.publish("!a:x")
    await client.event()
    await bridge.publish("!b:x", body="for others")
    await client.aclose()
    away = await bridge.publish("!a:x")  # it had that grant
    bridge.grants.set("echo", "main", ["!a:x", "!b:x"])
    later = await bridge.publish("!b:x")
    client = await bridge.connect()
    await client.call("events.subscribe", name=name)
    assert [(await client.event())[0] for _ in range(3)] == [first, away, later]
    await client.call("events.subscribe", from_=0)
    told = bridge.subscriptions.policy("echo")
    assert told is not None
    found = await bridge.journal.after(0, 10, None, told)
    assert [event.seq for event in found.events] == [first, away, later]


async def test_what_is_said_to_others_does_not_wait_for_a_part_of_the_bridge(bridge: Bridge, db: Database) -> None:
    """Or what people say would not be erased in time, with a part that follows what is said to it."""
    subscriptions = bridge.subscriptions
    await subscriptions.ensure("@bridge", "commands")

    async def floor() -> int:
        await subscriptions.settle_idle()
        query = "SELECT floor FROM subscriptions WHERE owner = '@bridge'"
        return int(await db.read(lambda conn: conn.execute(query).fetchone()[0]))

    await bridge.publish()
    await bridge.publish(addressed=("echo",))
    assert await floor() == 2
    order = await bridge.publish(addressed=("@bridge",))
    await bridge.publish()
    assert await floor() == order - 1
