"""What an agent says in an encrypted room: Markdown, threads, edits, reactions, files; reactions alone in clear."""

from __future__ import annotations

import hashlib
import secrets
from typing import Any

import pytest
import trio

from armorclaw.agent import answers as answers_module
from armorclaw.agent.messages import AsyncMessage
from armorclaw.matrix.routing.said import MARK
from tests.interop.ours import EARS, Bot, Ours, eventually, joined, room_of
from tests.interop.peers import SECONDS, Kind, Peers

DATA = secrets.token_bytes(300_000)


async def raw(ours: Ours, room: str, event_id: str) -> dict[str, Any]:
    """An event as the homeserver has it."""
    event = await ours.bridge.accounts.facts("main").client.event(room, event_id)
    assert event is not None
    return dict(event)


@pytest.mark.mission("M.e2ee")
async def test_what_people_expect_of_messages(
    peers: Peers, bot: Bot, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers_module, "GATHER", 0.0)
    monkeypatch.setattr(answers_module, "PACE", 0.05)
    alice = await peers(kind)
    room = await room_of(bot, alice)
    done: dict[str, Any] = {}
    finished = trio.Event()

    async def answer(message: AsyncMessage) -> None:
        done["reply"] = await message.reply(markdown="**bold**", thread=True)
        async with message.stream(pace=0.05) as text:
            for word in ("first ", "second ", "third"):
                await text.write(word)
                await trio.sleep(0.1)
        done["stream"] = text.delivery
        done["liked"] = await message.react("👍")
        wrong = await message.reply("wrong")
        done["wrong"] = await message.room.redact(wrong, "not seen by the homeserver")
        done["file"] = await message.room.send_file(DATA, name="data.bin", mimetype="application/x-data")
        finished.set()

    async with bot.open(room) as ours, trio.open_nursery() as nursery:
        agent = ours.bridge.attach(EARS)
        agent.on_message(answer)
        await nursery.start(agent.run)
        await joined(room, bot, alice)
        await alice.say(room, "go on")
        asked = str((await ours.hears("go on")).event_id)
        with trio.fail_after(SECONDS):
            await finished.wait()

        async def event_id_of(name: str) -> str:
            return await ours.sent(done[name].delivery_id)

        reply = await alice.sees("**bold**")
        assert reply["encrypted"]
        assert reply["content"]["formatted_body"] == "<strong>bold</strong>"
        assert reply["content"][MARK] == EARS
        # the homeserver must know the thread, and nothing that was said
        outside = await raw(ours, room, await event_id_of("reply"))
        assert outside["type"] == "m.room.encrypted"
        assert (outside["content"]["m.relates_to"]["rel_type"], "body" in outside["content"]) == ("m.thread", False)
        assert outside["content"]["m.relates_to"]["event_id"] == asked
        assert MARK not in outside["content"]

        edit = await alice.sees("* first second third")
        assert edit["encrypted"]
        assert edit["content"]["m.new_content"]["body"] == "first second third"
        streamed = await event_id_of("stream")
        replaced = (await raw(ours, room, streamed))["unsigned"]["m.relations"]["m.replace"]
        assert replaced["content"]["m.relates_to"] == {"rel_type": "m.replace", "event_id": streamed}
        assert replaced["type"] == "m.room.encrypted"

        liked = await raw(ours, room, await event_id_of("liked"))
        assert (liked["type"], liked["content"]["m.relates_to"]["event_id"]) == ("m.reaction", asked)
        redaction = await raw(ours, room, await event_id_of("wrong"))
        assert redaction["type"] == "m.room.redaction"
        assert "reason" not in redaction["content"]  # it would be in the clear

        sent = (await alice.sees("data.bin"))["content"]
        assert (sent["msgtype"], "url" in sent) == ("m.file", False)
        assert await alice.do("fetch_file", file=sent["file"]) == hashlib.sha256(DATA).hexdigest()
        nursery.cancel_scope.cancel(reason="done")


async def test_a_long_message_in_parts_each_of_which_fits_when_encrypted(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    text = "".join(f"line {number} of **many**\n" for number in range(2_500))
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        sent = await ours.bridge.methods.matrix_send(room_id=room, message=text, format="markdown")
        assert sent.parts is not None
        await ours.say(room, "the end")
        await alice.sees("the end")
        bodies = [body for body in alice.read(room) if body != "the end"]
        assert "".join(bodies) == text
        assert len(bodies) == len(sent.parts) > 2
        assert alice.unread() == []


async def test_edited_before_it_was_sent(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        ours.bridge.outbox.hold()
        first = await ours.bridge.methods.matrix_send(room_id=room, message="a draft", wait_ms=0)
        edit = await ours.bridge.methods.matrix_edit(
            room_id=room, message="the text", delivery_id=first.delivery_id, wait_ms=0
        )
        ours.bridge.outbox.release()
        ours.bridge.outbox.hurry("main")
        await eventually(lambda: _edited(ours, edit.delivery_id), "it is sent")
        assert (await alice.sees("* the text"))["content"]["m.new_content"]["body"] == "the text"
        event_id = await ours.sent(first.delivery_id)
        outside = await raw(ours, room, await ours.sent(edit.delivery_id))
        assert outside["content"]["m.relates_to"] == {"rel_type": "m.replace", "event_id": event_id}


async def _edited(ours: Ours, delivery_id: str) -> str | None:
    return (await ours.bridge.methods.delivery_status(delivery_id=delivery_id)).event_id
