"""The small parts of a session: pauses, names, rooms, grants, logins, and the way into rooms."""

from __future__ import annotations

import random
import sqlite3

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, MatrixError, MatrixRequestError, make_request_error
from structlog.testing import capture_logs

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account
from armorclaw.delivery.transport import Delayed
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.matrix import aliases
from armorclaw.matrix.client import may_be_same, same_user, user_identifier
from armorclaw.matrix.doorman import FOREIGN_LOOK, REFRESH, Doorman
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.login import Login, load, new_device_id, save, save_place
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.status import FRESH_SECONDS, SessionStatus
from armorclaw.matrix.transport import judge
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


@pytest.mark.parametrize("one", ["bot", "@Bot", "bot:x", "@bot:X"])
def test_users_that_can_be_the_same(one: str) -> None:
    for other in ("bot", "@bot", "@bot:x"):
        assert may_be_same(one, other)
        assert may_be_same(other, one)
    assert may_be_same(one, "@bot:y") is (":" not in one)
    for other in ("@bob", "bob:x", "@bots:x", "", "@"):
        assert not may_be_same(one, other)


def test_device_ids_differ() -> None:
    assert new_device_id() != new_device_id()


# --- logins ---


def login(**changes: str) -> Login:
    return Login(**{"homeserver": "http://x", "user_id": "@bot:x", "device_id": "D", "access_token": "t", **changes})


def test_a_new_login_of_the_same_user_keeps_the_place(db: sqlite3.Connection) -> None:
    save(db, "main", login())
    save_place(db, "main", "s7")
    Rooms("main").save(db, {"!a:x": RoomState("join")})
    aliases.save(db, "main", "#a:x", "!b:x")
    aliases.save(db, "main", "#a:x", "!a:x")
    aliases.save(db, "other", "#a:x", "!c:x")
    assert save(db, "main", login(access_token="new")).next_batch == "s7"
    assert Rooms("main").load(db)
    assert aliases.load(db, "main") == {"#a:x": "!a:x"}
    for other in (login(user_id="@other:x"), login(homeserver="http://y")):
        assert save(db, "main", other).next_batch is None
        assert load(db, "main") == other
        assert not Rooms("main").load(db)
        assert aliases.load(db, "main") == {}
    assert aliases.load(db, "other") == {"#a:x": "!c:x"}


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


def test_a_room_of_the_bridges_own_is_nobodys_to_hear() -> None:
    grants = Grants()
    grants.set("echo", "main", ["!a:x"])
    granted = Granted("main", grants, ["echo"], own=["!ops:x", "#ops:x"])
    assert granted.room_ids() == {"!a:x", "!ops:x"}
    assert granted.unresolved() == {"#ops:x"}
    granted.resolved("#ops:x", "!later:x")
    assert granted.room_ids() == {"!a:x", "!ops:x", "!later:x"}
    for room in ("!ops:x", "!later:x"):
        assert not granted.covers(room)
        assert not grants.may("echo", room)
        assert grants.agents_in("main", room) == frozenset()
    grants.set("echo", "main", ["!a:x", "!ops:x"])  # but it may be granted like any other
    assert granted.covers("!ops:x")


def test_an_alias_that_moves_takes_its_old_room_away_unless_that_is_granted_too() -> None:
    grants = Grants()
    granted = Granted("main", grants)
    grants.set("one", "main", ["#a:x"])
    grants.set("both", "main", ["#a:x", "!old:x"])
    granted.resolved("#a:x", "!old:x")
    granted.resolved("#a:x", "!new:x")
    assert grants.rooms_of("one") == {"#a:x", "!new:x"}
    assert grants.rooms_of("both") == {"#a:x", "!new:x", "!old:x"}
    granted.replace({})
    assert grants.rooms_of("one") == {"#a:x"}
    assert grants.rooms_of("both") == {"#a:x", "!old:x"}


# --- the way into rooms ---


class Doors:
    """Lets in, refuses or breaks, as told."""

    mxid = "@bot:x"

    def __init__(self) -> None:
        self.away: Exception | None = None
        self.moved: dict[str, str] = {}
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
        return self.moved.get(alias, alias.replace("#", "!"))

    async def check_login(self) -> None:
        await trio.lowlevel.checkpoint()
        if self.away is not None:
            raise self.away


class Lobby:
    def __init__(self, *rooms: str) -> None:
        self.doors = Doors()
        self.rooms = Rooms("main")
        self.grants = Grants()
        self.granted = Granted("main", self.grants)
        self.grants.set("echo", "main", rooms)
        self.kept: list[tuple[str, str]] = []
        self.store_failures: list[ArmorclawError] = []
        self.waited: list[str] = []
        self.doorman = Doorman(self.doors, self.granted, self.rooms, AROUND, keep=self.keep)  # type: ignore[arg-type]

    async def keep(self, alias: str, room_id: str) -> None:
        await trio.lowlevel.checkpoint()
        if self.store_failures:
            raise self.store_failures.pop(0)
        self.kept.append((alias, room_id))

    async def look_up(self) -> float:
        """How many seconds the sync is held back."""
        began = trio.current_time()
        await self.doorman.look_up_aliases(self.waited.append)
        return trio.current_time() - began

    def become(self, room_id: str, membership: str) -> None:
        self.rooms.apply({room_id: RoomState(membership)})
        self.granted.poke()


AWAY = MatrixConnectionError("away")
SLOW_DOWN = make_request_error(429, "", "M_LIMIT_EXCEEDED", "slow down")
SLOW_DOWN.retry_after = 1.0  # type: ignore[attr-defined]
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


async def test_nothing_is_waited_for_without_aliases(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("!a:x")
    lobby.doors.away = AWAY
    assert await lobby.look_up() == 0
    assert lobby.doors.asked == []


async def test_the_start_is_held_back_while_the_homeserver_is_away(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("#a:x", "#b:y")
    lobby.doors.closed = {"#a:x": AWAY, "#b:y": AWAY}
    lobby.doors.away = AWAY
    async with trio.open_nursery() as nursery:

        async def come_back() -> None:
            await trio.sleep(3600)
            lobby.doors.closed.clear()
            lobby.doors.away = None

        nursery.start_soon(come_back)
        assert 3600 <= await lobby.look_up() < 3602
    assert lobby.grants.may("echo", "!a:x")
    assert lobby.grants.may("echo", "!b:y")
    assert sorted(lobby.kept) == [("#a:x", "!a:x"), ("#b:y", "!b:y")]
    assert set(lobby.waited) == {"away"}
    assert len(lobby.doors.asked) < 2 * 3600 * 1.1  # no hot loop


async def test_an_alias_that_names_nothing_holds_nothing_back(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("#a:x", "#gone:x")
    lobby.doors.closed = {"#gone:x": make_request_error(404, "", "M_NOT_FOUND", "no such alias")}
    assert await lobby.look_up() == 0
    assert lobby.grants.may("echo", "!a:x")
    assert lobby.doors.asked.count("#gone:x") == 1


@pytest.mark.parametrize(
    "error",
    [make_request_error(502, "", "M_UNKNOWN", "Failed to fetch alias"), MatrixConnectionError("timed out")],
)
async def test_a_server_of_somebody_elses_holds_the_start_back_only_for_a_while(
    error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    lobby = Lobby("#a:x", "#b:y")
    lobby.doors.closed = {"#b:y": error}
    assert FOREIGN_LOOK <= await lobby.look_up() < FOREIGN_LOOK + 3
    assert lobby.waited == []
    assert lobby.grants.may("echo", "!a:x")


@pytest.mark.parametrize("error", [make_request_error(500, "", "M_UNKNOWN", "Internal server error"), SLOW_DOWN])
async def test_trouble_of_the_homeserver_itself_holds_the_start_back(
    error: MatrixRequestError, autojump_clock: trio.testing.MockClock
) -> None:
    lobby = Lobby("#a:y" if error is SLOW_DOWN else "#a:x")
    lobby.doors.closed = dict.fromkeys(lobby.granted.aliases(), error)
    with trio.move_on_after(3600) as scope:
        await lobby.look_up()
    assert scope.cancelled_caught
    assert lobby.waited


async def test_a_token_that_is_no_longer_known_is_left_to_the_sync(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("#b:y")
    lobby.doors.closed = {"#b:y": MatrixConnectionError("timed out")}
    lobby.doors.away = make_request_error(401, "", "M_UNKNOWN_TOKEN", "who?")
    assert await lobby.look_up() == 0


async def test_an_alias_that_was_known_is_looked_up_again_and_may_move(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lobby = Lobby("#a:x", "!own:x")
    lobby.granted.replace({"#a:x": "!a:x"})
    assert lobby.grants.rooms_of("echo") == {"#a:x", "!a:x", "!own:x"}
    assert await lobby.look_up() == 0
    assert lobby.doors.asked == []  # known is good enough to begin with
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lobby.doorman.run)
            await trio.sleep(1)
            assert lobby.doors.asked.count("#a:x") == 1
            assert lobby.grants.may("echo", "!a:x")
            lobby.doors.moved = {"#a:x": "!new:x"}
            for _ in range(10):
                lobby.granted.poke()
                await trio.sleep(REFRESH / 10)
            await trio.sleep(1)
            assert lobby.doors.asked.count("#a:x") == 2
            assert lobby.grants.rooms_of("echo") == {"#a:x", "!new:x", "!own:x"}
            assert lobby.kept[-1] == ("#a:x", "!new:x")
            assert lobby.doors.entered[-1] == "!new:x"
            nursery.cancel_scope.cancel()
    (line,) = [line for line in logs if "another room" in line["event"]]
    assert (line["alias"], line["room"], line["before"]) == ("#a:x", "!new:x", "!a:x")


async def test_an_alias_that_is_known_stays_so_when_it_cannot_be_found(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lobby = Lobby("#a:x")
    lobby.granted.replace({"#a:x": "!a:x"})
    lobby.doors.closed = {"#a:x": make_request_error(404, "", "M_NOT_FOUND", "no such alias")}
    with trio.move_on_after(2 * REFRESH):
        await lobby.doorman.run()
    assert lobby.grants.may("echo", "!a:x")


async def test_a_store_that_does_not_take_an_alias_hides_no_room(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("#a:x")
    lobby.store_failures = [ArmorclawError("storage_failed", "disk full")]
    assert await lobby.look_up() == 0
    assert lobby.grants.may("echo", "!a:x")
    assert lobby.kept == []
    with trio.move_on_after(1):
        await lobby.doorman.run()
    assert lobby.kept == [("#a:x", "!a:x")]


async def test_a_room_that_cannot_be_looked_up_keeps_no_other_shut(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("!a:x", "#b:y")
    lobby.doors.closed = {"#b:y": AWAY}
    with trio.move_on_after(1):
        await lobby.doorman.run()
    assert lobby.doors.entered == ["!a:x"]


# --- status ---


async def test_connected_means_that_a_sync_was_answered_not_long_ago(autojump_clock: trio.testing.MockClock) -> None:
    status = SessionStatus("main", "http://x", Clock())
    seen = [status.connected]
    assert status.synced()
    assert not status.synced()
    seen.append(status.connected)
    await trio.sleep(FRESH_SECONDS + 1)
    assert [*seen, status.connected] == [False, True, False]
    assert status.report([]).last_sync_s == FRESH_SECONDS + 1


async def test_whoever_waits_for_a_connected_session_hears_of_a_late_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    status = SessionStatus("main", "http://x", Clock())
    status.synced()
    await trio.sleep(FRESH_SECONDS + 1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(status.until, lambda: status.connected)
        await trio.testing.wait_all_tasks_blocked()
        assert status.synced()
        with trio.fail_after(1):
            await trio.testing.wait_all_tasks_blocked()
            assert not nursery.child_tasks


@pytest.mark.parametrize(
    "error, whole",
    [
        (MatrixConnectionError("cannot connect"), True),
        (make_request_error(502, "<html>", None, "Bad Gateway"), True),
        (make_request_error(403, "<html>", None, "a proxy says no"), True),
        (make_request_error(500, "", "M_UNKNOWN", "oops"), True),
        (make_request_error(429, "", "M_LIMIT_EXCEEDED", "slow down"), False),
        (make_request_error(429, "", None, "slow down"), False),
        (make_request_error(401, "", "M_UNKNOWN_TOKEN", "who are you"), False),
    ],
)
def test_which_failures_are_those_of_a_homeserver_as_a_whole(error: MatrixError, whole: bool) -> None:
    failure = judge(error).exception()
    assert isinstance(failure, Delayed)
    assert failure.whole == whole
