"""From the commit into the nursery of the sender: in batches, through a channel that may be full."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.delivery import handover as handover_module
from armorclaw.delivery.handover import AHEAD, Handover
from armorclaw.delivery.message import Delivery, Outgoing

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py


def delivery(seq: int) -> Delivery:
    return Delivery(
        delivery_id=f"d_{seq}",
        txn_id=f"ac_{seq}",
        account="main",
        agent="",
        room_id="!a:x",
        type="m.room.message",
        state="queued",
        created_ms=0,
        seq=seq,
    )


async def test_what_came_together_is_taken_together() -> None:
    handover = Handover()
    for seq in range(1, 4):
        handover.put(delivery(seq), b"{}")
    batch, more = await handover.take()
    assert [each.seq for each, _ in batch] == [1, 2, 3]
    assert not more


async def test_what_finds_no_room_is_told_of_and_nothing_overtakes_it() -> None:
    handover = Handover()
    for seq in range(AHEAD + 5):
        handover.put(delivery(seq), b"{}")
    batch, more = await handover.take()
    assert [each.seq for each, _ in batch] == list(range(AHEAD))
    assert more
    handover.put(delivery(AHEAD + 5), b"{}")
    batch, more = await handover.take()
    assert ([each.seq for each, _ in batch], more) == ([AHEAD + 5], False)


async def test_full_in_the_moment_somebody_takes() -> None:
    """The one who waits has the first already; then the channel fills up behind it."""
    handover = Handover()
    taken = []

    async def take() -> None:
        taken.append(await handover.take())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        for seq in range(AHEAD + 5):
            handover.put(delivery(seq), b"{}")
    ((batch, more),) = taken
    assert [each.seq for each, _ in batch] == list(range(AHEAD + 1))
    assert more


@pytest.mark.parametrize("ahead", [1, 3, 64])
async def test_however_many_come_at_once_all_are_sent_in_order(
    world: World, out: Out, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover_module, "AHEAD", ahead)
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        sender = world.outbox._senders["main"]
        for number in range(20):
            await world.outbox.enqueue(out(f"first {number}", f"!{number % 3}:x"))
        # many at once, before the sender has a turn: as one commit of the store tells of them
        accepted = [
            attrs.evolve(await world.outbox.enqueue(out(f"then {number}", f"!{number % 3}:x")), in_doubt=False)
            for number in range(20)
        ]
        for each in accepted:
            sender.handover.put(each, b'{"body":"again"}')
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")
    for room in range(3):
        expected = [f"{word} {number}" for word in ("first", "then") for number in range(20) if number % 3 == room]
        assert world.server.bodies(f"!{room}:x") == expected


async def test_many_producers_fill_the_channel_and_nothing_is_lost(world: World, out: Out) -> None:
    """A store that answers all at once, as a group commit does."""
    held: list[Callable[[], object]] = []
    done = trio.Event()
    write = world.db.write

    async def grouped(work: Any, *, durable: bool = False, then: Any = None, **more: Any) -> Any:
        if not durable:
            return await write(work, then=then, **more)
        result = await write(work, durable=True, then=lambda result: held.append(partial(then, result)), **more)
        await done.wait()
        return result

    world.db.write = grouped
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(3 * AHEAD):
            nursery.start_soon(world.outbox.enqueue, out(str(number), f"!{number % 2}:x"))
        await trio.testing.wait_all_tasks_blocked()
        for then in held:
            then()
        done.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")
    assert sorted(int(body) for _, body in world.server.visible) == list(range(3 * AHEAD))
    assert world.outbox.lengths() == {"main": 0}
