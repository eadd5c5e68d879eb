"""kill -9 while the bridge takes in what was said in its absence, and while the peer says it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import trio

from armorclaw.agent.events import Event
from armorclaw.client import Subscription
from tests.interop.daemons import behind_a_proxy, in_thread
from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import SECONDS, Kind, Peer, PeerError, Peers

SAID = 300

KILLED_AT = (1, 150)
"""How many events the reader has when the bridge is killed."""


class Reader:
    """A program that keeps what it is given, and outlives the bridge."""

    def __init__(self) -> None:
        self.given: list[Mapping[str, Any]] = []
        self._news = trio.Event()

    async def run(self, events: Subscription) -> None:
        async for event in events:
            self.given.append(event)
            self._news.set()
            self._news = trio.Event()

    async def until(self, count: int) -> None:
        with trio.fail_after(SECONDS):
            while len({event["seq"] for event in self.given}) < count:
                await self._news.wait()


async def test_while_it_catches_up(peers: Peers, bot: Bot) -> None:
    """A durable subscriber has all of it in the end, in order, and each once unless it is marked."""
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.meet(alice, room)
        reader = Reader()
        async with (
            daemon.connected(),
            daemon.bridge.subscribe("archive", types=["m.room.message"]) as events,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(reader.run, events)
            await daemon.kill()
            for start in range(0, SAID, 20):
                bodies = [f"{start + number}" for number in range(20)]
                await alice.do("send_at_once", room_id=room, bodies=bodies)
            for what in ("GET sync", "GET messages"):
                await daemon.die_at(what, partial(in_thread, daemon.process.spawn))
            for count in KILLED_AT:
                daemon.process.spawn()
                await reader.until(count)
                await daemon.kill()
            await daemon.start()
            await reader.until(SAID)
            await daemon.converse(alice, room, "after kills")
            await reader.until(SAID + 1)
            nursery.cancel_scope.cancel(reason="all is there")
        seen: set[str] = set()
        for event in reader.given:
            assert event["redelivered"] or event["event_id"] not in seen, event
            seen.add(event["event_id"])
        # in the order of the room, as alice sees it
        order = [body for body in alice.read(room) if body.isdecimal()]
        first = dict.fromkeys(event["content"]["body"] for event in reader.given)
        assert list(first) == [*order, "after kills, theirs"]
        assert len(order) == SAID


async def test_they_die_while_they_send(peers: Peers, bot: Bot, kind: Kind) -> None:
    """What of it has come can be read, once, and the conversation goes on."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before")
        await ours.hears("before")
        for life in range(3):
            bodies = [f"{life} {number}" for number in range(40)]
            await alice.do("forget_session", room_id=room)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(speak, alice, room, bodies))
                await ours.wait("any of it", partial(_begins, f"{life} "))
                await peers.crash(alice)
            await alice.say(room, f"back {life}")
            await ours.hears(f"back {life}")
            await ours.say(room, f"hello {life}")
            assert (await alice.sees(f"hello {life}"))["encrypted"]
        heard = ours.read(room)
        assert len(heard) == len(set(heard))
        assert ours.standing.undecryptable_waiting == 0
        assert not [event for event in ours.heard if event.type == "matrix.undecryptable"]


async def speak(alice: Peer, room: str, bodies: list[str]) -> None:
    """Until it is killed."""
    with suppress(PeerError):
        await alice.do("send_at_once", room_id=room, bodies=bodies)


def _begins(words: str, event: Event) -> bool:
    return str(event.content.get("body", "")).startswith(words)
