"""Which granted rooms an account is in, for those who ask and those who wait."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.rooms import RoomState


async def test_until_it_is_in_its_rooms(autojump_clock: trio.testing.MockClock) -> None:
    nothing: Any = None  # no session runs: its parts are moved by hand
    outbox: Any = SimpleNamespace(lengths=dict)
    grants = Grants()
    account = Account(homeserver="http://x", user="bot")
    accounts = Accounts(
        {"main": account}, db=nothing, journal=nothing, outbox=outbox, grants=grants, around=Surroundings()
    )
    entry = accounts._entries["main"]

    def missing() -> list[str]:
        found: list[str] = accounts.reports()[0].rooms_missing
        return found

    def join(room: str) -> None:
        entry.rooms.apply({room: RoomState("join")})
        entry.granted.poke()

    assert missing() == []
    grants.set("echo", "main", ["!a:x", "#b:x"])
    assert missing() == ["!a:x", "#b:x"]
    done = trio.Event()

    async def wait() -> None:
        await accounts.until_joined("main", ["!a:x", "#b:x"])
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(1)
        join("!a:x")
        entry.granted.resolved("#b:x", "!b:x")
        await trio.sleep(1)
        assert missing() == ["!b:x"]
        assert not done.is_set()
        join("!b:x")
        await trio.sleep(1)
        assert done.is_set()
    assert missing() == []
    with pytest.raises(ArmorclawError) as caught:
        await accounts.until_joined("other", [])
    assert caught.value.name == "matrix_not_configured"
