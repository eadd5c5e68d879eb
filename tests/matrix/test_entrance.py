"""How an account gets in and stays in, against the town in simulated time."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from mautrix.errors import MUnknownToken
from structlog.testing import capture_logs

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.entrance import Entrance
from armorclaw.matrix.given import Given
from armorclaw.matrix.login import Login
from armorclaw.matrix.renewal import REFRESH_LEAST
from armorclaw.matrix.status import SessionState, SessionStatus
from armorclaw.matrix.transport import TrioHTTPAPI
from armorclaw.structure import Secret
from tests.events.inline_store import InlineDatabase
from tests.faults.town import BOT, PASSWORD, Town
from tests.faults.wire import Wire
from tests.matrix.fake_homeserver import Asked, Raw, Reply, refusal

HOMESERVER = "http://town"
BEGAN = 1_800_000_000.0


@attrs.define
class Keys:
    """Keys of devices, as far as logins touch them."""

    there: bool = True
    aside: list[str] = attrs.field(factory=list)

    def exists(self, account: str) -> bool:
        return self.there

    def set_aside(self, account: str, why: str) -> str | None:
        self.aside.append(why)
        self.there = False
        return f"{account}.aside"


class House:
    """What one account's logins need, over one life of the bridge after the other. `told` are the texts of alerts."""

    def __init__(self) -> None:
        started = trio.current_time()
        self.clock = Clock(wall=lambda: BEGAN + trio.current_time() - started)
        self.around = Surroundings(self.clock, random.Random(1))
        self.town = Town(self.clock)
        self.db = InlineDatabase()
        self.keys = Keys(there=False)
        self.alerts: list[tuple[str, str]] = []
        self.told: list[str] = []
        self.password: str | None = PASSWORD
        self.token: str | None = None
        self.account = Account(HOMESERVER, BOT)
        self.wire = Wire(self.town)
        self.status = SessionStatus("main", HOMESERVER, self.clock)
        self.turn = trio.Lock()

    async def alert(self, name: str, severity: str, text: str) -> None:
        self.alerts.append((name, severity))
        self.told.append(text)

    def entrance(self) -> Entrance:
        """Of a new life."""
        self.client = MatrixClient(TrioHTTPAPI(HOMESERVER, self.wire, self.clock))
        given = Given(
            lambda: Secret(self.password) if self.password else None,
            lambda: Secret(self.token) if self.token else None,
        )
        return Entrance(
            self.account,
            self.client,
            self.db,  # type: ignore[arg-type]
            self.around,
            self.status,
            given,
            turn=self.turn,
            keys=self.keys,
            alert=self.alert,
        )

    def stored(self) -> Login:
        found = login.load(self.db.conn, "main")
        assert found is not None
        return found

    def asked(self, *kinds: str) -> list[str]:
        """Of what was asked since the last time, these kinds."""
        found = [kind for kind in self.wire.log if kind in kinds]
        self.wire.log.clear()
        return found

    def meddle(self, kind: str, *replies: Reply | Raw) -> None:
        """The next of this kind are answered so; afterwards all is as it should be."""
        left = list(replies)

        async def instead(asked: Asked) -> Reply | Raw | None:
            await trio.lowlevel.checkpoint()
            return left.pop(0) if left and self.town.kind(asked) == kind else None

        self.town.meddle = instead


@pytest.fixture
async def house() -> AsyncIterator[House]:
    made = House()
    yield made
    made.db.close()


LOGIN, REFRESH, WHOAMI, LOGOUT = "POST login", "POST refresh", "GET account", "POST logout"
ALL = (LOGIN, REFRESH, WHOAMI, LOGOUT)


async def test_the_first_login_is_stored_and_serves_without_asking_again(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    first = await house.entrance().enter()
    assert (first.user_id, first.homeserver) == (BOT, HOMESERVER)
    assert house.asked(*ALL) == [LOGIN]
    house.password = None
    again = await house.entrance().enter()
    assert again == first
    assert house.client.api.token == first.access_token
    assert house.asked(*ALL) == []


async def test_a_configured_device_is_that_of_the_first_login_only(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.account = attrs.evolve(house.account, device_id="CHOSEN")
    assert (await house.entrance().enter()).device_id == "CHOSEN"
    house.town.logins.remove("CHOSEN")
    entrance = house.entrance()
    await entrance.enter()
    assert (await end(house, entrance)).device_id != "CHOSEN", "its keys are known to others"


# -- refresh tokens


async def test_tokens_are_renewed_before_they_end_and_requests_never_notice(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    first = await entrance.enter()
    assert first.refresh_token is not None
    assert first.expires_ms == pytest.approx((BEGAN + 300) * 1000, abs=1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(entrance.renewal.run)
        for _ in range(100):
            await trio.sleep(30)
            await house.client.check_login()
        nursery.cancel_scope.cancel(reason="seen")
    asked = house.asked(*ALL)
    assert asked.count(REFRESH) == 12  # 240 s apart
    assert asked.count(WHOAMI) == 100
    assert house.stored().access_token == house.client.api.token != first.access_token
    assert house.stored().device_id == first.device_id


async def test_a_request_that_finds_its_token_expired_is_made_again_with_a_new_one(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    first = await house.entrance().enter()
    house.asked()
    await trio.sleep(301)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(house.client.check_login)
    asked = house.asked(*ALL)
    assert asked.count(REFRESH) == 1, "one is enough for all"
    assert asked.count(WHOAMI) == 40
    assert house.stored().access_token != first.access_token


async def test_tokens_outlast_a_power_cut(autojump_clock: trio.testing.MockClock, house: House) -> None:
    """Once they are used, the homeserver takes the old ones no more."""
    house.town.logins.lasts = 300.0
    first = await house.entrance().enter()
    await trio.sleep(301)
    before = house.db.durable
    await house.client.check_login()
    assert house.client.api.token == house.stored().access_token != first.access_token
    assert house.db.durable == before + 1


async def test_tokens_are_on_disk_before_they_are_used(autojump_clock: trio.testing.MockClock, house: House) -> None:
    """So an answer that is lost, and a crash anywhere, cost nothing: neither the login nor the device."""
    house.town.logins.lasts = 300.0
    await house.entrance().enter()
    await trio.sleep(301)
    house.town.lose_next(REFRESH)
    with capture_logs() as logs, pytest.raises(MUnknownToken):
        await house.client.check_login()
    assert [entry["event"] for entry in logs] == ["access token not renewed"]
    await trio.sleep(5)
    await house.client.check_login()

    class Crash(Exception):  # noqa: N818
        pass

    for moment in ("before commit", "after commit"):
        await trio.sleep(301)

        def crash(point: str, moment: str = moment) -> None:
            if point == moment:
                raise Crash

        house.db.point = crash
        with pytest.raises(Crash):
            await house.client.check_login()
        house.db.point = lambda name: None
        house.asked()
        await house.entrance().enter()
        await house.client.check_login()
        assert LOGIN not in house.asked(*ALL)
    assert house.alerts == []


async def test_new_tokens_that_come_after_another_login_do_not_replace_it(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    first = await entrance.enter()
    newer = attrs.evolve(first, access_token="newer", refresh_token="newer too")

    async def log_in_beside(asked: Asked) -> Reply | Raw | None:
        if house.town.kind(asked) == REFRESH:
            await house.db.write(lambda db: login.save(db, "main", newer))
        return None  # the answer itself is a good one

    house.town.meddle = log_in_beside
    assert await entrance.renewal.renew(first.access_token)
    assert (house.stored().access_token, house.stored().refresh_token) == ("newer", "newer too")
    assert entrance.renewal.current == house.stored()
    assert house.client.api.token == "newer"


@pytest.mark.parametrize("lasts", [0.001, 1.0, 5.0])
async def test_however_short_tokens_live_they_are_not_refreshed_in_a_storm(
    autojump_clock: trio.testing.MockClock, house: House, lasts: float
) -> None:
    house.town.logins.lasts = lasts
    entrance = house.entrance()
    await entrance.enter()
    house.asked()
    with capture_logs(), trio.move_on_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(entrance.renewal.run)
            while True:
                await trio.sleep(0.2)
                with contextlib.suppress(MUnknownToken):
                    await house.client.check_login()
    asked = house.asked(*ALL)
    assert 5 <= asked.count(REFRESH) <= 60 / REFRESH_LEAST + 1
    assert asked.count(WHOAMI) <= 600


async def test_a_homeserver_that_is_away_is_asked_again_for_new_tokens_in_growing_pauses(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    await entrance.enter()
    house.meddle(REFRESH, *[Reply(b"<html>", 502)] * 1000)
    house.asked()
    with capture_logs(), trio.move_on_after(3600):
        await entrance.renewal.run()
    assert 100 < house.asked(REFRESH).count(REFRESH) < 300
    house.town.meddle = None
    with trio.move_on_after(60):
        await entrance.renewal.run()
    await house.client.check_login()


# -- the end of a login


async def end(house: House, entrance: Entrance) -> Login:
    """The homeserver no longer knows us, so a session asks for its next login."""
    with capture_logs():
        return await entrance.again()


async def test_a_login_that_ended_softly_is_renewed_as_the_same_device_with_its_keys(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    first = await entrance.enter()
    login.save_identity(house.db.conn, "main", "curve")
    login.save_place(house.db.conn, "main", "s7")
    house.keys.there = True
    await trio.sleep(301)
    house.town.logins.forget_refresh_tokens()
    house.asked()
    second = await end(house, entrance)
    assert house.asked(*ALL) == [WHOAMI, REFRESH, LOGIN]
    assert (second.device_id, second.identity_key, second.next_batch) == (first.device_id, "curve", "s7")
    assert (house.keys.aside, house.alerts) == ([], [])
    await house.client.check_login()


async def test_a_login_that_ended_hard_is_a_new_device_its_keys_set_aside_and_people_told(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    login.save_identity(house.db.conn, "main", "curve")
    login.save_place(house.db.conn, "main", "s7")
    house.keys.there = True
    house.town.logins.remove(first.device_id)
    house.asked()
    second = await end(house, entrance)
    assert house.asked(*ALL) == [WHOAMI, LOGIN]
    assert second.device_id != first.device_id
    assert (second.identity_key, second.next_batch) == (None, "s7")
    assert house.keys.aside == ["the homeserver ended its login"]
    assert house.alerts == [("matrix_logged_out", "warning")]
    assert house.stored() == second


async def test_a_token_that_ended_hard_waits_for_a_person(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.password, house.token = (
        None,
        house.town.logins.log_in({"identifier": {"user": BOT}, "password": PASSWORD, "device_id": "GIVEN"}).content[
            "access_token"
        ],
    )
    entrance = house.entrance()
    assert (await entrance.enter()).device_id == "GIVEN"
    house.keys.there = True
    house.town.logins.remove("GIVEN")
    house.asked()
    with pytest.raises(ArmorclawError) as caught:
        await end(house, entrance)
    assert caught.value.name == "matrix_login_failed"
    assert house.keys.aside
    assert len(house.asked(*ALL)) == 2
    # and so does the next life, until there is another token
    with pytest.raises(ArmorclawError):
        await house.entrance().enter()
    house.token = house.town.logins.log_in(
        {"identifier": {"user": BOT}, "password": PASSWORD, "device_id": "NEW"}
    ).content["access_token"]
    assert (await house.entrance().enter()).device_id == "NEW"


async def test_a_401_that_was_a_mistake_changes_nothing(autojump_clock: trio.testing.MockClock, house: House) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True
    assert await end(house, entrance) == first
    assert (house.keys.aside, house.alerts) == ([], [])


async def test_a_homeserver_that_says_yes_and_no_gets_another_login_in_the_end(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True
    for _ in range(3):
        assert await end(house, entrance) == first
        entrance.lasted(1.0)
    last = await end(house, entrance)
    assert last.access_token != first.access_token
    assert last.device_id == first.device_id
    assert (house.keys.aside, house.alerts) == ([], [])


async def test_while_nobody_can_say_how_a_login_ended_nothing_is_done(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True
    oddities: list[Reply | Raw] = [
        Reply(b"<html>", 502),
        Raw(b""),
        refusal(429, "M_LIMIT_EXCEEDED"),
        refusal(401, "M_USER_LOCKED"),
        Reply([]),
    ]
    house.meddle(WHOAMI, *oddities)
    began = trio.current_time()
    assert await end(house, entrance) == first
    assert trio.current_time() - began > 30  # a lock is no passing trouble
    assert house.status.state is SessionState.WAITING
    assert (house.keys.aside, house.alerts) == ([], [])


@pytest.mark.parametrize("fate", ["answer lost", "refused", "killed"])
async def test_a_login_of_the_same_device_that_was_cut_short_costs_no_device(
    autojump_clock: trio.testing.MockClock, house: House, fate: str
) -> None:
    """Homeservers may end a device's login with the next one: the old token is then unknown, and that is no loss."""
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True
    login.save_identity(house.db.conn, "main", "curve")
    house.town.logins.expire()
    with trio.CancelScope() as life:

        async def instead(asked: Asked) -> Reply | Raw | None:
            await trio.lowlevel.checkpoint()
            if house.town.kind(asked) != LOGIN:
                return None
            house.town.meddle = None
            house.town.logins.clear()  # as those do that know one token for each device
            house.town.logins.log_in(asked.json)
            if fate == "killed":
                life.cancel(reason="the end of this life")
                await trio.lowlevel.checkpoint()
            return Raw(b"") if fate == "answer lost" else refusal(403, "M_FORBIDDEN")

        house.town.meddle = instead
        if fate == "refused":
            with pytest.raises(ArmorclawError):
                await end(house, entrance)
        else:
            await end(house, entrance)
    entrance = house.entrance()
    assert (await entrance.enter()).device_id == first.device_id
    last = await end(house, entrance)
    assert (last.device_id, last.identity_key) == (first.device_id, "curve")
    assert (house.keys.aside, house.alerts) == ([], [])


async def test_a_homeserver_that_forgets_every_device_gets_few_of_them(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    entrance = house.entrance()
    await entrance.enter()
    house.asked()
    with trio.move_on_after(86_400):
        while True:
            house.town.logins.clear()
            await end(house, entrance)
            entrance.lasted(1.0)
    assert 15 < house.asked(LOGIN).count(LOGIN) < 60
    assert len(house.alerts) < 60


async def test_somebody_who_logs_in_beside_us_is_followed(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True

    async def beside() -> None:
        async with house.turn:
            house.town.logins.clear()
            reply = house.town.logins.log_in(
                {"identifier": {"user": BOT}, "password": PASSWORD, "device_id": first.device_id}
            )
            await trio.sleep(10)  # the answer is slow
            fresh = attrs.evolve(first, access_token=reply.content["access_token"])
            await house.db.write(lambda db: login.save(db, "main", fresh))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beside)
        await trio.sleep(0.1)
        last = await end(house, entrance)
    assert last.device_id == first.device_id
    assert last.access_token != first.access_token
    assert (house.keys.aside, house.alerts) == ([], [])


# -- lost keys


async def test_an_account_that_lost_its_keys_becomes_a_new_device_and_ends_the_old_one(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    first = await entrance.enter()
    login.save_identity(house.db.conn, "main", "curve")
    house.keys.there = True
    house.asked()
    with capture_logs():
        second = await entrance.new_device("the file is damaged")
    assert second is not None
    assert second.device_id != first.device_id
    assert second.identity_key is None
    assert house.asked(*ALL) == [LOGIN, LOGOUT]
    assert house.town.logins.devices == {(BOT, second.device_id)}
    assert house.keys.aside == ["the account is another device now"]
    assert house.alerts == [("matrix_keys_lost", "warning")]
    await house.client.check_login()
    # lost again at once: not another one
    with capture_logs():
        assert await entrance.new_device("the file is damaged") is None
    assert house.asked(*ALL) == [WHOAMI]
    assert house.alerts[1:] == [("matrix_keys_lost", "error")]
    entrance.lasted(7200)
    with capture_logs():
        assert await entrance.new_device("the file is damaged") is not None


@pytest.mark.parametrize("why", ["no password", "wrong password"])
async def test_without_a_password_an_account_that_lost_its_keys_goes_on_without(
    autojump_clock: trio.testing.MockClock, house: House, why: str
) -> None:
    entrance = house.entrance()
    first = await entrance.enter()
    house.keys.there = True
    house.password = None if why == "no password" else "wrong"
    with capture_logs():
        assert await entrance.new_device("the file is damaged") is None
    assert await entrance.as_stored() == first
    await house.client.check_login()
    assert house.keys.aside == []
    assert house.town.logins.devices == {(BOT, first.device_id)}
    assert house.alerts[-1] == ("matrix_keys_lost", "error")
    assert f"armorclaw matrix login {BOT} --account main" in house.told[-1]


# -- hostile answers

LOGINS: dict[str, Any] = {
    "nothing": {},
    "no token": {"user_id": BOT, "device_id": "D"},
    "a token of another kind": {"user_id": BOT, "device_id": "D", "access_token": 5},
    "a token that no header carries": {"user_id": BOT, "device_id": "D", "access_token": "a\r\nX-Y: z"},
    "an empty token": {"user_id": BOT, "device_id": "D", "access_token": ""},
    "no user": {"device_id": "D", "access_token": "t"},
    "a user that is none": {"user_id": "bot", "device_id": "D", "access_token": "t"},
    "no device": {"user_id": BOT, "access_token": "t"},
    "a list": [],
}


@pytest.mark.parametrize("name", sorted(LOGINS))
async def test_an_answer_to_a_login_that_cannot_be_used_is_asked_for_again(
    autojump_clock: trio.testing.MockClock, house: House, name: str
) -> None:
    house.meddle(LOGIN, *[Reply(LOGINS[name])] * 10)
    first = await house.entrance().enter()
    assert first.user_id == BOT
    assert house.asked(*ALL) == [LOGIN] * 11
    assert 10 < trio.current_time() < 30


async def test_to_be_let_in_as_somebody_else_is_to_be_refused(
    autojump_clock: trio.testing.MockClock, house: House
) -> None:
    house.meddle(LOGIN, Reply({"user_id": "@other:town", "device_id": "D", "access_token": "t"}))
    with pytest.raises(ArmorclawError, match="@other:town"):
        await house.entrance().enter()
    assert house.client.api.token == ""
    assert login.load(house.db.conn, "main") is None


REFRESHES: dict[str, Any] = {
    "nothing": {},
    "a token that no header carries": {"access_token": "a b"},
    "a list": [],
}


@pytest.mark.parametrize("name", sorted(REFRESHES))
async def test_an_answer_to_a_refresh_that_cannot_be_used_is_asked_for_again(
    autojump_clock: trio.testing.MockClock, house: House, name: str
) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    first = await entrance.enter()
    house.asked()
    house.meddle(REFRESH, *[Reply(REFRESHES[name])] * 3)
    with capture_logs(), trio.move_on_after(400):
        await entrance.renewal.run()
    assert house.asked(*ALL).count(REFRESH) >= 4
    assert house.stored().access_token not in ("", first.access_token)


async def test_odd_times_of_a_refresh_are_no_times(autojump_clock: trio.testing.MockClock, house: House) -> None:
    house.town.logins.lasts = 300.0
    entrance = house.entrance()
    await entrance.enter()
    for odd in (True, -1, 0, "300", 1.5, 10**30, None):
        reply = {"access_token": f"t-{odd}", "expires_in_ms": odd}
        house.meddle(REFRESH, Reply(reply))
        await trio.sleep(REFRESH_LEAST)
        assert await entrance.renewal.renew(house.client.api.token)
        assert house.stored().expires_ms is None
        assert house.stored().refresh_token is not None, "the old one stays"
