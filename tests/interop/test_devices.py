"""Devices that come later, that go, and that lose what they knew."""

from __future__ import annotations

from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import Kind, Peers


async def test_a_new_device_of_theirs_and_its_end(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await ours.say(room, "to one device")
        before = await alice.sees("to one device")
        second = await peers(kind, of=alice)
        await second.say(room, "from the second")
        assert (await ours.hears("from the second")).sender == alice.user_id
        await ours.say(room, "to both")
        for device in (alice, second):
            assert (await device.sees("to both"))["encrypted"]
        with_both = (await alice.sees("to both"))["session_id"]
        await second.do("log_out")
        await alice.say(room, "the second is gone")
        await ours.hears("the second is gone")
        await ours.say(room, "to one again")
        after = await alice.sees("to one again")
        # what is said from now on must not be for whoever has the device that is gone
        assert after["session_id"] not in (before["session_id"], with_both)


async def test_a_new_device_of_ours_and_its_end(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "to one device")
        await ours.hears("to one device")
        another = bot.elsewhere("second")
        async with another.open(room) as second:
            assert second.device_id != ours.device_id
            await alice.knows(bot.user_id, second.device_id)
            await alice.say(room, "to both")
            for bridge in (ours, second):
                await bridge.hears("to both")
            await second.say(room, "from the second")
            assert (await alice.sees("from the second"))["encrypted"]
            gone = second.device_id
        with_both = await alice.do("outbound", room_id=room)
        await bot.log_out(gone)
        await alice.until("devices", lambda devices: devices == [ours.device_id], user_id=bot.user_id)
        await alice.say(room, "to one again")
        await ours.hears("to one again")
        assert await alice.do("outbound", room_id=room) != with_both


async def test_we_lose_our_store(peers: Peers, bot: Bot, kind: Kind) -> None:
    """A new device, an alert, and the conversation goes on; the old keys are not deleted."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before the loss")
        await ours.hears("before the loss")
        await ours.say(room, "noted")
        await alice.sees("noted")
        old = ours.device_id
    for file in bot.keys:
        file.unlink()
    async with bot.open(room) as ours:
        assert ours.device_id != old
        await ours.wait("an alert", lambda event: event.type == "alert")
        await alice.knows(bot.user_id, ours.device_id)
        await alice.say(room, "after the loss")
        await ours.hears("after the loss")
        await ours.say(room, "I forget")
        assert (await alice.sees("I forget"))["encrypted"]


async def test_they_lose_their_store(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before the loss")
        await ours.hears("before the loss")
        await ours.say(room, "noted")
        await alice.sees("noted")
        await alice.close()
        anew = await peers(kind, of=alice)
        await anew.say(room, "I forget")
        await ours.hears("I forget")
        await ours.say(room, "for whoever you are now")
        assert (await anew.sees("for whoever you are now"))["encrypted"]
