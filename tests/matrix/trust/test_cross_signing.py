"""Our own identity: made once, whatever fails in between; taken over; missed; reset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, MatrixError

from armorclaw.matrix.trust import secret_storage
from armorclaw.matrix.trust.cross_signing import Standing
from armorclaw.matrix.trust.identity import PrivateIdentity

from .key_home import KeyHome
from .signing_device import BOT, device


async def test_the_first_login_makes_an_identity_and_signs_itself(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        standing = await bridge.settle()
        assert standing.state == "signed"
        assert standing.private
        assert bridge.signed
        assert bridge.told == ["matrix_recovery_key"]
        recovery = bridge.records.recovery()
        assert recovery is not None
        assert bridge.records.trusted_own_master == standing.master

        # what other clients do with a recovery key
        kept = home.account_data
        key_id = kept[secret_storage.DEFAULT_KEY]["key"]
        key = secret_storage.open_key(key_id, kept[secret_storage.key_type(key_id)], recovery.recovery_key)
        by_usage = {usage: kept[f"m.cross_signing.{usage}"] for usage in ("master", "self_signing", "user_signing")}
        assert secret_storage.opened(BOT, by_usage, key).master.public == standing.master

        before = len(home.requests)
        assert await bridge.settle() == standing  # and another life
        assert home.requests[before:] == ["POST _matrix/client/v3/keys/query"]
        assert bridge.told == ["matrix_recovery_key"]


@pytest.mark.parametrize("lost", [False, True], ids=["not reached", "answer lost"])
@pytest.mark.parametrize("number", range(9))
async def test_whatever_fails_there_is_one_identity_and_it_is_whole(tmp_path: Path, number: int, lost: bool) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        home.fail_at, home.lost = number, lost
        with pytest.raises(MatrixConnectionError):
            await bridge.settle()
        home.fail_at = None
        standing = await bridge.settle()
        assert standing.state == "signed"
        assert home.published == 1
        assert bridge.signed
        assert "matrix_identity_reset" not in bridge.told
        recovery = bridge.records.recovery()
        assert recovery is not None
        async with device(home, tmp_path, "OTHER", recovery_key=recovery.recovery_key) as other:
            assert (await other.settle()).master == standing.master
            assert other.signed


async def test_there_are_as_many_requests_as_are_failed_above(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        await bridge.settle()
        assert len(home.requests) == 9


@pytest.mark.parametrize("number", range(9))
async def test_it_can_be_cancelled_anywhere(tmp_path: Path, number: int) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        with trio.CancelScope() as scope:
            original = home._answer

            def answer(*given: Any) -> dict[str, Any]:
                if len(home.requests) == number + 1:
                    scope.cancel()
                return original(*given)

            home._answer = answer  # type: ignore[method-assign,assignment]
            await bridge.settle()
        assert (await bridge.settle()).state == "signed"
        assert home.published == 1
        assert bridge.signed


async def test_the_homeserver_may_ask_for_the_password(tmp_path: Path) -> None:
    home = KeyHome()
    home.asks_password = "right"
    async with device(home, tmp_path) as bridge:
        standing = await bridge.settle()
        assert (standing.state, home.published) == ("unsigned", 0)
        assert "password_file" in standing.hint
        bridge.password = "wrong"
        standing = await bridge.settle()
        assert (standing.state, home.published) == ("unsigned", 0)
        assert "does not take the password" in standing.hint
        bridge.password = "right"
        assert (await bridge.settle()).state == "signed"
        assert home.published == 1


async def test_an_identity_that_is_there_is_never_replaced(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path, "FIRST") as first, device(home, tmp_path, password="pw") as bridge:
        home.asks_password = None
        standing = await first.settle()
        unsigned = await bridge.settle()
        assert (unsigned.state, unsigned.master, unsigned.private) == ("unsigned", standing.master, False)
        assert "recovery_key_file" in unsigned.hint
        assert "armorclaw matrix verify" in unsigned.hint
        assert bridge.records.recovery() is None
        assert home.published == 1

        # both log in at once: whoever is asked for a password has been overtaken
        home.identities.clear()
        home.account_data.clear()
        await bridge.settle()
        raced = home.identities.pop(BOT)
        bridge.records.abandon()
        original = home._publish

        def overtaken(user_id: str, body: dict[str, Any]) -> dict[str, Any]:
            home.identities.setdefault(BOT, raced)
            home.asks_password = "pw"
            return original(user_id, body)

        home._publish = overtaken  # type: ignore[method-assign]
        home.account_data.clear()
        late = await bridge.settle()
        assert late.state == "unsigned"
        assert home.identities[BOT] is raced


async def test_a_second_device_is_signed_by_the_recovery_key(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path, "FIRST") as first:
        standing = await first.settle()
        recovery = first.records.recovery()
        assert recovery is not None
        for wrong in ("nonsense", secret_storage.new_key().recovery_key):
            async with device(home, tmp_path, f"WRONG{len(wrong)}", recovery_key=wrong) as other:
                unsigned = await other.settle()
                assert unsigned.state == "unsigned"
                assert "does not help" in unsigned.hint
                assert wrong not in unsigned.hint
        async with device(home, tmp_path, "SECOND", recovery_key=recovery.recovery_key) as second:
            assert await second.settle() == Standing("signed", "", standing.master, private=True)
            assert second.signed
            assert second.records.recovery() is None  # whoever gave it has it
            second.recovery_key = None  # it is needed once
            assert (await second.settle()).private
        async with device(home, tmp_path, "THIRD", unreadable=True) as third:
            assert (await third.settle()).hint == "the file of the recovery key"


async def test_secrets_without_an_identity_are_kept(tmp_path: Path) -> None:
    """Such an account has secrets of something else, whose key must not be replaced."""
    home = KeyHome()
    key = secret_storage.new_key()
    home.account_data[secret_storage.DEFAULT_KEY] = {"key": key.id}
    home.account_data[secret_storage.key_type(key.id)] = secret_storage.description(key)
    async with device(home, tmp_path) as bridge:
        assert (await bridge.settle()).state == "unsigned"
        assert home.published == 0
        bridge.recovery_key = key.recovery_key
        assert (await bridge.settle()).state == "signed"
        assert home.account_data[secret_storage.DEFAULT_KEY] == {"key": key.id}
        assert "m.cross_signing.master" in home.account_data


async def test_a_device_that_another_one_signed_is_signed(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path, "FIRST") as first, device(home, tmp_path) as bridge:
        standing = await first.settle()
        private = first.records.private(BOT)
        assert private is not None
        assert (await bridge.settle()).state == "unsigned"
        await first.life().sign(private.own_device(home.devices[BOT]["BRIDGE"]))
        assert await bridge.settle() == Standing("signed", "", standing.master, private=False)
        # and the keys come by another way
        bridge.records.keep_private(private)
        assert (await bridge.settle()).private


async def test_an_identity_that_was_reset_is_told_and_not_believed(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        first = await bridge.settle()
        home.identities[BOT] = PrivateIdentity.generate(BOT).public_objects("BRIDGE", bridge.account)
        standing = await bridge.settle()
        assert (standing.state, standing.private) == ("unsigned", False)
        assert standing.master != first.master
        assert bridge.records.trusted_own_master is None
        assert bridge.records.private(BOT) is None
        assert bridge.told == ["matrix_recovery_key", "matrix_identity_reset"]
        await bridge.settle()
        assert bridge.told.count("matrix_identity_reset") == 1


async def test_a_recovery_key_of_an_older_identity_does_not_help(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path, "FIRST") as first:
        await first.settle()
        recovery = first.records.recovery()
        assert recovery is not None
        home.identities[BOT] = PrivateIdentity.generate(BOT).public_objects("FIRST", first.account)
        async with device(home, tmp_path, recovery_key=recovery.recovery_key) as bridge:
            standing = await bridge.settle()
            assert (standing.state, standing.private) == ("unsigned", False)
            assert "older identity" in standing.hint


async def test_a_signature_that_is_not_taken_is_an_error(tmp_path: Path) -> None:
    home = KeyHome()
    home._sign = lambda body: {"failures": {BOT: {"BRIDGE": {"errcode": "M_INVALID_SIGNATURE"}}}}  # type: ignore[method-assign]
    async with device(home, tmp_path) as bridge:
        with pytest.raises(MatrixError):
            await bridge.settle()


async def test_our_device_must_be_known_first(tmp_path: Path) -> None:
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        home.devices.clear()
        with pytest.raises(MatrixError):
            await bridge.settle()
        assert home.published == 0


async def test_keys_are_on_disk_before_they_are_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody must rely on keys that a power cut takes away."""
    home = KeyHome()
    async with device(home, tmp_path) as bridge:
        monkeypatch.setattr(
            "armorclaw.matrix.crypto.database._sync", lambda path, first: home.requests.append("sync")
        )
        await bridge.settle()
        upload = next(number for number, each in enumerate(home.requests) if "device_signing/upload" in each)
        assert "sync" in home.requests[:upload]
        assert bridge.records.private(BOT) is not None
