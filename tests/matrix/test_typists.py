"""Who is writing, as the homeserver is told: little, in time, and nothing that is out of date."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise

import pytest
import structlog
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix import typists as typists_module
from armorclaw.matrix.typists import Typists

MockClock = trio.testing.MockClock
Told = list[tuple[float, str, float]]


@asynccontextmanager
async def telling(
    typists: Typists, trouble: Callable[[], Exception | float | None] = lambda: None
) -> AsyncIterator[Told]:
    """What the homeserver is told, as (time since the start, room, seconds); `trouble`: an error, or a delay."""
    told: Told = []
    began = trio.current_time()

    async def post(room_id: str, seconds: float) -> None:
        told.append((round(trio.current_time() - began, 3), room_id, round(seconds, 3)))
        problem = trouble()
        if isinstance(problem, Exception):
            raise problem
        await trio.sleep(problem or 0.0)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(typists.run, post)
        yield told
        nursery.cancel_scope.cancel(reason="done")


@pytest.fixture
def typists() -> Typists:
    return Typists("main", Surroundings())


async def test_it_is_told_once_kept_up_and_taken_back(autojump_clock: MockClock, typists: Typists) -> None:
    async with telling(typists) as told:
        typists.note("!a:x", "echo", 70.0)
        await trio.sleep(60.0)
        assert told == [(0.0, "!a:x", 30.0), (25.0, "!a:x", 30.0), (50.0, "!a:x", 20.0)]
        typists.note("!a:x", "echo", 0.0)
        await trio.sleep(60.0)
        assert told[3:] == [(60.0, "!a:x", 0.0)]


async def test_what_ends_by_itself_is_not_taken_back(autojump_clock: MockClock, typists: Typists) -> None:
    async with telling(typists) as told:
        typists.note("!a:x", "echo", 10.0)
        await trio.sleep(100.0)
        assert told == [(0.0, "!a:x", 10.0)]
        typists.note("!a:x", "echo", 0.0)  # too late to matter
        await trio.sleep(10.0)
        assert len(told) == 1
        assert (typists._until, typists._shown, typists._told) == ({}, {}, {})


async def test_one_ends_while_another_still_writes(autojump_clock: MockClock, typists: Typists) -> None:
    async with telling(typists) as told:
        typists.note("!a:x", "echo", 20.0)
        typists.note("!a:x", "other", 20.0)
        await trio.sleep(5.0)
        typists.note("!a:x", "echo", 0.0)
        await trio.sleep(5.0)
        assert told == [(0.0, "!a:x", 20.0)]
        typists.note("!a:x", "other", 0.0)
        await trio.sleep(5.0)
        assert told[1:] == [(10.0, "!a:x", 0.0)]


async def test_whoever_changes_its_mind_often_is_told_of_once_a_second(
    autojump_clock: MockClock, typists: Typists
) -> None:
    async with telling(typists) as told:
        for number in range(100):
            typists.note("!a:x", "echo", 0.0 if number % 2 else 20.0)
            await trio.sleep(0.05)
        await trio.sleep(5.0)
    assert len(told) <= 7
    assert all(later[0] - earlier[0] >= 1.0 for earlier, later in pairwise(told))
    assert told[-1][2] == 0.0


async def test_rooms_do_not_wait_for_each_other_longer_than_a_request_takes(
    autojump_clock: MockClock, typists: Typists
) -> None:
    async with telling(typists, lambda: 0.5) as told:
        for room in "abc":
            typists.note(f"!{room}:x", "echo", 20.0)
        await trio.sleep(2.0)
        assert sorted(at for at, _, _ in told) == [0.0, 0.5, 1.0]
        assert {room for _, room, _ in told} == {"!a:x", "!b:x", "!c:x"}


@pytest.mark.parametrize("trouble", [Delayed(None, "away"), Delayed(3.0, "slow down"), 3600.0])
async def test_while_the_homeserver_is_away_little_is_tried_and_old_news_are_not_told(
    autojump_clock: MockClock, typists: Typists, trouble: Exception | float
) -> None:
    problem: Exception | float | None = trouble
    async with telling(typists, lambda: problem) as told:
        typists.note("!a:x", "echo", 600.0)
        typists.note("!b:x", "echo", 20.0)
        await trio.sleep(300.0)
        assert len(told) < 110
        problem = None
        told.clear()
        await trio.sleep(70.0)  # pauses grow to a minute
        assert {room for _, room, _ in told} == {"!a:x"}


async def test_a_room_that_refuses_is_left_alone(autojump_clock: MockClock, typists: Typists) -> None:
    with structlog.testing.capture_logs() as logs:
        async with telling(typists, lambda: Refused("M_FORBIDDEN")) as told:
            typists.note("!a:x", "echo", 600.0)
            await trio.sleep(300.0)
            assert told == [(0.0, "!a:x", 30.0)]
    assert [line["why"] for line in logs] == ["M_FORBIDDEN"]


async def test_in_how_many_rooms(
    autojump_clock: MockClock, typists: Typists, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(typists_module, "ROOMS", 2)
    with structlog.testing.capture_logs() as logs:
        for room in "abc":
            typists.note(f"!{room}:x", "echo", 20.0)
        typists.note("!b:x", "other", 20.0)
        await trio.sleep(30.0)
        typists.note("!d:x", "echo", 20.0)  # the others are over
    assert [line["room"] for line in logs] == ["!c:x"]
    async with telling(typists) as told:
        await trio.sleep(5.0)
        assert [room for _, room, _ in told] == ["!d:x"]


async def test_a_new_session_tells_it_anew_and_cancelled_it_ends_at_once(
    autojump_clock: MockClock, typists: Typists
) -> None:
    for _ in range(2):
        async with telling(typists) as told:
            typists.note("!a:x", "echo", 600.0)
            await trio.sleep(5.0)
            assert told == [(0.0, "!a:x", 30.0)]
    for trouble in (100.0, None, Delayed(None, "away")):  # in the request; waiting; in a pause
        async with telling(typists, lambda trouble=trouble: trouble) as told:  # type: ignore[misc]
            await trio.sleep(0.01)
            assert told
            began = trio.current_time()
        assert trio.current_time() == began
