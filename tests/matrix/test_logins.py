"""Lives of sessions against a real Synapse whose access tokens end after seconds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from mautrix.errors import MUnknownToken

from armorclaw.clock import Clock
from armorclaw.config import Account
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.events.event import ascii_json
from armorclaw.health import health
from armorclaw.matrix import login
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.login import Login
from armorclaw.matrix.status import SessionState, SessionStatus
from armorclaw.matrix.transport import open_api
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver
from tests.faults.town import BOT, PASSWORD, Town

from .conftest import KEY, Bench, Person, account_of, open_bench, people, running, until
from .fake_homeserver import fake_homeserver

MakePerson = Callable[[str], Awaitable[Person]]

LASTS, REFRESHABLE = 3.0, 9.0
"""Seconds for which an access token and a refresh token are good."""


@pytest.fixture(scope="module")
def forgetful(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A homeserver with tokens that end soon."""
    settings = {
        "refreshable_access_token_lifetime": f"{LASTS:g}s",
        "refresh_token_lifetime": f"{REFRESHABLE:g}s",
    }
    with Homeserver(tmp_path_factory.mktemp("forgetful"), settings=settings) as running:
        yield running


@pytest.fixture
async def person(forgetful: Homeserver) -> AsyncIterator[MakePerson]:
    async with people(forgetful) as make:
        yield make


@attrs.define
class Alerts:
    told: list[tuple[str, str]] = attrs.field(factory=list)

    async def raise_alert(self, name: str, severity: str, text: str, *, agent: str | None = None) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((name, severity))


def vault(folder: Path) -> Vault:
    return Vault(folder / "keys", lambda: KEY)


def status_of(accounts: Accounts) -> SessionStatus:
    status = accounts.status()
    assert status is not None
    return status


async def stored(bench: Bench) -> Login:
    found = await bench.db.read(lambda db: login.load(db, "main"))
    assert found is not None
    return found


async def enqueue(bench: Bench, room: str, text: str) -> Delivery:
    content = ascii_json({"msgtype": "m.text", "body": text})
    return await bench.outbox.enqueue(Outgoing("main", "echo", room, content))


async def bodies(who: Person, room: str) -> list[str]:
    return [raw["content"]["body"] for raw in await who.read(room)]


async def devices(person: Person) -> set[str]:
    """Those of sessions of ours."""
    found = (await person.call("GET", "devices"))["devices"]
    return {one["device_id"] for one in found if one["display_name"] == "armorclaw"}


async def delete_device(person: Person, device_id: str) -> None:
    """As a person does it in the settings of their client."""
    headers = {"Authorization": f"Bearer {person.token}"}
    url = f"/_matrix/client/v3/devices/{device_id}"
    asked = (await person.http.request("DELETE", url, json={}, headers=headers)).json()
    identifier = {"type": "m.id.user", "user": person.user_id}
    auth = {"type": "m.login.password", "identifier": identifier, "password": person.password}
    auth["session"] = asked["session"]
    answer = await person.http.request("DELETE", url, json={"auth": auth}, headers=headers)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("which", ["town", "synapse"])
async def test_a_token_that_has_ended_is_told_from_one_that_is_unknown(
    forgetful: Homeserver, person: MakePerson, which: str
) -> None:
    """Of our own homeserver as of Synapse."""
    async with AsyncExitStack() as stack:
        if which == "town":
            town = Town()
            town.logins.lasts = LASTS
            url, user, password = (await stack.enter_async_context(fake_homeserver(town.answer))).url, BOT, PASSWORD
        else:
            bot = await person("bot")
            url, user, password = forgetful.url, bot.user_id, bot.password
        client = MatrixClient(await stack.enter_async_context(open_api(url, Clock())))
        tokens = await client.log_in(user, password, "ONE")
        assert tokens.lasts is not None
        assert 0 < tokens.lasts <= LASTS + 0.1
        await trio.sleep(LASTS + 0.1)
        with pytest.raises(MUnknownToken) as caught:
            await client.check_login()
        assert caught.value.soft_logout is True  # type: ignore[attr-defined]
        assert tokens.refresh_token is not None
        client.api.token = (await client.refresh(tokens.refresh_token)).access_token
        await client.check_login()


async def test_a_session_outlives_many_tokens_and_nobody_notices(
    bench: Bench, forgetful: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, forgetful))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        tokens = {(await stored(bench)).access_token}
        unnoticed = 0
        for number in range(12):
            await ann.say(room, f"{number}")
            await until(lambda number=number: len(bench.messages()) == number + 1)
            sent = await bench.outbox.settled((await enqueue(bench, room, f"re {number}")).delivery_id, 20)
            assert sent.state in ("sent", "delivered")
            tokens.add((await stored(bench)).access_token)
            unnoticed += status_of(accounts).state is SessionState.CONNECTED
            await trio.sleep(0.8)
    assert unnoticed >= 10, "but for a machine that holds us up for longer than a token lasts"
    assert len(tokens) >= 4
    assert await devices(bot) == {(await stored(bench)).device_id}
    assert bench.messages() == [f"{number}" for number in range(12)]


async def test_a_token_that_ended_while_we_were_away_is_renewed_and_the_queue_kept(
    tmp_path: Path, forgetful: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        async with running(bench.accounts(account_of(bot, forgetful))):
            await until(lambda: ann.member_of(room, bot.user_id))
        first = await stored(bench)
        queued = await enqueue(bench, room, "written while away")
    await trio.sleep(LASTS + 0.5)
    await ann.say(room, "are you there?")
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        account = attrs.evolve(account_of(bot, forgetful), password=None)
        async with running(bench.accounts(account)):
            await until(lambda: bench.messages() == ["are you there?"])
            assert (await bench.outbox.settled(queued.delivery_id, 20)).state in ("sent", "delivered")
        last = await stored(bench)
    assert (last.device_id, await devices(bot)) == (first.device_id, {first.device_id})
    assert last.access_token != first.access_token
    assert sorted(await bodies(ann, room)) == ["are you there?", "written while away"]


@pytest.mark.parametrize("password", [True, False])
async def test_when_the_refresh_token_ended_too_a_password_makes_the_same_device(
    tmp_path: Path, forgetful: Homeserver, person: MakePerson, password: bool
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    alerts = Alerts()
    account = account_of(bot, forgetful)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        async with running(bench.accounts(account, vault=vault(tmp_path))):
            await until(lambda: ann.member_of(room, bot.user_id))
            await until(lambda: published(bench))
        first = await stored(bench)
        queued = await enqueue(bench, room, "written while away")
    await trio.sleep(REFRESHABLE + 0.5)
    account = account if password else attrs.evolve(account, password=None)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        accounts = bench.accounts(account, alerts=alerts, vault=vault(tmp_path))
        async with running(accounts, connected=password):
            if password:
                assert (await bench.outbox.settled(queued.delivery_id, 20)).state in ("sent", "delivered")
            else:
                await until(lambda: status_of(accounts).state is SessionState.LOGGED_OUT)
                assert (await bench.outbox.status(queued.delivery_id)).state == "queued"
                status = await accounts.login("main", bot.name, Secret(bot.password))
                assert status is not None
                await until(lambda: status.connected)
        last = await stored(bench)
    assert (last.device_id, last.identity_key) == (first.device_id, first.identity_key)
    assert not list((tmp_path / "keys").glob("*aside*"))
    assert alerts.told == ([] if password else [("matrix_login_failed", "error")])


async def published(bench: Bench) -> bool:
    return (await stored(bench)).identity_key is not None


async def test_a_deleted_device_is_a_new_one_with_keys_of_its_own(
    tmp_path: Path, bench: Bench, forgetful: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    alerts = Alerts()
    accounts = bench.accounts(account_of(bot, forgetful), alerts=alerts, vault=vault(tmp_path))
    async with running(accounts):
        await until(lambda: ann.member_of(room, bot.user_id))
        await until(lambda: published(bench))
        first = await stored(bench)
        await delete_device(bot, first.device_id)
        queued = await enqueue(bench, room, "written meanwhile")
        await ann.say(room, "are you there?")
        await until(lambda: bench.messages() == ["are you there?"])
        assert (await bench.outbox.settled(queued.delivery_id, 20)).state in ("sent", "delivered")
        await until(lambda: published(bench))
        last = await stored(bench)
        assert last.device_id != first.device_id
        assert last.identity_key != first.identity_key
        assert status_of(accounts).encryption == "ready"
    assert await devices(bot) == {last.device_id}
    assert [name for name, _ in alerts.told if name != "matrix_recovery_key"] == ["matrix_logged_out"]
    assert len(list((tmp_path / "keys").glob("*aside*"))) >= 1


@pytest.mark.parametrize("how", ["missing", "damaged"])
async def test_lost_keys_make_a_new_device(
    tmp_path: Path, forgetful: Homeserver, person: MakePerson, how: str
) -> None:
    bot = await person("bot")
    alerts = Alerts()
    async with open_bench(tmp_path) as bench:
        async with running(bench.accounts(account_of(bot, forgetful), vault=vault(tmp_path))):
            await until(lambda: published(bench))
        first = await stored(bench)
    lose(tmp_path, how)
    async with open_bench(tmp_path) as bench:
        accounts = bench.accounts(account_of(bot, forgetful), alerts=alerts, vault=vault(tmp_path))
        async with running(accounts):
            await until(lambda: published(bench))
            last = await stored(bench)
            assert last.device_id != first.device_id
            assert status_of(accounts).encryption == "ready"
    assert await devices(bot) == {last.device_id}
    assert alerts.told == [("matrix_keys_lost", "warning")]


def lose(folder: Path, how: str) -> None:
    for file in (folder / "keys").iterdir():
        if how == "missing":
            file.unlink()
        elif file.suffix == ".db":
            file.write_bytes(bytes(len(file.read_bytes())))


async def test_lost_keys_without_a_password_leave_plain_rooms_and_say_so(
    tmp_path: Path, forgetful: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room, secret = await ann.create_room(bot.user_id), await ann.create_room(bot.user_id, encrypted=True)
    alerts = Alerts()
    account = Account(forgetful.url, bot.user_id, access_token=Secret(bot.token))
    async with open_bench(tmp_path) as bench:
        async with running(bench.accounts(account, vault=vault(tmp_path))):
            await until(lambda: published(bench))
        first = await stored(bench)
    lose(tmp_path, "missing")
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room, secret])
        accounts = bench.accounts(account, alerts=alerts, vault=vault(tmp_path))
        async with running(accounts):
            await until(lambda: ann.member_of(secret, bot.user_id))
            await until(lambda: ann.member_of(room, bot.user_id))
            await ann.say(room, "hello")
            await until(lambda: "hello" in bench.messages())
            refused = await bench.outbox.settled((await enqueue(bench, secret, "never in the clear")).delivery_id, 2)
            assert refused.state not in ("sent", "delivered")
            (standing,) = accounts.reports()
            assert standing.encryption == "lost"
            assert "matrix main has lost its keys" in health([], [standing]).reasons
            assert standing.hint.endswith(f"armorclaw matrix login {bot.user_id} --account main")
            assert (await stored(bench)).device_id == first.device_id
            assert alerts.told == [("matrix_keys_lost", "error")]
            waiting = await enqueue(bench, secret, "once it can")
            await accounts.login("main", bot.user_id, Secret(bot.password))
            assert (await bench.outbox.settled(waiting.delivery_id, 20)).state in ("sent", "delivered")
            assert accounts.reports()[0].encryption == "ready"
        last = await stored(bench)
        assert last.device_id != first.device_id
    assert alerts.told[1] == ("matrix_keys_lost", "warning")
    async with open_bench(tmp_path) as bench:
        accounts = bench.accounts(account, vault=vault(tmp_path))  # with the token of the device that is no more
        async with running(accounts):
            assert status_of(accounts).encryption == "ready"
        assert (await stored(bench)).device_id == last.device_id
    said: list[dict[str, Any]] = (await ann.call("GET", f"rooms/{secret}/messages?dir=b&limit=50"))["chunk"]
    assert not [raw for raw in said if raw["sender"] == bot.user_id and raw["type"] == "m.room.message"]


async def test_a_new_device_encrypts_although_the_one_before_had_lost_its_keys(
    tmp_path: Path, forgetful: Homeserver, person: MakePerson
) -> None:
    """Without another life of the bridge."""
    bot = await person("bot")
    password = tmp_path / "password"
    account = attrs.evolve(account_of(bot, forgetful), password=None, password_file=password)
    password.write_text(bot.password)
    password.chmod(0o600)
    async with open_bench(tmp_path) as bench:
        async with running(bench.accounts(account, vault=vault(tmp_path))):
            await until(lambda: published(bench))
        first = await stored(bench)
    lose(tmp_path, "missing")
    password.write_text("wrong")
    alerts = Alerts()
    async with open_bench(tmp_path) as bench:
        accounts = bench.accounts(account, alerts=alerts, vault=vault(tmp_path))
        async with running(accounts):
            assert status_of(accounts).encryption == "lost"
            assert alerts.told[-1] == ("matrix_keys_lost", "error")
            password.write_text(bot.password)
            await delete_device(bot, first.device_id)
            await until(lambda: status_of(accounts).encryption == "ready")
            await until(lambda: published(bench))
        assert (await stored(bench)).device_id != first.device_id


async def test_many_accounts_each_with_a_life_of_its_own(
    tmp_path: Path, bench: Bench, forgetful: Homeserver, person: MakePerson
) -> None:
    """Twenty; one is deleted and one cannot log in: the others hear and speak all the time."""
    ann = await person("ann")
    bots = [await person(f"bot{number}") for number in range(20)]
    rooms = [await ann.create_room(bot.user_id) for bot in bots]
    every = {f"a{number}": account_of(bot, forgetful, name=f"a{number}") for number, bot in enumerate(bots)}
    every["a7"] = attrs.evolve(every["a7"], password=Secret("wrong"))
    for number, room in enumerate(rooms):
        bench.grants.set(f"agent{number}", f"a{number}", [room])
    accounts = bench.accounts(*every.values(), vault=vault(tmp_path), agents=[f"agent{n}" for n in range(20)])
    well = [number for number in range(20) if number != 7]
    async with running(accounts, connected=False):
        for number in well:
            await until(lambda number=number: ann.member_of(rooms[number], bots[number].user_id), 60)
        await until(lambda: {each.account: each.state for each in accounts.reports()}["a7"] == "logged_out")
        await bots[3].call("POST", "logout/all")
        async with trio.open_nursery() as nursery:
            for number in well:
                nursery.start_soon(ann.say, rooms[number], f"to {number}")
        await until(lambda: sorted(bench.messages()) == sorted(f"to {number}" for number in well), 60)
        by_room = {event.room_id: event.account for event in bench.events if event.type == "m.room.message"}
        assert by_room == {rooms[number]: f"a{number}" for number in well}
