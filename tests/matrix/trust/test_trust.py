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
from armorclaw.delivery.transport import Refused
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.encryption import Encryption, open_encryption
from armorclaw.matrix.crypto.olm import Account
from armorclaw.matrix.crypto.publishing import REPUBLISH_PAUSE
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.trust.identity import PrivateIdentity
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.matrix.trust.trust import LOST, PAUSE, Trust

from .key_home import KeyHome

BOT, BOB = "@bot:hs", "@bob:hs"


class Api:
    """A homeserver as `Encryption` and `Trust` see it; `trouble` is what each request meets first."""

    def __init__(self) -> None:
        self.home = KeyHome()
        self.trouble: Exception | None = None
        self.hangs = -1
        self.requests = 0
        self.uploads: list[Any] = []
        self.forgetful = False
        """Takes the keys of devices, and knows nothing of them afterwards."""

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
            self.uploads.append(content or {})
            device = (content or {}).get("device_keys")
            if device is not None and not self.forgetful:
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


async def test_what_another_query_brings_of_ourselves_is_looked_at(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    """Also while what settling itself hears is no news."""
    api = Api()
    async with made(tmp_path, api) as (trust, encryption, _), trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        await trio.sleep(60)
        before, asked = api.requests, api.request

        async def request(method: Any, path: Any, content: Any = None, **more: Any) -> Any:
            answer = await asked(method, path, content, **more)
            if api.requests == before + 2:  # of the two that a look takes the second, which settling keeps
                api.request = asked  # type: ignore[method-assign]
                nursery.start_soon(encryption.machine.query, [BOT])
                await trio.sleep(1)
            return answer

        api.request = request  # type: ignore[method-assign]
        trust._on_devices(BOT)
        await trio.sleep(60)
        assert api.requests - before == 2 + 1 + 2
        nursery.cancel_scope.cancel(reason="the test is done")


# -- identities of others


def give_identity(api: Api, user_id: str) -> str:
    """A new one, in place of the one before; its master key."""
    private, device = PrivateIdentity.generate(user_id), Account()
    api.home.identities.pop(user_id, None)
    api.home.add_device(user_id, "PHONE", device)
    api.home._publish(user_id, private.public_objects("PHONE", device))
    return private.master.public


@pytest.mark.parametrize("swapped", [False, True])
async def test_what_was_proven_counts_only_for_the_identity_it_was_proven_of(tmp_path: Path, swapped: bool) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, encryption, _):
        await encryption.ensure_device()
        first = give_identity(api, BOB)
        await trust.devices(BOB)
        genuine = give_identity(api, BOB)
        asked = api.request

        async def request(method: Any, path: Any, content: Any = None, **more: Any) -> Any:
            answer = await asked(method, path, content, **more)
            if swapped and str(path).endswith("keys/query") and BOB in content["device_keys"]:
                give_identity(api, BOB)  # after it was looked at, and before it is stored
            return answer

        api.request = request  # type: ignore[method-assign]
        v: Any = SimpleNamespace(their_user=BOB, their_device="PHONE", proven={f"ed25519:{genuine}": genuine})
        if swapped:
            with pytest.raises(Refused, match="another identity"):
                await trust.conclude(v)
        else:
            await trust.conclude(v)
        identity = trust._records.identity(BOB)
        assert identity is not None
        assert identity[1] == (first if swapped else genuine)
        assert (identity[0] == genuine) is not swapped


async def test_only_the_identity_that_somebody_was_shown_is_accepted(tmp_path: Path) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, encryption, _):
        await encryption.ensure_device()
        give_identity(api, BOB)
        await trust.devices(BOB)
        give_identity(api, BOB)
        shown = (await trust.devices(BOB)).master
        assert shown is not None
        give_identity(api, BOB)
        assert (await trust.devices(BOB)).identity == "changed"
        with pytest.raises(ArmorclawError) as other:
            trust.accept_identity(BOB, shown)
        assert other.value.name == "not_found"
        now = await trust.devices(BOB)
        assert (now.master, now.identity) != (shown, "tofu")
        assert now.master is not None
        trust.accept_identity(BOB, now.master)
        assert (await trust.devices(BOB)).identity == "tofu"


# -- a homeserver that lost the keys of our device


async def test_keys_of_the_device_that_the_homeserver_lost_are_published_again(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    async def no_key() -> None:
        return None

    api, port = Api(), TrustPort("main", no_key)
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        await trio.sleep(REPUBLISH_PAUSE)
        keys = api.home.devices[BOT].pop("BRIDGE")["keys"]
        api.forgetful = True
        trust._on_devices(BOT)
        await trio.sleep(10)
        with port.answered_by(trust):
            assert (port.unpublished, port.signed, port.hint) == (True, False, LOST)
            api.forgetful = False
            await trio.sleep(2 * REPUBLISH_PAUSE)
            assert api.home.devices[BOT]["BRIDGE"]["keys"] == keys
            assert (port.unpublished, port.signed, port.hint) == (False, True, "")
        assert api.uploads[-1].keys() >= {"device_keys", "fallback_keys"}
        nursery.cancel_scope.cancel()


async def test_a_homeserver_that_always_loses_the_keys_gets_them_seldom(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, no_threads: None
) -> None:
    """Each time with another fallback key: those before the last are forgotten here."""
    api = Api()
    api.forgetful = True
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        nursery.start_soon(trust.run)
        await trio.sleep(3600)
        assert 2 <= sum("device_keys" in body for body in api.uploads) <= 13
        assert api.requests < 400
        nursery.cancel_scope.cancel()
