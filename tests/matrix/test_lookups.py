"""Rooms and people, asked for through the bridge: right, from memory where it can be, and for whom it is."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import facts, lookups
from armorclaw.matrix.accounts import Accounts
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver
from tests.faults.town import BOT, PASSWORD, PERSON, Town

from .conftest import Bench, Person, account_of, running, until
from .fake_homeserver import Asked, FakeHomeserver, Raw, Reply, fake_homeserver
from .test_methods import Caller, methods_of

MakePerson = Callable[[str], Awaitable[Person]]
ROOM = "!room:town"
ODD = {
    "inf": b'{"n": 1e999}',
    "nan": b'{"n": NaN}',
    "big": b'{"n": 1' + b"0" * 400 + b"}",
    "deep": b'{"n": ' + b"[" * 900 + b"]" * 900 + b"}",
    "half": rb'{"n": "\ud800"}',
    "list": b"[]",
    "large": b'{"n": "' + b"x" * 300_000 + b'"}',
}


@asynccontextmanager
async def in_town(bench: Bench, town: Town) -> AsyncIterator[tuple[FakeHomeserver, Accounts, Caller]]:
    """A bridge on a homeserver of ours, in a room that agent echo is granted."""
    town.add_room(ROOM)
    bench.grants.set("echo", "main", [ROOM])
    async with fake_homeserver(town.answer) as fake:
        account = Account(fake.url, BOT, password=Secret(PASSWORD))
        async with running(bench.accounts(account)) as accounts:
            yield fake, accounts, methods_of(bench, accounts)


async def test_on_synapse(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    """Each change is seen at once after the sync that tells of it; in between nothing is asked again."""
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id, topic="tea")
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await accounts.until_joined("main", [room])

        async def members() -> dict[str, str]:
            found = await call("matrix.members", agent="echo", room_id=room)
            assert found["count"] == len(found["members"])
            return {one["user_id"]: one["display_name"] for one in found["members"]}

        async def topic() -> Any:
            answer = await call("matrix.state", agent="echo", room_id=room, type="m.room.topic")
            return answer["content"] and answer["content"]["topic"]

        async def member() -> dict[str, Any]:
            profile: dict[str, Any] = await call("matrix.profile", agent="echo", user_id=ann.user_id, room_id=room)
            return profile

        await until(lambda: _has(members, {bot.user_id: bot.name, ann.user_id: ann.name}))
        for _ in range(5):
            assert await topic() == "tea"
            assert await member() == {
                "user_id": ann.user_id,
                "display_name": ann.name,
                "avatar_url": None,
                "membership": "join",
            }
            assert len(await members()) == 2
        before = accounts.cache_counts()
        assert before.hits >= 12
        await ann.call("PUT", f"rooms/{room}/state/m.room.topic", {"topic": "coffee"})
        await ann.call("PUT", f"profile/{ann.user_id}/displayname", {"displayname": "Ann"})
        await until(lambda: _has(topic, "coffee"))
        await until(lambda: _has(members, {bot.user_id: bot.name, ann.user_id: "Ann"}))
        assert (await member())["display_name"] == "Ann"
        assert (await call("matrix.profile", user_id=ann.user_id))["display_name"] == "Ann"
        carl = await person("carl")
        await ann.call("POST", f"rooms/{room}/invite", {"user_id": carl.user_id})
        await carl.call("POST", f"rooms/{room}/join")
        await until(lambda: _has(members, {bot.user_id: bot.name, ann.user_id: "Ann", carl.user_id: carl.name}))
        nobody = await call("matrix.profile", room_id=room, user_id="@nobody:localhost")
        assert nobody["membership"] is None
        none = await call("matrix.state", agent="echo", room_id=room, type="x.y", state_key="ä/ö")
        assert none["content"] is None


async def _has(ask: Callable[[], Awaitable[Any]], wanted: Any) -> bool:
    return bool(await ask() == wanted)


@pytest.mark.mission("R.3")
async def test_a_question_is_asked_once_and_not_kept_for_rooms_we_are_not_in(bench: Bench) -> None:
    town = Town()
    async with in_town(bench, town) as (fake, accounts, call):
        for _ in range(10):
            answer = await call("matrix.members", agent="echo", room_id=ROOM)
        assert [one["user_id"] for one in answer["members"]] == [BOT, PERSON]
        assert len(fake.to("joined_members")) == 1
        counts = accounts.cache_counts()
        assert (counts.hits, counts.misses, counts.entries) == (9, 1, 1)
        town.rooms["!other:town"] = type(town.rooms[ROOM])({PERSON})
        for _ in range(2):
            await call("matrix.members", room_id="!other:town")
        assert len(fake.to("joined_members")) == 3
        assert accounts.cache_counts().entries == 1


async def test_what_an_agent_may_not_ask(bench: Bench) -> None:
    async with in_town(bench, Town()) as (fake, _, call):
        before = len(fake.asked)
        for method, params, name in (
            ("matrix.members", {"room_id": "!other:town"}, "room_denied"),
            ("matrix.state", {"room_id": "!other:town", "type": "m.room.name"}, "room_denied"),
            ("matrix.profile", {"room_id": "!other:town", "user_id": PERSON}, "room_denied"),
            ("matrix.profile", {"user_id": "@any:where"}, "invalid_params"),
            ("matrix.members", {"room_id": "#a:town"}, "invalid_params"),
            ("matrix.members", {"room_id": f"{ROOM}/../x"}, "room_denied"),
            ("matrix.state", {"room_id": ROOM, "type": ".."}, "invalid_params"),
            ("matrix.state", {"room_id": ROOM, "type": ""}, "invalid_params"),
            ("matrix.state", {"room_id": ROOM, "type": "m.x", "state_key": "."}, "invalid_params"),
            ("matrix.state", {"room_id": ROOM, "type": "x" * 256}, "invalid_params"),
            ("matrix.profile", {"room_id": ROOM, "user_id": "nobody"}, "invalid_params"),
        ):
            with pytest.raises(ArmorclawError) as caught:
                await call(method, agent="echo", **params)
            assert caught.value.name == name, params
        assert not [one for one in fake.asked[before:] if "sync" not in one.path]


async def test_pages_of_members_are_bounded_in_number_and_bytes(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    town = Town()
    async with in_town(bench, town) as (_, _, call):
        town.rooms[ROOM].members |= {f"@u{n:03}:town" for n in range(100)}
        wanted = sorted(town.rooms[ROOM].members)
        for limit, size in ((7, 256 * 1024), (1000, 500)):
            monkeypatch.setattr(lookups, "ANSWER_BYTES", size)
            found: list[str] = []
            after: str | None = ""
            pages = 0
            while after is not None:
                page = await call("matrix.members", room_id=ROOM, limit=limit, after=after)
                assert page["count"] == 102
                found += [one["user_id"] for one in page["members"]]
                after, pages = page["next"], pages + 1
            assert found == wanted
            assert pages > 5


async def test_trouble_has_its_name_and_comes_within_the_time_of_clients(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert facts.ANSWER < 4
    monkeypatch.setattr(facts, "ANSWER", 0.3)
    town = Town()

    async def meddle(asked: Asked) -> Reply | Raw | None:
        if "joined_members" in asked.path:
            await trio.sleep(60)
        if "m.forbidden" in asked.path:
            return Reply({"errcode": "M_FORBIDDEN", "error": "no"}, status=403)
        if "m.broken" in asked.path:
            return Reply(b"oops", status=502)
        return None

    town.meddle = meddle
    async with in_town(bench, town) as (_, _, call):
        for method, params, name in (
            ("matrix.members", {}, "timed_out"),
            ("matrix.state", {"type": "m.forbidden"}, "matrix_refused"),
            ("matrix.state", {"type": "m.broken"}, "unavailable"),
        ):
            with pytest.raises(ArmorclawError) as caught:
                await call(method, agent="echo", room_id=ROOM, **params)
            assert caught.value.name == name
            assert caught.value.hint


async def test_without_a_session_there_is_nobody_to_ask(bench: Bench) -> None:
    accounts = bench.accounts(Account("http://127.0.0.1:1", "bot"))
    bench.grants.set("echo", "main", [ROOM])
    call = methods_of(bench, accounts)
    with pytest.raises(ArmorclawError) as caught:
        await call("matrix.members", agent="echo", room_id=ROOM)
    assert caught.value.name == "unavailable"
    with pytest.raises(ArmorclawError) as caught:
        await methods_of(bench, bench.accounts())("matrix.profile", user_id="@a:b")
    assert caught.value.name == "matrix_not_configured"


async def test_names_of_any_kind(bench: Bench) -> None:
    town = Town()

    async def meddle(asked: Asked) -> Reply | Raw | None:
        if "joined_members" in asked.path:
            odd = {"@a:x": {"display_name": ["no text"]}, "@b:x": "no object", "@c:x": {"display_name": "n" * 5000}}
            return Reply({"joined": odd})
        if "m.room.member" in asked.path:
            return Reply({"membership": 7, "displayname": None})
        for word, body in ODD.items():
            if word in asked.path:
                return Reply(body)
        return None

    town.meddle = meddle
    async with in_town(bench, town) as (_, _, call):
        found = await call("matrix.members", room_id=ROOM)
        names = {one["user_id"]: one["display_name"] for one in found["members"]}
        assert names == {"@a:x": None, "@c:x": "n" * 1024}
        profile = await call("matrix.profile", room_id=ROOM, user_id=PERSON)
        assert (profile["membership"], profile["display_name"]) == (None, None)
        for word in ODD:
            for _ in range(2):
                with contextlib.suppress(ArmorclawError):  # by name, and never another
                    answer = await call("matrix.state", room_id=ROOM, type=f"m.{word}")
                    json.dumps(answer, allow_nan=False).encode()
                    assert word in ("half", "big")
        assert (await call("matrix.status"))["status"] == "connected"
