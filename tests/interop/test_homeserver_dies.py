"""A homeserver that is killed and comes back, in the middle of a sync and in the middle of sends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import trio

from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.proxy import FaultProxy
from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import POLL, SECONDS, Kind, Peers

in_thread = trio.to_thread.run_sync


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """One that nobody else is on."""
    with Homeserver(tmp_path_factory.mktemp("synapse")) as running:
        yield running


async def test_it_dies_while_we_listen(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before")
        await ours.hears("before")
        await in_thread(bot.homeserver.kill)
        await in_thread(bot.homeserver.start)
        await alice.say(room, "after")
        await ours.hears("after")
        await ours.say(room, "still here")
        assert (await alice.sees("still here"))["encrypted"]


async def test_it_dies_while_we_send(peers: Peers, bot: Bot, kind: Kind) -> None:
    """With a message that it has taken and not answered for. Each arrives once, in order, and can be read."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    with FaultProxy(bot.homeserver.url) as proxy:
        async with bot.open(room, url=proxy.url) as ours:
            await joined(room, bot, alice)
            said = [f"{number}" for number in range(30)]
            await ours.say(room, said[0])
            proxy.lose_next_response("PUT send")
            proxy.lose_next_response("GET sync")  # else it may hear from there that it was sent
            deliveries = []

            async def speak() -> None:
                for body in said[1:]:
                    deliveries.append(await ours.send(room, body))  # noqa: PERF401 - some while it is away

            async with trio.open_nursery() as nursery:
                nursery.start_soon(speak)
                with trio.fail_after(SECONDS):
                    while not proxy.lost["PUT send"]:  # noqa: ASYNC110 - it is in another thread
                        await trio.sleep(POLL / 10)
                bot.homeserver.kill()
                await in_thread(bot.homeserver.start)
            for delivery in deliveries:
                await ours.sent(delivery)
            await alice.sees(said[-1])
            assert alice.read(room) == said
            assert alice.unread() == []
