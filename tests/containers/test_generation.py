"""One life of a container, by itself: sessions that come, break and come back, and the ways to end it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers.generation import ANSWER_PATIENCE, RECONNECT_PATIENCE, Generation
from armorclaw.containers.secrets import SecretGrant
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Peer
from tests.containers.fakes import FakeContainer, FakeRuntime

pytestmark = [pytest.mark.mission("P0.2")]


class FakePeer:
    """A session whose answers the test decides."""

    agent = "ada"

    def __init__(self, answer: ArmorclawError | None = None, *, takes: float = 0.0) -> None:
        self.closed = trio.Event()
        self.asked: list[str] = []
        self._answer = answer
        self._takes = takes

    async def request(self, method: str, params: Any = None, *, timeout: float) -> Any:
        self.asked.append(method)
        with trio.move_on_after(timeout):
            await trio.sleep(self._takes)
            if self._answer is not None:
                raise self._answer
            return {}
        raise ArmorclawError("timed_out", "no answer")


def peer(*args: Any, **kwargs: Any) -> Peer:
    return cast(Peer, FakePeer(*args, **kwargs))


class Life:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.changes = 0
        runtime = FakeRuntime()
        self.container = FakeContainer(runtime, None, "x", "ada")
        self.payload = bytearray(b"secret")
        self.generation = Generation(
            1, runtime, self.container, "d" * 64, SecretGrant(self.payload), False, 0, nursery, self._changed
        )

    def _changed(self) -> None:
        self.changes += 1


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with trio.open_nursery() as nursery:
        yield Life(nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_a_session_makes_it_ready_and_its_end_makes_it_suspect(life: Life, autojump_clock: MockClock) -> None:
    generation, one = life.generation, peer()
    states = [(generation.is_ready, generation.is_suspect)]
    generation.open_session(one)
    states.append((generation.is_ready, generation.is_suspect))
    one.closed.set()
    await trio.testing.wait_all_tasks_blocked()
    states.append((generation.is_ready, generation.is_suspect))
    assert states == [(False, False), (True, False), (False, True)]
    assert generation.session is None
    assert life.changes == 2
    await trio.sleep(RECONNECT_PATIENCE - 0.1)
    assert generation.end is None
    generation.open_session(peer())
    await trio.sleep(RECONNECT_PATIENCE * 2)
    assert generation.is_ready
    assert generation.end is None


async def test_a_session_that_stays_away_ends_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        one = peer()
        life.generation.open_session(one)
        one.closed.set()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(RECONNECT_PATIENCE)
    assert life.generation.end == "its session broke and did not come back within 10 s"
    assert life.payload == bytes(6)


async def test_the_newest_session_is_the_one(life: Life, autojump_clock: MockClock) -> None:
    old, new = peer(), peer()
    life.generation.open_session(old)
    life.generation.open_session(new)
    life.generation.open_session(new)  # said twice
    assert life.generation.sessions == 2
    old.closed.set()
    await trio.sleep(RECONNECT_PATIENCE * 2)
    assert life.generation.is_ready
    assert life.generation.end is None


async def test_breaking_twice_within_the_patience_starts_it_anew(life: Life, autojump_clock: MockClock) -> None:
    for _ in range(3):
        session = peer()
        life.generation.open_session(session)
        session.closed.set()
        await trio.sleep(RECONNECT_PATIENCE * 0.9)
    assert life.generation.end is None


async def test_the_first_reason_counts(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.generation.finish("one")
        life.generation.finish("two")
    assert nursery.cancel_scope.cancel_called
    assert life.generation.end == "one"
    assert life.payload == bytes(6)


@pytest.mark.mission("K.stop")
async def test_it_is_asked_over_its_session_and_once(life: Life, autojump_clock: MockClock) -> None:
    session = FakePeer()
    life.generation.open_session(cast(Peer, session))
    life.generation.ask_stop(4)
    life.generation.ask_stop(4)
    await trio.sleep(10)
    assert session.asked == ["agent.shutdown"]
    assert life.container.stops == []


@pytest.mark.mission("K.stop")
@pytest.mark.parametrize(
    ("answer", "takes", "left"),
    [
        (ArmorclawError("remote_failed", "no such method"), 0.0, 4.0),
        (ArmorclawError("unavailable", "the connection ended"), 0.25, 3.75),
        (None, 60.0, 4.0 - ANSWER_PATIENCE),
    ],
)
async def test_who_does_not_listen_there_gets_a_signal(
    life: Life, answer: ArmorclawError | None, takes: float, left: float, autojump_clock: MockClock
) -> None:
    life.generation.open_session(peer(answer, takes=takes))
    life.generation.ask_stop(4)
    await trio.sleep(10)
    assert life.container.stops == [pytest.approx(left)]


async def test_who_has_no_session_gets_a_signal(life: Life, autojump_clock: MockClock) -> None:
    life.generation.ask_stop(4)
    await trio.sleep(10)
    assert life.container.stops == [4]
    assert not life.generation.is_suspect


async def test_an_engine_that_is_lost_while_stopping_is_no_crash(life: Life, autojump_clock: MockClock) -> None:
    runtime = life.container._runtime
    runtime.lose()
    life.generation.ask_stop(4)
    await trio.sleep(10)  # the nursery lives on: nothing was raised in it
    assert runtime.steps == ["stop"]


async def test_a_session_that_ends_while_it_stops_is_as_it_should_be(life: Life, autojump_clock: MockClock) -> None:
    session = peer()
    life.generation.open_session(session)
    life.generation.ask_stop(4)
    session.closed.set()
    await trio.sleep(RECONNECT_PATIENCE * 2)
    assert life.generation.end is None
    assert not life.generation.is_suspect


async def test_two_connections_that_take_turns_cost_no_more_than_two(life: Life) -> None:
    """A hostile agent may call agent.ready without end."""
    first, second = peer(), peer()
    for _ in range(100):
        life.generation.open_session(first)
        life.generation.open_session(second)
    await trio.testing.wait_all_tasks_blocked()
    assert len(life.generation.nursery.child_tasks) <= 2
