"""Read receipts on their way: the newest of each room, tried again, and bounded."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix import markers as module
from armorclaw.matrix.markers import ReadMarkers


class Homeserver:
    """Takes receipts; `fails` are raised first, and `gate` holds it back."""

    def __init__(self, *fails: Exception) -> None:
        self.fails = list(fails)
        self.posted: list[tuple[str, str]] = []
        self.tried_at: list[float] = []
        self.gate = trio.Event()
        self.gate.set()

    async def post(self, room_id: str, event_id: str) -> None:
        self.tried_at.append(trio.current_time())
        await self.gate.wait()
        if self.fails:
            raise self.fails.pop(0)
        self.posted.append((room_id, event_id))


def new_markers() -> ReadMarkers:
    return ReadMarkers("main", Surroundings(random=random.Random(1)))


async def run(markers: ReadMarkers, homeserver: Homeserver, seconds: float = 1000) -> None:
    with trio.move_on_after(seconds):
        await markers.run(homeserver.post)


async def test_of_each_room_the_newest_alone_is_sent(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver()
    for number in range(10):
        markers.note("!a:x", f"$a{number}")
        markers.note("!b:x", f"$b{number}")
    await run(markers, homeserver)
    assert homeserver.posted == [("!a:x", "$a9"), ("!b:x", "$b9")]


async def test_one_that_comes_while_another_is_sent_follows_it(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver()
    homeserver.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(markers.run, homeserver.post)
        markers.note("!a:x", "$1")
        await trio.sleep(1)
        for number in (2, 3):
            markers.note("!a:x", f"${number}")
        homeserver.gate.set()
        await trio.sleep(1)
        nursery.cancel_scope.cancel(reason="seen enough")
    assert homeserver.posted == [("!a:x", "$1"), ("!a:x", "$3")]


@pytest.mark.mission("R.4")
async def test_a_receipt_lets_the_answer_go_first_and_gathers(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(markers.run, homeserver.post)
        for number in range(100):
            markers.note("!a:x", f"${number}")
            await trio.sleep(0.01)
        await trio.sleep(1)
        nursery.cancel_scope.cancel(reason="seen enough")
    assert homeserver.tried_at[0] - 0.5 >= 0
    assert 2 <= len(homeserver.posted) <= 3
    assert homeserver.posted[-1] == ("!a:x", "$99")


async def test_a_homeserver_that_is_away_is_asked_seldom_and_loses_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    markers, homeserver = new_markers(), Homeserver(*[Delayed(None, "away")] * 50)
    for room in ("!a:x", "!b:x"):
        markers.note(room, "$1")
    await run(markers, homeserver, 4000)
    assert sorted(homeserver.posted) == [("!a:x", "$1"), ("!b:x", "$1")]
    pauses = [later - sooner for sooner, later in zip(homeserver.tried_at, homeserver.tried_at[1:], strict=False)]
    assert min(pauses[10:49]) >= 30
    assert max(pauses) <= 60


async def test_a_homeserver_that_is_back_is_asked_at_once(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver(*[Delayed(None, "away")] * 20)
    markers.note("!a:x", "$1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(markers.run, homeserver.post)
        await trio.sleep(300)
        homeserver.fails.clear()
        assert homeserver.posted == []
        markers.hurry()
        await trio.sleep(0.001)
        assert homeserver.posted == [("!a:x", "$1")]
        nursery.cancel_scope.cancel(reason="seen enough")


async def test_what_the_homeserver_tells_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver(Delayed(42.0, "slow down"))
    markers.note("!a:x", "$1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, markers, homeserver)
        await trio.sleep(1)
        markers.hurry()
    assert homeserver.tried_at[1] - homeserver.tried_at[0] == pytest.approx(42, abs=0.001)


async def test_a_room_that_refuses_is_left_and_said(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver(Refused("M_FORBIDDEN: not there"))
    for room in ("!a:x", "!b:x"):
        markers.note(room, "$1")
    with capture_logs() as logs:
        await run(markers, homeserver)
    assert homeserver.posted == [("!b:x", "$1")]
    assert [line["event"] for line in logs] == ["read receipt refused"]


async def test_a_room_that_hangs_stops_no_other(autojump_clock: trio.testing.MockClock) -> None:
    markers, homeserver = new_markers(), Homeserver()
    posted: list[str] = []

    async def post(room_id: str, event_id: str) -> None:
        if room_id == "!stuck:x":
            await trio.sleep_forever()
        posted.append(room_id)

    for room in ("!stuck:x", "!a:x"):
        markers.note(room, "$1")
    with trio.move_on_after(100):
        await markers.run(post)
    assert posted == ["!a:x"]
    await run(markers, homeserver)  # and it goes with the next session
    assert homeserver.posted == [("!stuck:x", "$1")]


async def test_without_a_session_it_is_bounded_and_what_goes_is_said(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", 4)
    monkeypatch.setattr(module, "ROOMS", 10)
    markers, homeserver = new_markers(), Homeserver()
    for number in range(1000):
        markers.note(f"!{number % 5}:x", f"${number}")  # few rooms: nothing is given up
    with capture_logs() as logs:
        await run(markers, homeserver)
    assert sorted(homeserver.posted) == [(f"!{room}:x", f"${995 + room}") for room in range(5)]
    assert logs == []
    for number in range(30):
        markers.note(f"!{number}:x", "$1")
    homeserver.posted.clear()
    with capture_logs() as logs:
        await run(markers, homeserver)
    assert [room for room, _ in homeserver.posted][-1] == "!29:x"
    assert len(homeserver.posted) <= 14
    assert len(homeserver.posted) + len(logs) <= 30
