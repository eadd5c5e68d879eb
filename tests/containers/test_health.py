"""Pings and what they mean, stalls, and a bridge that was itself away."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.config import AgentHealth
from armorclaw.containers.generation import Generation
from armorclaw.containers.health import AWAY, TALKATIVE, Heartbeat, in_time
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Peer
from tests.containers.fakes import FakeContainer, FakeRuntime

pytestmark = pytest.mark.mission("P0.1", "P0.2")

FAST = AgentHealth(period=1.0, timeout=0.5, failures=3, stalled_after=5.0, stalled_limit=20.0)


class FakeSession:
    """A session whose answers the test decides: after `takes` seconds, None: never."""

    agent = "ada"

    def __init__(self) -> None:
        self.closed = trio.Event()
        self.takes: float | None = 0.001
        self.error: ArmorclawError | None = None
        self.talks = False
        self.reads = 0
        self.pings: list[float] = []
        self.asked = trio.Event()
        """Set, and replaced, at each ping."""
        self.late: list[Callable[[Any], object]] = []
        self._at_close: list[Callable[[Any], object]] = []

    def at_close(self, callback: Callable[[Any], object]) -> None:
        self._at_close.append(callback)

    def close(self) -> None:
        self.closed.set()
        for callback in self._at_close:
            callback(self)

    async def request(self, method: str, params: Any = None, *, timeout: float, late: Any = None) -> Any:
        assert method == "agent.ping"
        self.pings.append(trio.current_time())
        self.asked.set()
        self.asked = trio.Event()
        self.reads += self.talks
        with trio.move_on_after(timeout):
            await trio.sleep_forever() if self.takes is None else await trio.sleep(self.takes)
            if self.error is not None:
                raise self.error
            self.reads += 1
            return {"pong": True}
        self.late.append(late)
        raise ArmorclawError("timed_out", "agent.ping was not answered")


class Life:
    """One generation with its heartbeat; what became known of it, and what it has to do."""

    def __init__(self, nursery: trio.Nursery, health: AgentHealth = FAST) -> None:
        self.facts: list[Fact] = []
        self.warnings: list[str] = []
        self.last_work = trio.current_time()
        self.events: tuple[int, float | None] = (0, None)
        container = FakeContainer(FakeRuntime(), None, "x", "ada")
        self.generation = Generation(
            1,
            container._runtime,
            container,
            "d" * 64,
            SecretGrant(bytearray()),
            False,
            0,
            nursery,
            lambda fact, _: self.facts.append(fact),
            health.reconnect,
        )
        self.heartbeat = Heartbeat(self.generation, health, self, random.Random(1))
        self.session = FakeSession()
        nursery.start_soon(self.heartbeat.run)

    def begin(self) -> None:
        self.generation.open_session(cast(Peer, self.session))

    def unsettled(self) -> tuple[int, float | None]:
        return self.events

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    @property
    def changes(self) -> list[Fact]:
        """Without what says the same again."""
        return [fact for at, fact in enumerate(self.facts) if at == 0 or self.facts[at - 1] is not fact]


@pytest.fixture
async def life() -> AsyncIterator[Life]:
    async with trio.open_nursery() as nursery:
        yield Life(nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


# -- pings


async def test_one_that_answers_is_asked_each_period(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    await trio.sleep(10)
    asked = life.session.pings
    assert len(asked) in (9, 10)
    assert all(later - one == pytest.approx(1.0) for one, later in pairwise(asked))
    assert life.changes == [Fact.READY, Fact.PING_ANSWERED]
    assert life.heartbeat.ping == pytest.approx(0.001)
    assert life.heartbeat.answered_at == pytest.approx(asked[-1] + 0.001)


async def test_a_hang_is_noticed_in_time(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        await trio.sleep(10.3)
        life.session.takes = None
        began = trio.current_time()
    assert life.generation.reason is not None
    assert (life.generation.reason.cause, life.generation.reason.text) == (
        "hang",
        "did not answer 3 times within 0.5 s",
    )
    assert 2.5 <= trio.current_time() - began <= FAST.period * FAST.failures + FAST.timeout
    assert life.changes == [Fact.READY, Fact.PING_ANSWERED, Fact.PING_MISSED, Fact.HUNG]


async def test_a_few_missed_are_no_hang(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    for _ in range(10):
        life.session.takes = None
        await until_asked(life, FAST.failures - 1)
        life.session.takes = 0.0
        await until_asked(life, 2)
    assert life.generation.reason is None
    assert life.facts.count(Fact.PING_MISSED) == 10 * (FAST.failures - 1)
    assert life.heartbeat.missed == 0


async def until_asked(life: Life, times: int) -> None:
    """Until it was asked so many times more, and that has come to something."""
    wanted = len(life.session.pings) + times
    while len(life.session.pings) < wanted:
        await life.session.asked.wait()
    await trio.sleep(FAST.timeout + 0.05)


async def test_an_answer_that_comes_late_is_one(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.session.takes = None
    for _ in range(20):
        await trio.sleep(2.0)
        life.session.late[-1]({"pong": True})
    assert life.generation.reason is None
    assert life.heartbeat.ping is not None
    assert life.heartbeat.ping > FAST.timeout


async def test_an_answer_of_another_session_counts_nothing(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.session.takes = None
    await trio.sleep(2.0)
    old, life.session = life.session, FakeSession()
    life.begin()
    old.late[-1]({"pong": True})
    assert life.heartbeat.answered_at is None


async def test_an_error_is_an_answer(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.session.error = ArmorclawError("method_not_found", "it knows no pings")
    await trio.sleep(60)
    assert life.changes == [Fact.READY, Fact.PING_ANSWERED]


async def test_one_that_talks_but_does_not_answer_is_given_more_time(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        life.session.takes, life.session.talks = None, True
        began = trio.current_time()
    expected = FAST.period * FAST.failures * TALKATIVE
    assert trio.current_time() - began == pytest.approx(expected, abs=FAST.period)
    assert life.generation.reason is not None
    assert life.generation.reason.cause == "hang"


async def test_it_talks_no_more(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        life.session.takes, life.session.talks = None, True
        await trio.sleep(10)
        life.session.talks = False
        began = trio.current_time()
    assert trio.current_time() - began <= FAST.period * (FAST.failures + 1)


async def test_without_a_session_there_are_no_pings(life: Life, autojump_clock: MockClock) -> None:
    await trio.sleep(1000)
    assert life.facts == []
    life.begin()
    await trio.sleep(3)
    first = life.session
    first.close()
    await trio.sleep(5)
    life.session = FakeSession()
    life.begin()
    await trio.sleep(3)
    assert (len(first.pings) in (2, 3), len(life.session.pings) in (2, 3)) == (True, True)
    assert life.generation.reason is None


async def test_while_its_engine_is_lost_nothing_is_done_about_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        life.generation.engine_lost = True
        life.session.takes = None
        await trio.sleep(100)
        assert life.generation.reason is None
        life.generation.engine_lost = False
        began = trio.current_time()
    assert trio.current_time() - began <= FAST.period * 2
    assert life.generation.reason is not None


async def test_while_its_engine_is_lost_a_stall_ends_nothing(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        life.generation.engine_lost = True
        life.events = (1, trio.current_time())
        await trio.sleep(FAST.stalled_limit * 5)
        assert Fact.EXITED not in life.facts
        assert len(life.warnings) == 1
        life.generation.engine_lost = False
        began = trio.current_time()
    assert trio.current_time() - began <= FAST.period * 2
    assert life.generation.reason is not None
    assert life.generation.reason.cause == "stalled"


async def test_one_that_changes_sessions_is_asked_all_the_same(life: Life, autojump_clock: MockClock) -> None:
    began, asked = trio.current_time(), 0
    life.events = (1, began)
    for _ in range(30):
        life.session = FakeSession()
        life.begin()
        await trio.sleep(FAST.period / 2)
        asked += len(life.session.pings)
    assert asked >= 13
    assert life.warnings


async def test_while_it_stops_it_is_not_hung(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.generation.stopping = True
    life.session.takes = None
    await trio.sleep(100)
    assert life.generation.reason is None


# -- a bridge that was itself away


async def test_a_bridge_that_was_stopped_kills_nobody(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    for _ in range(20):
        life.session.takes = None  # the agent is as well as ever, but nothing is read of it meanwhile
        await trio.sleep(FAST.period * 1.01)
        autojump_clock.jump(5)
        await trio.sleep(0.01)
        life.session.takes = 0.0
        await trio.sleep(FAST.period * 2)
    assert life.generation.reason is None


async def test_what_came_late_as_the_bridge_was_away_says_nothing_of_work(life: Life, mock_clock: MockClock) -> None:
    life.begin()
    life.session.takes = None
    await until(mock_clock, lambda: len(life.session.late) == 1)
    life.events = (1, trio.current_time())
    mock_clock.jump(FAST.stalled_after * 2)  # what it did meanwhile is not read yet, nor noticed that we were away
    life.session.late[0]({"pong": True})
    await trio.testing.wait_all_tasks_blocked()
    life.session.late[0]({"pong": True})
    assert life.heartbeat.answered_at == trio.current_time()
    assert Fact.STALLED not in life.facts


async def test_no_patience_is_none_at_all() -> None:
    with trio.fail_after(1):
        assert not await in_time(trio.Event(), -1)


@pytest.mark.parametrize("away", [False, True])
async def test_a_ping_whose_wait_was_distorted_counts_nothing(life: Life, away: bool, mock_clock: MockClock) -> None:
    life.begin()
    life.session.takes = None
    await until(mock_clock, lambda: len(life.session.pings) == 1)
    mock_clock.jump(FAST.timeout + AWAY * (1.1 if away else 0.9))
    await trio.testing.wait_all_tasks_blocked()
    assert life.heartbeat.missed == (0 if away else 1)


async def test_two_misses_before_it_are_forgotten(life: Life, mock_clock: MockClock) -> None:
    life.begin()
    life.session.takes = None
    await until(mock_clock, lambda: len(life.session.pings) == 3)
    assert life.heartbeat.missed == 2
    mock_clock.jump(FAST.timeout + 5)
    await trio.testing.wait_all_tasks_blocked()
    assert life.generation.reason is None
    assert life.heartbeat.missed == 0


async def until(clock: MockClock, reached: Callable[[], bool]) -> None:
    for _ in range(1000):
        await trio.testing.wait_all_tasks_blocked()
        if reached():
            return
        clock.jump(0.05)
    raise AssertionError("never")


async def test_in_time_gives_lost_time_again(mock_clock: MockClock) -> None:
    event, told = trio.Event(), []

    async def wait() -> None:
        told.append(await in_time(event, 10))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(15)  # away over the deadline
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        mock_clock.jump(4.9)
        await trio.testing.wait_all_tasks_blocked()
        assert told == []
        mock_clock.jump(0.11)
        await trio.testing.wait_all_tasks_blocked()
        assert told == [False]


async def test_in_time_what_came_while_we_were_away_has_come(mock_clock: MockClock) -> None:
    event = trio.Event()
    async with trio.open_nursery() as nursery:

        async def wait() -> None:
            assert await in_time(event, 1)

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(7)
        event.set()


# -- work


async def test_one_that_does_nothing_is_stalled_and_told_once(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.events = (3, trio.current_time())
    await trio.sleep(4)
    assert Fact.STALLED not in life.facts
    await trio.sleep(3)
    assert life.changes[-2:] == [Fact.PING_ANSWERED, Fact.STALLED]
    await trio.sleep(5)
    (warning,) = life.warnings
    assert "nothing with 3 events for" in warning


async def test_a_stall_that_is_over_may_come_again(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    for _ in range(3):
        life.events = (1, trio.current_time())
        await trio.sleep(8)
        life.events = (0, None)
        await trio.sleep(3)
    assert life.facts.count(Fact.WORKED) == 3
    assert len(life.warnings) == 3
    assert life.generation.reason is None


async def test_a_sign_of_work_is_one(life: Life, autojump_clock: MockClock) -> None:
    life.begin()
    life.events = (1, trio.current_time())
    for _ in range(30):
        await trio.sleep(2)
        life.last_work = trio.current_time()
    assert Fact.STALLED not in life.facts


@pytest.mark.parametrize("also_in_time", [False, True])
async def test_one_that_answers_late_can_be_stalled_and_keeps_its_state(
    also_in_time: bool, life: Life, autojump_clock: MockClock
) -> None:
    async def answer_late() -> None:
        while True:
            await life.session.asked.wait()
            await trio.sleep(FAST.timeout + 0.2)
            if life.session.takes is None:
                life.session.late[-1]({"pong": True})
            if also_in_time:
                life.session.takes = 0.0 if life.session.takes is None else None

    life.begin()
    life.session.takes = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_late)
        await trio.sleep(30)
        assert len(life.session.late) >= 14
        assert life.facts.count(Fact.PING_MISSED) == 1
        life.events = (1, trio.current_time())
        await trio.sleep(FAST.stalled_after + 2 * FAST.period)
        assert Fact.STALLED in life.facts
        nursery.cancel_scope.cancel(reason="that is all")


async def test_one_that_is_slow_and_then_hangs(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        life.session.takes = None
        await until_asked(life, 1)
        life.session.late[-1]({"pong": True})
        began = trio.current_time()
    assert trio.current_time() - began <= FAST.period * (FAST.failures + 1)
    assert life.changes[-3:] == [Fact.PING_ANSWERED, Fact.PING_MISSED, Fact.HUNG]


async def test_a_stall_without_end_ends_it(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        life.begin()
        began = trio.current_time()
        life.events = (1, began)
    assert trio.current_time() - began == pytest.approx(20, abs=1.1)
    assert life.generation.reason is not None
    assert life.generation.reason.cause == "stalled"


async def test_a_stall_may_go_on_for_ever(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery, AgentHealth(stalled_limit=0.0))
        life.begin()
        life.events = (1, trio.current_time())
        await trio.sleep(10_000)
        assert life.generation.reason is None
        assert len(life.warnings) == 1
        nursery.cancel_scope.cancel(reason="the test is over")


# -- its end


@pytest.mark.parametrize("phase", ["no session", "between pings", "asked"])
async def test_cut_in_every_phase(phase: str, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        life = Life(nursery)
        if phase != "no session":
            life.session.takes = None if phase == "asked" else 0.0
            life.begin()
            await life.session.asked.wait()
        await trio.sleep(0.2)
        nursery.cancel_scope.cancel(reason="the test says so")
    assert life.generation.reason is None
