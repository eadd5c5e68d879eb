"""Where grants begin, over changes, aliases and restarts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pytest
import trio
import trio.testing

from armorclaw.guard.beginnings import RETRY_SECONDS, Beginnings, Declared
from armorclaw.guard.grants import Grants
from armorclaw.matrix.granted import Granted
from armorclaw.store import Database
from armorclaw.store.schema import MIGRATIONS
from tests.events.inline_store import InlineDatabase

A, B, C = "!a:x", "!b:x", "!c:x"


class Life:
    """Of a bridge, on a journal that goes up to `head`."""

    def __init__(self, db: InlineDatabase, head: int) -> None:
        self.head = head
        self.grants = Grants(lambda: self.head)
        self.beginnings = Beginnings(cast(Database, db), self.grants)
        self.granted = Granted("main", self.grants)

    async def begin(self, *rooms: str, agent: str = "ada") -> Life:
        await self.beginnings.grant([Declared(agent, "main", rooms)])
        return self

    def hears(self, room: str, agent: str = "ada") -> list[int]:
        return [seq for seq in range(1, 50) if self.grants.hears(agent, "main", room, seq)][:1]


@pytest.fixture
def db() -> Iterator[InlineDatabase]:
    made = InlineDatabase()
    yield made
    made.close()


async def test_a_grant_begins_when_it_is_made_and_goes_on_in_the_next_life(db: InlineDatabase) -> None:
    first = await Life(db, 10).begin(A)
    assert first.hears(A) == [11]
    assert first.hears(B) == []
    second = await Life(db, 20).begin(A, B)
    assert second.hears(A) == [11]
    assert second.hears(B) == [21]
    third = await Life(db, 30).begin(A, B)
    assert (third.hears(A), third.hears(B)) == ([11], [21])


async def test_one_that_was_taken_back_begins_anew(db: InlineDatabase) -> None:
    await Life(db, 10).begin(A)
    await Life(db, 20).begin(B)
    assert (await Life(db, 30).begin(A, B)).hears(A) == [31]
    await Life(db, 35).begin(A, agent="eve")  # ada is not declared any more
    assert (await Life(db, 40).begin(A, B)).hears(B) == [41]


async def test_a_grant_of_another_account_is_another(db: InlineDatabase) -> None:
    life = Life(db, 10)
    life.grants.set("ada", "main", [A])
    life.head = 20
    life.grants.set("ada", "other", [A])
    assert not life.grants.hears("ada", "main", A, 15)
    assert not life.grants.hears("ada", "other", A, 15)
    assert life.grants.hears("ada", "other", A, 21)


async def test_what_happens_now_has_no_number() -> None:
    grants = Grants(lambda: 10)
    grants.set("ada", "main", [A])
    assert grants.hears("ada", "main", A, 0)
    assert not grants.hears("ada", "main", B, 0)


async def test_the_room_of_an_alias_begins_when_it_is_found(db: InlineDatabase) -> None:
    alias = "INSERT INTO aliases VALUES ('main', '#a:x', ?) ON CONFLICT DO UPDATE SET room_id = excluded.room_id"
    async with trio.open_nursery() as nursery:
        first = await Life(db, 10).begin("#a:x")
        nursery.start_soon(first.beginnings.run)
        first.head = 15
        db.conn.execute(alias, (A,))
        first.granted.resolved("#a:x", A)
        assert first.hears(A) == [16]
        first.head = 17
        first.grants.set("ada", "main", ["#a:x"])  # as the fleet does, when it declares what is granted already
        assert first.hears(A) == [16]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="killed")
    second = await Life(db, 20).begin("#a:x")
    assert second.hears(A) == []
    second.head = 25
    second.granted.replace({"#a:x": A})  # what the store knows of it
    assert second.hears(A) == [16]
    second.granted.resolved("#a:x", B)
    assert (second.hears(A), second.hears(B)) == ([], [26])
    second.head = 30
    second.granted.resolved("#a:x", A)
    assert second.hears(A) == [31]


async def test_what_is_granted_beside_names_goes_on_too(db: InlineDatabase) -> None:
    async with trio.open_nursery() as nursery:
        first = await Life(db, 10).begin(A)
        nursery.start_soon(first.beginnings.run)
        first.head = 15
        first.grants.set("ada", "main", [A, B])  # such as a direct chat
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="killed")
    second = Life(db, 20)
    await second.beginnings.grant([Declared("ada", "main", [A], [B])])
    second.grants.set("ada", "main", [A, B])
    assert (second.hears(A), second.hears(B)) == ([11], [16])
    third = await Life(db, 30).begin(A)  # it was not that any more
    third.grants.set("ada", "main", [A, B])
    assert (third.hears(A), third.hears(B)) == ([11], [31])


async def test_agents_from_before_this_was_kept_had_their_rooms_long_ago(db: InlineDatabase) -> None:
    db.conn.execute("DROP TABLE grants")  # as it was before the last migration
    add = "INSERT INTO subscriptions (owner, name, filter, floor) VALUES (?, 'main', '{}', 5)"
    for owner in ("ada", "@alerts", ""):
        db.conn.execute(add, (owner,))
    db.conn.executescript("CREATE TABLE grants" + MIGRATIONS[3].sql.split("CREATE TABLE grants")[1].split("ALTER")[0])
    assert db.conn.execute("SELECT agent FROM grants").fetchall() == [("ada",)]
    db.conn.execute("INSERT INTO aliases VALUES ('main', '#b:x', ?)", (B,))
    first = await Life(db, 10).begin(A, "#b:x")
    first.granted.replace({"#b:x": B})
    assert (first.hears(A), first.hears(B)) == ([1], [1])
    second = await Life(db, 20).begin(A, "#b:x", C)
    second.granted.replace({"#b:x": B})
    assert (second.hears(A), second.hears(B), second.hears(C)) == ([1], [1], [21])


async def test_only_what_is_declared_is_kept(db: InlineDatabase) -> None:
    async with trio.open_nursery() as nursery:
        life = await Life(db, 10).begin(A)
        nursery.start_soon(life.beginnings.run)
        life.grants.set("guest", "main", [A])
        life.grants.set("ada", "main", [A, C])
        life.grants.forget("guest")
        life.head = 12
        life.grants.set("guest", "main", [A])
        assert life.hears(A, "guest") == [13]
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="seen")
    rows = db.conn.execute("SELECT agent, account, room, since FROM grants ORDER BY room").fetchall()
    assert rows == [("ada", "main", A, 10), ("ada", "main", C, 10)]


async def test_a_guest_goes_on_with_the_rooms_of_its_last_run(db: InlineDatabase) -> None:
    first = await Life(db, 10).begin()
    await first.beginnings.welcome(Declared("guest", "main", [A, C]))
    assert (first.hears(A, "guest"), first.hears(B, "guest")) == ([11], [])
    first.beginnings.leave("guest")
    assert first.hears(A, "guest") == []
    second = await Life(db, 20).begin()
    await second.beginnings.welcome(Declared("guest", "main", [A, B]))
    assert (second.hears(A, "guest"), second.hears(B, "guest")) == ([11], [21])
    second.beginnings.leave("guest")
    third = await Life(db, 30).begin(A, agent="guest")  # declared now, which is another grant
    assert third.hears(A, "guest") == [31]


async def test_a_store_that_is_away_is_waited_for(db: InlineDatabase, autojump_clock: trio.testing.MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = await Life(db, 10).begin(A)
        nursery.start_soon(life.beginnings.run)
        db.down = True
        life.grants.set("ada", "main", [B])
        await trio.sleep(3 * RETRY_SECONDS)
        db.down = False
        await trio.sleep(2 * RETRY_SECONDS)
        nursery.cancel_scope.cancel(reason="seen")
    assert db.conn.execute("SELECT room FROM grants").fetchall() == [(B,)]


async def test_granted_again_by_the_same_bridge_it_knows_better_than_the_disk(db: InlineDatabase) -> None:
    """As when the store was restarted under it."""
    life = await Life(db, 10).begin(A)
    life.head = 20
    life.grants.set("ada", "main", [])
    life.grants.set("ada", "main", [A])
    await life.begin(A)
    assert life.hears(A) == [21]
    assert (await Life(db, 30).begin(A)).hears(A) == [21]
