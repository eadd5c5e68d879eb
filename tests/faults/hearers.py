"""Programs that listen over the wire and write down all they were given, over any number of lives of a bridge."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.codec import Text
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role
from tests.faults.town import BOT


@attrs.frozen
class Given:
    """An event as it came over the wire, and in which connection."""

    connection: int
    seq: int
    id: str
    type: str
    room_id: str | None
    event_id: str | None
    content: Any
    redelivered: int


class Hearer:
    """A durable subscriber: takes one event after the other, and acknowledges it when it has dealt with it.

    It dies with nothing: this is the memory of a program that writes down all it was given.
    """

    def __init__(self, path: Path, name: str, start: int | str = "now") -> None:
        self.given: list[Given] = []
        self.asked: set[int] = set()
        """Acknowledged, whether or not an answer came: it may have been lost with the bridge."""
        self.acked: set[int] = set()
        self.again: list[Given] = []
        """Those that came although their acknowledgement had been answered."""
        self.connections = 0
        self.news = trio.Event()
        self.pace = 0.0
        self._path = path
        self._name = name
        self._start = start

    @property
    def event_ids(self) -> set[str]:
        """Of the room's events that were given."""
        return {one.event_id for one in self.given if one.event_id is not None}

    def settled(self, event_id: str) -> bool:
        return any(one.event_id == event_id and one.seq in self.asked for one in self.given)

    async def run(self) -> None:
        """Until cancelled, over any number of connections."""
        while True:
            try:
                stream = await trio.open_unix_socket(str(self._path))
            except OSError:
                await trio.sleep(0.005)
                continue
            self.connections += 1
            await self._converse(stream)

    async def _converse(self, stream: trio.SocketStream) -> None:
        events: list[dict[str, Any]] = []
        come = trio.Event()
        registry = Registry()

        def hear(call: Call, text: Text) -> None:
            nonlocal come
            event = msgspec.json.decode(text)
            events.append(event)
            self._note(event)
            come.set()
            come = trio.Event()

        registry.method("event", raw=True, roles=[Role.OPERATOR])(hear)
        registry.method("events.closed", raw=True, roles=[Role.OPERATOR])(lambda call, text: None)
        peer = Peer(stream, registry, role=Role.OPERATOR, around=Surroundings())
        async with trio.open_nursery() as nursery:
            await nursery.start(peer.serve)
            nursery.start_soon(self._leave_when_closed, peer, nursery.cancel_scope)
            params: dict[str, Any] = {"name": self._name, "from": self._start, "filter": {}}
            try:
                answer = await peer.request("events.subscribe", params, timeout=20)
                while True:
                    while not events:
                        await come.wait()
                    event = events.pop(0)
                    if self.pace:
                        await trio.sleep(self.pace)
                    await self.deal_with(peer, event)
                    ack = {"subscription": answer["subscription"], "seq": event["seq"]}
                    self.asked.add(event["seq"])
                    self._wake()
                    await insist(peer, "events.ack", ack)
                    self.acked.add(event["seq"])
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
            nursery.cancel_scope.cancel(reason="the connection has ended")

    async def _leave_when_closed(self, peer: Peer, scope: trio.CancelScope) -> None:
        await peer.closed.wait()
        scope.cancel(reason="the connection has ended")

    def _note(self, event: dict[str, Any]) -> None:
        given = Given(
            self.connections,
            event["seq"],
            event["id"],
            event["type"],
            event.get("room_id"),
            event.get("event_id"),
            event["content"],
            event.get("redelivered", 0),
        )
        if given.seq in self.acked:
            self.again.append(given)
        self.given.append(given)
        self._wake()

    def _wake(self) -> None:
        self.news.set()
        self.news = trio.Event()

    async def deal_with(self, peer: Peer, event: dict[str, Any]) -> None:
        """Whatever is to be done before it is acknowledged."""


async def insist(peer: Peer, method: str, params: dict[str, Any]) -> Any:
    """Until it is answered. Raises `unavailable` when the connection ends."""
    while True:
        try:
            return await peer.request(method, params, timeout=20)
        except ArmorclawError as error:
            if not error.kind.retryable or not peer.hears:
                raise
        await trio.sleep(0.05)


class Echo(Hearer):
    """The agent: answers each message, under a key made from what it answers."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "main")
        self.accepted: dict[str, set[str]] = defaultdict(set)
        """Delivery ids by key, as answered."""

    def states(self, delivery_id: str) -> list[str]:
        """What it was told of a delivery, each once, in order."""
        told = {one.seq: one.content for one in self.given if one.type == "delivery"}
        return [told[seq]["state"] for seq in sorted(told) if told[seq]["delivery_id"] == delivery_id]

    async def deal_with(self, peer: Peer, event: dict[str, Any]) -> None:
        if event["type"] != "m.room.message" or event.get("sender") == BOT:
            return
        key = event["event_id"]
        params = {
            "room_id": event["room_id"],
            "message": f"re: {event['content']['body']}",
            "idempotency_key": key,
        }
        self.accepted[key].add((await insist(peer, "matrix.send", params))["delivery_id"])
