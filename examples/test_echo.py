"""Tests of one's own agents with the fixtures of the plugin: a real homeserver, a real bridge, a real agent."""

from collections.abc import Callable
from typing import Any

import trio

from armorclaw import Bridge
from armorclaw.testing.handles import AgentFactory, BridgeProcess
from armorclaw.testing.person import Person


def echo(message: Any) -> None:
    message.reply(f"echo: {message.body}")


def test_a_person_gets_an_answer(
    matrix_user: Callable[[str], Person], bridge: BridgeProcess, agent: AgentFactory
) -> None:
    """The agent runs in a sandbox, the bridge in a process of its own."""
    alice = matrix_user("alice")
    room = alice.create_room("talk", invite=[bridge.user_id])
    agent(echo, rooms=[room])
    alice.send(room, "hello")
    assert alice.wait_for(lambda seen: seen.sender == bridge.user_id).body == "echo: hello"


async def test_the_same_on_trio(matrix_user: Callable[[str], Person], bridge: Bridge, agent: Any) -> None:
    """Bridge and agent run in the test's own loop."""

    async def shout(message: Any) -> None:
        await message.reply(message.body.upper())

    alice = matrix_user("alice")
    user_id = bridge.status().accounts[0].user_id
    assert user_id is not None
    room = await trio.to_thread.run_sync(lambda: alice.create_room("talk", invite=[user_id]))
    await agent(shout, rooms=[room])
    await trio.to_thread.run_sync(alice.send, room, "hello")
    answer = await trio.to_thread.run_sync(lambda: alice.wait_for(lambda seen: seen.sender == user_id))
    assert answer.body == "HELLO"
