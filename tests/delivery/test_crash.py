"""The process may end at any point: before or after any commit, before or after the server has the message."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.sender import BLIND_MS
from armorclaw.delivery.transport import Delayed, Refused

Out = Callable[..., Outgoing]
World = Any

MESSAGES = [(str(number), f"!{number % 2}:x") for number in range(4)]


class CrashError(Exception):
    """The end of the process: from here on nothing happens any more."""


class Points:
    """Counts the points that are passed, and crashes at one."""

    def __init__(self, crash_at: int | None) -> None:
        self.passed: list[str] = []
        self.crash_at = crash_at
        self.crashed = False

    def __call__(self, name: str) -> None:
        if self.crashed or len(self.passed) == self.crash_at:
            self.crashed = True
            raise CrashError(name)
        self.passed.append(name)


async def conversation(world: World, out: Out, points: Points) -> None:
    """Sends all messages, as an agent does that tries again with the same keys, waits for their end, and syncs until
    all came back and were read."""
    world.db.point = world.server.point = points
    outbox = world.reopen()
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.serve, "main", world.server)
        accepted = [await outbox.enqueue(out(body, room, key=body)) for body, room in MESSAGES]
        for delivery in accepted:
            assert (await outbox.settled(delivery.delivery_id, 60)).state in ("sent", "delivered", "read")
        await world.sync()
        last = {said.room_id: said.event_id for said in world.server.timeline}
        await world.sync(*[(room, event_id, "@ann:x") for room, event_id in last.items()])
        nursery.cancel_scope.cancel(reason="all is said")


async def crash_once(world: World, out: Out, crash_at: int) -> Points:
    points = Points(crash_at)
    try:
        await conversation(world, out, points)
    except* CrashError:
        pass
    return points


def stored_news(world: World, delivery_id: str) -> list[str]:
    rows = world.db.conn.execute("SELECT content FROM journal WHERE type = 'delivery' ORDER BY seq")
    contents = [json.loads(content) for (content,) in rows]
    return [each["state"] for each in contents if each["delivery_id"] == delivery_id]


def check(world: World) -> None:
    """One row and one visible event for each message, in order in its room, one transaction id for all attempts."""
    for room in ("!0:x", "!1:x"):
        assert world.server.bodies(room) == [body for body, where in MESSAGES if where == room]
    assert [state for state, _, _ in world.rows()] == ["read"] * len(MESSAGES)
    for (delivery_id,) in world.db.conn.execute("SELECT delivery_id FROM outbox"):
        told = stored_news(world, delivery_id)
        assert told[-2:] == ["delivered", "read"]
        assert len(set(told)) == len(told), "each state is told once, in the transaction that brings it"
    txns = world.db.conn.execute("SELECT txn_id FROM outbox").fetchall()
    assert {txn for _, _, txn, _ in world.server.attempts} == {txn for (txn,) in txns}
    assert len(world.audit()) == len(MESSAGES)


@pytest.mark.mission("P3.3")
def test_a_crash_at_every_point_makes_nobody_see_a_message_twice_or_never(
    new_world: Callable[[], World], out: Out
) -> None:
    async def count() -> int:
        points = Points(None)
        await conversation(new_world(), out, points)
        assert {"before commit", "after commit", "before put", "after put"} <= set(points.passed)
        return len(points.passed)

    async def sweep(crash_at: int) -> None:
        world = new_world()
        points = await crash_once(world, out, crash_at)
        assert points.crashed
        await conversation(world, out, Points(None))
        check(world)
        world.db.close()

    def run(function: Callable[..., Any], *args: Any) -> Any:
        return trio.run(function, *args, clock=trio.testing.MockClock(autojump_threshold=0))

    for crash_at in range(run(count)):
        run(sweep, crash_at)


@pytest.mark.mission("P3.3")
@pytest.mark.parametrize("change", ["a day", "another device"])
def test_nor_if_the_homeserver_has_forgotten_everything_when_the_bridge_is_back(
    new_world: Callable[[], World], out: Out, change: str
) -> None:
    """A crash at every point, and then the room itself is all that tells what has arrived."""

    async def sweep(crash_at: int) -> bool:
        world = new_world()
        points = await crash_once(world, out, crash_at)
        if change == "a day":
            world.wall_offset += BLIND_MS / 1000 + 1
            world.server.forget()
        else:
            world.server.device_id = "TABLET"
        await conversation(world, out, Points(None))
        for room in ("!0:x", "!1:x"):
            assert world.server.bodies(room) == [body for body, where in MESSAGES if where == room]
        assert [state for state, _, _ in world.rows()] == ["read"] * len(MESSAGES)
        world.db.close()
        return points.crashed

    crash_at = 0
    while trio.run(sweep, crash_at, clock=trio.testing.MockClock(autojump_threshold=0)):
        crash_at += 1
    assert crash_at > 20


@settings(max_examples=60)
@given(st.lists(st.integers(0, 25), max_size=6), st.integers(0, 2**32))
def test_many_crashes_on_a_bad_network(
    new_world: Callable[[], World], out: Out, crashes: list[int], seed: int
) -> None:
    chance = random.Random(seed)

    async def main() -> None:
        world = new_world()
        for crash_at in crashes:
            for room in ("!0:x", "!1:x"):
                world.server.trouble[room].clear()
                for _ in range(chance.randrange(4)):
                    world.server.trouble[room] += chance.choice(
                        [[Delayed(None, "reset")], [Delayed(1.5, "429")], ["lose", Delayed(None, "reset")]]
                    )
            await crash_once(world, out, crash_at)
        await conversation(world, out, Points(None))
        check(world)
        world.db.close()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("ticks", range(12))
async def test_a_caller_that_gives_up_at_any_moment_leaves_one_message_or_none(
    world: World, out: Out, ticks: int, autojump_clock: trio.testing.MockClock
) -> None:
    async def give_up() -> None:
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        scope.cancel(reason="the caller gives up")

    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        with trio.CancelScope() as scope:
            nursery.start_soon(give_up)
            delivery = await world.outbox.enqueue(out("x", key="k"))
            await world.outbox.settled(delivery.delivery_id, 5)
        again = await world.outbox.enqueue(out("x", key="k"))
        assert (await world.outbox.settled(again.delivery_id, 5)).state == "sent"
        nursery.cancel_scope.cancel(reason="done")
    assert world.server.visible == [("!a:x", "x")]
    assert len(world.rows()) == 1


@pytest.mark.parametrize("trouble", [None, Delayed(2.0, "429"), Delayed(None, "502"), Refused("no")])
@pytest.mark.parametrize("ticks", range(14))
async def test_a_session_that_ends_at_any_moment_leaves_its_messages_to_the_next(
    world: World, out: Out, ticks: int, trouble: Any, autojump_clock: trio.testing.MockClock
) -> None:
    if trouble is not None:
        world.server.trouble["!a:x"].append(trouble)
    delivery = await world.outbox.enqueue(out("x"))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        for _ in range(ticks):
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel(reason="the session ends")
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        settled = await world.outbox.settled(delivery.delivery_id, 60)
        nursery.cancel_scope.cancel(reason="done")
    assert settled.state == ("failed" if isinstance(trouble, Refused) and not world.server.visible else "sent")
    assert len({txn for _, _, txn, _ in world.server.attempts}) == 1
    assert len(world.server.visible) <= 1
