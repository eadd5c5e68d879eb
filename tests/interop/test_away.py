"""What was said while one side was away: all of it, in order, once."""

from __future__ import annotations

from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import Kind, Peers

SAID = 300


async def test_we_were_away(peers: Peers, bot: Bot, kind: Kind) -> None:
    """300 messages, over three room keys, read by the next life of the same device."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await ours.say(room, "until later")
        await alice.sees("until later")
        device = ours.device_id
    for start in range(0, SAID, 20):
        await alice.do("send_at_once", room_id=room, bodies=[f"{start + number}" for number in range(20)])
    async with bot.open(room) as ours:
        assert ours.device_id == device
        await alice.say(room, "the last")
        await ours.hears("the last")
        await alice.sees("the last")
        assert ours.read(room) == [body for body in alice.read(room) if body != "until later"]
        assert len(ours.read(room)) == SAID + 1
        await ours.say(room, "I am back")
        assert (await alice.sees("I am back"))["encrypted"]


async def test_they_were_away(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "until later")
        await ours.hears("until later")
        await alice.close()
        said = [f"{number}" for number in range(SAID)]
        deliveries = [await ours.send(room, body) for body in said]
        for delivery in deliveries:
            await ours.sent(delivery)
        await alice.open()
        await alice.sees(said[-1])
        assert [body for body in alice.read(room) if body in said] == said
        assert alice.unread() == []
        await alice.say(room, "I am back")
        await ours.hears("I am back")
