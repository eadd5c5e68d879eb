"""A bridge as a process of its own, behind a proxy that loses answers: what kill -9 is tried on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
import trio

from armorclaw.client import Client, connect
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.testing.handles import BridgeProcess
from armorclaw.testing.proxy import FaultProxy
from tests.interop.ours import Bot, eventually, joined
from tests.interop.peers import POLL, SECONDS, Peer

in_thread = trio.to_thread.run_sync


async def until_dead(doing: Callable[[], Awaitable[object]]) -> bool:
    """Whether this was not cut off by the end of a daemon."""
    try:
        with one_error():
            await doing()
    except ArmorclawError as error:
        if error.name not in ("unavailable", "daemon_unreachable"):
            raise
        return False
    return True


@attrs.define
class Daemon:
    """A daemon behind a proxy that loses answers, and what it was heard to have."""

    bot: Bot
    process: BridgeProcess
    proxy: FaultProxy
    heard: list[str] = attrs.field(factory=list)
    _cursor: str = ""
    _client: Client | None = None

    @property
    def bridge(self) -> Client:
        """Within `connected`."""
        assert self._client is not None
        return self._client

    @property
    def device_id(self) -> str:
        return str(self.standing["device_id"])

    @property
    def standing(self) -> Any:
        """How the account stands."""
        return self.process.call("status")["accounts"][0]

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[None]:
        """Over all its lives; it must be running."""
        async with connect(self.process.socket) as self._client:
            yield
        self._client = None

    async def start(self) -> None:
        await in_thread(self.process.start)
        await self.receive()

    async def meet(self, alice: Peer, room: str) -> None:
        """Its first life: it joins the room where alice is, and all is well."""
        await self.start()
        await joined(room, self.bot, alice)
        await self.converse(alice, room, "before")

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
            if not await until_dead(partial(in_thread, call)):
                return

    async def is_signed(self) -> bool | None:
        """Whether the identity of its account vouches for its device."""
        return (await in_thread(self.process.call, "matrix.devices"))["signed"] or None

    async def die_at(self, what: str, doing: Callable[[], Awaitable[object]]) -> None:
        """Killed while it does this, when a request of that kind was carried out and not answered."""
        times = self.proxy.lost[what] + 1
        self.proxy.lose_next_response(what)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(until_dead, doing)
            await self.until_lost(what, times)
            await self.kill()
            nursery.cancel_scope.cancel(reason="a client would do it again in the next life")

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
        daemon = Daemon(bot, bot.daemon(room, url=proxy.url), proxy)
        try:
            yield daemon
        except BaseException:
            print(daemon.process.log.read_text()[-5000:])
            raise
        finally:
            with trio.CancelScope(shield=True):
                await daemon.kill()
