"""Somebody who was never met: the first words each way, many at once, and a picture."""

from __future__ import annotations

import pytest
import trio

from armorclaw.matrix.crypto.publishing import Publisher
from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import Kind, Peers

AT_ONCE = 20


@pytest.mark.mission("M.e2ee")
async def test_they_speak_first(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "hello")
        heard = await ours.hears("hello")
        assert heard.sender == alice.user_id
        await ours.say(room, "hello yourself")
        seen = await alice.sees("hello yourself")
        assert seen["encrypted"]
        assert alice.unread() == []


@pytest.mark.mission("M.e2ee")
async def test_we_speak_first(peers: Peers, bot: Bot, kind: Kind) -> None:
    """And 20 at once, then 20 from there: all are read, in the order in which the homeserver has them."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        sent = [f"ours {number}" for number in range(AT_ONCE)]
        async with trio.open_nursery() as nursery:
            for body in sent:
                nursery.start_soon(ours.say, room, body)
        theirs = [f"theirs {number}" for number in range(AT_ONCE)]
        await joined(room, bot, alice)
        await alice.do("send_at_once", room_id=room, bodies=theirs)
        for body in sent:
            seen = await alice.sees(body)
            assert seen["encrypted"]
        for body in theirs:
            await ours.hears(body)
            await alice.sees(body)
        assert sorted(ours.read(room)) == sorted(theirs)
        assert [body for body in alice.read(room) if body.startswith("theirs")] == ours.read(room)
        assert alice.unread() == []
        sessions = {
            seen["session_id"] for seen in alice.seen if seen.get("sender") == bot.user_id and "session_id" in seen
        }
        assert len(sessions) == 1, "20 messages at once share one room key"


async def test_our_keys_are_there_before_us(
    peers: Peers, bot: Bot, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long it takes to publish them: what is said the moment we come in is said with a key for us."""
    publish = Publisher.publish

    async def late(self: Publisher) -> None:
        await trio.sleep(0.5)
        await publish(self)

    monkeypatch.setattr(Publisher, "publish", late)
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "there you are")
        await ours.hears("there you are")
