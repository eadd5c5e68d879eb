"""A bridge in simulated time: no socket, no thread, no disk, and a day is over in seconds.

The store is SQLite in memory on Trio's own thread, the homeserver a `Town` in the same loop, the network a function
call that can be cut. What runs is the product's own composition, but for its sockets and containers. A crash is a
moment from which on nothing is committed any more; then all tasks are cancelled.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Literal, cast

import httpx
import pytest
import trio

import armorclaw.bridge
from armorclaw.attached import AttachedAgent
from armorclaw.bridge import Bridge
from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Config
from armorclaw.events.keeping.retention import Retention
from tests.events.inline_store import InlineDatabase
from tests.faults.town import BOT, PASSWORD, Town
from tests.matrix.fake_homeserver import Asked, Raw

BEGAN = 1_800_000_000.0
"""Seconds since the epoch at which simulated time begins."""

AGENT = "echo"

Weather = Literal["fair", "refused", "silent", "502"]


class CrashError(Exception):
    """The end of the process: from here on nothing is written any more."""


class Store(InlineDatabase):
    """The store of one life after the other; what is in it outlives them."""

    set_aside = None
    full = False
    running = True

    def __init__(self) -> None:
        super().__init__()
        self.crash_in: int | None = None
        """Commits until the crash, counting both sides of each."""
        self.on_crash: Callable[[], object] = lambda: None
        self._dead = False
        self.point = self._pass

    def crash(self) -> None:
        self._dead = True
        self.on_crash()

    def revive(self) -> None:
        self._dead, self.crash_in = False, None

    def _pass(self, name: str) -> None:
        if self.crash_in is not None:
            self.crash_in -= 1
            if self.crash_in < 0:
                self.crash()
        if self._dead:
            raise CrashError(name)


class Network(httpx.AsyncBaseTransport):
    """From any bridge to the one town."""

    def __init__(self, town: Town, chance: random.Random) -> None:
        self.weather: Weather = "fair"
        self.requests = 0
        self.puts = 0
        """Of the requests, those that would send a message."""
        self._town = town
        self._chance = chance

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        self.puts += request.method == "PUT"
        patience = request.extensions["timeout"]
        await trio.sleep(self._chance.uniform(0.001, 0.05))
        if self.weather == "refused":
            raise httpx.ConnectError("refused")
        if self.weather == "502":
            return httpx.Response(502, stream=httpx.ByteStream(b"away"))
        if self.weather == "silent":
            await trio.sleep(patience["connect"])
            raise httpx.ConnectTimeout("timed out")
        headers = {name.decode().lower(): value.decode() for name, value in request.headers.raw}
        asked = Asked(request.method, request.url.raw_path.decode(), headers, request.content)
        with trio.move_on_after(patience["read"]):
            reply = await self._town.answer(asked)
            if isinstance(reply, Raw):
                raise httpx.RemoteProtocolError("the connection was cut")
            return httpx.Response(reply.status, headers=reply.headers, stream=httpx.ByteStream(reply.body))
        raise httpx.ReadTimeout("timed out")


class Simulation:
    """`live` is one life of the bridge; town, network and store are there for all of them."""

    def __init__(self, folder: Path, seed: int, *, encryption: bool = False) -> None:
        self.chance = random.Random(seed)
        clock = Clock(wall=lambda: BEGAN + trio.current_time(), boottime=trio.current_time)
        self.around = Surroundings(clock, random.Random(seed + 1))
        self.town = Town(clock)
        self.network = Network(self.town, self.chance)
        self.store = Store()
        self.bridge: Bridge | None = None
        (folder / "state").mkdir()
        password = folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o400)
        self.sections: dict[str, Any] = {
            "bridge": {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")},
            "accounts": {
                "main": {
                    "homeserver": "http://town",
                    "user": BOT,
                    "password_file": str(password),
                    "encryption": encryption,
                }
            },
        }

    @asynccontextmanager
    async def live(self, rooms: list[str], handler: Callable[[Any], Awaitable[Any]]) -> AsyncIterator[Bridge]:
        """A bridge with one agent; ends by a crash of the store, or on leaving."""
        self.store.revive()
        agents = {AGENT: {"runtime": "attached", "rooms": rooms}}
        bridge = self.bridge = Bridge(Config.parse({**self.sections, "agents": agents}), self.around)
        assert cast(object, bridge.database) is self.store
        settle_idle = bridge.subscriptions.settle_idle
        retention = Retention(bridge.database, self.around, bridge.config.events, settle_idle, bridge.journal)
        agent = bridge.attach(AGENT)
        agent.on_message(handler)
        try:
            async with trio.open_nursery() as nursery:
                self.store.on_crash = lambda: nursery.cancel_scope.cancel(reason="a crash")
                await nursery.start(bridge._grant_declared)
                nursery.start_soon(bridge.accounts.run)
                nursery.start_soon(retention.run)
                nursery.start_soon(bridge.notices.run)
                nursery.start_soon(self._keep, agent)
                try:
                    yield bridge
                finally:
                    nursery.cancel_scope.cancel(reason="this life is over")
        except* CrashError:
            pass  # somebody had something to write in the end

    async def _keep(self, agent: AttachedAgent) -> None:
        await agent.run()


async def _at_once(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Instead of a thread, for which simulated time would not wait."""
    await trio.lowlevel.checkpoint()
    return work(*args)


@contextmanager
def simulation(folder: Path, seed: int, *, encryption: bool = False) -> Iterator[Simulation]:
    """All that is made of the product while this lasts is on the simulated store and network.

    With `encryption` keys are in a file of their own, as they always are; what waits for the disk does so at once.
    """
    made = Simulation(folder, seed, encryption=encryption)
    with pytest.MonkeyPatch.context() as patch:
        if encryption:
            patch.setattr("trio.to_thread.run_sync", _at_once)
        patch.setattr(armorclaw.bridge, "Database", lambda *args, **options: made.store)
        patch.setattr("armorclaw.matrix.pools.open_pool", lambda *args, **options: made.network)
        patch.setattr("armorclaw.matrix.transport.open_pool", lambda *args, **options: made.network, raising=False)
        try:
            yield made
        finally:
            made.store.close()
