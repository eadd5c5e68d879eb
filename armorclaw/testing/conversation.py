"""A conversation that keeps account: what was said, whether the agents have it, and what became of their answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from armorclaw.testing.handles import POLL, BridgeProcess
from armorclaw.testing.person import Person, Seen

T = TypeVar("T")

QUIET = 0.3
"""Seconds without anything new after which a room counts as quiet."""

CONSUMER = "armorclaw-conversation"
_ON_ITS_WAY = ("queued", "unknown")
_WENT_WRONG = ("failed", "cancelled")


@attrs.define
class Ledger:
    """What is known so far; both forms fill it in and ask it the same questions."""

    room: str
    said: dict[str, str] = attrs.field(factory=dict)
    """Bodies by event id, in order."""
    seen: list[Seen] = attrs.field(factory=list)
    """What others said in the room, as the person sees it."""
    taken_in: dict[str, int] = attrs.field(factory=dict)
    """Events the bridge has, each with a number in its journal that is not before it."""
    unheard_by: list[str] = attrs.field(factory=list)
    """Agents that have not acknowledged all of it."""
    given_up: list[str] = attrs.field(factory=list)
    """Agents for which an event was given up as a dead letter."""
    deliveries: list[dict[str, Any]] = attrs.field(factory=list)

    @property
    def last(self) -> int:
        """The number up to which agents must have acknowledged."""
        return max((self.taken_in.get(event_id, 0) for event_id in self.said), default=0)

    def note_batch(self, batch: dict[str, Any]) -> bool:
        """An answer of matrix.receive; whether there may be more."""
        for event in batch["events"]:
            self.taken_in[event["event_id"]] = int(batch["cursor"])
        return bool(batch["events"])

    def note_standing(self, head: int, stats: Sequence[dict[str, Any]], agents: Sequence[str]) -> None:
        """`head` was read before `stats`: so an agent counts as further back than it is, never as further on."""
        main = {row["owner"]: row for row in stats if row["subscription"] == "main" and row["named"]}
        self.unheard_by = [
            name
            for name in agents
            if name not in main or head - main[name]["behind"] - main[name]["acknowledged"] < self.last
        ]
        self.given_up = [name for name in agents if name in main and main[name]["dead"]]

    def missing(self, agents: Sequence[str]) -> list[str]:
        """In words, what is not where it should be now, and may still come."""
        strangers = [body for event_id, body in self.said.items() if event_id not in self.taken_in]
        found = [f"the bridge has not taken in {body!r}" for body in strangers]
        found += [f"agent {name} has not acknowledged all that was said" for name in self.unheard_by]
        found += [f"{_words(row)} is still on its way" for row in self.deliveries if row["state"] in _ON_ITS_WAY]
        shown = {seen.event_id for seen in self.seen}
        sent = [row for row in self.deliveries if row["state"] not in (*_ON_ITS_WAY, *_WENT_WRONG)]
        found += [f"{_words(row)} cannot be seen in the room" for row in sent if row["event_id"] not in shown]
        told = {row["event_id"] for row in self.deliveries}  # of one whose answer was lost, only once it came back
        foreign = [seen for seen in self.seen if seen.event_id not in told]
        found += [f"{seen.body!r} was seen and is nothing that was sent" for seen in foreign]
        if not agents:
            found.append("no agent is in the room")
        return found

    def wrong(self) -> list[str]:
        """In words, what no waiting mends."""
        found = [f"an event was given up for agent {name}: see events.dead_letters" for name in self.given_up]
        ended = [row for row in self.deliveries if row["state"] in _WENT_WRONG]
        found += [f"{_words(row)} has {row['state']}: {row['reason']}" for row in ended]
        times = Counter(row["event_id"] for row in self.deliveries if row["event_id"])
        found += [f"{event_id} is told of {count} messages" for event_id, count in times.items() if count > 1]
        return found

    def verdict(self, agents: Sequence[str], seconds: float) -> None:
        """Raises AssertionError with every fault there is."""
        faults = [*self.wrong(), *(f"{fault}, after {seconds:g} s" for fault in self.missing(agents))]
        assert not faults, f"in {self.room}:\n" + "\n".join(f"- {fault}" for fault in faults)


def _words(row: dict[str, Any]) -> str:
    return f"message {row['delivery_id']} of {row['agent'] or 'the operator'}"


class Conversation:
    """A person in a room with the bridge, and whatever agents are started in `room`.

    Messages of the room are to be sent by agents of this bridge or its operator, and people are to speak by `say`.
    """

    def __init__(self, person: Person, room: str, bridge: BridgeProcess) -> None:
        self.person = person
        self.room = room
        self._bridge = bridge
        self._ledger = Ledger(room)
        self._receive()  # so that it has what comes from now on

    @property
    def seen(self) -> list[Seen]:
        """What others were seen to say in the room so far, in order."""
        return list(self._ledger.seen)

    def say(self, body: str, **content: Any) -> str:
        """The person says something; returns its event id."""
        event_id = self.person.send(self.room, body, **content)
        self._ledger.said[event_id] = body
        return event_id

    def wait_for(self, body: str | Callable[[Seen], bool], *, timeout: float = 20.0) -> Seen:
        """The next message of somebody else that has this body, or is wanted by a function. Raises timed_out."""
        wanted = body if callable(body) else lambda seen: seen.body == body

        def look(seen: Seen) -> bool:
            self._note(seen)
            return wanted(seen)

        return self.person.wait_for(look, timeout=timeout)

    def assert_nothing_lost(self, *, timeout: float = 30.0) -> None:
        """That all is where it should be: waits for it up to `timeout` seconds.

        Every message of the person was taken in by the bridge and acknowledged by every agent of the room; every
        message that the bridge accepted for the room can be seen there, once; nothing else can be seen there.
        """
        deadline = time.monotonic() + timeout
        while True:
            agents = self._look()
            if self._ledger.wrong() or not self._ledger.missing(agents) or time.monotonic() > deadline:
                return self._ledger.verdict(agents, timeout)
            time.sleep(POLL)

    def _look(self) -> list[str]:
        call = self._bridge.call
        while self._receive():
            pass
        agents = [row["name"] for row in call("containers.list") if self.room in self._rooms_of(row["name"])]
        head = call("events.subscribe")["cursor"]
        self._ledger.note_standing(head, call("events.stats"), agents)
        self._ledger.deliveries = call("delivery.list", room_id=self.room, limit=1000)
        for seen in self.person.seen(quiet=QUIET):
            self._note(seen)
        return agents

    def _rooms_of(self, agent: str) -> list[str]:
        return list(self._bridge.call("containers.inspect", name=agent)["rooms"])

    def _receive(self) -> bool:
        return self._ledger.note_batch(self._bridge.call("matrix.receive", consumer=CONSUMER, limit=100))

    def _note(self, seen: Seen) -> None:
        if seen.room_id == self.room:
            self._ledger.seen.append(seen)


class TrioConversation:
    """The same for a bridge in the test's own Trio loop: what waits is awaited."""

    def __init__(self, person: Person, room: str, bridge: Any) -> None:
        self.person = person
        self.room = room
        self._bridge = bridge
        self._ledger = Ledger(room)

    @property
    def seen(self) -> list[Seen]:
        """What others were seen to say in the room so far, in order."""
        return list(self._ledger.seen)

    async def begin(self) -> None:
        """Take in what comes from now on."""
        await self._receive()

    async def say(self, body: str, **content: Any) -> str:
        """See `Conversation.say`."""
        event_id = await _in_thread(partial(self.person.send, self.room, body, **content))
        self._ledger.said[event_id] = body
        return event_id

    async def wait_for(self, body: str | Callable[[Seen], bool], *, timeout: float = 20.0) -> Seen:
        """See `Conversation.wait_for`."""
        wanted = body if callable(body) else lambda seen: seen.body == body

        def look(seen: Seen) -> bool:
            self._note(seen)
            return wanted(seen)

        return await _in_thread(partial(self.person.wait_for, look, timeout=timeout))

    async def assert_nothing_lost(self, *, timeout: float = 30.0) -> None:
        """See `Conversation.assert_nothing_lost`."""
        deadline = trio.current_time() + timeout
        while True:
            agents = await self._look()
            if self._ledger.wrong() or not self._ledger.missing(agents) or trio.current_time() > deadline:
                return self._ledger.verdict(agents, timeout)
            await trio.sleep(POLL)

    async def _look(self) -> list[str]:
        bridge = self._bridge
        while await self._receive():
            pass
        (account, *_) = bridge.config.accounts
        agents = sorted(bridge.grants.agents_in(account, self.room))
        head = await bridge.journal.head()
        self._ledger.note_standing(head, await bridge.call("events.stats"), agents)
        self._ledger.deliveries = await bridge.call("delivery.list", room_id=self.room, limit=1000)
        for seen in await _in_thread(partial(self.person.seen, quiet=QUIET)):
            self._note(seen)
        return agents

    async def _receive(self) -> bool:
        batch = await self._bridge.call("matrix.receive", consumer=CONSUMER, limit=100)
        return self._ledger.note_batch(batch)

    def _note(self, seen: Seen) -> None:
        if seen.room_id == self.room:
            self._ledger.seen.append(seen)


async def _in_thread(do: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(do)
