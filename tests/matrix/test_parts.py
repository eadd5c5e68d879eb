"""The small parts of a session: pauses, names, rooms, grants, logins, and the way into rooms."""

from __future__ import annotations

import random
import sqlite3
from typing import Any

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, MatrixError, make_request_error

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account
from armorclaw.delivery.transport import Delayed
from armorclaw.health import health
from armorclaw.matrix import aliases
from armorclaw.matrix.client import may_be_same, same_user, user_identifier
from armorclaw.matrix.failures import judge
from armorclaw.matrix.login import (
    Login,
    device_for,
    fingerprint,
    forget,
    load,
    new_device_id,
    save,
    save_identity,
    save_place,
)
from armorclaw.matrix.pacing import Pacing, Surge
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.status import FAILURES_SECONDS, FRESH_SECONDS, KEY_COMES_SECONDS, SessionStatus
from armorclaw.matrix.tokens import Tokens, read_tokens
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


def test_a_surge_passes_and_what_never_ends_is_held_back() -> None:
    surge = Surge(10.0, 300)
    assert max(surge.next(5.0) for _ in range(300)) == pytest.approx(0.0)
    assert surge.next(5.0) == pytest.approx(0.1)
    assert surge.next(5.1) == pytest.approx(0.1)
    assert surge.next(15.0) == 0.0
    assert max(surge.next(1000.0) for _ in range(300)) == pytest.approx(0.0)


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


def login(**changes: Any) -> Login:
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


def test_a_login_that_was_forgotten_serves_nobody_and_names_the_next_device(db: sqlite3.Connection) -> None:
    account = Account("http://x", "bot", device_id="CHOSEN")
    save(db, "main", login(refresh_token="r", expires_ms=5, begun=True))
    save_identity(db, "main", "curve")
    forget(db, "main", "NEXT")
    kept = load(db, "main")
    assert kept == login(device_id="NEXT", access_token="", begun=True)
    assert kept is not None
    assert not kept.serves(account, None)
    assert not kept.serves(account, Secret(""))
    assert device_for(account, kept) == "NEXT"
    assert device_for(account, None) == "CHOSEN"
    assert device_for(account, login(user_id="@other:x")) == "CHOSEN"


def test_keys_are_known_as_long_as_it_is_the_same_device(db: sqlite3.Connection) -> None:
    save(db, "main", login())
    save_identity(db, "main", "curve")
    assert save(db, "main", login(access_token="new")).identity_key == "curve"
    for other in (login(device_id="E"), login(user_id="@other:x"), login(homeserver="http://y")):
        save(db, "main", login())
        save_identity(db, "main", "curve")
        assert save(db, "main", other).identity_key is None


def test_a_token_of_the_configuration_does_not_undo_the_login_that_came_after_it() -> None:
    account, old, other = Account("http://x", "bot"), Secret("old"), Secret("other")
    later = login(access_token="renewed", given=fingerprint(old))
    assert later.serves(account, old)
    assert not later.serves(account, other)
    assert later.serves(account, None)


def test_a_login_does_not_show_its_tokens() -> None:
    assert "canary" not in repr(login(access_token="canary", refresh_token="canary"))
    assert "canary" not in repr(Tokens("canary", "canary"))


@pytest.mark.parametrize(
    "answer, tokens",
    [
        ({"access_token": "a"}, Tokens("a")),
        ({"access_token": "a", "refresh_token": "r", "expires_in_ms": 1500}, Tokens("a", "r", 1.5)),
        ({"access_token": "a", "refresh_token": "", "expires_in_ms": 0}, Tokens("a")),
        ({"access_token": "a", "refresh_token": 5, "expires_in_ms": True}, Tokens("a")),
        ({"access_token": "a", "expires_in_ms": 10**18}, Tokens("a")),
        ({"access_token": "a b"}, None),
        ({"access_token": "ä"}, None),
        ({"access_token": ""}, None),
        ({"access_token": ["a"]}, None),
        ({}, None),
    ],
)
def test_tokens_as_homeservers_give_them(answer: dict[str, Any], tokens: Tokens | None) -> None:
    assert read_tokens(answer) == tokens


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


def deaf(status: SessionStatus) -> bool:
    return status.deaf  # asked anew each time, as mypy does not know


async def test_deaf_means_that_nothing_could_be_read_for_a_while_and_nothing_since(
    autojump_clock: trio.testing.MockClock,
) -> None:
    status = SessionStatus("main", "http://x", Clock())
    assert not deaf(status)
    status.undecryptable()
    assert not deaf(status), "its key may be on its way"
    await trio.sleep(KEY_COMES_SECONDS + 1)
    assert deaf(status)
    status.synced()
    assert health([], [status.report([])]).reasons == ["matrix main hears and cannot decrypt"]
    status.decrypted()
    assert not deaf(status)
    assert health([], [status.report([])]).status == "healthy"
    await trio.sleep(KEY_COMES_SECONDS + 1)
    assert not deaf(status)
    for _ in range(3):
        status.undecryptable()
    await trio.sleep(KEY_COMES_SECONDS + 1)
    assert status.report([]).deaf
    assert (status.report([]).decrypt_failures, status.failures) == (4, 4)
    await trio.sleep(FAILURES_SECONDS)
    assert not deaf(status), "an hour ago"
    assert (status.report([]).decrypt_failures, status.failures) == (0, 4)
    status.undecryptable()
    assert not deaf(status), "its key may be on its way, as that of any other"


async def test_failures_are_counted_up_to_a_bound() -> None:
    status = SessionStatus("main", "http://x", Clock())
    for _ in range(2000):
        status.undecryptable()
    assert (status.decrypt_failures, status.failures) == (1000, 2000)


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
