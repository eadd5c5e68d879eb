"""kill -9 in each phase of a bridge's life with encryption: nothing is lost, said twice, or unreadable ever after."""

from __future__ import annotations

import trio

from tests.interop.daemons import behind_a_proxy, in_thread
from tests.interop.ours import Bot, eventually, joined, room_of
from tests.interop.peers import Kind, Peers

FIRST_LIFE = (
    "POST login",
    "POST keys_upload",
    "POST keys_device_signing",  # the account's identity,
    "PUT user",  # its secrets,
    "POST keys_signatures",  # and that the device is its own
    "GET sync",
)
"""What a new device asks of its homeserver; each is carried out, and the bridge killed before it hears of it."""

SENDING = ("POST keys_claim", "PUT sendToDevice", "PUT send", "PUT send")
"""The same of a message: whose devices there are, the room key for them, the message itself."""


async def test_in_its_first_life(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with behind_a_proxy(bot, room) as daemon:
        for what in FIRST_LIFE:
            daemon.proxy.lose_next_response(what)
            daemon.process.spawn()
            await daemon.until_lost(what)
            await daemon.kill()
        await daemon.start()
        await joined(room, bot, alice)
        await daemon.converse(alice, room, "after kills")
        assert await eventually(daemon.is_signed, "the device is signed")
        found = await in_thread(daemon.process.call, "matrix.recovery_key")
        own = await peers("mautrix", user=(bot.user_id, bot.password))
        await own.do("recover", recovery_key=found["recovery_key"])


async def test_while_it_sends(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice, messages=3)  # so that each life begins with a new room key
    said = []
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.start()
        await joined(room, bot, alice)
        for life, what in enumerate(SENDING):
            daemon.proxy.lose_next_response(what)
            if what == "PUT send":
                daemon.proxy.lose_next_response("GET sync")  # else it may hear from there that it was sent
            bodies = [f"{life} {number}" for number in range(3)]
            said += bodies
            async with trio.open_nursery() as nursery:
                nursery.start_soon(daemon.send, room, *bodies)
                await daemon.until_lost(what, SENDING[: life + 1].count(what))
                await daemon.kill()
            await daemon.start()
            await daemon.send(room, *bodies)  # what it had accepted is not said twice
            await alice.sees(bodies[-1])
        await daemon.converse(alice, room, "after four kills")
        assert [body for body in alice.read(room) if body in said] == said
        assert alice.unread() == []


async def test_while_it_receives(peers: Peers, bot: Bot, kind: Kind) -> None:
    """With an answer in hand that has a new room key and what was said with it, and at moments after."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    said = []
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.start()
        await joined(room, bot, alice)
        for life in range(4):
            await alice.do("forget_session", room_id=room)
            if life == 0:
                daemon.proxy.lose_next_response("GET sync")
            bodies = [f"{life} {number}" for number in range(8)]
            await alice.do("send_at_once", room_id=room, bodies=bodies)
            said += bodies
            if life == 0:
                await daemon.until_lost("GET sync")
            await trio.sleep(0.04 * life)  # another moment each time
            await daemon.kill()
            await daemon.start()
        await daemon.converse(alice, room, "after these kills")
        assert sorted(body for body in daemon.heard if body in said) == sorted(said)
        # a room key that comes twice is no reason to replace the channel it came by
        assert "a message of a device is refused" not in daemon.process.log.read_text()
