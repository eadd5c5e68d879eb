"""A name forgotten while somebody is about to follow by it: they have the new one, or hear that it is gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.attempts import Attempts
from armorclaw.events.filter import EventFilter
from tests.events.world import World, settle

OTHERS = EventFilter(rooms=("!b:x",))


class Gate:
    """Where the first that comes waits until it is opened."""

    def __init__(self) -> None:
        self.reached = trio.Event()
        self._open = trio.Event()

    async def __call__(self) -> None:
        if not self.reached.is_set():
            self.reached.set()
            await self._open.wait()

    async def open(self) -> None:
        self._open.set()
        await settle()


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Behind the load of a cursor, before what is next to be on disk."""
    gate, prepare = Gate(), Attempts.prepare

    async def held(attempts: Attempts, seqs: Sequence[int], floor: int = 0) -> None:
        await gate()
        await prepare(attempts, seqs, floor)

    monkeypatch.setattr(Attempts, "prepare", held)
    return gate


@pytest.fixture
def deleting(world: World, monkeypatch: pytest.MonkeyPatch) -> Gate:
    """Before the write that deletes a name."""
    gate, write = Gate(), world.db.write

    async def held(work: Callable[..., Any], **how: Any) -> Any:
        if getattr(work, "__name__", "") == "_delete":
            await gate()
        return await write(work, **how)

    monkeypatch.setattr(world.db, "write", held)
    return gate


async def test_forgotten_between_its_load_and_its_beginning_it_begins_anew(world: World, loaded: Gate) -> None:
    await world.publish(3)
    sink = world.new_sink()
    subscription = world.subscriptions.open("echo", "main", OTHERS, "now", lambda event: True, sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.nursery.start, subscription.run)
        await loaded.reached.wait()
        await world.subscriptions.forget("echo", "main", None)
        await loaded.open()
    await world.publish(1)
    (seq,) = await world.publish(1, "!b:x")
    assert sink.seqs == [seq]
    await subscription.ack(seq)
    assert world.rows() == (seq, [])


async def test_who_begins_while_the_name_is_being_deleted_is_told(world: World, loaded: Gate, deleting: Gate) -> None:
    sink = world.new_sink()
    subscription = world.subscriptions.open("echo", "main", OTHERS, "now", lambda event: True, sink)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.nursery.start, subscription.run)
        await loaded.reached.wait()
        nursery.start_soon(world.subscriptions.forget, "echo", "main", None)
        await deleting.reached.wait()
        await loaded.open()
        await deleting.open()
    assert subscription.closed_because == "its name was forgotten"
    assert [one.method for one in sink.pushed] == ["events.closed"]
    assert world.subscriptions.open_count == 0


async def test_what_could_not_be_deleted_goes_on(world: World) -> None:
    subscription, sink = await world.connect()
    world.db.down = True
    with pytest.raises(ArmorclawError):
        await world.subscriptions.forget("echo", "main", None)
    world.db.down = False
    await world.publish(1)
    assert (subscription.closed_because, sink.seqs) == (None, [1])
