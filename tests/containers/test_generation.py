"""One life of a container, by itself: sessions that come, break and come back, and the ways to end it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers.generation import ANSWER_PATIENCE, FRESH, Generation
from armorclaw.containers.resources.usage import Reading
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.spec import Exit
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Peer
from tests.containers.fakes import FakeContainer, FakeRuntime

pytestmark = [pytest.mark.mission("P0.2")]

PATIENCE = 10.0
"""Seconds a session may be away."""


class FakePeer:
    """A session whose answers the test decides."""

    agent = "ada"

    def __init__(self, answer: ArmorclawError | None = None, *, takes: float = 0.0) -> None:
        self.closed = trio.Event()
        self.asked: list[str] = []
        self.reads = 0
        self._answer = answer
        self._takes = takes
        self._at_close: list[Callable[[Any], object]] = []

    def at_close(self, callback: Callable[[Any], object]) -> None:
        self._at_close.append(callback)

    def close(self) -> None:
        self.closed.set()
        for callback in self._at_close:
            callback(self)

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


def close(session: Peer) -> None:
    cast(FakePeer, session).close()


class Life:
    def __init__(self, nursery: trio.Nursery) -> None:
        self.facts: list[Fact] = []
        self.reading: Reading | None = None
        runtime = FakeRuntime()
        self.container = FakeContainer(runtime, None, "x", "ada")
        self.payload = bytearray(b"secret")
        self.generation = Generation(
            1,
            runtime,
            self.container,
            "d" * 64,
            SecretGrant(self.payload),
            False,
            0,
            nursery,
            lambda fact, _: self.facts.append(fact),
            PATIENCE,
            lambda: self.reading,
        )

    @property
    def end(self) -> str | None:
        reason = self.generation.reason
        return None if reason is None else reason.text


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
    close(one)
    await trio.testing.wait_all_tasks_blocked()
    states.append((generation.is_ready, generation.is_suspect))
    assert states == [(False, False), (True, False), (False, True)]
    assert generation.session is None
    assert life.facts == [Fact.READY, Fact.SESSION_LOST]
    await trio.sleep(PATIENCE - 0.1)
    assert life.end is None
    generation.open_session(peer())
    await trio.sleep(PATIENCE * 2)
    assert generation.is_ready
    assert life.end is None


async def test_a_session_that_stays_away_ends_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        one = peer()
        life.generation.open_session(one)
        close(one)
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(PATIENCE)
    assert life.end == "its session broke and did not come back within 10 s"
    assert life.payload == bytes(6)


async def test_the_newest_session_is_the_one(life: Life, autojump_clock: MockClock) -> None:
    old, new = peer(), peer()
    life.generation.open_session(old)
    life.generation.open_session(new)
    life.generation.open_session(new)  # said twice
    assert life.generation.sessions == 2
    close(old)
    await trio.sleep(PATIENCE * 2)
    assert life.generation.is_ready
    assert life.end is None


async def test_breaking_twice_within_the_patience_starts_it_anew(life: Life, autojump_clock: MockClock) -> None:
    for _ in range(3):
        session = peer()
        life.generation.open_session(session)
        close(session)
        await trio.sleep(PATIENCE * 0.9)
    assert life.end is None


async def test_the_first_reason_counts(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.generation.finish("hang", "one")
        life.generation.finish("exit", "two")
    assert nursery.cancel_scope.cancel_called
    assert life.end == "one"
    assert life.payload == bytes(6)
    assert life.facts == [Fact.HUNG]


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
    close(session)
    await trio.sleep(PATIENCE * 2)
    assert life.end is None
    assert not life.generation.is_suspect


async def test_two_connections_that_take_turns_cost_no_more_than_two(life: Life) -> None:
    """A hostile agent may call agent.ready without end."""
    first, second = peer(), peer()
    for _ in range(100):
        life.generation.open_session(first)
        life.generation.open_session(second)
    await trio.testing.wait_all_tasks_blocked()
    assert len(life.generation.nursery.child_tasks) <= 2


async def test_a_session_that_breaks_is_known_without_a_turn_of_the_loop(life: Life) -> None:
    session = peer()
    life.generation.open_session(session)
    close(session)  # and nothing awaited
    assert life.facts == [Fact.READY, Fact.SESSION_LOST]
    assert life.generation.is_suspect


async def test_a_connection_that_was_the_session_twice_is_watched_once(life: Life) -> None:
    one, two = peer(), peer()
    for each in (one, two, one):
        life.generation.open_session(each)
    close(one)
    assert life.facts == [Fact.READY] * 3 + [Fact.SESSION_LOST]
    close(two)
    assert life.facts[-1] is Fact.SESSION_LOST
    assert len(life.facts) == 4


async def test_of_one_that_has_ended_nothing_becomes_known(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        session = peer()
        life.generation.open_session(session)
        life.generation.finish("quota", "too much")
        close(session)
        life.generation.tell(Fact.PING_ANSWERED)
    assert life.facts == [Fact.READY, Fact.EXITED]


async def test_while_its_engine_is_lost_its_session_is_waited_for(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        session = peer()
        life.generation.open_session(session)
        life.generation.engine_lost = True
        close(session)
        await trio.sleep(PATIENCE * 5)
        assert life.end is None
        life.generation.engine_lost = False
    assert life.end == "its session broke and did not come back within 10 s"


def reading(kills: int | None, *, ago: float = 0.0, container: str = "x") -> Reading:
    return Reading(at=trio.current_time() - ago, at_ms=0, container=container, oom_kills=kills)


@pytest.mark.parametrize(
    ("before", "kills", "ago", "container", "oom"),
    [
        (0, 1, 0.0, "x", True),
        (0, 1, 5.0, "x", True),  # it happened, whenever
        (0, 0, 0.0, "x", False),
        (0, 0, FRESH * 2, "x", None),  # it may have happened since
        (2, 2, 0.0, "x", False),  # before it was adopted
        (2, 3, 0.0, "x", True),
        (0, None, 0.0, "x", None),
        (0, 1, 0.0, "another", None),
    ],
)
async def test_what_the_kernel_counted_is_part_of_the_end(
    before: int, kills: int | None, ago: float, container: str, oom: bool | None, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.generation.oom_before = before
        life.reading = reading(kills, ago=ago, container=container)
        life.generation.exited(Exit.of(137))
    reason = life.generation.reason
    assert reason is not None
    assert reason.exit is not None
    assert (reason.exit.oom, reason.cause) == (oom, "oom" if oom else "signal")
    assert life.facts == [Fact.OOM if oom else Fact.EXITED]


async def test_it_is_counted_while_there_is_something_to_count(autojump_clock: MockClock) -> None:
    """At the end of the session the cgroup is still there; at the engine's word it is not."""
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        session = peer()
        life.generation.open_session(session)
        life.reading = reading(1)
        close(session)
        life.reading = None
        life.generation.exited(Exit.of(137))
    assert life.end == "killed by SIGKILL (or exit 137), out of memory"


async def test_a_session_that_came_back_says_nothing_of_the_end(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        session = peer()
        life.generation.open_session(session)
        life.reading = reading(0)
        close(session)
        life.generation.open_session(peer())
        life.reading = None
        life.generation.exited(Exit.of(137))
    assert life.end == "killed (137), memory limit suspected"
