"""kill -9 while another device of ours is asked for a room key: it is asked again, and what waited comes once."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from tests.interop.daemons import Daemon, behind_a_proxy, in_thread
from tests.interop.ours import Bot, eventually, room_of
from tests.interop.peers import Peer, Peers
from tests.interop.test_key_requests import knows_only
from tests.interop.test_verification import compare


@pytest.mark.timeout(300)
async def test_while_a_key_is_asked_for(peers: Peers, bot: Bot) -> None:
    """Alice does not know of the bridge; the device that she knows of is away when it is asked."""
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    own = await peers("nio", user=(bot.user_id, bot.password))
    await knows_only(alice, own, room)
    async with behind_a_proxy(bot, room) as daemon:
        await daemon.start()
        await own.knows(bot.user_id, daemon.device_id)
        async with daemon.connected():
            assert (await compare(daemon, own, we_start=True)).result["verified"]

        # before it has asked, and when it has; then the other device is back
        await own.do("pause")
        await alice.say(room, "asked for twice")
        await eventually(partial(waiting, daemon), "it waits")
        await daemon.kill()
        for _ in range(2):
            await daemon.die_at("PUT sendToDevice", partial(in_thread, daemon.process.spawn))
        await daemon.start()
        await own.do("sync")
        await eventually(partial(heard, daemon, "asked for twice"), "it comes")
        assert len({seen["content"]["request_id"] for seen in requests(own)}) == 1  # the same again
        assert sum(is_key_request(seen, "request") for seen in own.seen) >= 2

        # when it has asked, and the key comes while it is away
        await own.wait("that it is taken back", partial(is_key_request, action="request_cancellation"))
        own.seen.clear()
        await own.do("pause")
        await alice.do("forget_session", room_id=room)

        async def another() -> None:
            await alice.say(room, "came meanwhile")

        await daemon.die_at("PUT sendToDevice", another)
        await own.do("sync")
        await own.wait("a key request", partial(is_key_request, action="request"))
        await own.do("pause")
        await daemon.start()
        await eventually(partial(heard, daemon, "came meanwhile"), "it comes, too")

        await alice.do("sync")
        await alice.knows(bot.user_id, daemon.device_id)
        await daemon.converse(alice, room, "after three kills")
        assert daemon.heard == ["asked for twice", "came meanwhile", "after three kills, theirs"]
        assert await waiting(daemon) is None


def is_key_request(seen: dict[str, Any], action: str) -> bool:
    return seen.get("type") == "m.room_key_request" and bool(seen["content"]["action"] == action)


def requests(own: Peer) -> list[dict[str, Any]]:
    return [seen for seen in own.seen if seen.get("type") == "m.room_key_request"]


async def waiting(daemon: Daemon) -> bool | None:
    return daemon.standing["undecryptable_waiting"] > 0 or None


async def heard(daemon: Daemon, body: str) -> bool | None:
    return body in await daemon.receive() or None
