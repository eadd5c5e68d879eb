from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.config import AccessSection, Route
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.matrix.rooms import RoomState
from armorclaw.matrix.routing.methods import PolicyMethods
from armorclaw.matrix.routing.shapes import Explained, ExplainParams
from armorclaw.rpc.call import Call
from tests.matrix.routing.house import ALICE, STRANGER, House

ROOM = "!r:x"
TRUSTED = AccessSection(trusted=(ALICE,), commands=(ALICE,))


@attrs.frozen
class Homes:
    house: House

    def names(self) -> list[str]:
        return list(self.house.rooms)

    def room_id(self, account: str, room: str) -> str | None:
        return self.house.granted[account].id_of(room)

    def account_for(self, room_id: str) -> str:
        return next((name for name, rooms in self.house.rooms.items() if rooms.joined(room_id)), "main")

    def rooms(self, account: str) -> Mapping[str, RoomState]:
        if account not in self.house.rooms:
            raise ArmorclawError("matrix_not_configured", f"there is no Matrix account {account!r}")
        return self.house.rooms[account].all()


async def explain(house: House, room: str = ROOM, **params: Any) -> Explained:
    journal = Journal(cast(Any, house.db), house.clock)
    methods = PolicyMethods(house.routing, Homes(house), journal)
    return await methods.explain(cast(Call, None), ExplainParams(room, **params))


async def test_a_room_that_nothing_is_said_of() -> None:
    house = House({"echo": [ROOM]})
    house.be_in(ROOM)
    found = await explain(house)
    assert found == Explained(
        room_id=ROOM,
        account="main",
        membership="join",
        direct=None,
        replaces=[],
        level="route",
        routes=found.routes,
        hearing=["echo"],
        sender="@anybody:anywhere",
        is_trusted=False,
        may_command=False,
        rule="route",
        where="agents.echo.rooms",
        why=found.why,
        kept=True,
        agents=["echo"],
    )
    assert [attrs.astuple(each) for each in found.routes] == [("echo", "always", "agents.echo.rooms")]


async def test_who_is_heard_and_who_is_not() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    house.be_in(ROOM)
    alice = await explain(house)
    assert (alice.sender, alice.is_trusted, alice.rule, alice.agents) == (ALICE, True, "route", ["echo"])
    stranger = await explain(house, sender=STRANGER)
    assert (stranger.rule, stranger.where, stranger.kept, stranger.agents) == (
        "stranger",
        "access.trusted",
        False,
        [],
    )
    order = await explain(house, text="!claw status")
    assert (order.rule, order.agents) == ("order", ["@bridge"])


async def test_a_direct_chat_that_replaced_another_and_was_given_to_an_agent() -> None:
    house = House({"echo": [], "other": []}, access=TRUSTED, routes=[Route("other", dm=True)])
    house.be_in("!old:x", direct=ALICE, successor=ROOM)
    house.be_in(ROOM, predecessor="!old:x")
    assert (await explain(house)).level == "dm"
    await house.routing.table.use("main", "!old:x", "echo", "mention", by=ALICE)
    found = await explain(house)
    assert (found.direct, found.replaces, found.level) == (ALICE, ["!old:x"], "chosen")
    assert (found.rule, found.kept, found.agents) == ("chosen", False, [])
    assert (await explain(house, text="hi @bot:x")).agents == ["echo"]


async def test_by_alias_and_account() -> None:
    house = House({"echo": ["#a:x"], "b": []}, accounts=("main", "second"), speaks_for={"b": "second"})
    house.granted["main"].resolved("#a:x", ROOM)
    house.be_in(ROOM)
    house.be_in(ROOM, account="second")
    assert (await explain(house, "#a:x")).room_id == ROOM
    assert (await explain(house, account="second")).hearing == []
    for room, account, error in (
        ("#nowhere:x", None, "not_found"),
        ("lobby", None, "invalid_params"),
        (ROOM, "third", "matrix_not_configured"),
    ):
        with pytest.raises(ArmorclawError) as refused:
            await explain(house, room, account=account)
        assert refused.value.name == error


async def test_what_was_said_is_explained_as_it_was_decided() -> None:
    house = House({"echo": [ROOM], "other": [ROOM]}, access=TRUSTED)
    house.be_in(ROOM)
    await house.hear(ROOM, "hello", sender=STRANGER, event_id="$stranger")
    found = await explain(house, event="$stranger")
    assert (found.sender, found.rule, found.as_it_was, found.kept) == (STRANGER, "stranger", True, False)

    kept = await house.hear(ROOM, "hello", event_id="$kept")
    journal = Journal(cast(Any, house.db), house.clock)
    assert kept is not None
    await journal.record([kept, attrs.evolve(kept, id="x", event_id="$one", addressed=("other",))])
    found = await explain(house, event="$kept")
    assert (found.rule, found.agents, found.was_for, found.as_it_was) == ("route", ["echo", "other"], None, False)
    assert (await explain(house, event="$one")).was_for == ["other"]
    for room, event in ((ROOM, "$unknown"), ("!else:x", "$kept")):
        with pytest.raises(ArmorclawError) as refused:
            await explain(house, room, event=event)
        assert refused.value.name == "not_found"


@pytest.mark.parametrize(("membership", "why"), [("", ""), ("invite", "account main: invite")])
async def test_a_room_that_no_account_is_in(membership: str, why: str) -> None:
    house = House({"echo": [ROOM]}, accounts=("main", "second"))
    if membership:
        house.be_in(ROOM, membership)
    with pytest.raises(ArmorclawError) as refused:
        await explain(house)
    error = refused.value
    assert (error.name, error.what, error.why) == ("not_found", f"no account of the bridge is in room {ROOM}", why)
    assert "armorclaw call matrix.rooms" in error.hint
    assert "@bot:x" in error.hint
    with pytest.raises(ArmorclawError, match=f"account second is not in room {ROOM}"):
        await explain(house, account="second")


async def test_a_room_that_the_account_is_deaf_to() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    house.be_in(ROOM, encrypted=True)
    assert (await explain(house)).agents == ["echo"]
    account, status = house.routing._accounts["main"], house.routing._statuses["main"]
    house.routing._accounts["main"] = attrs.evolve(account, encryption=False)
    found = await explain(house)
    assert (found.rule, found.agents, found.kept) == ("route", [], False)
    assert found.deaf is not None
    assert "accounts.main.encryption" in found.deaf
    house.be_in("!clear:x")
    assert (await explain(house, "!clear:x")).deaf is None
    house.routing._accounts["main"] = account
    status.encryption = "lost"
    assert "armorclaw matrix login bot --account main" in ((await explain(house)).deaf or "")
    status.encryption = "ready"
    assert (await explain(house)).deaf is None
    status.logged_out("no password")
    assert "armorclaw matrix login bot --account main" in ((await explain(house, "!clear:x")).deaf or "")


async def test_of_several_accounts_the_one_that_answers_is_asked() -> None:
    homes = {"a": "main", "b": "second"}
    routes = [Route("b", room=ROOM)]
    house = House({"a": [], "b": []}, access=TRUSTED, routes=routes, accounts=("main", "second"), speaks_for=homes)
    house.be_in(ROOM)
    assert (await explain(house)).account == "main"
    house.be_in(ROOM, account="second")
    found = await explain(house)
    assert (found.account, found.agents) == ("second", ["b"])
    house.granted["main"].resolved("#a:x", ROOM)  # for another reason
    assert (await explain(house, "#a:x")).account == "second"
    order = await explain(house, account="main", text="!claw who")
    assert (order.rule, order.kept, order.agents) == ("order", False, [])
    assert "account second answers" in order.why


async def test_that_it_came_in_the_clear_is_why_nobody_heard_it() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    house.be_in(ROOM, encrypted=True)
    said = {"msgtype": "m.text", "body": "hello"}
    event = Event.make("m.room.message", said, at_ms=1, account="main", room_id=ROOM, sender=ALICE, event_id="$clear")
    kept = await house.router.place(event, in_clear=True)
    assert kept is not None
    await Journal(cast(Any, house.db), house.clock).record([kept])
    found = await explain(house, event="$clear")
    assert (found.rule, found.kept, found.agents, found.was_for, found.as_it_was) == ("clear", True, [], [], True)
    assert "encrypted" in found.why


@given(
    sender=st.sampled_from([ALICE, STRANGER, "@bot:x", "@second:x", "@bob:x"]),
    text=st.sampled_from(["hello", "!claw help", "!echo hi", "ask @bot:x", ""]),
    room=st.sampled_from([ROOM, "!dm:x", "!none:x"]),
    trusted=st.sampled_from([(), (ALICE,), ("*:x",)]),
    commands=st.sampled_from([(), (ALICE,)]),
    respond=st.sampled_from(["always", "mention", "reply", "command"]),
)
async def test_what_is_explained_is_what_happens(
    sender: str, text: str, room: str, trusted: Any, commands: Any, respond: Any
) -> None:
    access = AccessSection(trusted=trusted, commands=commands)
    routes = [Route("echo", room=ROOM, respond=respond), Route("echo", dm=True)]
    house = House({"echo": [], "other": [ROOM]}, access=access, routes=routes, accounts=("main", "second"))
    try:
        house.be_in(ROOM)
        house.be_in("!dm:x", direct=ALICE)
        house.be_in("!none:x")
        house.be_in(ROOM, account="second")
        told = await explain(house, room, sender=sender, text=text)
        event: Event | None = await house.hear(room, text, sender=sender)
        assert house.router.counts == {(told.rule, told.kept): 1}
        if event is None:
            assert (told.kept, told.agents) == (False, [])
        else:
            place = house.router.standing(room)
            assert told.agents == sorted(place.hearing if event.addressed is None else event.addressed)
    finally:
        house.db.close()
