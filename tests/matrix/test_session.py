"""Sessions against a real Synapse: in, out, and through every kind of interruption."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trio
from mautrix.errors import MNotFound

from armorclaw.clock import Clock
from armorclaw.config import Account
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix import gaps, pacing
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.status import SessionState
from armorclaw.matrix.transport import open_api
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, open_bench, running, until

MakePerson = Callable[[str], Awaitable[Person]]


async def enqueue(bench: Bench, room: str, text: str, key: str | None = None) -> Delivery:
    content = ascii_json({"msgtype": "m.text", "body": text})
    return await bench.outbox.enqueue(Outgoing("main", "echo", room, content, idempotency_key=key))


async def room_of(bench: Bench, ann: Person, bot: Person, **more: Any) -> str:
    """A room of ann's, granted to the agent, that the bot is invited to."""
    room = await ann.create_room(bot.user_id, **more)
    bench.grants.set("echo", "main", [room])
    return room


async def bodies(who: Person, room: str) -> list[str]:
    return [raw["content"]["body"] for raw in await who.read(room)]


async def test_a_conversation(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot)
    async with running(bench.accounts(account_of(bot, homeserver))):
        await until(lambda: ann.member_of(room, bot.user_id))
        said = await ann.say(room, "hello")
        await until(lambda: bench.messages() == ["hello"])
        answer = await bench.outbox.settled((await enqueue(bench, room, "hi")).delivery_id, 20)
        assert answer.state in ("sent", "delivered")
        assert [raw["event_id"] for raw in await ann.read(room)] == [said, answer.event_id]
        await ann.say(room, "bye")
        await until(lambda: "bye" in bench.messages())
    assert bench.messages() == ["hello", "bye"]  # and not our own "hi"
    event = bench.events[[e.event_id for e in bench.events].index(said)]
    assert (event.type, event.sender, event.room_id, event.account) == ("m.room.message", ann.user_id, room, "main")


@pytest.mark.parametrize("spelling", ["{name}", "@{name}", "@{name}:localhost"])
async def test_the_user_may_be_spelt_in_three_ways(
    spelling: str, bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    bot = await person("bot")
    account = Account(homeserver.url, spelling.format(name=bot.name), password=Secret(bot.password))
    async with running(bench.accounts(account)) as accounts:
        status = accounts.status()
        assert status is not None
        assert status.user_id == bot.user_id


async def test_a_token_will_do(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    bot = await person("bot")
    device = (await bot.call("GET", "account/whoami"))["device_id"]
    account = Account(homeserver.url, bot.user_id, access_token=Secret(bot.token))
    async with running(bench.accounts(account)) as accounts:
        status = accounts.status()
        assert status is not None
        assert (status.user_id, status.device_id) == (bot.user_id, device)


async def test_the_token_of_somebody_else_is_refused(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    account = Account(homeserver.url, bot.user_id, access_token=Secret(ann.token))
    async with running(bench.accounts(account), connected=False) as accounts:
        await until(lambda: _state(accounts) is SessionState.LOGGED_OUT)
        status = accounts.status()
        assert status is not None
        assert ann.user_id in status.reason


async def test_no_aiohttp_session_is_ever_built(
    bench: Bench, homeserver: Homeserver, person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    def built(*_: object, **__: object) -> None:
        raise AssertionError("an aiohttp session was built")

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", built)
    bot = await person("bot")
    async with running(bench.accounts(account_of(bot, homeserver))):
        pass


async def test_a_restart_loses_nothing_replays_nothing_and_is_the_same_device(
    tmp_path: Path, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    async with open_bench(tmp_path) as bench:
        room = await room_of(bench, ann, bot)
        async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
            await until(lambda: ann.member_of(room, bot.user_id))
            await ann.say(room, "one")
            await until(lambda: bench.messages() == ["one"])
            before = accounts.status()
            assert before is not None
    for text in ("two", "three"):
        await ann.say(room, text)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        # no password this time: what is stored is enough
        async with running(bench.accounts(Account(homeserver.url, bot.name))) as accounts:
            await until(lambda: bench.messages() == ["two", "three"])
            after = accounts.status()
            assert after is not None
            assert after.device_id == before.device_id
    devices = (await bot.call("GET", "devices"))["devices"]
    assert [one["display_name"] for one in devices].count("armorclaw") == 1


async def test_history_is_nobodys_to_answer(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    """Neither of a room that the account is in at the first start, nor of one that it joins later."""
    ann, bot = await person("ann"), await person("bot")
    first, second = await ann.create_room(bot.user_id), await ann.create_room()
    await bot.call("POST", f"rooms/{first}/join")
    for room in (first, second):
        await ann.say(room, "old")
    bench.grants.set("echo", "main", [first, second])
    async with running(bench.accounts(account_of(bot, homeserver))):
        await ann.call("POST", f"rooms/{second}/invite", {"user_id": bot.user_id})
        await until(lambda: ann.member_of(second, bot.user_id))
        for room in (first, second):
            await ann.say(room, "new")
        await until(lambda: len(bench.messages()) == 2)
        await ann.say(first, "end")
        await until(lambda: "end" in bench.messages())
    assert bench.messages() == ["new", "new", "end"]


@pytest.mark.parametrize("limit", [gaps.GAP_LIMIT, 20])
async def test_a_gap_is_filled_page_by_page_and_beyond_the_bound_it_is_told(
    limit: int, tmp_path: Path, homeserver: Homeserver, person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "GAP_PAGE", 10)
    monkeypatch.setattr(gaps, "GAP_LIMIT", limit)
    ann, bot = await person("ann"), await person("bot")
    async with open_bench(tmp_path) as bench:
        room = await room_of(bench, ann, bot)
        async with running(bench.accounts(account_of(bot, homeserver))):
            await until(lambda: ann.member_of(room, bot.user_id))
            await ann.say(room, "here")
            await until(lambda: bench.messages() == ["here"])
    async with trio.open_nursery() as nursery:
        for n in range(150):
            nursery.start_soon(ann.say, room, f"missed {n}")
    missed = (await bodies(ann, room))[1:]
    assert len(missed) == 150
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        async with running(bench.accounts(account_of(bot, homeserver))):
            await until(lambda: missed[-1] in bench.messages())
    told = [event.plain() for event in bench.events if event.type == "gap"]
    if limit == 20:
        assert bench.messages() == missed[-120:]  # the answer itself holds 100
        assert [gap["room_id"] for gap in told] == [room]
        assert "20 events" in told[0]["content"]["reason"]
    else:
        assert bench.messages() == missed
        assert not told


async def test_every_type_of_event_comes_but_only_from_granted_rooms(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot)
    other = await ann.create_room(bot.user_id)
    await bot.call("POST", f"rooms/{other}/join")
    async with running(bench.accounts(account_of(bot, homeserver))):
        await until(lambda: ann.member_of(room, bot.user_id))
        await ann.say(other, "not for the agent")
        said = await ann.say(room, "first")
        relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": said, "key": "+1"}}
        await ann.call("PUT", f"rooms/{room}/send/m.reaction/1", relation)
        await ann.call("PUT", f"rooms/{room}/redact/{said}/2", {})
        await until(lambda: len(bench.events) >= 3)
    assert [event.type for event in bench.events] == ["m.room.message", "m.reaction", "m.room.redaction"]
    assert {event.room_id for event in bench.events} == {room}
    assert bench.events[2].plain()["content"]["redacts"] == said


async def test_an_alias_is_granted_as_the_room_it_names(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    name = secrets.token_hex(4)
    room = await ann.create_room(room_alias_name=name, preset="public_chat")
    bench.grants.set("echo", "main", [f"#{name}:localhost", "#nowhere:localhost"])
    async with running(bench.accounts(account_of(bot, homeserver))):
        await until(lambda: ann.member_of(room, bot.user_id))  # public, so it needs no invite
        assert bench.grants.may("echo", room)
        await ann.say(room, "hello")
        await until(lambda: bench.messages() == ["hello"])


async def test_rooms_granted_by_alias_lose_nothing_while_everything_is_away(
    tmp_path: Path, homeserver: Homeserver, person: MakePerson
) -> None:
    """One alias is known from an earlier session, the other was granted meanwhile, for a room the account is in."""
    ann, bot = await person("ann"), await person("bot")
    known, new = secrets.token_hex(4), secrets.token_hex(4)
    known_room = await ann.create_room(room_alias_name=known, preset="public_chat")
    new_room = await ann.create_room(room_alias_name=new, preset="public_chat")
    await bot.call("POST", f"join/{new_room}", {})
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [f"#{known}:localhost"])
        async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
            await accounts.until_joined("main", [f"#{known}:localhost"])
    await ann.say(known_room, "to the one")
    await ann.say(new_room, "to the other")
    await trio.to_thread.run_sync(homeserver.stop)
    try:
        async with open_bench(tmp_path) as bench:
            bench.grants.set("echo", "main", [f"#{known}:localhost", f"#{new}:localhost"])
            async with running(bench.accounts(account_of(bot, homeserver)), connected=False) as accounts:
                await until(lambda: _state(accounts) is SessionState.WAITING)
                assert bench.grants.may("echo", known_room)  # without asking anybody
                await trio.sleep(11)  # longer than the sync was once held back
                await trio.to_thread.run_sync(homeserver.start)
                await until(lambda: len(bench.messages()) >= 2)
    finally:
        if homeserver.pid is None:
            await trio.to_thread.run_sync(homeserver.start)
    assert sorted(bench.messages()) == ["to the one", "to the other"]


async def test_a_room_granted_later_is_entered_then(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    async with running(bench.accounts(account_of(bot, homeserver))):
        await trio.sleep(0.2)
        assert not await ann.member_of(room, bot.user_id)
        bench.grants.set("echo", "main", [room])
        await until(lambda: ann.member_of(room, bot.user_id))


async def test_the_same_transaction_id_is_the_same_event(homeserver: Homeserver, person: MakePerson) -> None:
    ann = await person("ann")
    room = await ann.create_room()
    async with open_api(homeserver.url, Clock()) as api:
        client = MatrixClient(api)
        client.use(ann.user_id, "", ann.token)
        contents = [ascii_json({"msgtype": "m.text", "body": body}) for body in ("a", "b")]
        sent = [await client.put_event(room, "m.room.message", "t/1", content) for content in contents]
    assert sent[0] == sent[1]
    assert await bodies(ann, room) == ["a"]


async def test_an_encrypted_room_gets_nothing_in_the_clear(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot, encrypted=True)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        await until(lambda: accounts.encrypted("main", room) is True)
        refused = await bench.outbox.settled((await enqueue(bench, room, "in the clear")).delivery_id, 20)
        assert refused.state == "failed"
        assert (refused.reason or "").startswith("room_encrypted")
    assert await bodies(ann, room) == []


async def test_a_room_that_becomes_encrypted_gets_nothing_more(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        await until(lambda: accounts.encrypted("main", room) is False)
        await ann.call("PUT", f"rooms/{room}/state/m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
        await until(lambda: accounts.encrypted("main", room) is True)
        refused = await bench.outbox.settled((await enqueue(bench, room, "in the clear")).delivery_id, 20)
        assert refused.state == "failed"
    assert await bodies(ann, room) == []


async def test_of_an_unknown_room_the_homeserver_is_asked(homeserver: Homeserver, person: MakePerson) -> None:
    ann = await person("ann")
    plain, secret = await ann.create_room(), await ann.create_room(encrypted=True)
    async with open_api(homeserver.url, Clock()) as api:
        client = MatrixClient(api)
        client.use(ann.user_id, "", ann.token)
        assert await client.state(plain, "m.room.encryption", "") is None
        assert await client.state(secret, "m.room.encryption", "") is not None
        with pytest.raises(MNotFound):
            await client.resolve("#nowhere:localhost")


async def test_a_wrong_password_is_tried_once_and_a_later_login_mends_it(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    alerts: list[str] = []

    class Alerts:
        async def raise_alert(self, name: str, severity: str, text: str, *, agent: str | None = None) -> None:
            alerts.append(name)
            texts.append(text)

    texts: list[str] = []
    bot = await person("bot")
    account = Account(homeserver.url, bot.name, password=Secret("wrong"))
    async with running(bench.accounts(account, alerts=Alerts()), connected=False) as accounts:
        await until(lambda: alerts == ["matrix_login_failed"])
        assert _state(accounts) is SessionState.LOGGED_OUT
        status = await accounts.login("main", bot.name, Secret(bot.password))
        assert status is not None
        assert status.user_id == bot.user_id
        await until(lambda: _state(accounts) is SessionState.CONNECTED)
    assert alerts == ["matrix_login_failed"]
    assert texts[0].endswith(f"; log it in: armorclaw matrix login {bot.name} --account main")


async def test_files_of_secrets_are_needed_only_once(
    tmp_path: Path, homeserver: Homeserver, person: MakePerson
) -> None:
    bot = await person("bot")
    for word in ("password", "access_token"):
        file = tmp_path / word
        file.write_text(bot.password if word == "password" else bot.token)
        folder = tmp_path / f"state-{word}"
        folder.mkdir()
        account = Account(homeserver.url, bot.name, **{f"{word}_file": file})  # type: ignore[arg-type]
        for _ in range(2):
            async with open_bench(folder) as bench, running(bench.accounts(account)):
                file.unlink(missing_ok=True)
        async with open_bench(tmp_path) as bench, running(bench.accounts(account), connected=False) as accounts:
            await until(lambda: _state(accounts) is SessionState.LOGGED_OUT)
            status = accounts.status()
            assert status is not None
            assert str(file) in status.reason


async def test_a_login_of_another_user_than_the_configuration_names(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    """It would last until the next start, and then silently be undone."""
    bot, other = await person("bot"), await person("other")
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        for user in (other.name, f"@{other.name}", other.user_id):
            with pytest.raises(ArmorclawError) as caught:
                await accounts.login("main", user, Secret(other.password))
            assert caught.value.name == "matrix_login_failed"
            assert "accounts.main.user" in caught.value.hint
        for user in (bot.name, f"@{bot.name.upper()}", bot.user_id):
            status = await accounts.login("main", user, Secret(bot.password))
            assert status is not None
            assert status.user_id == bot.user_id


async def test_a_login_beside_a_session_replaces_it_only_if_it_succeeds(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    bot = await person("bot")
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        with pytest.raises(Exception, match="M_FORBIDDEN") as caught:
            await accounts.login("main", bot.name, Secret("wrong"))
        assert getattr(caught.value, "name", "") == "matrix_login_failed"
        assert _state(accounts) is SessionState.CONNECTED
        first = accounts.status()
        assert first is not None
        device = first.device_id
        assert await accounts.login("main", bot.name, Secret(bot.password)) is not None
        await until(lambda: _state(accounts) is SessionState.CONNECTED)
        assert first.device_id == device


async def test_logged_out_by_the_server_it_logs_in_again(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        status = accounts.status()
        assert status is not None
        device = status.device_id
        await bot.call("POST", "logout/all")
        await ann.say(room, "still there?")
        queued = await enqueue(bench, room, "yes")
        await until(lambda: bench.messages() == ["still there?"])
        assert (await bench.outbox.settled(queued.delivery_id, 20)).state in ("sent", "delivered")
        assert status.device_id != device, "the other one is deleted, and its keys with it"
    assert sorted(await bodies(ann, room)) == ["still there?", "yes"]


async def test_logged_out_by_the_server_without_a_password_it_says_so(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    bot = await person("bot")
    account = Account(homeserver.url, bot.user_id, access_token=Secret(bot.token))
    async with running(bench.accounts(account)) as accounts:
        await bot.call("POST", "logout/all")
        await until(lambda: _state(accounts) is SessionState.LOGGED_OUT)


@pytest.mark.mission("P3.3")
async def test_synapse_killed_and_back(
    bench: Bench, homeserver: Homeserver, person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    class Noted(pacing.Pacing):
        def next(self, told: float | None = None) -> float:
            pauses.append(pause := super().next(told))
            return pause

    monkeypatch.setattr("armorclaw.matrix.sync.Pacing", Noted)
    ann, bot = await person("ann"), await person("bot")
    room = await room_of(bench, ann, bot)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        await trio.to_thread.run_sync(homeserver.kill)
        queued = await enqueue(bench, room, "written in the dark")
        await until(lambda: _state(accounts) is SessionState.WAITING)
        await trio.to_thread.run_sync(homeserver.start)
        await until(lambda: _state(accounts) is SessionState.CONNECTED)
        assert 0 < max(pauses) <= 2, "it is soon noticed that Synapse is back"
        assert (await bench.outbox.settled(queued.delivery_id, 20)).state in ("sent", "delivered")
        await ann.say(room, "welcome back")
        await until(lambda: bench.messages() == ["welcome back"])
    assert await bodies(ann, room) == ["written in the dark", "welcome back"]


async def test_a_homeserver_that_is_not_up_yet_is_waited_for(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    bot = await person("bot")
    await trio.to_thread.run_sync(homeserver.stop)
    try:
        async with running(bench.accounts(account_of(bot, homeserver)), connected=False) as accounts:
            await until(lambda: _state(accounts) is SessionState.WAITING)
            await trio.to_thread.run_sync(homeserver.start)
            await until(lambda: _state(accounts) is SessionState.CONNECTED)
    finally:
        if homeserver.pid is None:
            await trio.to_thread.run_sync(homeserver.start)


async def test_cancelled_anywhere_it_goes_on_as_if_nothing_was(
    tmp_path: Path, homeserver: Homeserver, person: MakePerson
) -> None:
    """In the middle of a sync and of sends, again and again: each message arrives once, each way."""
    ann, bot = await person("ann"), await person("bot")
    heard: list[str] = []
    ours: list[str] = []
    async with open_bench(tmp_path) as bench:
        room = await room_of(bench, ann, bot)
        for turn in range(8):
            with trio.CancelScope() as scope:
                async with running(bench.accounts(account_of(bot, homeserver)), connected=turn == 0):
                    if turn == 0:
                        await until(lambda: ann.member_of(room, bot.user_id))
                    ours.append(f"out {turn}")
                    await enqueue(bench, room, f"out {turn}")
                    heard.append(f"in {turn}")
                    await ann.say(room, f"in {turn}")
                    scope.deadline = trio.current_time() + 0.02 * turn
                    await trio.sleep_forever()
            assert trio.current_time() - scope.deadline < 10, "cancelling took too long"
        async with running(bench.accounts(account_of(bot, homeserver))):
            await until(lambda: len(bench.messages()) >= len(heard))
            await until(lambda: _has(ann, room, len(heard) + len(ours)))
    assert bench.messages() == heard
    assert [body for body in await bodies(ann, room) if body.startswith("out")] == ours


async def _has(who: Person, room: str, count: int) -> bool:
    return len(await who.read(room)) >= count


def _state(accounts: Any) -> SessionState:
    state: SessionState = accounts.status().state
    return state
