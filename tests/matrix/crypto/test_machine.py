"""Answers about devices: of two the newer one stays, whichever comes first."""

from __future__ import annotations

import pytest
import trio

from tests.matrix.crypto.conftest import ANN, BEN, Party, Town


def hold_first(ann: Party, event: trio.Event) -> None:
    """The answer to the first query from now on is on its way until the event."""

    async def hold() -> None:
        ann.server.lost = lambda name: None
        await event.wait()

    ann.server.lost = lambda name: hold() if name == "keys/query" else None


def devices(ann: Party, user: str = BEN) -> set[str]:
    return {device.device_id for device in ann.encryption.standing.devices(user)}


async def test_an_older_answer_that_comes_late_is_not_kept(town: Town) -> None:
    ann, ben = await town.pair()
    await ann.say()
    machine, arrives, heard = ann.encryption.machine, trio.Event(), list[set[str]]()

    async def query() -> None:
        heard.append(await machine.query([BEN, ANN]))

    async with trio.open_nursery() as nursery:
        hold_first(ann, arrives)
        nursery.start_soon(query)
        await trio.testing.wait_all_tasks_blocked()
        await town.device(BEN, "B2")
        await ann.catch_up()
        assert devices(ann) == {"B", "B2"}
        arrives.set()
    assert devices(ann) == {"B", "B2"}
    assert heard == [{ANN, BEN}]  # of Ben as well: what was kept is newer
    assert not ann.encryption.devices.is_pending(BEN)
    assert not machine._kept  # nothing is remembered once nobody asks
    assert (await ben.hear(await ann.say())) == "hello"


async def test_of_whom_the_newer_answer_says_nothing_the_older_one_is_kept(town: Town) -> None:
    ann, _ = await town.pair()
    await ann.say()
    machine, arrives = ann.encryption.machine, trio.Event()
    await town.device(BEN, "B2")
    async with trio.open_nursery() as nursery:
        hold_first(ann, arrives)
        nursery.start_soon(machine.query, [BEN])
        await trio.testing.wait_all_tasks_blocked()
        town.server.away.add("hs.test")
        assert await machine.query([BEN]) == set()
        arrives.set()
    assert devices(ann) == {"B", "B2"}


@pytest.mark.parametrize("late", [False, True])
async def test_who_asked_is_told_although_the_answer_is_old(town: Town, late: bool) -> None:
    ann, _ = await town.pair()
    await ann.say()
    machine, arrives, told = ann.encryption.machine, trio.Event(), list[str]()
    ann.encryption.on_devices = told.append
    async with trio.open_nursery() as nursery:
        hold_first(ann, arrives)
        nursery.start_soon(machine.query, [BEN])
        await trio.testing.wait_all_tasks_blocked()
        if late:
            await machine.query([BEN])
        told.clear()
        arrives.set()
    assert told == [BEN]
