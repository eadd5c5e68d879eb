"""kill -9 in each phase of a bridge's life with encryption: nothing is lost, said twice, or unreadable ever after."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.testing.handles import BridgeProcess
from armorclaw.testing.proxy import FaultProxy
from tests.interop.ours import Bot, eventually, joined, room_of
from tests.interop.peers import POLL, SECONDS, Kind, Peer, Peers

in_thread = trio.to_thread.run_sync

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


@attrs.define
class Daemon:
    """A daemon behind a proxy that loses answers, and what it was heard to have."""

    process: BridgeProcess
    proxy: FaultProxy
    heard: list[str] = attrs.field(factory=list)
    _cursor: str = ""

    async def start(self) -> None:
        await in_thread(self.process.start)
        await self.receive()

    async def kill(self) -> None:
        await in_thread(self.process.kill)

    async def receive(self) -> list[str]:
        """What it has taken in since the first call, each body as often as it has it."""
        while True:
            call = partial(self.process.call, "matrix.receive", cursor=self._cursor, limit=100)
            answer = await in_thread(call)
            self._cursor = answer["cursor"]
            if not answer["events"]:
                return self.heard
            self.heard += [
                event["content"]["body"] for event in answer["events"] if event["type"] == "m.room.message"
            ]

    async def send(self, room: str, *bodies: str) -> None:
        """One after the other, until it is killed."""
        for body in bodies:
            call = partial(self.process.call, "matrix.send", room_id=room, message=body, idempotency_key=body)
            try:
                await in_thread(call)
            except ArmorclawError as error:
                if error.name in ("unavailable", "daemon_unreachable"):
                    return
                raise

    async def is_signed(self) -> bool | None:
        """Whether the identity of its account vouches for its device."""
        return (await in_thread(self.process.call, "matrix.devices"))["signed"] or None

    async def until_lost(self, what: str, times: int = 1) -> None:
        with trio.fail_after(SECONDS):
            while self.proxy.lost[what] < times:  # noqa: ASYNC110 - it is in another thread
                await trio.sleep(POLL / 10)

    async def converse(self, alice: Peer, room: str, words: str) -> None:
        """That all is well."""
        await alice.say(room, f"{words}, theirs")

        async def look() -> bool | None:
            return f"{words}, theirs" in await self.receive() or None

        await eventually(look, "what alice says is heard")
        await self.send(room, f"{words}, ours")
        assert (await alice.sees(f"{words}, ours"))["encrypted"]


@asynccontextmanager
async def behind_a_proxy(bot: Bot, room: str) -> AsyncIterator[Daemon]:
    with FaultProxy(bot.homeserver.url) as proxy:
        daemon = Daemon(bot.daemon(room, url=proxy.url), proxy)
        try:
            yield daemon
        except BaseException:
            print(daemon.process.log.read_text()[-5000:])
            raise
        finally:
            with trio.CancelScope(shield=True):
                await daemon.kill()


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
