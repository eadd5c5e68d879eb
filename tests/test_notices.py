"""What the bridge tells people of: once each, in time, and never in a flood."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from armorclaw.events.event import Event
from armorclaw.guard.alerts import Alerts
from armorclaw.health import store_reasons
from armorclaw.notices import PERIOD, Notices
from armorclaw.store import Database
from armorclaw.store.aside import SetAside


@attrs.define
class Store:
    full: bool = False
    set_aside: SetAside | None = None
    on_full: Any = None


@attrs.define(slots=False)
class House:
    """Notices, a store, and what was told of."""

    store: Store = attrs.field(factory=Store)
    told: list[dict[str, Any]] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        alerts = Alerts(self.record, cast(Any, None))
        self.notices = Notices(alerts, cast(Database, self.store))

    async def record(self, type: str, content: Mapping[str, Any], *, agent: str | None, also: Any) -> None:  # noqa: A002
        self.told.append({**content, "agent": agent})

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.notices.run)
            yield
            nursery.cancel_scope.cancel()

    def die(self, owner: str, seq: int = 7) -> None:
        event = attrs.evolve(Event.make("m.room.message", {}, at_ms=0), seq=seq)
        self.notices.on_dead(owner, "main", event, 20, 4, "given 20 times")


@pytest.fixture
def house() -> House:
    return House()


async def settled() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_a_dead_letter(house: House, autojump_clock: MockClock) -> None:
    async with house.running():
        house.die("echo")
        await settled()
    (told,) = house.told
    assert (
        told.items() >= {"name": "dead_letter", "severity": "error", "agent": "echo", "subscription": "main"}.items()
    )
    assert told.items() >= {"seq": 7, "given": 20, "lost": 4, "count": 1, "type": "m.room.message"}.items()
    assert told["text"] == "event 7 was given up for agent echo: given 20 times"


@pytest.mark.parametrize("owner, whose", [("", "operators"), ("@alerts", "@alerts")])
async def test_one_of_nobody(house: House, autojump_clock: MockClock, owner: str, whose: str) -> None:
    async with house.running():
        house.die(owner)
        await settled()
    assert (house.told[0]["agent"], house.told[0]["text"].split(": ")[0]) == (
        None,
        f"event 7 was given up for {whose}",
    )


async def test_many_are_told_together(house: House, autojump_clock: MockClock) -> None:
    """The first at once, the others in a minute, those of another subscription for themselves."""
    async with house.running():
        for seq in range(1, 4):
            house.die("echo", seq)
            await settled()
        house.die("other")
        await settled()
        assert [(each["agent"], each["count"]) for each in house.told] == [("echo", 1), ("other", 1)]
        await trio.sleep(PERIOD + 1)
        assert [(each["agent"], each["count"], each["seq"]) for each in house.told[2:]] == [("echo", 2, 3)]
        assert house.told[2]["text"].endswith("given 20 times, the last of 2 within a minute")
        await trio.sleep(3 * PERIOD)
        assert len(house.told) == 3
        assert not house.notices._dead  # nothing is kept of those at rest
        house.die("echo")
        await settled()
        assert len(house.told) == 4


async def test_before_it_runs_nothing_is_lost(house: House, autojump_clock: MockClock) -> None:
    house.die("echo")
    async with house.running():
        await settled()
    async with house.running():
        await settled()
    assert len(house.told) == 1


async def test_a_full_disk(house: House, autojump_clock: MockClock) -> None:
    async with house.running():
        house.store.on_full(True)
        await settled()
        await trio.sleep(35)
        house.store.on_full(True)  # again is nothing new
        await settled()
        assert [each["name"] for each in house.told] == ["storage_full"]
        house.store.on_full(False)
        await settled()
        house.store.on_full(False)
        await settled()
        house.store.on_full(True)
        await settled()
    assert [(each["name"], each["severity"]) for each in house.told] == [
        ("storage_full", "critical"),
        ("storage_freed", "error"),
        ("storage_full", "critical"),
    ]
    assert house.told[1]["seconds"] == 35


async def test_a_disk_that_is_full_again_before_anybody_was_told(house: House, autojump_clock: MockClock) -> None:
    async with house.running():
        house.store.on_full(True)
        await settled()
        house.store.on_full(False)
        house.store.on_full(True)
        await settled()
        assert [each["name"] for each in house.told] == ["storage_full", "storage_freed", "storage_full"]
        house.store.on_full(False)
        await settled()
    assert [each["name"] for each in house.told[3:]] == ["storage_freed"]


async def test_a_disk_that_is_full_from_the_start(house: House, autojump_clock: MockClock) -> None:
    """The store comes up before this does."""
    house.store.on_full(True)
    async with house.running():
        await settled()
    assert [each["name"] for each in house.told] == ["storage_full"]


async def test_a_database_that_was_set_aside(house: House, autojump_clock: MockClock, tmp_path: Path) -> None:
    """Told at each start as long as it lies there, and once in a life."""
    house.store.set_aside = SetAside(tmp_path / "armorclaw.db.damaged-1", "not a database", 0)
    for _ in range(2):
        async with house.running():
            await settled()
    (told,) = house.told
    assert (
        told.items()
        >= {"name": "database_set_aside", "severity": "critical", "file": "armorclaw.db.damaged-1"}.items()
    )
    assert str(tmp_path) not in told["text"]


def test_health_of_the_store(tmp_path: Path) -> None:
    store = Store()
    assert store_reasons(cast(Database, store)) == []
    store.full = True
    store.set_aside = SetAside(tmp_path / "armorclaw.db.damaged-1", "not a database", 0)
    reasons = store_reasons(cast(Database, store))
    assert reasons[0].startswith("the disk is full")
    assert "armorclaw.db.damaged-1" in reasons[1]
    assert str(tmp_path) not in reasons[1]
