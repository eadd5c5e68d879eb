"""Cross-signing without a homeserver: what is published, what is believed, and what is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from mautrix.types import CrossSigningKeys

from armorclaw.matrix.crypto.olm import Account
from armorclaw.matrix.crypto.signatures import is_signed
from armorclaw.matrix.trust import secret_storage
from armorclaw.matrix.trust.identity import (
    Identity,
    PrivateIdentity,
    device_in,
    devices_in,
    fingerprint,
    identity_in,
)
from armorclaw.matrix.trust.secret_storage import WrongKeyError
from armorclaw.matrix.trust.signing import signed_text

ALICE, BOB = "@alice:hs", "@bob:hs"


def device_keys(user_id: str, device_id: str, account: Account) -> dict[str, Any]:
    keys = {f"{name}:{device_id}": key for name, key in account.identity_keys.items()}
    made: dict[str, Any] = {"user_id": user_id, "device_id": device_id, "algorithms": [], "keys": keys}
    made["signatures"] = {user_id: {f"ed25519:{device_id}": account.sign(signed_text(made))}}
    return made


class Published:
    """What a homeserver answers of one user."""

    def __init__(self, user_id: str = ALICE, device_id: str = "DEV") -> None:
        self.user_id = user_id
        self.account = Account()
        self.private = PrivateIdentity.generate(user_id)
        objects = self.private.public_objects(device_id, self.account)
        self.answer: dict[str, Any] = {
            "device_keys": {user_id: {device_id: device_keys(user_id, device_id, self.account)}},
            **{f"{name}s": {user_id: each} for name, each in objects.items()},
        }

    def upload(self, body: dict[str, Any]) -> None:
        """As /keys/signatures/upload: adds signatures to what is there."""
        for user, each in body.items():
            for name, signed in each.items():
                master = self.answer["master_keys"].get(user)
                target = self.answer["device_keys"].get(user, {}).get(name) or master
                for signer, signatures in signed["signatures"].items():
                    target.setdefault("signatures", {}).setdefault(signer, {}).update(signatures)


def test_what_is_published_is_understood_again_and_by_mautrix() -> None:
    alice = Published()
    found = identity_in(alice.answer, ALICE)
    assert found is not None
    assert alice.private.is_of(found)
    master = alice.answer["master_keys"][ALICE]
    assert is_signed(master, ALICE, "DEV", alice.account.identity_keys["ed25519"])
    assert CrossSigningKeys.deserialize(master).first_ed25519_key == found.master
    assert identity_in(alice.answer, BOB) is None
    assert PrivateIdentity.from_seeds(ALICE, alice.private.seeds()).is_of(found)


def test_a_device_is_ours_once_it_is_signed() -> None:
    alice = Published()
    device, identity = device_in(alice.answer, ALICE, "DEV"), identity_in(alice.answer, ALICE)
    assert device is not None
    assert identity is not None
    assert not identity.owns(device)
    alice.upload(alice.private.own_device(device))
    signed = device_in(alice.answer, ALICE, "DEV")
    assert signed is not None
    assert identity.owns(signed)
    assert fingerprint(signed) == alice.account.identity_keys["ed25519"]


def test_whom_we_verified_is_signed_by_our_user_signing_key() -> None:
    alice, bob = Published(), Published(BOB)
    ours, theirs = identity_in(alice.answer, ALICE), identity_in(bob.answer, BOB)
    assert ours is not None
    assert theirs is not None
    bob.upload(alice.private.verified(theirs))
    key = str(ours.user_signing)
    assert is_signed(bob.answer["master_keys"][BOB], ALICE, key, key)
    assert identity_in(bob.answer, BOB) == theirs


def _changed(path: list[str], value: Any) -> Callable[[dict[str, Any]], None]:
    def change(answer: dict[str, Any]) -> None:
        target = answer
        for step in path[:-1]:
            target = target[step]
        if value is None:
            del target[path[-1]]
        else:
            target[path[-1]] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _changed(["master_keys", ALICE], None),
        _changed(["self_signing_keys", ALICE], None),
        _changed(["self_signing_keys", ALICE, "signatures"], None),
        _changed(["self_signing_keys", ALICE, "signatures", ALICE], {"ed25519:x": "y"}),
        _changed(["self_signing_keys", ALICE, "usage"], ["user_signing"]),
        _changed(["self_signing_keys", ALICE, "keys"], {"ed25519:A": "B"}),
        _changed(["master_keys", ALICE, "user_id"], BOB),
        _changed(["master_keys", ALICE, "keys"], {}),
        _changed(["master_keys", ALICE, "keys"], {"ed25519:" + "A" * 43: "A" * 43, "b": "c"}),
        _changed(["master_keys", ALICE, "keys"], ["x"]),
        _changed(["master_keys", ALICE, "keys"], {"ed25519:1": 1}),
        _changed(["master_keys"], []),
    ],
)
def test_an_identity_that_does_not_hold_together_is_none(change: Callable[[dict[str, Any]], None]) -> None:
    answer = copy.deepcopy(Published().answer)
    assert identity_in(answer, ALICE) is not None
    change(answer)
    assert identity_in(answer, ALICE) is None


def test_a_user_signing_key_of_somebody_else_is_left_out() -> None:
    alice, eve = Published(), Published()
    alice.answer["user_signing_keys"] = eve.answer["user_signing_keys"]
    found = identity_in(alice.answer, ALICE)
    assert found is not None
    assert found.user_signing is None


@pytest.mark.parametrize(
    "change",
    [
        _changed(["device_keys", ALICE, "DEV", "signatures"], None),
        _changed(["device_keys", ALICE, "DEV", "device_id"], "OTHER"),
        _changed(["device_keys", ALICE, "DEV", "user_id"], BOB),
        _changed(["device_keys", ALICE, "DEV", "keys"], {"ed25519:DEV": "A" * 43}),
        _changed(["device_keys", ALICE, "DEV", "keys"], {"ed25519:DEV": "A" * 44}),
        _changed(["device_keys", ALICE, "DEV", "more"], "unsigned"),
        _changed(["device_keys", ALICE], []),
    ],
)
def test_a_device_whose_keys_it_has_not_signed_is_none(change: Callable[[dict[str, Any]], None]) -> None:
    answer = Published().answer
    assert device_in(answer, ALICE, "DEV") is not None
    assert set(devices_in(answer, ALICE)) == {"DEV"}
    change(answer)
    assert device_in(answer, ALICE, "DEV") is None
    assert not devices_in(answer, ALICE)


def test_secrets_are_kept_under_a_recovery_key() -> None:
    private, key = PrivateIdentity.generate(ALICE), secret_storage.new_key()
    described, contents = secret_storage.description(key), secret_storage.sealed(private, key)
    by_usage = {name.removeprefix("m.cross_signing."): each for name, each in contents.items()}
    typed = f"  {key.recovery_key.replace(' ', '')[:20]} {key.recovery_key.replace(' ', '')[20:]}\n"
    opened = secret_storage.opened(ALICE, by_usage, secret_storage.open_key(key.id, described, typed))
    assert opened.seeds() == private.seeds()

    other = secret_storage.new_key()
    for wrong in (other.recovery_key, "", "EsTE", "0OIl" * 12, key.recovery_key[:-1] + "é"):
        with pytest.raises(WrongKeyError):
            secret_storage.open_key(key.id, described, wrong)
    for broken in (None, {}, {"algorithm": "x"}, {**described, "mac": "AAAA"}, {**described, "iv": "!"}):
        with pytest.raises(WrongKeyError):
            secret_storage.open_key(key.id, broken, key.recovery_key)
    losses: list[Any] = [None, {}, {"encrypted": {}}, {"encrypted": {key.id: {"iv": "x"}}}, {"encrypted": []}]
    for lost in losses:
        with pytest.raises(WrongKeyError):
            secret_storage.opened(ALICE, {**by_usage, "master": lost}, key)
    assert secret_storage.default_key_id({"key": key.id}) == key.id
    assert secret_storage.default_key_id({"key": 1}) is None
    assert secret_storage.default_key_id(None) is None


def test_no_seed_is_shown() -> None:
    private = PrivateIdentity.generate(ALICE)
    shown = repr(private) + repr(Identity(ALICE, "m", "s", None, {"secret": 1}))
    assert "SigningKey" not in shown
    assert "secret" not in shown
