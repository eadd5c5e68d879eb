"""The small parts of a session: pauses, names, rooms, grants, logins, and the way into rooms."""

from __future__ import annotations

import random
import sqlite3

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account
from armorclaw.guard.grants import Grants
from armorclaw.matrix.client import same_user, user_identifier
from armorclaw.matrix.doorman import Doorman
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.login import Login, load, new_device_id, save, save_place
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.status import FRESH_SECONDS, SessionStatus
from armorclaw.store.schema import MIGRATIONS
from armorclaw.structure import Secret

AROUND = Surroundings(random=random.Random(1))


@pytest.fixture
def db() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:")
    db.executescript("".join(migration.sql for migration in MIGRATIONS))
    return db


# --- pacing ---


def test_pauses_grow_to_the_cap_and_begin_anew() -> None:
    pacing = Pacing(random.Random(1))
    for expected in (0.25, 0.5, 1.0, 2.0, 2.0, 2.0):
        assert expected / 2 <= pacing.next() <= expected
    pacing.reset()
    assert pacing.next() <= 0.25


def test_what_the_server_tells_is_kept_but_never_less_than_is_due() -> None:
    pacing = Pacing(random.Random(1))
    assert pacing.next(30.0) == 30.0
    assert pacing.next(0.0) >= 0.25


# --- names ---


@pytest.mark.parametrize(
    "user, identifier",
    [("bot", "bot"), ("@bot", "bot"), ("@bot:x.org", "@bot:x.org"), ("bot:x.org", "@bot:x.org")],
)
def test_users_as_login_takes_them(user: str, identifier: str) -> None:
    assert user_identifier(user) == identifier
    assert same_user(user, "@bot:x.org")
    assert same_user(user.upper(), "@bot:x.org")
    assert not same_user(user, "@other:x.org")
    assert same_user(user, "@bot:y.org") is (":" not in user)


def test_device_ids_differ() -> None:
    assert new_device_id() != new_device_id()


# --- logins ---


def login(**changes: str) -> Login:
    return Login(**{"homeserver": "http://x", "user_id": "@bot:x", "device_id": "D", "access_token": "t", **changes})


def test_a_new_login_of_the_same_user_keeps_the_place(db: sqlite3.Connection) -> None:
    save(db, "main", login())
    save_place(db, "main", "s7")
    Rooms("main").save(db, {"!a:x": RoomState("join")})
    assert save(db, "main", login(access_token="new")).next_batch == "s7"
    assert Rooms("main").load(db)
    for other in (login(user_id="@other:x"), login(homeserver="http://y")):
        assert save(db, "main", other).next_batch is None
        assert load(db, "main") == other
        assert not Rooms("main").load(db)


def test_a_stored_login_serves_only_the_account_it_is_of() -> None:
    account = Account("http://x", "bot")
    assert login().serves(account, None)
    assert login().serves(account, Secret("t"))
    assert not login().serves(account, Secret("another"))
    assert not login(user_id="@other:x").serves(account, None)
    assert not login(homeserver="http://y").serves(account, None)


def test_a_login_does_not_show_its_token() -> None:
    assert "canary" not in repr(login(access_token="canary"))


# --- rooms ---


def test_encryption_is_never_taken_back(db: sqlite3.Connection) -> None:
    rooms = Rooms("main")
    assert rooms.encrypted("!a:x") is None
    for state in (RoomState("join", True), RoomState("leave", True), RoomState("join", False)):
        rooms.save(db, {"!a:x": state})
    assert rooms.load(db) == {"!a:x": RoomState("join", True)}


@pytest.mark.parametrize(
    "state, encrypted",
    [
        (RoomState("join"), False),
        (RoomState("join", True), True),
        (RoomState("invite"), None),
        (RoomState("leave"), None),
        (RoomState("leave", True), True),
    ],
)
def test_only_of_a_room_we_are_in_is_it_known_that_it_is_not_encrypted(
    state: RoomState, encrypted: bool | None
) -> None:
    rooms = Rooms("main")
    rooms.apply({"!a:x": state})
    assert rooms.encrypted("!a:x") is encrypted


# --- grants ---


def test_the_view_of_one_account() -> None:
    grants = Grants()
    grants.set("early", "main", ["!a:x", "#b:x"])
    granted = Granted("main", grants, ["early", "unknown"])
    grants.set("late", "main", ["!c:x"])
    grants.set("other", "second", ["!d:x"])
    assert granted.room_ids() == {"!a:x", "!c:x"}
    assert granted.unresolved() == {"#b:x"}
    assert granted.covers("!a:x")
    assert not granted.covers("!d:x")

    granted.resolved("#b:x", "!b:x")
    assert granted.covers("!b:x")
    assert grants.may("early", "!b:x")
    assert granted.unresolved() == frozenset()

    grants.set("early", "main", ["#b:x"])  # given anew, still known
    assert grants.may("early", "!b:x")
    grants.forget("early")
    assert granted.room_ids() == {"!c:x"}
    grants.set("late", "second", ["!c:x"])
    assert granted.room_ids() == frozenset()


# --- the way into rooms ---


class Doors:
    """Lets in, refuses or breaks, as told."""

    def __init__(self) -> None:
        self.closed: dict[str, Exception] = {}
        self.entered: list[str] = []
        self.asked: list[str] = []

    async def enter(self, room_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(room_id)
        if room_id in self.closed:
            raise self.closed[room_id]
        self.entered.append(room_id)

    async def resolve(self, alias: str) -> str:
        await trio.lowlevel.checkpoint()
        self.asked.append(alias)
        if alias in self.closed:
            raise self.closed[alias]
        return alias.replace("#", "!")


class Lobby:
    def __init__(self, *rooms: str) -> None:
        self.doors = Doors()
        self.rooms = Rooms("main")
        self.grants = Grants()
        self.granted = Granted("main", self.grants)
        self.grants.set("echo", "main", rooms)
        self.doorman = Doorman(self.doors, self.granted, self.rooms, AROUND)  # type: ignore[arg-type]

    def become(self, room_id: str, membership: str) -> None:
        self.rooms.apply({room_id: RoomState(membership)})
        self.granted.poke()


REFUSAL = make_request_error(403, "", "M_FORBIDDEN", "not invited")


async def test_a_private_room_is_tried_once_and_again_when_invited(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("!a:x")
    lobby.doors.closed["!a:x"] = REFUSAL
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        await trio.sleep(3600)
        assert lobby.doors.asked == ["!a:x"]
        lobby.doors.closed.clear()
        lobby.become("!a:x", "invite")
        await trio.sleep(1)
        assert lobby.doors.entered == ["!a:x"]
        lobby.become("!a:x", "join")
        lobby.become("!a:x", "leave")
        await trio.sleep(3600)
        assert lobby.doors.entered == ["!a:x"]  # whoever put us out meant it
        lobby.become("!a:x", "invite")
        await trio.sleep(1)
        assert lobby.doors.entered == ["!a:x", "!a:x"]
        nursery.cancel_scope.cancel()


async def test_what_may_pass_is_tried_again_ever_more_slowly(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("!a:x", "#b:x")
    lobby.doors.closed = {name: MatrixConnectionError("away") for name in ("!a:x", "#b:x")}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        await trio.sleep(3600)
        assert 60 <= lobby.doors.asked.count("#b:x") <= 140
        lobby.doors.closed.clear()
        await trio.sleep(60)
        assert sorted(lobby.doors.entered) == ["!a:x", "!b:x"]
        nursery.cancel_scope.cancel()


async def test_aliases_hold_the_start_back_only_for_a_while(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("#a:x", "#gone:x", "#away:x")
    lobby.doors.closed = {"#gone:x": REFUSAL, "#away:x": MatrixConnectionError("away")}
    began = trio.current_time()
    await lobby.doorman.look_up_aliases()
    assert trio.current_time() - began <= 10
    assert lobby.grants.may("echo", "!a:x")
    assert lobby.doors.asked.count("#gone:x") == 1


# --- status ---


async def test_connected_means_that_a_sync_was_answered_not_long_ago(autojump_clock: trio.testing.MockClock) -> None:
    status = SessionStatus("main", "http://x", Clock())
    seen = [status.connected]
    assert status.synced()
    assert not status.synced()
    seen.append(status.connected)
    await trio.sleep(FRESH_SECONDS + 1)
    assert [*seen, status.connected] == [False, True, False]
    assert status.report()["last_sync_s"] == FRESH_SECONDS + 1
