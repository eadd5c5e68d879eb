from __future__ import annotations

from typing import Any

import pytest

from armorclaw.config import Route
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.routing import table as table_module
from armorclaw.matrix.routing.table import Chosen
from tests.matrix.routing.house import ALICE, House

ROOM = "!r:x"


async def test_a_choice_outlives_the_bridge() -> None:
    house = House({"echo": [], "other": [ROOM]})
    chosen = await house.routing.table.use("main", ROOM, "echo", "mention", by=ALICE)
    assert chosen == Chosen("echo", "mention", ALICE, 1_700_000_000_000)
    assert house.db.durable == 1
    again = House({"echo": [], "other": [ROOM]}, db=house.db)
    assert again.routing.table.chosen("main", [ROOM]) is None
    await again.routing.load()
    assert again.routing.table.chosen("main", [ROOM]) == chosen
    assert again.routing.table.choices("main") == {ROOM: chosen}
    assert again.routing.table.choices("second") == {}


async def test_the_last_choice_counts_until_it_is_taken_back() -> None:
    house = House({"echo": [], "other": []})
    table = house.routing.table
    told: list[tuple[str, str]] = []
    table.on_change(lambda account, room: told.append((account, room)))
    await table.use("main", ROOM, "echo", "always", by=ALICE)
    await table.use("main", ROOM, "other", "reply", by="@bob:x")
    found = table.chosen("main", ["!new:x", ROOM])
    assert found is not None
    assert (found.agent, found.respond, found.by) == ("other", "reply", "@bob:x")
    assert "@bob:x" in found.origin
    before = await table.unuse("main", ROOM)
    assert before == found
    assert table.chosen("main", [ROOM]) is None
    assert await table.unuse("main", ROOM) is None
    assert told == [("main", ROOM)] * 3
    assert house.db.conn.execute("SELECT count(*) FROM routes").fetchone() == (0,)


@pytest.mark.parametrize(
    "account, agent, respond, error",
    [
        ("main", "nobody", "always", "container_not_found"),
        ("second", "echo", "always", "not_routable"),
        ("main", "echo", "sometimes", "invalid_params"),
    ],
)
async def test_a_choice_that_cannot_be(account: str, agent: str, respond: Any, error: str) -> None:
    house = House({"echo": []})
    with pytest.raises(ArmorclawError) as refused:
        await house.routing.table.use(account, ROOM, agent, respond, by=ALICE)
    assert refused.value.name == error
    assert house.db.writes == 0


async def test_there_is_an_end_to_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_module, "CHOSEN_LIMIT", 2)
    house = House({"echo": []})
    for room in ("!a:x", "!b:x"):
        await house.routing.table.use("main", room, "echo", "always", by=ALICE)
    with pytest.raises(ArmorclawError) as refused:
        await house.routing.table.use("main", "!c:x", "echo", "always", by=ALICE)
    assert refused.value.name == "queue_full"
    await house.routing.table.use("main", "!a:x", "echo", "mention", by=ALICE)


async def test_a_store_that_is_away_leaves_all_as_it_was() -> None:
    house = House({"echo": []})
    house.db.down = True
    with pytest.raises(ArmorclawError):
        await house.routing.table.use("main", ROOM, "echo", "always", by=ALICE)
    assert house.routing.table.chosen("main", [ROOM]) is None
    assert house.grants.rooms_of("echo") == frozenset()


def test_what_is_granted_by_name() -> None:
    house = House({"echo": ["!a:x", "#b:x"]}, routes=[Route("echo", room="!c:x"), Route("other", room="!d:x")])
    table = house.routing.table
    assert table.granted_by_name("echo") == {"!a:x", "#b:x", "!c:x"}
    assert table.granted_by_name("nobody") == frozenset()
    assert table.origin("echo") == "agents.echo.rooms"
    assert "guest" in table.origin("guest")
