"""Whatever happens, in whatever order: what is said of a message is true, and nobody sees one twice."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

ROOMS = ("!0:x", "!1:x")
DAY = 86_400.0

TROUBLES: dict[str, list[Any]] = {
    "lose": ["lose", Delayed(None, "timed out")],
    "unsure": [Delayed(None, "timed out")],
    "sure": [Delayed(None, "no connection", sure=True)],
    "told": [Delayed(40.0, "429", sure=True)],
    "lost and told": ["lose", Delayed(3.0, "502")],
    "refused": [Refused("M_FORBIDDEN")],
    "ours": [Refused("room_encrypted", sure=False)],
    "hang": ["hang"],
}

room = st.sampled_from(ROOMS)
send = st.tuples(st.just("send"), room, st.lists(st.sampled_from(sorted(TROUBLES)), max_size=3))
step = st.one_of(
    send,
    send,
    send,
    st.tuples(st.just("look"), st.sampled_from([Delayed(None, "502"), Refused("not in the room")])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.3, 5.0, 60.0])),
    st.tuples(st.just("sync"), st.booleans()),
    st.tuples(st.just("say"), room),
    st.tuples(st.just("read"), room, st.integers(0, 5)),
    st.tuples(st.just("cancel"), st.integers(1, 3)),
    st.tuples(st.just("retry"), st.integers(1, 3)),
    st.tuples(st.just("restart"), st.sampled_from(["", "device", "day", "session"])),
    st.tuples(st.just("hold"), st.booleans()),
)


class Run:
    """One run of steps against an outbox, with what is known to be true beside it."""

    def __init__(self, world: World, out: Out) -> None:
        self.world = world
        self.out = out
        self.ids: list[str] = []
        self.retried: set[str] = set()
        self.read_to: defaultdict[str, int] = defaultdict(lambda: -1)  # by room: index in the timeline
        self.devices = 0

    async def steps(self, steps: list[tuple[Any, ...]]) -> None:
        """Each session is a nursery; a restart ends it, and all that is in memory is gone."""
        world, left = self.world, list(steps)
        while True:
            async with trio.open_nursery() as nursery:
                await nursery.start(world.outbox.serve, "main", world.server)
                kind = await self._until_restart(left)
                nursery.cancel_scope.cancel(reason="a restart")
            if kind is None:
                break
            self._restart(kind)
        await self._calm()

    async def _until_restart(self, left: list[tuple[Any, ...]]) -> str | None:
        while left:
            name, *args = left.pop(0)
            if name == "restart":
                return str(args[0])
            await getattr(self, f"_{name}")(*args)
        return None

    def _restart(self, kind: str) -> None:
        if kind == "device":
            self.devices += 1
            self.world.server.device_id = f"DEVICE{self.devices}"
        elif kind == "day":
            self.world.wall_offset += 0.9 * DAY
            self.world.server.forget()
        if kind != "session":
            self.world.reopen()

    async def _calm(self) -> None:
        """All troubles are over: everything comes to its end, and everybody reads it all."""
        world = self.world
        for each in ROOMS:
            world.server.trouble[each].clear()
        world.server.look_trouble.clear()
        world.reopen()
        async with trio.open_nursery() as nursery:
            await nursery.start(world.outbox.serve, "main", world.server)
            await trio.sleep(400)
            await world.sync()
            for each in ROOMS:
                await self._read(each, 0)
            nursery.cancel_scope.cancel(reason="all is over")

    async def _send(self, room: str, troubles: list[str]) -> None:
        """A message, and what happens to the next requests in its room; then its first request has a turn."""
        for name in troubles:
            self.world.server.trouble[room] += TROUBLES[name]
        delivery = await self.world.outbox.enqueue(self.out(str(len(self.ids)), room))
        self.ids.append(delivery.delivery_id)
        await trio.sleep(0.01)

    async def _look(self, trouble: BaseException) -> None:
        self.world.server.look_trouble.append(trouble)

    async def _wait(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def _sync(self, forgetful: bool) -> None:
        await self.world.sync(forgetful=forgetful)

    async def _say(self, room: str) -> None:
        self.world.server.say(room)

    async def _read(self, room: str, back: int) -> None:
        """Somebody reads up to the last event but `back`, whether we know of it or not."""
        here = [(index, said) for index, said in enumerate(self.world.server.timeline) if said.room_id == room]
        if len(here) > back:
            index, said = here[-1 - back]
            self.read_to[room] = max(self.read_to[room], index)
            await self.world.sync((room, said.event_id, "@ann:x"))

    async def _cancel(self, back: int) -> None:
        await self._by_hand("cancel", back)

    async def _retry(self, back: int) -> None:
        if await self._by_hand("retry", back):
            self.retried.add(self.ids[-back])

    async def _by_hand(self, what: str, back: int) -> bool:
        """To the last message, or the one before it, and so on."""
        if back > len(self.ids):
            return False
        try:
            await getattr(self.world.outbox, what)(self.ids[-back], by="uid 0")
        except ArmorclawError as error:
            if error.name != "conflict":
                raise
            return False
        return True

    async def _hold(self, held: bool) -> None:
        (self.world.outbox.hold if held else self.world.outbox.release)()

    def check(self) -> None:
        timeline = self.world.server.timeline
        seen = {said.body: (index, said) for index, said in enumerate(timeline) if said.sender is None}
        assert len(seen) == len(self.world.server.visible), "nobody sees a message twice"
        for number, delivery_id in enumerate(self.ids):
            row = self.world.db.conn.execute(
                "SELECT state, event_id, tried_ms, length(content) FROM outbox WHERE delivery_id = ?", (delivery_id,)
            ).fetchone()
            self._check_one(row, delivery_id, seen.get(str(number)))
        for each in ROOMS:
            numbers = [int(said.body) for said in timeline if said.room_id == each and said.sender is None]
            never_retried = [number for number in numbers if self.ids[number] not in self.retried]
            assert never_retried == sorted(never_retried), "in order within a room"
        assert self.world.outbox.lengths().get("main", 0) == 0
        assert self.world.outbox.in_flight() == 0

    def _check_one(self, row: tuple[Any, ...], delivery_id: str, seen: tuple[int, Any] | None) -> None:
        state, event_id, tried_ms, length = row
        if state in ("sent", "delivered", "read"):
            assert seen is not None
            assert (seen[1].event_id, length) == (event_id, 0)
        else:
            assert state in ("failed", "cancelled"), "all comes to an end"
            assert seen is None or (state == "failed" and tried_ms is not None), "what is seen may be doubted only"
        if state == "read":
            assert seen is not None
            assert seen[0] <= self.read_to[seen[1].room_id], "read is said of nothing that nobody has read"
        told = [
            each["state"]
            for (content,) in self.world.db.conn.execute(
                "SELECT content FROM journal WHERE type = 'delivery' ORDER BY seq"
            )
            if (each := json.loads(content))["delivery_id"] == delivery_id
        ]
        assert told[-1] == state, "the last that was told is what holds"
        if delivery_id not in self.retried:
            assert len(told) == len(set(told)) or told.count("unknown") > 1


@pytest.mark.mission("P3.1", "P3.2", "P3.3")
@settings(max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(step, min_size=10, max_size=40))
def test_what_is_said_of_a_message_is_true(
    new_world: Callable[[], World], out: Out, steps: list[tuple[Any, ...]]
) -> None:
    async def main() -> None:
        world = new_world()
        run = Run(world, out)
        await run.steps(steps)
        run.check()
        world.db.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
