"""`chaos` and `conversation` as tests of agents use them, with a real homeserver, in both forms."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.testing.handles import wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.plugin import missing


@pytest.fixture(autouse=True)
def _sandbox() -> None:
    if shutil.which("bwrap") is None:
        missing("bubblewrap is not installed: apt-get install bubblewrap")


def shout(message: Any) -> None:
    """In a sandbox: answers in capitals."""
    message.reply(message.body.upper())


def dawdle(message: Any) -> None:
    """In a sandbox: is still at it when it is killed, unless it is asked for the second time."""
    import time

    if not message.redelivered:
        time.sleep(60)
    message.reply(f"at last: {message.body}")


async def answer(message: Any) -> None:
    await message.reply(f"re: {message.body}")


def in_hand(bridge: Any, name: str) -> bool:
    return any(row["in_hand"] for row in bridge.call("events.stats") if row["owner"] == name)


@pytest.mark.mission("P3.2", "P3.3")
def test_a_lost_answer_makes_no_second_message(conversation: Any, agent: Any, chaos: Any) -> None:
    agent(shout, rooms=[conversation.room])
    chaos.lose_next_response()
    conversation.say("hello")
    conversation.wait_for("HELLO")
    conversation.assert_nothing_lost()
    assert chaos.proxy.lost == {"PUT send": 1}


@pytest.mark.mission("P0.3", "P1.1")
def test_what_a_killed_agent_had_in_hand_comes_again(conversation: Any, agent: Any, chaos: Any, bridge: Any) -> None:
    victim = agent(dawdle, rooms=[conversation.room])
    conversation.say("hello")
    wait_until(lambda: in_hand(bridge, victim.name), 20, "it has it in hand")
    chaos.kill(victim)
    victim.wait_ready(generation=2)
    conversation.wait_for("at last: hello")
    conversation.assert_nothing_lost()


@pytest.mark.parametrize("how", ["silent", "down", "bad_gateway"])
def test_a_homeserver_that_was_away(
    conversation: Any, agent: Any, chaos: Any, bridge: Any, homeserver: Homeserver, how: Any
) -> None:
    """What people said meanwhile, and what was to be sent, is there when it is back."""
    agent(shout, rooms=[conversation.room])
    with chaos.pause(homeserver, how):
        conversation.say("hello")
        bridge.call("matrix.send", room_id=conversation.room, message="a notice")
        assert not [seen for seen in conversation.person.seen(quiet=0.3) if seen.body == "HELLO"]
    conversation.assert_nothing_lost()
    assert {seen.body for seen in conversation.seen} == {"HELLO", "a notice"}


def test_what_is_lost_is_named(conversation: Any, agent: Any, chaos: Any, homeserver: Homeserver) -> None:
    with pytest.raises(AssertionError, match="no agent is in the room"):
        conversation.assert_nothing_lost(timeout=0)
    agent(shout, rooms=[conversation.room])
    with chaos.pause(homeserver):
        conversation.say("hello")
        with pytest.raises(AssertionError, match="the bridge has not taken in 'hello'"):
            conversation.assert_nothing_lost(timeout=0.5)
    conversation.assert_nothing_lost()


def test_an_event_that_is_not_acknowledged_is_not_heard(
    conversation: Any, agent: Any, chaos: Any, bridge: Any
) -> None:
    slow = agent(dawdle, rooms=[conversation.room])
    conversation.say("hello")
    wait_until(lambda: in_hand(bridge, slow.name), 20, "it has it in hand")
    with pytest.raises(AssertionError, match="agent dawdle has not acknowledged all that was said"):
        conversation.assert_nothing_lost(timeout=1)
    chaos.kill(slow)
    conversation.assert_nothing_lost()  # it came again


def test_only_the_homeserver_of_the_bridge_can_be_paused(chaos: Any, tmp_path: Any) -> None:
    with pytest.raises(ArmorclawError, match="is not on"):
        chaos.pause(Homeserver(tmp_path))


async def test_on_trio(conversation: Any, agent: Any, chaos: Any, homeserver: Homeserver) -> None:
    await agent(answer, rooms=[conversation.room])
    chaos.lose_next_response()
    await conversation.say("one")
    await conversation.wait_for("re: one")
    with chaos.pause(homeserver):
        await conversation.say("two")
    await conversation.wait_for("re: two")
    await conversation.assert_nothing_lost()
    assert chaos.proxy.lost == {"PUT send": 1}


async def test_a_kill_on_trio(conversation: Any, agent: Any, chaos: Any) -> None:
    begun = trio.Event()
    times: list[int] = []

    async def hang_once(message: Any) -> None:
        times.append(message.redelivered)
        if len(times) == 1:
            begun.set()
            await trio.sleep_forever()
        await message.reply("done")

    victim = await agent(hang_once, rooms=[conversation.room])
    await conversation.say("hello")
    with trio.fail_after(20):
        await begun.wait()
        with pytest.raises(AssertionError, match="agent hang-once has not acknowledged"):
            await conversation.assert_nothing_lost(timeout=0.5)
        await chaos.kill(victim)
        await conversation.wait_for("done")
    await conversation.assert_nothing_lost()
    assert times[0] == 0
    assert times[1] >= 1
