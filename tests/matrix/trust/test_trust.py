"""Trust at work: it waits for a homeserver without asking it often, and ends at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.encryption import Encryption, open_encryption
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.matrix.trust.trust import PAUSE, Trust

from .key_home import KeyHome

BOT, BOB = "@bot:hs", "@bob:hs"


class Api:
    """A homeserver as `Encryption` and `Trust` see it; `trouble` is what each request meets first."""

    def __init__(self) -> None:
        self.home = KeyHome()
        self.trouble: Exception | None = None
        self.hangs = -1
        self.requests = 0

    def get_txn_id(self) -> str:
        return f"t{self.requests}"

    async def request(self, method: Any, path: Any, content: Any = None, **more: Any) -> Any:
        await trio.lowlevel.checkpoint()
        self.requests += 1
        if self.requests == self.hangs:
            await trio.sleep_forever()
        if self.trouble is not None:
            raise self.trouble
        if str(path).endswith("keys/upload"):
            if device := (content or {}).get("device_keys"):
                self.home.devices.setdefault(BOT, {})[device["device_id"]] = device
            return {"one_time_key_counts": {"signed_curve25519": 50}}
        return await self.home.request(BOT, str(method), str(path), content)


@asynccontextmanager
async def made(folder: Path, api: Api) -> AsyncIterator[tuple[Trust, Encryption, list[str]]]:
    told: list[str] = []

    async def tell(name: str, severity: str, text: str) -> None:
        await trio.lowlevel.checkpoint()
        told.append(name)

    async def no_key() -> None:
        return None

    client: Any = SimpleNamespace(mxid=BOT, device_id="BRIDGE", api=api)
    around = Surroundings()
    vault = Vault(folder, lambda: bytes(32))
    async with open_encryption("main", client, vault, identity_key=None, around=around) as encryption:
        putter: Any = None
        trust = Trust(
            "main",
            client,
            encryption,
            putter,
            Rooms("main"),
            around,
            password=lambda: None,
            recovery_key=no_key,
            tell=tell,
        )
        yield trust, encryption, told


async def until(wanted: Callable[[], object]) -> None:
    with trio.fail_after(5):
        while not wanted():  # noqa: ASYNC110 - threads of the store are waited for
            await trio.sleep(0.005)


@pytest.fixture
def no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that jumps would not wait for them."""

    async def inline(work: Callable[..., Any], *args: Any, **more: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def test_the_port_knows_how_it_stands(tmp_path: Path) -> None:
    async def no_key() -> None:
        return None

    port = TrustPort("main", no_key)
    with pytest.raises(ArmorclawError) as nobody:
        port.get()
    assert nobody.value.name == "unavailable"
    assert (port.signed, port.hint) == (None, "")
    async with made(tmp_path, Api()) as (trust, _, _), trio.open_nursery() as nursery:
        with port.answered_by(trust):
            assert port.get() is trust
            assert port.signed is None
            with pytest.raises(ArmorclawError) as early:
                trust.recovery_key()
            assert early.value.name == "unavailable"
            nursery.start_soon(trust.run)
            await until(lambda: port.signed)
            assert trust.recovery_key().startswith("E")
        assert port.signed is None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", range(1, 14))
async def test_it_ends_at_once_wherever_it_waits(tmp_path: Path, number: int) -> None:
    api = Api()
    api.hangs = number
    async with made(tmp_path, api) as (trust, _, _):
        with trio.move_on_after(5) as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trust.run)
                await until(lambda: api.requests == number)
                began = trio.current_time()
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert trio.current_time() - began < 0.5
    api.hangs = -1
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        await until(lambda: trust.standing.state == "signed")
        assert api.home.published == 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("trouble", "state"),
    [
        (MatrixConnectionError("away"), "unknown"),
        (make_request_error(429, "slow", "M_LIMIT_EXCEEDED", "slow"), "unknown"),
        (make_request_error(502, "x", None, "x"), "unknown"),
        (make_request_error(404, "no such thing", "M_UNRECOGNIZED", "no such thing"), "unsigned"),
        (make_request_error(403, "no", "M_FORBIDDEN", "no"), "unsigned"),
    ],
    ids=["away", "slow", "502", "without encryption", "forbidden"],
)
async def test_a_homeserver_in_trouble_is_not_asked_often(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None, trouble: Exception, state: str
) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        api.trouble = trouble
        nursery.start_soon(trust.run)
        await trio.sleep(3600)
        assert trust.standing.state == state
        assert api.requests < 200
        api.trouble = None
        trust._on_devices(BOT)  # or the next device list, after what is refused for good
        await trio.sleep(70)
        assert trust.standing.state == "signed"
        nursery.cancel_scope.cancel()


async def test_a_homeserver_that_never_ceases_to_speak_of_devices(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, encryption, told), trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        await trio.sleep(10)
        before = api.requests
        for _ in range(600):
            encryption.trust_changed(BOT)
            encryption.trust_changed(BOB)
            await trio.sleep(0.1)
        assert api.requests - before <= 2 * (60 / PAUSE + 1)
        assert told == ["matrix_recovery_key"]
        nursery.cancel_scope.cancel()
