"""Each order, as a room sees its answer."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from armorclaw.errors import ArmorclawError
from armorclaw.guard.policy import Place, Routed
from armorclaw.matrix.chat.carrying_out import CALL_LIMIT, LOG_BYTES

from .conftest import ADMIN, DIRECT, ROOM, World


async def test_help(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        text = await world.ask("!claw")
    for word in ("help", "status", "agents", "start", "stop", "restart", "logs", "use", "who", "approve", "deny"):
        assert f"!claw {word}" in text


@pytest.mark.parametrize("room", [DIRECT, ADMIN])
async def test_the_status_for_operators(world: World, autojump_clock: MockClock, room: str) -> None:
    async with world.running():
        text = await world.ask("!claw status", room=room)
    assert text.splitlines() == [
        "The bridge is degraded: version 1.2, up for 2 h.",
        "• the folder …/state is odd",
        "• account main: connected",
        "Agents:",
        "• ada: stopped",
        "• echo: ready",
    ]


async def test_other_rooms_are_told_of_their_own_agents_alone(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert await world.ask("!claw status") == "The bridge is degraded.\nAgents of this room:\n• echo: ready"
        text = await world.ask("!claw agents")
        assert text == "Agents of this room:\n• echo: ready, restarts: 2, it says: thinking of you"
        for order in ("logs", "start", "stop", "restart"):
            text = await world.ask(f"!claw {order} ada")
            assert "there is no agent ada in this room" in text
            assert text == (await world.ask(f"!claw {order} bob")).replace(
                "bob", "ada"
            )  # whether there is one or not
        assert world.hands.changed() == []
        # somebody else's direct chat is a room like any other
        assert await world.ask("!claw agents", by="@ben:x", room=DIRECT) == "There are no agents of this room."
        assert "ada: stopped, ended last: exit 3" in await world.ask("!claw agents", room=DIRECT)


async def test_who(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert await world.ask("!claw who") == "Here answers:\n• echo, to: mention (routes[0])"
        assert "!claw use AGENT" in await world.ask("!claw who", room=DIRECT)


async def test_one_account_tells_of_all_that_are_in_the_room(world: World, autojump_clock: MockClock) -> None:
    routed = (Routed("ada", "always", "routes[1]"),)
    second = Place("second", (ROOM,), "@second:x", routed=routed, level="route", hearing=frozenset({"ada"}))
    world.shared[ROOM] = [second, world.places[ROOM]]
    async with world.running():
        who = ["Here answers:", "• echo, to: mention (routes[0], account main)"]
        assert (await world.ask("!claw who")).splitlines() == [*who, "• ada, to: always (routes[1], account second)"]
        assert "• ada: stopped" in await world.ask("!claw agents")
        assert "there is no agent ada in this room" not in await world.ask("!claw logs ada")


async def test_use(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        text = await world.ask("!claw use ada Mention", room=DIRECT)
        assert text == "ada answers here from now on, to: mention."
        chosen = world.table.chosen("main", [DIRECT])
        assert chosen is not None
        assert (chosen.agent, chosen.respond, chosen.by) == ("ada", "mention", "@ann:x")
        assert "not work" in await world.ask("!claw use nobody", room=DIRECT)
        assert "one of always" in await world.ask("!claw use ada never", room=DIRECT)
        assert "!claw use AGENT" in await world.ask("!claw use - mention", room=DIRECT)
        assert world.table.chosen("main", [DIRECT]) == chosen
        assert "no more" in await world.ask("!claw use -", room=DIRECT)
        assert world.table.chosen("main", [DIRECT]) is None
        assert "Nothing" in await world.ask("!claw use -", room=DIRECT)
    outcomes = [(note["order"], note["outcome"]) for note, _ in world.notes]
    assert ("use ada Mention", "done") in outcomes
    assert ("use nobody", "container_not_found") in outcomes
    assert ("use - mention", "misread") in outcomes


async def test_using_the_same_agent_otherwise_needs_no_confirmation(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert "from now on" in await world.ask("!claw use echo always")


async def test_start(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert await world.ask("!claw start echo") == "echo: ready"
    assert world.hands.changed() == [("start", "echo")]
    assert world.notes == [({"order": "start echo", "by": "@ann:x", "room": ROOM, "outcome": "done"}, "echo")]


async def test_logs(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        assert await world.ask("!claw logs echo") == "echo printed last:\none\ntwo [secret] <b>"
        assert world.hands.asked[-1] == ("containers.logs", {"name": "echo", "tail": 20})
        await world.ask("!claw logs echo 7")
        assert world.hands.asked[-1][1]["tail"] == 7
        for lines in ("0", "101", "many", "-1", "²"):
            assert "from 1 to 100" in await world.ask(f"!claw logs echo {lines}")
        world.hands.answers["containers.logs"] = []
        assert await world.ask("!claw logs echo") == "echo has printed nothing."
    assert world.notes == []  # it changes nothing


async def test_of_endless_output_the_end_is_shown(world: World, autojump_clock: MockClock) -> None:
    world.hands.answers["containers.logs"] = [{"text": "x" * LOG_BYTES}, {"text": "tok-sec"}, {"text": "ret the end"}]
    async with world.running():
        text = await world.ask("!claw logs echo")
    assert text.endswith("[secret] the end")
    assert len(text) < 3_100


async def test_a_budget_that_there_is_not(world: World, autojump_clock: MockClock) -> None:
    async with world.running():
        for order in ("budget", "approve b1", "deny b1"):
            assert await world.ask(f"!claw {order}") == "This version keeps no budget."
    assert world.hands.asked == []


async def test_a_budget_that_there_is(world: World, autojump_clock: MockClock) -> None:
    world.hands.answers |= {"budget.status": {"spent": "3 USD"}, "budget.approve": {}}
    async with world.running():
        assert await world.ask("!claw budget") == "budget:\n• spent: 3 USD"
        assert await world.ask("!claw approve b1") == "approve:"
    assert world.hands.asked == [("budget.status", {}), ("budget.approve", {"id": "b1"})]


async def test_what_fails_is_told_without_folders(world: World, autojump_clock: MockClock) -> None:
    world.hands.answers["start"] = ArmorclawError("start_failed", "agent echo", why="/opt/code/main.py is missing")
    async with world.running():
        assert await world.ask("!claw start echo") == "That did not work: agent echo: …/main.py is missing"
    assert world.notes[0][0]["outcome"] == "start_failed"


async def test_what_takes_too_long_is_given_up(world: World, autojump_clock: MockClock) -> None:
    world.hands.waits = CALL_LIMIT + 1
    async with world.running():
        await world.say("!claw logs echo")
        await trio.sleep(CALL_LIMIT + 0.5)
        assert "too long" in world.texts()[0]
        world.hands.waits = 0
        assert await world.ask("!claw start echo") == "echo: ready"  # and the next has its turn
