"""Accounts on one homeserver share its connections, and nobody closes them on another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from mautrix.api import Method

from armorclaw.clock import Clock
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.transport import open_api
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, running, until
from .fake_homeserver import Asked, Raw, Reply, fake_homeserver


@pytest.mark.mission("R.2")
async def test_the_pool_lives_from_its_first_user_to_its_last() -> None:
    async def script(asked: Asked) -> Reply | Raw:
        return Reply({"ok": True})

    pools = Pools(2)
    async with fake_homeserver(script) as fake:
        async with open_api(fake.url, Clock(), pools) as one:
            async with open_api(f"{fake.url}/", Clock(), pools) as two:
                assert pools.open_count == 1
                for api in (one, two, one, two):
                    await api.request(Method.GET, "_matrix/client/versions")
                assert fake.connections == 1
            assert pools.open_count == 1
            await one.request(Method.GET, "_matrix/client/versions")
            assert fake.connections == 1
        assert pools.open_count == 0
        async with open_api(fake.url, Clock(), pools) as again:
            await again.request(Method.GET, "_matrix/client/versions")
        assert fake.connections == 2


async def test_other_homeservers_have_pools_of_their_own() -> None:
    pools = Pools()
    names = ["http://a", "http://a:80", "http://A/", "https://a", "http://a:8008", "http://b"]
    async with trio.open_nursery() as nursery:

        async def hold(name: str) -> None:
            async with pools.pool(name):
                await trio.sleep_forever()

        for name in names:
            nursery.start_soon(hold, name)
        await trio.testing.wait_all_tasks_blocked()
        assert pools.open_count == 4
        nursery.cancel_scope.cancel(reason="counted")
    assert pools.open_count == 0


@pytest.mark.mission("R.2")
async def test_many_long_polls_leave_connections_for_the_rest() -> None:
    """More polls at a time than one account may have connections: each account brings its own."""
    accounts = 30
    gate = trio.Event()
    waiting = 0

    async def script(asked: Asked) -> Reply | Raw:
        nonlocal waiting
        if "sync" in asked.path:
            waiting += 1
            await gate.wait()
        return Reply({"ok": True})

    pools = Pools(accounts)
    async with fake_homeserver(script) as fake, open_api(fake.url, Clock(), pools) as api:
        async with trio.open_nursery() as nursery:
            for _ in range(accounts):
                nursery.start_soon(api.request, Method.GET, "_matrix/client/v3/sync")
            with trio.fail_after(10):
                await until(lambda: waiting == accounts)
                await api.request(Method.GET, "_matrix/client/versions")
            gate.set()


async def test_two_accounts_on_one_homeserver(
    bench: Bench, homeserver: Homeserver, person: Callable[[str], Awaitable[Person]]
) -> None:
    """One pool for both; a login while they run uses it too."""
    bots = [await person("bot"), await person("bot")]
    accounts = bench.accounts(*(account_of(bot, homeserver, name=f"a{n}") for n, bot in enumerate(bots)))
    async with running(accounts):
        await until(lambda: all(report.connected for report in accounts.reports()))
        assert accounts._shared_pools().open_count == 1
    assert accounts._shared_pools().open_count == 0
