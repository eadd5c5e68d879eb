"""Which rooms matter to an account, and what gave them to whom."""

from __future__ import annotations

from armorclaw.config import AccessSection, Route
from armorclaw.guard.grants import Grants
from armorclaw.matrix.granted import LONGEST_LINE, Granted
from armorclaw.matrix.rooms import RoomState
from tests.matrix.routing.house import ALICE, STRANGER, House


def test_the_view_of_one_account() -> None:
    grants = Grants()
    granted = Granted("main", grants)
    grants.set("early", "main", ["!a:x", "#b:x"])
    grants.set("late", "main", ["!c:x"])
    grants.set("other", "second", ["!d:x"])
    assert granted.room_ids() == {"!a:x", "!c:x"}
    assert granted.unresolved() == {"#b:x"}
    assert granted.covers("!a:x")
    assert not granted.covers("!d:x")

    granted.resolved("#b:x", "!b:x")
    assert granted.covers("!b:x")
    assert grants.may("early", "!b:x")
    assert granted.unresolved() == frozenset()

    grants.set("early", "main", ["#b:x"])  # given anew, still known
    assert grants.may("early", "!b:x")
    grants.forget("early")
    assert granted.room_ids() == {"!c:x"}
    grants.set("late", "second", ["!c:x"])
    assert granted.room_ids() == frozenset()


def test_a_room_of_the_bridges_own_is_nobodys_to_hear() -> None:
    grants = Grants()
    granted = Granted("main", grants, own=["!ops:x", "#ops:x"])
    grants.set("echo", "main", ["!a:x"])
    assert granted.room_ids() == {"!a:x", "!ops:x"}
    assert granted.unresolved() == {"#ops:x"}
    granted.resolved("#ops:x", "!later:x")
    assert granted.room_ids() == {"!a:x", "!ops:x", "!later:x"}
    for room in ("!ops:x", "!later:x"):
        assert not granted.covers(room)
        assert not grants.may("echo", room)
        assert grants.agents_in("main", room) == frozenset()
    grants.set("echo", "main", ["!a:x", "!ops:x"])  # but it may be granted like any other
    assert granted.covers("!ops:x")


def test_an_alias_that_moves_takes_its_old_room_away_unless_that_is_granted_too() -> None:
    grants = Grants()
    granted = Granted("main", grants)
    grants.set("one", "main", ["#a:x"])
    grants.set("both", "main", ["#a:x", "!old:x"])
    granted.resolved("#a:x", "!old:x")
    granted.resolved("#a:x", "!new:x")
    assert grants.rooms_of("one") == {"#a:x", "!new:x"}
    assert grants.rooms_of("both") == {"#a:x", "!new:x", "!old:x"}
    granted.replace({})
    assert grants.rooms_of("one") == {"#a:x"}
    assert grants.rooms_of("both") == {"#a:x", "!old:x"}


# --- rooms that replace each other ---


def test_a_room_that_replaces_another_is_granted_with_it() -> None:
    house = House({"echo": ["!old:x"], "other": ["!else:x"]})
    granted = house.granted["main"]
    house.be_in("!old:x")
    assert granted.room_ids() == {"!old:x", "!else:x"}
    house.be_in("!old:x", successor="!new:x")
    assert house.grants.rooms_of("echo") == {"!old:x", "!new:x"}
    assert house.grants.rooms_of("other") == {"!else:x"}
    assert granted.room_ids() == {"!old:x", "!new:x", "!else:x"}
    assert granted.lineage("!new:x") == ("!new:x", "!old:x")
    assert granted.named_in(granted.lineage("!new:x")) == {"echo"}
    assert granted.id_of("!old:x") == "!old:x"  # as long as we are not in there
    house.be_in("!new:x", predecessor="!old:x")
    assert granted.id_of("!old:x") == "!new:x"
    assert granted.room_ids() == {"!new:x", "!else:x"}  # the old one need not be kept


def test_an_alias_follows_its_room_until_it_is_moved() -> None:
    house = House({"echo": ["#a:x"]})
    granted = house.granted["main"]
    granted.resolved("#a:x", "!old:x")
    house.be_in("!old:x", successor="!new:x")
    house.be_in("!new:x", predecessor="!old:x")
    assert (granted.id_of("#a:x"), granted.named_by("#a:x")) == ("!new:x", "!old:x")
    assert granted.is_replaced("!old:x")
    assert house.grants.rooms_of("echo") == {"#a:x", "!old:x", "!new:x"}
    granted.resolved("#a:x", "!new:x")
    assert house.grants.rooms_of("echo") == {"#a:x", "!new:x"}


def test_a_grant_goes_on_from_where_it_was_when_others_change() -> None:
    house = House({"echo": ["!old:x"]})
    house.be_in("!old:x", successor="!new:x")
    since = house.grants.begun("echo")
    house.grants.set("echo", "main", ["!old:x"])  # declared anew, as when the child that does so starts again
    assert house.grants.begun("echo") == since


def test_what_an_invitation_says_of_a_room_proves_nothing() -> None:
    house = House({"echo": ["!a:x"]})
    house.be_in("!a:x", "invite", inviter=STRANGER, successor="!evil:x")
    assert house.grants.rooms_of("echo") == {"!a:x"}
    assert house.granted["main"].room_ids() == {"!a:x"}


def test_a_room_becomes_no_other_by_saying_so() -> None:
    """Whoever governs a room can name any as the one that replaced it, and so come by what is granted there."""
    house = House({"evil": ["!evil:x"], "good": ["!good:x"]})
    granted = house.granted["main"]
    house.be_in("!good:x")
    house.be_in("!evil:x", successor="!good:x")
    assert house.grants.rooms_of("evil") == {"!evil:x"}
    assert granted.lineage("!good:x") == ("!good:x",)
    assert granted.id_of("!evil:x") == "!evil:x"
    house.be_in("!good:x", predecessor="!other:x")
    house.be_in("!mine:x", predecessor="!good:x")  # nor the other way round
    assert house.grants.agents_in("main", "!good:x") == {"good"}
    assert house.grants.agents_in("main", "!mine:x") == frozenset()


def test_a_room_that_we_are_not_in_yet_is_believed_until_we_are() -> None:
    house = House({"echo": ["!old:x"], "other": ["!named:x", "#named:x"]})
    house.be_in("!old:x", successor="!new:x")
    assert house.grants.rooms_of("echo") == {"!old:x", "!new:x"}
    house.be_in("!new:x", "invite")
    assert house.grants.rooms_of("echo") == {"!old:x", "!new:x"}
    house.be_in("!new:x")
    assert house.grants.rooms_of("echo") == {"!old:x"}
    house.be_in("!old:x", successor="!named:x")
    assert house.grants.rooms_of("echo") == {"!old:x"}
    house.be_in("!old:x", successor="!alias:x")
    assert house.grants.rooms_of("echo") == {"!old:x", "!alias:x"}
    house.granted["main"].resolved("#named:x", "!alias:x")
    assert house.grants.rooms_of("echo") == {"!old:x"}


def test_rooms_that_replace_each_other_in_a_ring_or_for_ever_come_to_an_end() -> None:
    house = House({"echo": ["!0:x"]})
    for at in range(100):
        state = RoomState("join", successor=f"!{at + 1}:x", predecessor=f"!{at - 1}:x")
        house.rooms["main"].apply({f"!{at}:x": state})
    house.be_in("!ring:x", successor="!ring:x", predecessor="!ring:x")
    house.be_in("!one:x", successor="!two:x", predecessor="!two:x")
    house.be_in("!two:x", successor="!one:x", predecessor="!one:x")
    granted = house.granted["main"]
    assert len(house.grants.rooms_of("echo")) == LONGEST_LINE
    assert len(granted.lineage("!99:x")) == LONGEST_LINE
    assert granted.lineage("!ring:x") == ("!ring:x",)
    assert set(granted.lineage("!one:x")) == {"!one:x", "!two:x"}


# --- routes ---


def test_a_route_grants_its_agent_the_room() -> None:
    routes = [Route("echo", room="#r:x"), Route("other", room="!s:x", respond="mention")]
    house = House({"echo": ["!a:x"], "other": []}, routes=routes)
    assert house.grants.rooms_of("echo") == {"!a:x", "#r:x"}
    assert house.grants.rooms_of("other") == {"!s:x"}
    house.granted["main"].resolved("#r:x", "!r:x")
    assert house.grants.may("echo", "!r:x")


def test_a_route_outlives_that_its_agent_is_declared_anew() -> None:
    """As the fleet does, with the rooms of the agent's own declaration."""
    house = House({"echo": ["!a:x"]}, access=AccessSection(trusted=(ALICE,)), routes=[
        Route("echo", room="!r:x"), Route("echo", dm=True),
    ])  # fmt: skip
    house.be_in("!dm:x", direct=ALICE)
    house.grants.set("echo", "main", ["!a:x"])
    assert house.grants.rooms_of("echo") == {"!a:x", "!r:x", "!dm:x"}
    house.grants.forget("echo")
    assert house.grants.agents_in("main", "!r:x") == frozenset()


def test_direct_chats_with_trusted_people_are_granted() -> None:
    house = House({"echo": []}, access=AccessSection(trusted=(ALICE,)), routes=[Route("echo", dm=True)])
    granted = house.granted["main"]
    house.be_in("!dm:x", "invite", direct=ALICE, inviter=ALICE)
    assert house.grants.rooms_of("echo") == {"!dm:x"}  # before anything can be said there
    assert granted.room_ids() == frozenset()  # whether to accept is for the policy to say
    house.be_in("!evil:x", direct=STRANGER)
    house.be_in("!group:x")
    assert house.grants.rooms_of("echo") == {"!dm:x"}
    house.be_in("!dm:x", direct=ALICE, successor="!dm2:x")
    assert house.grants.rooms_of("echo") == {"!dm:x", "!dm2:x"}
    assert granted.room_ids() == {"!dm2:x"}
    house.be_in("!dm:x", direct=None)
    assert house.grants.rooms_of("echo") == frozenset()


def test_a_direct_chat_that_is_routed_by_name_is_not_the_others() -> None:
    routes = [Route("echo", dm=True), Route("own", room="!dm:x")]
    house = House({"echo": [], "own": []}, access=AccessSection(trusted=(ALICE,)), routes=routes)
    house.be_in("!dm:x", direct=ALICE)
    assert house.grants.agents_in("main", "!dm:x") == {"own"}


async def test_a_choice_grants_the_room_and_ends_with_it() -> None:
    house = House(
        {"echo": [], "own": ["!r:x"]}, access=AccessSection(trusted=(ALICE,)), routes=[Route("own", dm=True)]
    )
    house.be_in("!r:x")
    house.be_in("!dm:x", direct=ALICE)
    for room in ("!r:x", "!dm:x"):
        await house.routing.table.use("main", room, "echo", "always", by=ALICE)
    assert house.grants.rooms_of("echo") == {"!r:x", "!dm:x"}
    assert house.grants.rooms_of("own") == {"!r:x"}  # what the operator granted stays
    house.be_in("!dm:x", direct=ALICE, successor="!dm2:x")
    assert house.grants.rooms_of("echo") == {"!r:x", "!dm:x", "!dm2:x"}
    await house.routing.table.unuse("main", "!dm:x")
    assert house.grants.rooms_of("echo") == {"!r:x"}
    assert house.grants.rooms_of("own") == {"!r:x", "!dm:x", "!dm2:x"}


def test_what_is_granted_beside_names_can_be_told_before_anything_is() -> None:
    access, routes = AccessSection(trusted=(ALICE,)), [Route("echo", dm=True)]
    house = House({"echo": ["!r:x"]}, access=access, routes=routes)
    house.grants.forget("echo")
    house.be_in("!r:x", successor="!r2:x")
    house.be_in("!dm:x", direct=ALICE)
    assert house.granted["main"].beyond_names("echo", ["!r:x"]) == {"!r2:x", "!dm:x"}
    assert house.granted["main"].beyond_names("other", []) == frozenset()
    assert house.grants.rooms_of("echo") == frozenset()
