"""Who is heard, what needs a second word, and what comes of orders over restarts."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from armorclaw.delivery.message import Outgoing
from armorclaw.errors import ArmorclawError
from armorclaw.guard.policy import Routed
from armorclaw.matrix.chat import console
from armorclaw.matrix.chat.confirmations import WAITING, WITHIN
from armorclaw.matrix.chat.console import LATE

from .conftest import ANN, BEN, DIRECT, ROOM, World, settled


async def test_an_answer_replies_to_the_order(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        asked = await world.say("!claw who")
        await settled()
    ((room, content),) = world.homeserver.said
    assert room == ROOM
    assert content["msgtype"] == "m.notice"
    assert content["m.relates_to"] == {"m.in_reply_to": {"event_id": asked}}


async def test_an_order_may_name_the_account(world: World, autojump_clock: MockClock) -> None:
    world.places[ROOM] = attrs.evolve(world.places[ROOM], display_name="The Claw")
    async with world.running():
        for words in ("!claw who @bot:x", "!claw The Claw: who"):
            assert (await world.ask(words)).startswith("Here answers:")


async def test_within_a_thread_it_stays_there(world: World, autojump_clock: MockClock) -> None:
    relation = {"rel_type": "m.thread", "event_id": "$root"}
    async with world.running():
        await world.say("!claw who", more={"m.relates_to": relation})
        await settled()
    assert world.homeserver.said[0][1]["m.relates_to"]["event_id"] == "$root"


@pytest.mark.mission("S.5")
async def test_who_may_give_no_orders_any_more(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        world.commanders.remove(ANN)
        await world.react(world.last)
        await world.say("!claw start echo")
        await settled()
    assert len(world.texts()) == 1
    assert world.hands.changed() == []


async def test_what_is_no_order_is_left_alone(world: World, autojump_clock: MockClock) -> None:
    """Though it is addressed to the bridge: edits, notices, and rooms of accounts that are gone."""
    async with world.running():
        await world.say("!claw start echo", more={"msgtype": "m.notice"})
        edit = {"rel_type": "m.replace", "event_id": "$other"}
        new = {"body": "!claw start echo"}
        await world.say("* !claw start echo", more={"m.relates_to": edit, "m.new_content": new})
        await world.say("!claw start echo", room="!gone:x")
        await world.react("$other")
        await world.react("$other", "👍")
        await settled()
    assert world.texts() == []
    assert world.hands.asked == []


async def test_reactions_of_any_shape(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        odd: list[dict[str, Any]] = [{}, {"m.relates_to": []}, {"m.relates_to": {"key": 5, "event_id": []}}]
        for content in odd:
            await world.record("m.reaction", content, ANN, ROOM, 0)
        await world.react(world.last, "👍")
        await settled()
    assert world.hands.changed() == []


# --- a second word


@pytest.mark.parametrize(
    ("order", "question", "done"),
    [
        ("stop echo", "Stop agent echo?", ("stop", "echo")),
        ("restart echo", "Restart agent echo?", ("containers.restart", "echo")),
    ],
)
async def test_what_is_dangerous_is_confirmed_by_a_reaction(
    world: World, autojump_clock: MockClock, order: str, question: str, done: tuple[str, str]
) -> None:
    async with world.running():
        text = await world.ask(f"!claw {order}")
        assert text.splitlines()[0] == question
        assert ANN in text
        assert world.hands.changed() == []
        await world.react(world.last, "✅\ufe0f")
        await settled()
        assert world.hands.changed() == [done]
        assert world.texts()[-1].startswith("echo: ")
        await world.react(world.homeserver.id_of(0))
        await settled()
        assert world.hands.changed() == [done], "once"
        assert "any more" in world.texts()[-1]


async def test_the_use_of_anothers_room_is_confirmed(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        text = await world.ask("!claw use ada")
        assert text.startswith("Have ada answer in this room, in place of echo?")
        assert world.table.chosen("main", [ROOM]) is None
        await world.react(world.last)
        await settled()
        assert world.table.chosen("main", [ROOM]) is not None
        assert (await world.ask("!claw use -")).startswith("Drop what was chosen for this room")


@pytest.mark.parametrize("order", ["use nobody", "use ada sometimes"])
async def test_what_cannot_be_chosen_is_not_asked_about(order: str, world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert (await world.ask(f"!claw {order}")).startswith("That did not work:")


async def test_it_is_bound_to_who_asked(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        question = world.last
        await world.react(question, by=BEN)
        await world.react(question, "❌", by=BEN)
        await settled()
        assert world.hands.changed() == []
        assert len(world.texts()) == 1
        await world.react(question)
        await settled()
    assert world.hands.changed() == [("stop", "echo")]


async def test_it_is_bound_to_its_room_and_message(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        asked = await world.say("!claw stop echo")
        await settled()
        question = world.last
        await world.react(question, room=DIRECT)
        await world.react(asked)
        await settled()
    assert world.hands.changed() == []


async def test_an_agent_that_copies_the_key_of_a_question_decides_nothing(
    world: World, autojump_clock: MockClock
) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        out = Outgoing("main", "echo", ROOM, b'{"body":"hi"}', idempotency_key="claw-ask:said0")
        await world.outbox.enqueue(out)
        await settled()
        await world.react(world.last)
        await settled()
    assert world.hands.changed() == []


async def test_no_is_no(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        question = world.last
        await world.react(question, "❌")
        await settled()
        assert world.texts()[-1] == "!claw stop echo is off."
        await world.react(question)
        await settled()
    assert world.hands.changed() == []


async def test_after_two_minutes_it_is_off(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        question = world.last
        await trio.sleep(WITHIN - 1)
        assert len(world.texts()) == 1
        await trio.sleep(2)
        assert world.texts()[-1] == "!claw stop echo is off. It was not confirmed within 2 min."
        await world.react(question)
        await settled()
    assert world.hands.changed() == []


async def test_a_later_order_takes_the_place_of_an_earlier(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        first = world.last
        await world.say("!claw restart echo")
        await settled()
        assert world.texts()[-2].startswith("!claw stop echo is off.")
        await world.react(first)
        await settled()
        assert world.hands.changed() == []
        await world.react(world.homeserver.id_of(2))
        await settled()
    assert world.hands.changed() == [("containers.restart", "echo")]


async def test_two_people_each_have_one(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        await world.ask("!claw stop echo", by=BEN)
        await world.react(world.homeserver.id_of(0))
        await settled()
        await world.react(world.homeserver.id_of(1), by=BEN)
        await settled()
    assert len(world.hands.changed()) == 2


async def test_so_many_wait_and_no_more(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        for number in range(WAITING + 1):
            person = f"@p{number}:x"
            world.commanders.add(person)
            await world.say("!claw stop echo", by=person)
        await settled()
        offs = [text for text in world.texts() if " is off." in text]
        assert len(offs) == 1
        assert len(world.texts()) == WAITING + 2


async def test_what_is_over_is_not_confirmed_while_an_order_is_under_way(
    world: World, autojump_clock: MockClock
) -> None:
    """The reaction waits behind a slow order, and is late when its turn comes."""
    async with world.running():
        await world.ask("!claw stop echo")
        question = world.last
        await trio.sleep(WITHIN - 5)
        world.hands.waits = 10
        await world.say("!claw logs echo")
        await trio.sleep(0.1)
        await world.react(question)
        await trio.sleep(20)
    assert world.hands.changed() == []


# --- late, again, too many


async def test_an_order_that_comes_late_changes_nothing(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert "Say it again" in await world.ask("!claw start echo", ago=LATE + 1)
        assert "Say it again" in await world.ask("!claw stop echo", ago=LATE + 1)
        assert world.hands.changed() == []
        assert "echo: ready" in await world.ask("!claw agents", ago=LATE + 1)
        assert await world.ask("!claw start echo", ago=LATE - 10) == "echo: ready"


async def test_orders_given_while_the_bridge_was_down_are_heard(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await settled()
    async with world.running(console=False):
        await world.say("!claw who")
    async with world.running():
        await settled()
        assert len(world.texts()) == 1
    async with world.running():
        await settled()
    assert len(world.texts()) == 1


class KilledError(Exception):
    """The end of the process: from here on nothing happens any more."""


async def die(*_: object, **__: object) -> None:
    raise KilledError


@pytest.mark.parametrize("order", ["start echo", "agents"])
async def test_a_bridge_that_dies_over_an_order_carries_it_out_no_second_time(
    world: World, autojump_clock: MockClock, order: str
) -> None:
    with pytest.RaisesGroup(KilledError, flatten_subgroups=True):
        async with world.running():
            world.outbox.enqueue = die  # type: ignore[assignment, method-assign]
            await world.say(f"!claw {order}")
            await settled()
    async with world.running():
        await settled()
    (text,) = world.texts()
    if order == "start echo":
        assert "interrupted" in text
        assert world.hands.changed() == [("start", "echo")]
    else:
        assert "echo: ready" in text


async def test_a_bridge_that_dies_over_a_question_asks_it_once(world: World, autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(KilledError, flatten_subgroups=True):
        async with world.running():
            accept = world.outbox.enqueue

            async def accept_and_die(out: Any) -> Any:
                await accept(out)
                raise KilledError

            world.outbox.enqueue = accept_and_die  # type: ignore[method-assign]
            await world.say("!claw stop echo")
            await settled()
    async with world.running():
        await settled()
        (text,) = world.texts()
        assert text.startswith("Stop agent echo?")
        await world.react(world.last)
        await settled()
    assert world.hands.changed() == [("stop", "echo")]


async def test_a_bridge_that_dies_over_what_was_confirmed_says_so(world: World, autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(KilledError, flatten_subgroups=True):
        async with world.running():
            await world.ask("!claw stop echo")
            world.outbox.enqueue = die  # type: ignore[assignment, method-assign]
            await world.react(world.last)
            await settled()
    async with world.running():
        await settled()
    assert "interrupted" in world.texts()[-1]
    assert world.hands.changed() == [("stop", "echo")]


async def test_what_waited_in_another_life_is_told_to_be_off(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        await world.ask("!claw stop echo")
        question = world.last
    async with world.running():
        await world.react(question)
        await settled()
        assert world.texts()[-1] == "Nothing waits for that any more. Give the order again."
        assert world.homeserver.said[-1][1]["m.relates_to"] == {"m.in_reply_to": {"event_id": question}}
    assert world.hands.changed() == []


async def test_a_store_that_is_away_is_waited_for(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        world.note_fails = ArmorclawError("storage_failed", "the disk")
        await world.say("!claw start echo")
        await trio.sleep(5)
        assert world.hands.changed() == [("start", "echo")], "not again"
        assert "interrupted" in world.texts()[0]
        assert await world.ask("!claw who")


async def test_what_will_not_pass_is_raised(world: World, autojump_clock: MockClock) -> None:
    with pytest.RaisesGroup(ArmorclawError, flatten_subgroups=True):
        async with world.running():
            world.note_fails = ArmorclawError("internal", "a bug")
            await world.say("!claw start echo")
            await settled()


async def test_one_person_cannot_keep_the_bridge_busy(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        with structlog.testing.capture_logs() as logs:
            for _ in range(30):
                await world.say("!claw who")
            await settled()
        assert len(world.texts()) == 10
        assert sum(each["event"] == "order left out: too many" for each in logs) == 20
        assert await world.ask("!claw who", by=BEN)
        await trio.sleep(60)
        assert await world.ask("!claw who")


async def test_the_rates_of_so_many_people_are_remembered(
    world: World, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "PEOPLE", 2)
    async with world.running() as made:
        for number in range(5):
            person = f"@p{number}:x"
            world.commanders.add(person)
            await world.ask("!claw who", by=person)
        assert len(made._buckets) == 2


@pytest.mark.parametrize("at", ["idle", "calling", "streaming", "asking"])
async def test_it_ends_at_once_whatever_it_waits_for(world: World, autojump_clock: MockClock, at: str) -> None:
    async with world.running():
        if at == "asking":
            await world.ask("!claw stop echo")
        elif at != "idle":
            world.hands.waits = 10
            await world.say("!claw start echo" if at == "calling" else "!claw logs echo")
            await trio.sleep(0.1)
            assert world.hands.asked
        before = trio.current_time()
    assert trio.current_time() == before


async def test_several_agents_of_a_room(world: World, autojump_clock: MockClock) -> None:
    routed = (Routed("echo", "always", "routes[0]"), Routed("ada", "command", "routes[1]"))
    world.places[ROOM] = attrs.evolve(world.places[ROOM], routed=routed)
    async with world.running():
        assert len((await world.ask("!claw agents")).splitlines()) == 3
        assert "in place of ada" in await world.ask("!claw use echo")
