"""Our own identity: made once, whatever fails in between; taken over; missed; reset."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from mautrix.errors import MatrixConnectionError, MatrixError

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.olm import Account
from armorclaw.matrix.crypto.tables import MIGRATIONS
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.trust import secret_storage
from armorclaw.matrix.trust.cross_signing import CrossSigning, Standing
from armorclaw.matrix.trust.identity import USAGES, PrivateIdentity, device_in, identity_in
from armorclaw.matrix.trust.records import Records
from armorclaw.store.migrate import migrate
from armorclaw.structure import Secret

from .key_home import KeyHome

BOT = "@bot:hs"


class _Api:
    def __init__(self, home: KeyHome, user_id: str) -> None:
        self._home, self._user_id = home, user_id

    async def request(self, method: Any, path: Any, content: Any = None, **more: Any) -> Any:
        return await self._home.request(self._user_id, str(method), str(path), content)


@attrs.define
class Device:
    """One device of the bot, with its crypto file; `life` is another life of the bridge on the same file."""

    home: KeyHome
    db: CryptoDatabase
    name: str
    account: Account
    password: str | None = None
    recovery_key: str | None = None
    unreadable: bool = False
    told: list[str] = attrs.field(factory=list)

    @property
    def records(self) -> Records:
        return Records(self.db)

    def life(self) -> CrossSigning:
        client: Any = SimpleNamespace(mxid=BOT, device_id=self.name, api=_Api(self.home, BOT))

        async def give() -> Secret | None:
            if self.unreadable:
                raise ArmorclawError("config_invalid", "the file of the recovery key")
            return None if self.recovery_key is None else Secret(self.recovery_key)

        async def tell(name: str, severity: str, text: str) -> None:
            self.told.append(name)

        return CrossSigning(
            "main",
            client,
            self.account,
            self.records,
            password=lambda: None if self.password is None else Secret(self.password),
            recovery_key=give,
            tell=tell,
        )

    async def settle(self) -> Standing:
        return await self.life().settle()

    @property
    def signed(self) -> bool:
        """As everybody else sees it."""
        answer = self.home._query([BOT])
        identity, device = identity_in(answer, BOT), device_in(answer, BOT, self.name)
        return identity is not None and device is not None and identity.owns(device)


@asynccontextmanager
async def device(home: KeyHome, folder: Path, name: str = "BRIDGE", **more: Any) -> AsyncIterator[Device]:
    db = Vault(folder / name, lambda: bytes(32)).open("main", expected=False)
    try:
        migrate(db.connection, MIGRATIONS, db.path)
        account = Account()
        home.add_device(BOT, name, account)
        yield Device(home, db, name, account, **more)
    finally:
        db.close()


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


RENEWAL = 5  # requests


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
        begun = number > 0 or how == "cancelled"
        assert (bridge.records.recovery() is not None) == begun
        pending = bridge.records.pending
        assert pending or number in (0, RENEWAL - 1)
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
