"""The methods as a client sees them: shapes of the original bridge, within its time."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.matrix import methods
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.methods import MatrixMethods
from armorclaw.matrix.routing.said import MARK
from armorclaw.rpc.registry import Registry, Role
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, running, until

MakePerson = Callable[[str], Awaitable[Person]]
Caller = Callable[..., Awaitable[Any]]


def methods_of(bench: Bench, accounts: Accounts) -> Caller:
    """Calls by name and params, as a peer would make them."""
    registry = Registry()
    subscriptions = Subscriptions(bench.db, bench.journal, bench.around)
    MatrixMethods(accounts, bench.outbox, subscriptions, bench.grants).register(registry)

    async def call(name: str, *, agent: str | None = None, uid: int = 1000, **params: Any) -> Any:
        role = Role.AGENT if agent else Role.OPERATOR
        method = registry.table(role).get(name)
        if method is None:
            raise ArmorclawError("denied", name)
        caller: Any = SimpleNamespace(role=role, agent=agent, uid=uid)
        result = method.handler(caller, method.read(params))
        return method.write(await result if method.is_async else result)

    return call


async def test_without_matrix_the_status_says_so_and_sending_too(bench: Bench) -> None:
    call = methods_of(bench, bench.accounts())
    assert await call("matrix.status") == {
        "enabled": False,
        "status": "not_configured",
        "user_id": None,
        "logged_in": False,
    }
    for name, params in (
        ("matrix.send", {"room_id": "!a:b", "message": "x"}),
        ("matrix.login", {"username": "a", "password": "b"}),
    ):
        with pytest.raises(ArmorclawError) as caught:
            await call(name, **params)
        assert caught.value.name == "matrix_not_configured"


async def test_the_bridge_runs_without_any_account(bench: Bench) -> None:
    async with running(bench.accounts(), connected=False):
        await trio.lowlevel.checkpoint()


async def test_send_receive_and_status(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        assert await call("matrix.status", agent="echo") == {
            "enabled": True,
            "status": "connected",
            "user_id": bot.user_id,
            "logged_in": True,
        }
        (report,) = (await call("matrix.status"))["accounts"]
        assert report["state"] == "connected"
        assert report["last_sync_s"] < 10

        assert await call("matrix.receive", agent="echo") == {"events": [], "count": 0, "cursor": ""}
        said = await ann.say(room, "hello")
        got = await call("matrix.receive", agent="echo", timeout_ms=30_000, limit=10, since="of another version")
        assert got["count"] == 1
        assert got["events"] == [
            {
                "type": "m.room.message",
                "room_id": room,
                "sender": ann.user_id,
                "content": {"msgtype": "m.text", "body": "hello"},
                "origin_server": "localhost",
                "event_id": said,
            }
        ]

        sent = await call("matrix.send", agent="echo", room_id=room, message="hi", idempotency_key="k")
        assert sent["status"] == "sent"
        assert sent["room_id"] == room
        again = await call("matrix.send", agent="echo", room_id=room, message="other words", idempotency_key="k")
        assert again == sent
        more = {"body": "edited", "m.mentions": {"user_ids": [ann.user_id]}}
        await call("matrix.send", agent="echo", room_id=room, message="x", msgtype="m.notice", content=more)
        assert [raw["content"] for raw in await ann.read(room)][1:] == [
            {"msgtype": "m.text", "body": "hi", MARK: "echo"},
            {"msgtype": "m.notice", **more, MARK: "echo"},
        ]
        # the account is found by its room when an operator sends
        assert (await call("matrix.send", room_id=room, message="from the operator"))["event_id"]


async def test_polling_acknowledges_the_batch_before(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        await call("matrix.receive", agent="echo")
        for n in range(3):
            await ann.say(room, str(n))
        await until(lambda: len(bench.messages()) == 3)

        async def poll(cursor: str) -> tuple[list[str], str]:
            got = await call("matrix.receive", agent="echo", limit=1, cursor=cursor)
            return [event["content"]["body"] for event in got["events"]], got["cursor"]

        first, cursor = await poll("")
        second, _ = await poll(cursor)
        lost, _ = await poll(cursor)  # the answer before did not arrive, says the cursor
        assert (first, second, lost) == (["0"], ["1"], ["1"])
        third, _ = await poll("")
        nothing, _ = await poll("")
        assert (third, nothing) == (["2"], [])


async def test_consumers_do_not_steal_from_each_other(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        consumers: list[dict[str, Any]] = [
            {"agent": "echo"},
            {},
            {"uid": 1001},
            {"consumer": "archive"},
            {"consumer": "uid-1001x"},
            {"consumer": "archive", "uid": 1001},  # a name is one consumer, whoever uses it
        ]
        for who in consumers:
            await call("matrix.receive", **who)
        await ann.say(room, "for all of you")
        await until(lambda: bool(bench.messages()))
        got = [(await call("matrix.receive", **who))["count"] for who in consumers]
        assert got == [1, 1, 1, 1, 1, 0]
        with pytest.raises(ArmorclawError) as caught:
            await call("matrix.receive", agent="echo", consumer="another")
        assert (caught.value.name, caught.value.data["fields"]) == ("invalid_params", ["consumer"])


@pytest.mark.parametrize(
    "params",
    [
        {"consumer": "a/b"},
        {"consumer": "x" * 57},
        {"cursor": "x"},
        {"cursor": "1" * 33},
        {"cursor": "x" * 1_000_000},
        {"cursor": "\u0661"},
        {"timeout_ms": 10**400},
        {"timeout_ms": -1},
        {"limit": 0},
        {"limit": 10**400},
    ],
)
async def test_receiving_with_params_out_of_all_bounds(bench: Bench, params: dict[str, Any]) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await methods_of(bench, bench.accounts())("matrix.receive", agent="echo", **params)
    assert caught.value.name == "invalid_params"
    assert len(str(caught.value)) < 100
    assert next(iter(params)) in str(caught.value)


async def test_one_receive_at_a_time(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "POLL_LIMIT", 3.0)  # that the calls meanwhile take less
    call = methods_of(bench, bench.accounts())
    nothing = {"events": [], "count": 0, "cursor": ""}
    answers: list[Any] = []

    async def poll(**params: Any) -> None:
        answers.append(await call("matrix.receive", **params))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: poll(agent="echo", timeout_ms=2**31 - 1))
        await trio.sleep(0.05)
        for timeout in (0, 1000):
            with pytest.raises(ArmorclawError) as caught:
                await call("matrix.receive", agent="echo", timeout_ms=timeout)
            assert caught.value.name == "conflict"
        assert await call("matrix.receive", agent="other") == nothing
        assert await call("matrix.receive", consumer="archive") == nothing
        assert await call("matrix.receive") == nothing
        assert answers == []
    assert answers == [nothing]
    with trio.move_on_after(0.05):
        await call("matrix.receive", agent="echo", timeout_ms=1000)
    assert await call("matrix.receive", agent="echo") == nothing  # nor does one that was cut short stay in the way


async def test_what_an_agent_may_not(bench: Bench) -> None:
    accounts = bench.accounts(Account("http://127.0.0.1:1", "bot"))
    bench.grants.set("echo", "main", ["!mine:x"])
    call = methods_of(bench, accounts)
    for room, name in (("!other:x", "room_denied"), ("!a:b/../../login", "room_denied"), ("#a:b", "invalid_params")):
        with pytest.raises(ArmorclawError) as caught:
            await call("matrix.send", agent="echo", room_id=room, message="x")
        assert caught.value.name == name
    with pytest.raises(ArmorclawError) as caught:
        await call("matrix.login", agent="echo", username="a", password="b")
    assert caught.value.name == "denied"
    for field in ("type", "event_type", "state_key"):  # messages alone: no power levels, no state at all
        with pytest.raises(ArmorclawError) as caught:
            await call("matrix.send", agent="echo", room_id="!mine:x", message="x", **{field: "m.room.power_levels"})
        assert (caught.value.name, caught.value.data["fields"]) == ("invalid_params", [field])
