"""The methods about rooms, on a real homeserver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, running, until
from .test_methods import methods_of

MakePerson = Callable[[str], Awaitable[Person]]


async def test_rooms_are_joined_left_and_listed(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    alias = f"hall{bot.name}"
    hall = await ann.create_room(preset="public_chat", name="The hall", room_alias_name=alias)
    den = await ann.create_room(bot.user_id, name="The den")
    bench.grants.set("echo", "main", [hall])
    bench.grants.set("echo", "main", [])  # no grant takes the account there
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)

        async def listed(room: str, **who: Any) -> dict[str, Any] | None:
            rooms = {each["room_id"]: each for each in await call("matrix.rooms", **who)}
            return rooms.get(room)

        async def is_in(room: str, membership: str) -> None:
            async def there() -> bool:
                shown = await listed(room)
                return shown is not None and shown["membership"] == membership

            await until(there)

        joined = await call("matrix.join", room=f"#{alias}:localhost")
        assert joined == {"room_id": hall, "account": "main"}
        await is_in(hall, "join")
        shown = await listed(hall)
        assert shown == {
            "room_id": hall,
            "account": "main",
            "membership": "join",
            "encrypted": False,
            "name": "The hall",
            "alias": f"#{alias}:localhost",
            "agents": [],
        }
        await is_in(den, "invite")
        shown = await listed(den)
        assert shown is not None
        assert shown["inviter"] == ann.user_id
        assert (await call("matrix.join", room=den, via=["localhost"]))["room_id"] == den
        await is_in(den, "join")

        assert await call("matrix.rooms", agent="echo") == []
        bench.grants.set("echo", "main", [hall])
        shown = await listed(hall, agent="echo")
        assert shown is not None
        assert "agents" not in shown
        assert len(await call("matrix.rooms", agent="echo")) == 1
        shown = await listed(hall, account="main")
        assert shown is not None
        assert shown["agents"] == ["echo"]

        assert await call("matrix.leave", room_id=den, reason="too loud") == {}
        await is_in(den, "leave")
        assert not await ann.member_of(den, bot.user_id)


async def test_what_is_refused(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    private = await ann.create_room()
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        for name, params, expected in (
            ("matrix.join", {"room": private}, "matrix_refused"),
            ("matrix.join", {"room": "#none:localhost"}, "matrix_refused"),
            ("matrix.leave", {"room_id": private}, "matrix_refused"),
            ("matrix.join", {"room": "hall"}, "invalid_params"),
            ("matrix.join", {"room": "!a:b", "via": ["x"] * 11}, "invalid_params"),
            ("matrix.join", {"room": "!a:b", "via": [""]}, "invalid_params"),
            ("matrix.leave", {"room_id": "#a:b"}, "invalid_params"),
            ("matrix.rooms", {"account": "none"}, "matrix_not_configured"),
            ("matrix.join", {"room": "!a:b", "account": "none"}, "matrix_not_configured"),
            ("matrix.join", {"agent": "echo", "room": "!a:b"}, "denied"),
            ("matrix.leave", {"agent": "echo", "room_id": "!a:b"}, "denied"),
        ):
            with pytest.raises(ArmorclawError) as caught:
                await call(name, **params)
            assert caught.value.name == expected, (name, params)


async def test_without_a_session(bench: Bench) -> None:
    call = methods_of(bench, bench.accounts(Account("http://127.0.0.1:1", "bot")))
    assert await call("matrix.rooms") == []
    assert await call("matrix.rooms", agent="echo") == []  # without any grant
    with pytest.raises(ArmorclawError) as caught:
        await call("matrix.join", room="!a:b")
    assert caught.value.name == "unavailable"
    assert await methods_of(bench, bench.accounts())("matrix.rooms") == []
