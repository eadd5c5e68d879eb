"""kill -9 while devices are compared, of the bridge and of the other side: nobody is trusted who was not compared to
the end, and the next attempt works."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio

from tests.interop.daemons import Daemon, behind_a_proxy, until_dead
from tests.interop.ours import Bot, eventually, room_of
from tests.interop.peers import SECONDS, Peer, Peers
from tests.interop.test_verification import Verifying, acquainted, compare, has_our_key, trust_in

MOMENTS = (
    "shown",  # both see the same, and nobody has said so
    "ours",  # here it was said
    "theirs",  # there it was
)


async def run_one(run: Callable[..., Awaitable[None]]) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(run)


async def begin(alice: Peer, daemon: Daemon, nursery: trio.Nursery) -> tuple[Verifying, str]:
    """Up to where both can compare; the transaction."""
    verifying = Verifying()
    run = partial(verifying.run, daemon, user_id=alice.user_id, device_id=alice.device_id, direct=True)
    nursery.start_soon(until_dead, partial(run_one, run))
    with trio.fail_after(SECONDS):
        begun = await alice.wait("a start", lambda seen: seen.get("kind") == "KeyVerificationStart")
        transaction = begun["transaction_id"]
        await alice.do("sas_accept", transaction_id=transaction)
        await verifying.compared.wait()
        await has_our_key(alice, transaction)
    return verifying, transaction


async def test_we_die(peers: Peers, bot: Bot) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.meet(alice, room)
        await alice.knows(bot.user_id, daemon.device_id)
        async with daemon.connected():
            for moment in MOMENTS:
                alice.seen.clear()
                async with trio.open_nursery() as nursery:
                    verifying, transaction = await begin(alice, daemon, nursery)
                    if moment == "ours":
                        verifying.say.set()
                        await alice.wait("our proof", lambda seen: seen.get("kind") == "KeyVerificationMac")
                    elif moment == "theirs":
                        await alice.do("sas_confirm", transaction_id=transaction)
                    await daemon.kill()
                    verifying.say.set()
                if moment != "theirs":
                    await alice.do("sas_confirm", transaction_id=transaction)  # nobody hears it who could count it
                await daemon.start()
                await daemon.converse(alice, room, f"after {moment}")
                assert not verifying.result
                assert await trust_in(daemon, alice) != "verified"
            alice.seen.clear()
            assert (await compare(daemon, alice, we_start=True)).result["verified"]
            await daemon.kill()
            await daemon.start()
            assert await trust_in(daemon, alice) == "verified"


async def test_we_die_while_it_is_kept(peers: Peers, bot: Bot) -> None:
    """Another device of ours: both have said it, and the homeserver has our signature."""
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    own = await peers("nio", user=(bot.user_id, bot.password))
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.start()
        assert await eventually(daemon.is_signed, "the device is signed")
        await own.knows(bot.user_id, daemon.device_id)
        async with daemon.connected():
            await daemon.die_at("POST keys_signatures", partial(compare, daemon, own, we_start=True))
            await daemon.start()
            assert await trust_in(daemon, own) == "verified"
            own.seen.clear()
            assert (await compare(daemon, own, we_start=False)).result["verified"]


@pytest.mark.parametrize("moment", ["asked", "shown"])
async def test_they_die(peers: Peers, bot: Bot, moment: str) -> None:
    """When they are back they begin anew, and what they were at before ends with that."""
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await acquainted(ours, alice, room)
        former = Verifying()
        with trio.fail_after(2 * SECONDS):
            async with trio.open_nursery() as nursery:
                if moment == "shown":
                    await nursery.start(partial(former.run, ours))
                await alice.do("sas_start", user_id=bot.user_id, device_id=ours.device_id)
                if moment == "shown":
                    with trio.fail_after(SECONDS):
                        await former.compared.wait()
                    former.say.set()  # said here, and never there
                await peers.crash(alice)
                if moment == "asked":
                    await nursery.start(partial(former.run, ours))
                    await eventually(partial(accepted, former), "what the dead one began is accepted")
                await alice.knows(bot.user_id, ours.device_id)
                done = await compare(ours, alice, we_start=False)
                assert done.result["verified"], done.result
        assert (former.result["verified"], former.result["code"]) == (False, "m.unexpected_message")
        assert await trust_in(ours, alice) == "verified"


async def accepted(verifying: Verifying) -> bool | None:
    return any(step["state"] == "agreeing" for step in verifying.steps) or None
