"""All accounts together: what is told of each, and of those that are not there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.health import health
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.trust.cross_signing import Standing


def accounts(*names: str, waiting: dict[str, int] | None = None) -> Accounts:
    """Accounts of which no session runs; `waiting` are the lengths of their queues."""
    unused: Any = None
    outbox: Any = SimpleNamespace(lengths=lambda: waiting or {})
    each = {name: Account("http://x", "bot", name=name) for name in names}
    return Accounts(each, db=unused, journal=unused, outbox=outbox, grants=Grants(), around=Surroundings())


async def test_what_waits_to_be_sent_is_told_of_each_account() -> None:
    told = accounts("main", "side", "idle", waiting={"main": 3, "side": 5}).reports()
    assert [(each.account, each.sends_waiting) for each in told] == [("main", 3), ("side", 5), ("idle", 0)]


async def test_what_became_of_the_keys_of_a_device_is_told_with_what_helps() -> None:
    all_of_them = accounts("main", "side", "well")
    main, side = all_of_them._entries["main"], all_of_them._entries["side"]
    main.status.encryption, side.status.encryption = "lost", "ready"
    verifications = SimpleNamespace(close=lambda: None)
    trust: Any = SimpleNamespace(standing=Standing("unpublished", "wait"), verifications=verifications)
    with side.trust.answered_by(trust):
        told = all_of_them.reports()
    assert [(each.encryption, each.signed, each.hint) for each in told] == [
        ("lost", None, "make a new device of the account: armorclaw matrix login bot --account main"),
        ("unpublished", False, "wait"),
        ("off", None, ""),
    ]
    assert [reason for reason in health([], told).reasons if "keys" in reason] == [
        "matrix main has lost its keys",
        "the homeserver has lost the keys of matrix side",
    ]


@pytest.mark.parametrize(
    ("names", "asked", "hint"),
    [
        (("main", "side"), "mian", "the accounts are main, side"),
        (("main",), "mian", "the accounts are main"),
        ((), "main", "add [accounts.main] with a homeserver to the configuration"),
        ((), None, "add [accounts.main] with a homeserver to the configuration"),
    ],
)
def test_for_a_misspelt_name_the_hint_names_those_there_are(
    names: tuple[str, ...], asked: str | None, hint: str
) -> None:
    with pytest.raises(ArmorclawError) as caught:
        accounts(*names).facts(asked)
    assert (caught.value.name, caught.value.hint) == ("matrix_not_configured", hint)


def test_of_many_accounts_a_hint_names_some() -> None:
    names = [f"account{number:02}" for number in range(25)]
    with pytest.raises(ArmorclawError) as caught:
        accounts(*names).facts("none")
    assert caught.value.hint == f"the accounts are {', '.join(names[:20])} and 5 more"
