"""What people expect of messages, from agents inside a program: on Trio, and on threads where there is no Trio."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from armorclaw import Bridge, run_in_thread
from armorclaw.agent import AsyncMessage, Message
from armorclaw.testing.handles import config_for
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person, Seen

DATA = secrets.token_bytes(400_000)
ANSWER = ["It is ", "*as* ", "you say."]


def look(alice: Person, room: str, asked: str, bot: str, file: Path) -> None:
    """What must have come of the question; the same, whoever answered."""

    def next_of(*, edit: bool = False) -> Seen:
        return alice.wait_for(
            lambda seen: (
                seen.sender == bot and ("m.new_content" in seen.content) == edit and not seen.body.endswith(" …")
            )
        )

    reply = next_of()
    assert reply.content["formatted_body"] == "<strong>yes</strong>"
    assert reply.content["m.relates_to"] == {"m.in_reply_to": {"event_id": asked}}
    assert reply.content["m.mentions"] == {"user_ids": [alice.user_id]}
    edited = next_of(edit=True)
    assert edited.content["m.relates_to"] == {"rel_type": "m.replace", "event_id": reply.event_id}
    streamed = next_of(edit=True)
    assert streamed.content["m.new_content"]["body"] == "".join(ANSWER)
    assert streamed.content["m.new_content"]["formatted_body"] == "It is <em>as</em> you say."
    sent = next_of()
    assert (sent.content["msgtype"], sent.body) == ("m.file", "data.bin")
    assert alice.download(sent.content["url"]) == DATA
    done = next_of()
    assert done.body == "done"
    shown = alice.event(room, streamed.content["m.relates_to"]["event_id"])
    assert shown["content"]["m.relates_to"]["rel_type"] == "m.thread"
    kinds = [each["content"].get("m.relates_to", {}).get("key") for each in alice.relations(room, asked)]
    assert kinds.count("👍") == 1
    assert "🤔" not in kinds  # it was taken back
    assert file.read_bytes() == DATA[:100_000]


async def test_on_trio(matrix_user: Callable[[str], Person], bridge: Bridge, agent: Any, tmp_path: Path) -> None:
    file = tmp_path / "theirs"

    async def answer(message: AsyncMessage) -> None:
        if message.msgtype == "m.file":
            told = await message.download(file)
            assert (told.name, told.size) == ("theirs.bin", 100_000)
            return
        thinking = await message.react("🤔")
        async with message.typing():
            first = await message.reply(markdown="**yes**", mentions=[message.sender])
            await message.room.edit(first, "yes, indeed")
        async with message.stream(thread=True) as text:
            for words in ANSWER:
                await text.write(words)
                await trio.sleep(0.6)
        await message.room.send_file(DATA, name="data.bin")
        await message.room.redact(thinking)
        await message.react("👍")
        await message.reply("done")

    alice = matrix_user("alice")
    user_id = bridge.status().accounts[0].user_id
    assert user_id is not None
    room = await trio.to_thread.run_sync(lambda: alice.create_room("talk", invite=[user_id]))
    await agent(answer, rooms=[room])

    def talk() -> None:
        alice.send_file(room, "theirs.bin", DATA[:100_000], "application/octet-stream")
        asked = alice.send(room, "is it so?")
        look(alice, room, asked, str(user_id), file)

    await trio.to_thread.run_sync(talk)


def test_on_threads(
    matrix_user: Callable[[str], Person], homeserver: Homeserver, armorclaw_folder: Path, tmp_path: Path
) -> None:
    file, alice = tmp_path / "theirs", matrix_user("alice")
    config = config_for(homeserver, armorclaw_folder)
    user_id = config.accounts["main"].user
    room = alice.create_room("talk", invite=[user_id])
    pause = threading.Event()
    with run_in_thread(config) as bridge:
        agent = bridge.attach("answering", rooms=[room])

        @agent.on_message(typing=True)
        def answer(message: Message) -> None:
            if message.msgtype == "m.file":
                told = message.download(file)
                assert (told.name, told.size) == ("theirs.bin", 100_000)
                return
            thinking = message.react("🤔")
            first = message.reply(markdown="**yes**", mentions=[message.sender])
            message.room.edit(first, "yes, indeed")
            with message.stream(thread=True) as text:
                for words in ANSWER:
                    text.write(words)
                    pause.wait(0.6)
            message.room.send_file(DATA, name="data.bin")
            message.room.redact(thinking)
            message.react("👍")
            agent.in_room().send("done")

        agent.start()
        bridge.until_joined([room])
        alice.send_file(room, "theirs.bin", DATA[:100_000], "application/octet-stream")
        asked = alice.send(room, "is it so?")
        look(alice, room, asked, user_id, file)


def test_a_homeserver_that_slows_us_down_gets_few_edits_and_the_whole_answer(
    tmp_path: Path, armorclaw_folder: Path
) -> None:
    """As homeservers do by default, which take a message in five seconds, and ten at once."""
    limit = {"rc_message": {"per_second": 0.5, "burst_count": 2}}
    pause = threading.Event()
    with Homeserver(tmp_path / "slow", settings=limit) as slow:
        password = secrets.token_urlsafe(12)
        with Person.login(slow.url, slow.register("alice", password), password) as alice:
            config = config_for(slow, armorclaw_folder)
            user_id = config.accounts["main"].user
            room = alice.create_room("talk", invite=[user_id])
            with run_in_thread(config) as bridge:
                agent = bridge.attach("answering", rooms=[room])

                @agent.on_message
                def answer(message: Message) -> None:
                    with message.stream() as text:
                        for number in range(60):
                            text.write(f"word {number} ")
                            pause.wait(0.1)

                agent.start()
                bridge.until_joined([room])
                alice.send(room, "tell me")
                first = alice.wait_for(lambda seen: seen.sender == user_id)
                last = alice.wait_for(lambda seen: "word 59" in str(seen.content), timeout=60)
                assert last.content["m.relates_to"] == {"rel_type": "m.replace", "event_id": first.event_id}
                assert last.content["m.new_content"]["body"] == "".join(f"word {number} " for number in range(60))
                edits = [each for each in alice.relations(room, first.event_id) if each["type"] == "m.room.message"]
                assert 1 <= len(edits) <= 8
