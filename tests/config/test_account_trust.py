"""What an account is told of trust: which devices, and where the recovery key is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armorclaw.config import Account, Config
from armorclaw.errors import ArmorclawError
from armorclaw.structure import Secret

MAIN = {"homeserver": "https://matrix.test.org", "user": "bot"}


def account(**more: Any) -> Account:
    return Config.parse({"accounts": {"main": {**MAIN, **more}}}).accounts["main"]


def test_by_default_identities_are_trusted_on_first_use() -> None:
    made = account()
    assert (made.unverified_devices, dict(made.unverified_devices_in)) == ("tofu", {})
    assert made.find_recovery_key() is None


def test_rooms_may_differ() -> None:
    made = account(unverified_devices="yes", unverified_devices_in={"!a:b": "no", "!c": "tofu"})
    assert made.unverified_devices == "yes"
    assert dict(made.unverified_devices_in) == {"!a:b": "no", "!c": "tofu"}


def test_room_keys_are_kept_for_a_year_or_as_one_says() -> None:
    assert account().keep_room_keys_days == 365
    assert account(keep_room_keys_days=0).keep_room_keys_days == 0
    assert account(keep_room_keys_days=30).keep_room_keys_days == 30


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ({"unverified_devices": "maybe"}, "accounts.main.unverified_devices"),
        ({"unverified_devices_in": {"!a:b": "maybe"}}, "accounts.main.unverified_devices_in"),
        ({"unverified_devices_in": {"#a:b": "no"}}, "accounts.main.unverified_devices_in"),
        ({"unverified_devices_in": "no"}, "accounts.main.unverified_devices_in"),
        ({"keep_room_keys_days": -1}, "accounts.main.keep_room_keys_days"),
        ({"keep_room_keys_days": 29}, "accounts.main.keep_room_keys_days"),
        ({"keep_room_keys_days": 36_501}, "accounts.main.keep_room_keys_days"),
        ({"keep_room_keys_days": 0.5}, "accounts.main.keep_room_keys_days"),
        ({"recovery_key": "EsTE s92N"}, "accounts.main.recovery_key"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(more: dict[str, Any], place: str) -> None:
    with pytest.raises(ArmorclawError) as refused:
        account(**more)
    (fault,) = refused.value.data["faults"]
    assert place in fault
    assert "EsTE" not in str(refused.value) + fault


def test_the_recovery_key_comes_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("EsTE s92N\n")
    found = account(recovery_key_file=str(file)).find_recovery_key()
    assert found is not None
    assert found.reveal() == "EsTE s92N"
    with pytest.raises(ArmorclawError, match=r"accounts\.main\.recovery_key_file"):
        account(recovery_key_file=str(tmp_path / "none")).find_recovery_key()
    given = Account(MAIN["homeserver"], MAIN["user"], recovery_key=Secret("given")).find_recovery_key()
    assert given is not None
    assert given.reveal() == "given"
