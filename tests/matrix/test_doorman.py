"""The way into rooms: aliases, invitations, what replaces a room."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, MatrixRequestError, make_request_error
from structlog.testing import capture_logs

from armorclaw.clock import Surroundings
from armorclaw.config import AccessSection, Invites
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.doorman import FOREIGN_LOOK, REFRESH, Doorman
from tests.matrix.routing.house import ALICE, STRANGER, House

AROUND = Surroundings(random=random.Random(1))


class Doors:
    """Lets in, refuses or breaks, as told."""

    mxid = "@bot:x"

    def __init__(self) -> None:
        self.away: Exception | None = None
        self.moved: dict[str, str] = {}
        self.closed: dict[str, Exception] = {}
        self.entered: list[str] = []
        self.declined: list[str] = []
        self.via: dict[str, list[str]] = {}
        self.noted: list[tuple[str, str]] = []
        self.forgetful: Exception | None = None
        self.profiles = 0
        self.nameless: Exception | None = None
        self.our_profile: dict[str, object] | None = {"displayname": "Claw"}
        self.asked: list[str] = []

    async def enter(self, room_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(room_id)
        if room_id in self.closed:
            raise self.closed[room_id]
        self.entered.append(room_id)

    async def join(self, room_id: str, via: Sequence[str]) -> None:
        self.via[room_id] = list(via)
        await self.enter(room_id)

    async def note_direct(self, room_id: str, person: str) -> None:
        await trio.lowlevel.checkpoint()
        self.noted.append((room_id, person))
        if self.forgetful is not None:
            raise self.forgetful

    async def leave(self, room_id: str) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append(room_id)
        if room_id in self.closed:
            raise self.closed[room_id]
        self.declined.append(room_id)

    async def profile(self, user_id: str) -> dict[str, object] | None:
        await trio.lowlevel.checkpoint()
        self.profiles += 1
        if self.nameless is not None:
            raise self.nameless
        return self.our_profile

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
    def __init__(self, *rooms: str, access: AccessSection | None = None, invites: Invites = "granted") -> None:
        self.doors = Doors()
        self.house = House({"echo": rooms}, access=access, invites=invites)
        self.rooms, self.granted = self.house.rooms["main"], self.house.granted["main"]
        self.grants = self.house.grants
        self.kept: list[tuple[str, str]] = []
        self.store_failures: list[ArmorclawError] = []
        self.waited: list[str] = []
        doors: Any = self.doors
        router = self.house.router
        self.doorman = Doorman(doors, self.granted, self.rooms, AROUND, keep=self.keep, router=router)

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

    def become(self, room_id: str, membership: str, **facts: Any) -> None:
        self.house.be_in(room_id, membership, **facts)


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


# --- invitations ---


@pytest.mark.parametrize(
    "invites, strangers, entered, declined",
    [
        ("granted", "ignore", ["!granted:x"], []),
        ("trusted", "ignore", ["!alices:x", "!granted:x"], []),
        ("none", "ignore", [], []),
        ("trusted", "reject", ["!alices:x", "!granted:x"], ["!evil:x", "!nobodys:x"]),
        ("none", "reject", [], ["!evil:x", "!nobodys:x"]),
    ],
)
async def test_invitations_are_answered_by_policy(
    invites: Invites,
    strangers: Any,
    entered: list[str],
    declined: list[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    access = AccessSection(trusted=(ALICE,), strangers=strangers)
    lobby = Lobby("!granted:x", access=access, invites=invites)
    lobby.become("!granted:x", "invite", inviter=STRANGER)
    lobby.become("!alices:x", "invite", inviter=ALICE)
    lobby.become("!evil:x", "invite", inviter=STRANGER)
    lobby.become("!nobodys:x", "invite")
    with trio.move_on_after(3 * REFRESH):
        await lobby.doorman.run()
    assert (lobby.doors.entered, lobby.doors.declined) == (entered, declined)
    assert len(lobby.doors.asked) == len(entered) + len(declined)  # each once


async def test_a_refusal_to_decline_is_taken_and_trouble_is_waited_out(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lobby = Lobby(access=AccessSection(trusted=(ALICE,), strangers="reject"))
    lobby.doors.closed = {"!evil:x": REFUSAL, "!away:x": AWAY}
    for room in lobby.doors.closed:
        lobby.become(room, "invite", inviter=STRANGER)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        await trio.sleep(60)
        assert lobby.doors.asked.count("!evil:x") == 1
        assert 2 <= lobby.doors.asked.count("!away:x") <= 12
        lobby.doors.closed.clear()
        await trio.sleep(60)
        assert lobby.doors.declined == ["!away:x"]
        nursery.cancel_scope.cancel()


async def test_whoever_invites_again_is_answered_again(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby(access=AccessSection(trusted=(ALICE,)), invites="trusted")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        for times in (1, 2):
            lobby.become("!dm:x", "invite", inviter=ALICE)
            await trio.sleep(1)
            lobby.become("!dm:x", "join")
            lobby.become("!dm:x", "leave")
            await trio.sleep(1)
            assert lobby.doors.entered == ["!dm:x"] * times
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("trouble", [None, AWAY, REFUSAL])
async def test_a_direct_chat_is_written_down_where_a_new_login_finds_it(
    trouble: Exception | None, autojump_clock: trio.testing.MockClock
) -> None:
    lobby = Lobby(access=AccessSection(trusted=(ALICE,)), invites="trusted")
    lobby.doors.forgetful = trouble
    lobby.become("!dm:x", "invite", inviter=ALICE, direct=ALICE)
    lobby.become("!known:x", "invite", inviter=ALICE, direct=ALICE, listed=True)
    lobby.become("!group:x", "invite", inviter=ALICE)
    with capture_logs() as logs, trio.move_on_after(60):
        await lobby.doorman.run()
    assert lobby.doors.entered == ["!dm:x", "!group:x", "!known:x"]
    assert lobby.doors.noted == [("!dm:x", ALICE)]
    assert len([line for line in logs if line["log_level"] == "warning"]) == (trouble is not None)


# --- what replaces a room ---


async def test_what_replaced_a_room_is_entered_and_its_alias_asked_for_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    lobby = Lobby("#a:x", "!b:x")
    lobby.become("!b:x", "join")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        await trio.sleep(1)
        lobby.become("!a:x", "join")
        assert lobby.doors.asked.count("#a:x") == 1
        lobby.doors.moved = {"#a:x": "!a2:x"}
        lobby.become("!a:x", "join", successor="!a2:x")
        await trio.sleep(1)
        assert lobby.doors.entered == ["!a:x", "!a2:x"]
        assert lobby.doors.asked.count("#a:x") == 2
        assert lobby.kept[-1] == ("#a:x", "!a2:x")
        lobby.become("!a2:x", "join", predecessor="!a:x")
        lobby.become("!b:x", "join", successor="!b2:x")
        await trio.sleep(60)
        assert lobby.doors.entered == ["!a:x", "!a2:x", "!b2:x"]
        assert lobby.doors.asked.count("#a:x") == 2
        assert lobby.doors.via == {"!a2:x": ["x"], "!b2:x": ["x"]}
        nursery.cancel_scope.cancel()


# --- our name ---


async def test_the_name_of_the_account_is_known_and_kept_fresh(autojump_clock: trio.testing.MockClock) -> None:
    lobby = Lobby("!a:x")
    lobby.doors.nameless = AWAY
    names = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lobby.doorman.run)
        await trio.sleep(10)
        names.append(lobby.house.router.display_name)
        lobby.doors.nameless = None
        await trio.sleep(60)
        names.append(lobby.house.router.display_name)
        asked = lobby.doors.profiles
        lobby.doors.our_profile = {"displayname": "  "}
        await trio.sleep(REFRESH + 1)
        names.append(lobby.house.router.display_name)
        assert names == [None, "Claw", None]
        assert lobby.doors.profiles == asked + 1
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("profile", [None, {}, {"displayname": 7}, {"displayname": None}])
async def test_an_account_may_have_no_name(
    profile: dict[str, object] | None, autojump_clock: trio.testing.MockClock
) -> None:
    lobby = Lobby()
    lobby.doors.our_profile = profile
    with trio.move_on_after(REFRESH / 2):
        await lobby.doorman.run()
    assert lobby.house.router.display_name is None
    assert lobby.doors.profiles == 1
