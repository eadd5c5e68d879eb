"""An agent becomes known with all that belongs to it, or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.agent import Agent
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.1")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


def forgetful(house: FakeHouse, patched: pytest.MonkeyPatch) -> None:
    """The store does not tell how agents ended."""

    async def recall(agent: Agent) -> None:
        await trio.lowlevel.checkpoint()
        raise ArmorclawError("storage_failed", "the disk failed")

    patched.setattr(house.fleet.household, "recall", recall)


async def test_one_stopped_by_hand_stays_stopped_over_a_start_that_failed(
    house: FakeHouse, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ada = declared(rooms=("!a:x",))
    await house.up(ada)
    await house.call("stop", name="ada")
    await house.down()
    house.new_fleet()
    with monkeypatch.context() as patched:
        forgetful(house, patched)
        with pytest.raises(ArmorclawError, match="the disk failed"):
            await house.fleet.run({"ada": ada})
    await house.up(ada)
    await trio.sleep(10)
    assert [(each.name, each.state, each.rooms) for each in house.fleet.standings()] == [("ada", "stopped", ["!a:x"])]


async def test_a_new_one_whose_start_is_refused_is_not_known(
    house: FakeHouse, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.up()
    with monkeypatch.context() as patched:
        forgetful(house, patched)
        with pytest.raises(ArmorclawError, match="the disk failed"):
            await house.call("start", name="ada", command=["ada"])
    await house.down()
    await house.up()
    await trio.sleep(10)
    assert house.fleet.standings() == []
