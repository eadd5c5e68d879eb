from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import attrs
import pytest
import structlog

from armorclaw.config import AccessSection, Route, Talk
from armorclaw.events.event import Event
from armorclaw.guard.policy import BRIDGE
from armorclaw.matrix.routing.router import LEFT_OUT, OWN_RECENT, PLACED, PLACES
from tests.matrix.routing.house import ALICE, BOT, STRANGER, House

ROOM = "!r:x"
TRUSTED = AccessSection(trusted=(ALICE,), commands=(ALICE,))


def relates(event_id: str, rel_type: str | None = None, **more: Any) -> dict[str, Any]:
    about: dict[str, Any] = {"m.in_reply_to": {"event_id": event_id}}
    if rel_type is not None:
        about = {"rel_type": rel_type, "event_id": event_id}
    return {"msgtype": "m.text", "body": "and?", "m.mentions": {}, "m.relates_to": about, **more}


async def test_an_empty_configuration_keeps_what_is_granted_for_all_who_hear_it() -> None:
    house = House({"echo": [ROOM], "other": [ROOM]})
    house.be_in(ROOM)
    house.be_in("!else:x")
    assert house.router.covers(ROOM)
    assert not house.router.covers("!else:x")
    event = await house.hear(ROOM, "hello", sender=STRANGER)
    assert event is not None
    assert event.addressed is None
    assert await house.heard_by("!else:x", "hello") is None
    assert house.db.reads == 0  # what costs nothing before costs nothing now


async def test_a_guest_hears_what_all_hear() -> None:
    house = House({"echo": [ROOM]})
    house.grants.set("guest", "main", [ROOM])
    assert await house.heard_by(ROOM, "hello") == ["*"]
    house.grants.forget("guest")
    assert await house.heard_by(ROOM, "hello") == ["*"]


async def test_an_agent_s_rooms_are_a_route_that_another_route_may_narrow() -> None:
    house = House({"echo": [ROOM], "other": [ROOM]}, routes=[Route("other", room=ROOM, respond="mention")])
    assert await house.heard_by(ROOM, "hello") == ["echo"]
    assert await house.heard_by(ROOM, f"hello {BOT}") == ["echo", "other"]
    place = house.router.standing(ROOM)
    assert {(each.agent, each.respond, each.origin) for each in place.routed} == {
        ("echo", "always", "agents.echo.rooms"),
        ("other", "mention", "routes[0]"),
    }


async def test_a_route_by_alias_counts_once_it_is_resolved() -> None:
    house = House({"echo": []}, routes=[Route("echo", room="#a:x", respond="command")])
    assert await house.heard_by(ROOM, "!echo hi") is None
    house.granted["main"].resolved("#a:x", ROOM)
    assert await house.heard_by(ROOM, "!echo hi") == ["echo"]
    assert await house.heard_by(ROOM, "hi") is None


async def test_routes_move_along_with_the_room() -> None:
    house = House({"echo": [], "other": [ROOM]}, routes=[Route("echo", room=ROOM, respond="command")])
    house.be_in(ROOM, successor="!new:x")
    house.be_in("!new:x", predecessor=ROOM)
    assert await house.heard_by("!new:x", "!echo hi") == ["echo", "other"]
    await house.routing.table.use("main", ROOM, "echo", "always", by=ALICE)
    assert await house.heard_by("!new:x", "hi") == ["echo"]
    await house.routing.table.use("main", "!new:x", "other", "always", by=ALICE)
    assert await house.heard_by("!new:x", "hi") == ["other"]
    assert await house.heard_by(ROOM, "hi") == ["echo"]


async def test_direct_chats_go_to_their_agent() -> None:
    house = House({"echo": [], "other": [ROOM]}, access=TRUSTED, routes=[Route("echo", dm=True)])
    house.be_in("!dm:x", direct=ALICE)
    house.be_in("!group:x")
    house.be_in("!evil:x", direct=STRANGER)
    assert await house.heard_by("!dm:x", "hello") == ["*"]
    assert house.grants.agents_in("main", "!dm:x") == {"echo"}
    assert await house.heard_by("!group:x", "hello") is None  # however few people are in there
    assert await house.heard_by("!evil:x", "hello") is None
    assert await house.heard_by("!dm:x", "hello", sender=STRANGER) is None


async def test_strangers_are_dropped_and_can_be_asked_for() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    for at in range(LEFT_OUT + 1):
        assert await house.hear(ROOM, "hello", sender=STRANGER, event_id=f"$e{at}") is None
    assert house.router.counts == {("stranger", False): LEFT_OUT + 1}
    assert house.router.left_out(ROOM, "$e0") is None  # bounded
    left_out = house.router.left_out(ROOM, f"$e{LEFT_OUT}")
    assert left_out is not None
    assert (left_out.sender, left_out.decision.rule) == (STRANGER, "stranger")
    assert house.router.left_out("!else:x", "$e9") is None


def test_whose_words_are_a_loss_if_they_cannot_be_read() -> None:
    house = House({"echo": [ROOM]}, accounts=("main", "second"))
    assert house.router.hears(ROOM, STRANGER)
    assert not house.router.hears("!else:x", ALICE)
    access = AccessSection(trusted=(ALICE,), talk=(Talk("@helper:y", "echo"),))
    house = House({"echo": [ROOM]}, access=access, accounts=("main", "second"))
    heard = [each for each in (ALICE, STRANGER, "@helper:y", "@second:x") if house.router.hears(ROOM, each)]
    assert heard == [ALICE, "@helper:y", "@second:x"]


async def test_rooms_that_are_not_named_are_not_even_looked_at() -> None:
    house = House({"echo": [ROOM]}, access=AccessSection(trusted=(ALICE,), rooms=("!only:x",)))
    assert not house.router.covers(ROOM)
    assert house.router.covers("!only:x")
    assert await house.heard_by(ROOM, "hello") is None


async def test_orders_are_heard_in_every_room() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    for room in (ROOM, "!else:x"):
        assert house.router.covers(room)
        assert await house.heard_by(room, "!claw status") == [BRIDGE]
    assert await house.heard_by(ROOM, "!claw status", sender=STRANGER) is None


# --- what an event relates to ---


async def test_answers_to_what_an_agent_said_are_for_it() -> None:
    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="reply")])
    house.spoke("echo", "$mine")
    house.spoke("other", "$others")
    house.spoke("", "$bridges")
    assert await house.heard_by(ROOM, relates("$mine")) == ["echo"]
    assert await house.heard_by(ROOM, relates("$mine", "m.thread")) == ["echo"]
    assert await house.heard_by(ROOM, relates("$mine", "m.annotation"), type="m.reaction") == ["echo"]
    for other in ("$others", "$bridges", "$unknown"):
        assert await house.heard_by(ROOM, relates(other)) is None
    assert await house.heard_by(ROOM, f"{BOT} hello") is None


async def test_an_answer_is_known_before_the_outbox_knows_what_it_answers() -> None:
    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="reply")])
    house.spoke("echo", None, txn_id="txn-1")
    assert await house.heard_by(ROOM, relates("$mine")) is None
    house.router.own("$mine", "txn-1")
    house.router.own("$elsewhere", None)  # by another device of the account
    assert await house.heard_by(ROOM, relates("$mine")) == ["echo"]
    assert await house.heard_by(ROOM, relates("$elsewhere")) is None
    for at in range(OWN_RECENT):
        house.router.own(f"$more{at}", f"txn-more{at}")
    assert await house.heard_by(ROOM, relates("$mine")) is None  # bounded; by now the outbox would know


async def test_a_thread_goes_on_with_whom_it_began() -> None:
    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="mention")])
    house.journal("$asked", '["echo"]')
    house.journal("$for-all", None)
    assert await house.heard_by(ROOM, relates("$asked", "m.thread")) == ["echo"]
    assert await house.heard_by(ROOM, relates("$for-all", "m.thread")) is None
    assert await house.heard_by(ROOM, relates("$asked")) is None  # a reply to a person is for that person


async def test_changes_follow_what_they_change() -> None:
    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="command")])
    house.journal("$asked", '["echo"]')
    assert await house.heard_by(ROOM, relates("$asked", "m.replace")) == ["echo"]
    assert await house.heard_by(ROOM, {"redacts": "$asked"}, type="m.room.redaction") == ["echo"]
    assert await house.heard_by(ROOM, relates("$unheard", "m.replace")) is None


async def test_a_reaction_to_what_the_bridge_said_is_for_the_bridge() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    house.spoke("", "$question")
    house.spoke("echo", "$answer")
    react = {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$question", "key": "✅"}}
    assert await house.heard_by(ROOM, react, type="m.reaction") == [BRIDGE]
    react["m.relates_to"]["event_id"] = "$answer"
    assert await house.heard_by(ROOM, react, type="m.reaction") == ["*"]


async def test_whom_a_message_was_for_is_known_before_it_is_in_the_store() -> None:
    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="mention")])
    await house.hear(ROOM, f"hi {BOT}", event_id="$asked")
    for other in (relates("$asked", "m.thread"), relates("$asked", "m.replace")):
        assert await house.heard_by(ROOM, other) == ["echo"]
    for at in range(PLACED):
        await house.hear(ROOM, f"hi {BOT}", event_id=f"$more{at}")
    assert await house.heard_by(ROOM, relates("$asked", "m.thread")) is None  # bounded; by now the store would know
    assert len(house.router._placed) == PLACED


async def test_what_cannot_be_placed_before_another_one_is() -> None:
    house = House(
        {"echo": [], "loud": ["!loud:x"]},
        access=TRUSTED,
        routes=[Route("echo", room=ROOM, respond="mention")],
    )
    thread = relates("$asked", "m.thread")
    notice = {**thread, "msgtype": "m.notice"}
    cases: list[tuple[str, str, dict[str, Any], str | None]] = [
        (ROOM, ALICE, thread, "$asked"),
        (ROOM, ALICE, relates("$asked", "m.replace"), "$asked"),
        (ROOM, ALICE, relates("$asked"), None),  # only what an agent said can be answered, and that is known
        (ROOM, ALICE, {**thread, "m.mentions": {"user_ids": [BOT]}}, None),
        (ROOM, ALICE, notice, None),
        (ROOM, STRANGER, thread, None),
        ("!loud:x", ALICE, thread, None),
    ]
    for room, sender, content, expected in cases:
        event = Event.make("m.room.message", content, at_ms=1, room_id=room, sender=sender, event_id="$e")
        assert house.router.follows(event) == expected, (room, sender, content)
    own = Event.make("gap", {}, at_ms=1, account="main", room_id=ROOM)
    assert house.router.follows(own) is None
    assert house.router.counts == {}
    assert house.db.reads == 0


# --- in the clear ---


@pytest.mark.mission("S.5")
async def test_what_is_in_the_clear_where_it_should_not_be_is_for_nobody() -> None:
    house = House({"echo": [ROOM]}, access=TRUSTED)
    house.be_in(ROOM, encrypted=True)
    with structlog.testing.capture_logs() as logs:
        for at, body in enumerate(("hello", "!claw stop echo", "!echo hi")):
            said = {"msgtype": "m.text", "body": body}
            event = Event.make("m.room.message", said, at_ms=1, room_id=ROOM, sender=ALICE, event_id=f"$e{at}")
            kept = await house.router.place(event, in_clear=True)
            assert kept is not None
            assert kept.addressed == ()
        stranger = attrs.evolve(event, sender=STRANGER, event_id="$stranger")
        assert await house.router.place(stranger, in_clear=True) is None
    assert house.router.counts == {("clear", True): 3, ("stranger", False): 1}
    assert [each["room"] for each in logs if each["log_level"] == "warning"] == [ROOM]  # once
    told = house.router.left_out(ROOM, "$e0")
    assert told is not None
    assert told.decision.rule == "clear"


# --- programs ---


async def test_two_accounts_of_ours_do_not_hear_each_other() -> None:
    house = House(
        {"a": [ROOM], "b": [ROOM]},
        accounts=("main", "second"),
        speaks_for={"b": "second"},
    )
    said = {"msgtype": "m.text", "body": "hello", "armorclaw.agent": "a"}
    assert await house.heard_by(ROOM, said, sender=BOT, account="second") == []
    assert await house.heard_by(ROOM, "hello", sender=BOT, account="second") == []  # marked or not
    assert await house.heard_by(ROOM, "hello", sender="@second:x") == []
    assert await house.heard_by(ROOM, "hello", account="second") == ["*"]


# --- several accounts in one room ---


def shared(*routes: Route, **facts: Any) -> House:
    """A room with three accounts, of which `a` has an agent that is not routed, as `b` and `c` have."""
    homes = {"of_a": "a", "of_b": "b", "of_c": "c"}
    agents: dict[str, Sequence[str]] = dict.fromkeys(homes, ())
    house = House(agents, access=TRUSTED, routes=routes, accounts=("a", "b", "c"), speaks_for=homes)
    for account in "abc":
        house.be_in(ROOM, account=account, **facts)
    return house


async def answering(house: House, text: dict[str, Any] | str) -> list[str]:
    """The accounts that take what is said for an order to them."""
    heard = {account: await house.heard_by(ROOM, text, account=account) for account in "abc"}
    assert set(map(str, heard.values())) <= {"None", str([BRIDGE])}
    return [account for account, addressed in heard.items() if addressed]


@pytest.mark.parametrize(
    ("text", "account"),
    [
        ("!claw status", "a"),
        ("!claw logs of_b", "b"),
        ("!CLAW use of_c", "c"),
        ("!claw use -", "a"),
        ("!claw start of_nobody", "a"),
        ("!claw status @c:x", "c"),
        ("!claw logs of_b @c:x", "c"),
    ],
)
async def test_one_account_answers_an_order(text: str, account: str) -> None:
    assert await answering(shared(), text) == [account]


async def test_an_order_goes_to_the_account_that_it_mentions() -> None:
    mention = {"msgtype": "m.text", "body": "!claw status Bee", "m.mentions": {"user_ids": ["@b:x"]}}
    assert await answering(shared(), mention) == ["b"]
    both = {"msgtype": "m.text", "body": "!claw status", "m.mentions": {"user_ids": ["@c:x", "@b:x"]}}
    assert await answering(shared(), both) == ["b"]


async def test_an_order_goes_to_the_account_that_the_room_is_routed_for() -> None:
    house = shared(Route("of_c", room=ROOM, respond="command"))
    assert await answering(house, "!claw who") == ["c"]
    assert await answering(house, "!claw use of_a") == ["a"]
    await house.routing.table.use("b", ROOM, "of_b", "command", by=ALICE)
    assert await answering(house, "!claw who") == ["b"]


async def test_an_order_goes_to_no_account_that_is_not_there_or_cannot_read_it() -> None:
    house = shared(Route("of_a", room=ROOM, respond="command"))
    house.be_in(ROOM, "leave", account="a")
    assert await house.heard_by(ROOM, "!claw who", account="b") == [BRIDGE]
    assert await house.heard_by(ROOM, "!claw who", account="c") is None
    house.routing._statuses["b"].logged_out("no password")
    assert await house.heard_by(ROOM, "!claw who", account="c") == [BRIDGE]
    house = shared(encrypted=True)
    house.routing._accounts["a"] = attrs.evolve(house.routing._accounts["a"], encryption=False)
    assert await house.heard_by(ROOM, "!claw who", account="b") == [BRIDGE]
    house.routing._statuses["b"].encryption = "lost"
    assert await house.heard_by(ROOM, "!claw who", account="c") == [BRIDGE]


async def test_an_order_goes_to_no_account_for_which_the_room_does_not_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was in no room before this one, which `[access] rooms` names."""
    house = shared(Route("of_a", room=ROOM, respond="command"))
    monkeypatch.setattr(house.routing.routers["a"], "covers", lambda room_id: False)
    assert await house.heard_by(ROOM, "!claw who", account="b") == [BRIDGE]


async def test_a_reaction_is_for_the_account_that_asked() -> None:
    house = shared()
    house.spoke("", "$question", account="b")
    heard = [
        account
        for account in "abc"
        if await house.heard_by(ROOM, relates("$question", "m.annotation"), type="m.reaction", account=account)
    ]
    assert heard == ["b"]


async def test_one_account_tells_that_nobody_answers() -> None:
    house = shared(direct=ALICE)
    for account in "abc":
        await house.hear(ROOM, "hello?", account=account)
    assert [account for account, _ in house.routing._guide._waiting] == ["a"]
    house = shared(Route("of_c", dm=True, respond="command"), direct=ALICE)
    for account in "abc":
        await house.hear(ROOM, "hello?", account=account)
    assert not house.routing._guide._waiting  # somebody does
    for account in "abc":
        await house.hear(ROOM, "hello @b:x?", account=account)
    assert [account for account, _ in house.routing._guide._waiting] == ["b"]


async def test_an_account_is_known_from_its_last_login() -> None:
    house = House({"a": [ROOM]}, accounts=("main", "second"))
    house.db.conn.execute(
        "INSERT INTO accounts (name, homeserver, user_id, device_id, access_token)"
        " VALUES ('second', '', '@b:x', '', '')"
    )
    house.routing._statuses["second"].user_id = None
    assert await house.heard_by(ROOM, "hello", sender="@b:x") == ["*"]
    await house.routing.load()
    assert await house.heard_by(ROOM, "hello", sender="@b:x") == []


async def test_agents_hear_each_other_where_they_may() -> None:
    house = House(
        {"a": [ROOM], "b": [ROOM]},
        access=AccessSection(talk=(Talk("a", "b"),)),
        accounts=("main", "second"),
        speaks_for={"b": "second"},
    )
    said = {"msgtype": "m.text", "body": "hello", "armorclaw.agent": "a"}
    assert await house.heard_by(ROOM, said, sender=BOT, account="second") == ["b"]
    forged = {**said, "armorclaw.agent": "b"}
    assert await house.heard_by(ROOM, forged, sender=BOT, account="second") == []
    assert await house.heard_by(ROOM, {**said, "armorclaw.agent": "b"}, sender="@second:x") == []
    assert await house.heard_by(ROOM, said, sender=STRANGER, account="second") == []


# --- words of the bridge ---


async def test_words_of_the_bridge_are_kept() -> None:
    house = House({"echo": []}, access=TRUSTED, routes=[Route("echo", room=ROOM, respond="mention")])
    about = {"room_id": ROOM, "sender": STRANGER}
    event = Event.make("matrix.undecryptable", about, at_ms=1, account="main", room_id=ROOM, severity="warning")
    kept = await house.router.place(event)
    assert kept is not None
    assert kept.addressed == ()
    assert not kept.is_for("echo")
    gap = await house.router.place(Event.make("gap", {"room_id": ROOM}, at_ms=1, account="main", room_id=ROOM))
    assert gap is not None
    assert gap.addressed is None


# --- how a room stands ---


async def test_the_standing_of_a_room_follows_every_change() -> None:
    house = House({"echo": []}, access=TRUSTED, routes=[Route("echo", dm=True)])
    house.be_in("!dm:x")
    assert house.router.standing("!dm:x").level is None
    house.be_in("!dm:x", direct=ALICE)
    assert house.router.standing("!dm:x").level == "dm"
    house.router.display_name = "Claw"
    assert house.router.standing("!dm:x").display_name == "Claw"
    await house.routing.table.use("main", "!dm:x", "echo", "mention", by=ALICE)
    assert house.router.standing("!dm:x").level == "chosen"
    house.grants.set("guest", "main", ["!dm:x"])
    assert house.router.standing("!dm:x").hearing == {"echo", "guest"}
    house.routing._statuses["main"].user_id = "@new:x"
    assert house.router.standing("!dm:x").user_id == "@new:x"


def test_of_many_rooms_not_all_are_kept_ready() -> None:
    house = House({"echo": [ROOM]})
    for at in range(PLACES + 10):
        house.router.standing(f"!{at}:x")
    assert len(house.router._places) <= PLACES


async def test_a_choice_for_an_agent_that_is_gone_counts_no_more() -> None:
    house = House({"echo": [ROOM]})
    house.grants.set("guest", "main", [])
    await house.routing.table.use("main", ROOM, "guest", "always", by=ALICE)
    assert await house.heard_by(ROOM, "hello") == ["guest"]
    house.grants.forget("guest")
    assert await house.heard_by(ROOM, "hello") == ["*"]


@pytest.mark.parametrize("down", [True, False])
async def test_what_the_store_does_not_tell_is_not_guessed(down: bool) -> None:
    from armorclaw.errors import ArmorclawError

    house = House({"echo": []}, routes=[Route("echo", room=ROOM, respond="reply")])
    house.spoke("echo", "$mine")
    house.db.down = down
    if down:
        with pytest.raises(ArmorclawError):
            await house.hear(ROOM, relates("$mine"))
        assert house.router.counts == {}
    else:
        assert await house.heard_by(ROOM, relates("$mine")) == ["echo"]
