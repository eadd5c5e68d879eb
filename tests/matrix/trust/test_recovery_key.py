"""A new recovery key: whatever interrupts its making, somebody has the one that opens our secrets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.trust import secret_storage
from armorclaw.matrix.trust.identity import USAGES, PrivateIdentity

from .key_home import KeyHome
from .signing_device import BOT, Device, device


async def test_a_new_recovery_key_takes_the_place_of_the_old(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path, "FIRST") as first:
        with pytest.raises(ArmorclawError, match="does not have its cross-signing keys"):
            await first.life().renew_recovery_key()
        await first.settle()
        old = kept_key(first)
        new = await first.life().renew_recovery_key()
        assert kept_key(first) == new  # until it was shown
        assert new != old
        assert not first.records.pending
        assert opened_with(home, new) == opened_master(first)
        assert opened_with(home, old) is None
        async with device(home, tmp_path, recovery_key=new) as bridge:
            assert (await bridge.settle()).state == "signed"


RENEWAL = 6
"""Requests. The first asks whose identity it is, the second says that there is another key."""


def kept_key(bridge: Device) -> str:
    """The recovery key that nobody was shown yet."""
    recovery = bridge.records.recovery()
    assert recovery is not None
    return recovery.recovery_key


def opened_master(bridge: Device) -> str:
    private = bridge.records.private(BOT)
    assert private is not None
    return private.master.public


def opened_with(home: KeyHome, recovery_key: str) -> str | None:
    """The master key of what the homeserver keeps, as another client opens it; None if it cannot."""
    kept = home.account_data
    key_id = kept[secret_storage.DEFAULT_KEY]["key"]
    try:
        key = secret_storage.open_key(key_id, kept[secret_storage.key_type(key_id)], recovery_key)
        return secret_storage.opened(
            BOT, {usage: kept[f"m.cross_signing.{usage}"] for usage in USAGES}, key
        ).master.public
    except secret_storage.WrongKeyError:
        return None


@pytest.mark.parametrize("how", ["not reached", "answer lost", "cancelled"])
@pytest.mark.parametrize("number", range(RENEWAL))
async def test_a_new_recovery_key_is_kept_whatever_interrupts_it(tmp_path: Path, number: int, how: str) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        old = kept_key(bridge)
        bridge.records.keep_recovery(None)  # it was shown
        bridge.told.clear()
        await interrupted(bridge, len(home.requests) + number, how)
        begun = number > 1 or (number == 1 and how == "cancelled")
        assert (bridge.records.recovery() is not None) == begun
        pending = bridge.records.pending
        assert pending or number in (0, 1, RENEWAL - 1)
        assert (await bridge.settle()).state == "signed"
        assert bridge.told == ["matrix_recovery_key"] * pending  # else whoever asked finds it here
        assert not bridge.records.pending
        if begun:
            assert opened_with(home, kept_key(bridge)) == opened_master(bridge)
        else:  # as if nobody had wanted another
            assert opened_with(home, old) == opened_master(bridge)


async def interrupted(bridge: Device, number: int, how: str) -> None:
    """A renewal; with the request of that number it ends."""
    home = bridge.home
    if how == "cancelled":
        original = home._answer
        with trio.CancelScope() as scope:

            def answer(*given: Any) -> dict[str, Any]:
                if len(home.requests) == number + 1:
                    scope.cancel(reason="the caller has gone")
                return original(*given)

            home._answer = answer  # type: ignore[method-assign,assignment]
            await bridge.life().renew_recovery_key()
            await trio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        return
    home.fail_at, home.lost = number, how == "answer lost"
    with pytest.raises(MatrixConnectionError):
        await bridge.life().renew_recovery_key()
    home.fail_at = None


async def test_the_secrets_of_another_identity_are_not_overwritten(tmp_path: Path) -> None:
    """It was reset in another client, and nobody here has noticed yet."""
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        kept = dict(home.account_data)
        home.identities[BOT] = PrivateIdentity.generate(BOT).public_objects("BRIDGE", bridge.account)
        with pytest.raises(ArmorclawError) as refused:
            await bridge.life().renew_recovery_key()
        assert refused.value.name == "conflict"
        assert home.account_data == kept


async def test_there_are_as_many_requests_in_a_renewal_as_are_failed_above(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        before = len(home.requests)
        await bridge.life().renew_recovery_key()
        assert len(home.requests) - before == RENEWAL


async def test_new_recovery_keys_at_once_do_not_mix(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        life = bridge.life()
        recovery = bridge.records.recovery()
        assert recovery is not None
        bridge.records.renew(recovery)  # as after a crash: settle has to store it
        made: list[str] = []

        async def renew() -> None:
            made.append(await life.renew_recovery_key())

        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(renew)
                nursery.start_soon(life.settle)
        assert opened_with(home, made[-1]) == opened_master(bridge)
        assert kept_key(bridge) == made[-1]
        assert not bridge.records.pending


async def test_people_are_told_of_a_recovery_key_before_that_is_done(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        life = bridge.life()

        async def killed(*told: str) -> None:
            raise KeyboardInterrupt

        life._tell = killed
        with pytest.raises(KeyboardInterrupt):
            await life.settle()
        await bridge.settle()
        await bridge.settle()
        assert bridge.told == ["matrix_recovery_key"]


async def test_a_disk_that_does_not_take_a_new_recovery_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        old = kept_key(bridge)

        def fail(path: Path, first: bool) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patch:
            patch.setattr("armorclaw.matrix.crypto.database._sync", fail)
            with pytest.raises(ArmorclawError) as failed:
                await bridge.life().renew_recovery_key()
        assert failed.value.name == "storage_failed"
        assert opened_with(home, old) == opened_master(bridge)  # nothing was sealed with the new one
        await bridge.settle()
        assert opened_with(home, kept_key(bridge)) == opened_master(bridge)
