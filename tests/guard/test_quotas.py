from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import AgentQuota
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.limits import MAX_PAUSE, Connection, Limits
from armorclaw.guard.quotas import MAX_AGENTS, SLOT, STOP_AFTER, WINDOW, Consumption, Crossing, Quotas, Window
from armorclaw.rpc.registry import Counted, Method, Role
from armorclaw.structure import Size

NONE = AgentQuota(events=0, messages=0, bytes=Size(0), calls=0, media=Size(0))


def method(quota: Counted = "calls") -> Method:
    return Method(f"m.{quota}", lambda call, params: None, quota=quota)


CALL, SEND, EVENT, READY = method(), method("messages"), method("events"), method("nothing")


class Agent:
    """One agent's consumption, at a time that the test sets."""

    def __init__(self, **quota: Any) -> None:
        self.now = 1_000.0
        self.crossings: list[Crossing] = []
        self.used = Consumption("echo", attrs.evolve(NONE, **quota), self.crossings.append)

    def calls(self, what: Method = CALL, *, at_most: int = 1_000) -> int:
        """How many go through at this moment."""
        return next((count for count in range(at_most) if self.used.admit(what, self.now)), at_most)

    def refusal(self, what: Method = CALL) -> ArmorclawError:
        error = self.used.admit(what, self.now)
        assert error is not None
        return error

    @property
    def levels(self) -> list[str]:
        return [crossing.level for crossing in self.crossings]


# the window

steps = st.lists(st.tuples(st.floats(0, 40), st.integers(1, 30)), max_size=60)


@given(st.integers(1, 40), steps, st.floats(0, 1e6))
def test_no_minute_has_more_than_the_quota_wherever_it_begins(
    limit: int, steps: list[tuple[float, int]], start: float
) -> None:
    window, now, taken = Window(limit), start, []
    for pause, wanted in steps:
        now += pause
        for _ in range(wanted):
            if window.wait(now):
                break
            window.add(now)
            taken.append(now)
    for first in range(len(taken) - limit):
        assert taken[first + limit] - taken[first] > WINDOW, "the first of more than the quota is over a minute old"


@given(st.integers(1, 40), steps, st.floats(0, 1e6))
def test_nobody_starves(limit: int, steps: list[tuple[float, int]], start: float) -> None:
    """Who waits as long as was said may go on; who has rested has all of it."""
    window, now = Window(limit), start
    for pause, wanted in steps:
        now += pause
        for _ in range(wanted):
            wait = window.wait(now)
            assert wait <= WINDOW + SLOT
            if wait:
                now += wait + 1e-6
                assert not window.wait(now)
            window.add(now)
    now += WINDOW + SLOT
    window.add(now, limit - 1)
    assert window.wait(now) == 0


def test_a_clock_that_steps_back_gives_nothing_away() -> None:
    window = Window(3)
    window.add(100.0, 3)
    assert window.wait(97.0) > 0
    assert window.wait(100.0 + WINDOW + SLOT) == 0


def test_without_a_limit_there_is_no_end() -> None:
    window = Window(0)
    window.add(1.0, 10**9)
    assert window.wait(1.0) == 0


# one agent


@pytest.mark.parametrize(
    "quota, what, text",
    [
        ({"calls": 5}, CALL, "agent echo has used up its quota of 5 calls a minute"),
        ({"messages": 5}, SEND, "agent echo has used up its quota of 5 messages a minute"),
        ({"events": 5}, EVENT, "agent echo has used up its quota of 5 events a minute"),
    ],
)
def test_what_is_beyond_is_refused_and_said(quota: dict[str, int], what: Method, text: str) -> None:
    agent = Agent(**quota)
    assert agent.calls(what) == 5
    error = agent.refusal(what)
    assert (error.name, str(error)) == ("rate_limited", text)
    assert error.data["quota"] == next(iter(quota))
    agent.now += error.data["retry_after"] + 0.001
    assert agent.calls(what) == 5


def test_a_quota_is_for_its_kind_alone() -> None:
    agent = Agent(messages=2, events=3)
    assert [agent.calls(each, at_most=20) for each in (SEND, EVENT, CALL)] == [2, 3, 20]
    assert agent.used.used(agent.now) == {"events": 3, "messages": 2, "bytes": 0, "calls": 25, "media": 0}


def test_what_is_counted_as_it_is_used_ends_and_then_nothing_of_it_begins() -> None:
    agent = Agent(media=Size(100))
    assert agent.used.require("media", agent.now) is None
    agent.used.spend("media", 90, agent.now)
    assert agent.used.require("media", agent.now) is None
    agent.used.spend("media", 90, agent.now)  # what has begun is finished
    error = agent.used.require("media", agent.now)
    assert error is not None
    assert str(error) == "agent echo has used up its quota of 100 bytes of files a minute"
    assert agent.levels == ["soft", "hard"]
    assert agent.calls(at_most=3) == 3  # calls go on
    agent.now += error.data["retry_after"] + 0.001
    assert agent.used.require("media", agent.now) is None


def test_messages_are_calls_too() -> None:
    agent = Agent(calls=4, messages=10)
    assert agent.calls(SEND) == 4
    assert agent.used.used(agent.now)["messages"] == 4, "what was refused is not used"


def test_what_an_agent_must_say_to_run_is_never_refused() -> None:
    agent = Agent(calls=1)
    assert agent.calls() == 1
    assert agent.calls(READY, at_most=50) == 50


def test_bytes_too_many_have_it_read_no_more_and_its_calls_refused() -> None:
    agent = Agent(bytes=1_000)
    assert agent.used.read(900, agent.now) == 0
    assert agent.calls(at_most=3) == 3
    assert agent.used.read(900, agent.now) > SLOT
    assert "1000 bytes a minute" in str(agent.refusal())
    agent.now += WINDOW + SLOT
    assert agent.calls(at_most=3) == 3


def test_each_level_is_told_once_until_there_was_a_minute_without() -> None:
    agent = Agent(calls=10, soft=0.7)
    assert agent.calls(at_most=6) == 6
    assert agent.levels == []
    assert agent.calls() == 4
    agent.calls()
    assert agent.levels == ["soft", "hard"]
    assert agent.crossings[0] == Crossing("echo", "calls", "soft", 7, 10)
    for _ in range(40):  # an agent that goes on all the time is told of once
        agent.now += 10
        agent.calls()
    assert agent.levels == ["soft", "hard"]
    agent.now += 2 * WINDOW
    agent.calls()
    assert agent.levels == ["soft", "hard", "soft", "hard"]


def test_who_goes_on_is_stopped_if_that_is_declared() -> None:
    agent = Agent(calls=10, on_exceeded="stop")
    agent.calls()
    agent.now += STOP_AFTER - 0.1
    agent.refusal()
    assert "stop" not in agent.levels
    agent.now += 0.1
    agent.refusal()
    agent.refusal()
    assert agent.levels == ["soft", "hard", "stop"]


def test_who_waits_as_told_is_not_stopped() -> None:
    agent = Agent(calls=10, on_exceeded="stop")
    for _ in range(20):
        agent.calls(at_most=10)
        agent.now += agent.refusal().data["retry_after"] + 0.001
    assert "stop" not in agent.levels


def test_who_is_refused_again_much_later_has_its_patience_anew() -> None:
    agent = Agent(calls=10, on_exceeded="stop")
    for _ in range(3):
        agent.calls()
        agent.now += 3 * WINDOW
    assert "stop" not in agent.levels


# all of them


class Bridge:
    """What `Quotas` is given."""

    def __init__(self) -> None:
        self.quotas: dict[str, AgentQuota] = {}
        self.notes: list[tuple[str, str | None, dict[str, object]]] = []
        self.alerts: list[tuple[str, str | None]] = []
        self.stopped: list[tuple[str, str]] = []
        self.fails: ArmorclawError | None = None

        async def sink(type: str, content: Mapping[str, Any], *, agent: str | None, also: object) -> None:  # noqa: A002
            await trio.lowlevel.checkpoint()
            self.alerts.append((content["text"], agent))

        alerts = Alerts(sink, AuditLog(Surroundings()))
        self.all = Quotas(
            self.quotas.get,
            note=self._note,
            alerts=alerts,
            stop=lambda agent, why: self.stopped.append((agent, why)),
            clock=Clock(),
        )
        self.limits = Limits(Clock(), quotas=self.all)

    async def _note(self, type: str, content: Mapping[str, object], *, agent: str | None) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        if self.fails:
            raise self.fails
        self.notes.append((type, agent, dict(content)))


@pytest.fixture
def bridge() -> Bridge:
    return Bridge()


@pytest.fixture
async def connect(bridge: Bridge) -> AsyncIterator[Callable[[str], Connection]]:
    with ExitStack() as stack:
        yield lambda agent: stack.enter_context(bridge.limits.listener(Role.AGENT, agent=agent).enter(0))


Connect = Callable[[str], Connection]


def through(connection: Connection, what: Method = CALL, *, at_most: int = 200) -> int:
    connection.pause(0)
    return next((count for count in range(at_most) if connection.admit(what)), at_most)


@pytest.mark.mission("S.6")
async def test_a_quota_holds_over_all_connections_of_an_agent_and_for_no_other(
    bridge: Bridge, connect: Connect
) -> None:
    bridge.quotas |= {"echo": attrs.evolve(NONE, calls=10), "ada": NONE}
    assert through(connect("echo"), at_most=6) == 6
    assert through(connect("echo")) == 4
    assert through(connect("echo")) == 0
    assert through(connect("ada")) == 200
    assert bridge.all.refused() == {"ada": 0, "echo": 2}
    assert bridge.all.used()["echo"]["calls"] == 10


async def test_one_that_is_not_declared_has_none(bridge: Bridge, connect: Connect) -> None:
    assert through(connect("stranger")) == 200


async def test_another_declaration_holds_at_once_for_what_was_used(bridge: Bridge, connect: Connect) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, calls=10)
    assert through(connect("echo")) == 10
    bridge.quotas["echo"] = attrs.evolve(NONE, calls=15)
    assert through(connect("echo")) == 5


async def test_bytes_are_counted_also_on_connections_that_carry_little(bridge: Bridge) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, bytes=Size(100_000))
    listener = bridge.limits.listener(Role.AGENT, agent="echo")
    for _ in range(10):
        with listener.enter(0) as connection:
            assert connection.pause(10_000) == 0
    with listener.enter(0) as connection:
        assert connection.admit(CALL) is not None
        assert connection.pause(100_000) == MAX_PAUSE
    assert bridge.all.used()["echo"]["bytes"] == 200_000


async def test_a_call_without_a_connection_counts(bridge: Bridge) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, messages=2)
    for _ in range(2):
        bridge.all.check("echo", SEND)
    with pytest.raises(ArmorclawError, match="2 messages a minute") as caught:
        bridge.all.check("echo", SEND)
    assert caught.value.data["retry_after"] > WINDOW - SLOT
    bridge.all.check("nobody", SEND)


async def test_crossings_are_recorded_and_the_hard_one_told_to_people(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, calls=10)
    await nursery.start(bridge.all.run)
    for _ in range(30):
        try:
            bridge.all.check("echo", CALL)
        except ArmorclawError:
            await trio.sleep(1)
    facts = {"quota": "calls", "limit": 10}
    assert bridge.notes == [
        ("agent.quota", "echo", {**facts, "level": "soft", "used": 8}),
        ("agent.quota", "echo", {**facts, "level": "hard", "used": 10}),
    ]
    assert bridge.alerts == [
        ("agent echo has used up its quota of 10 calls a minute: what is beyond is refused", "echo")
    ]
    assert bridge.stopped == []


async def test_one_that_goes_on_is_stopped_and_others_go_on(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bridge.quotas |= {"wild": attrs.evolve(NONE, calls=10, on_exceeded="stop"), "ada": attrs.evolve(NONE, calls=10)}
    await nursery.start(bridge.all.run)
    refused = 0
    for _ in range(40):
        for agent in ("wild", "ada"):
            try:
                bridge.all.check(agent, CALL)
            except ArmorclawError:
                refused += 1
        await trio.sleep(1)
    assert refused > 2
    assert bridge.stopped == [("wild", "it went on for 10 s after it had used up its quota of 10 calls a minute")]


async def test_a_store_that_fails_keeps_nobody_from_being_stopped(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    bridge.fails = ArmorclawError("storage_failed", "cannot write")
    bridge.quotas["wild"] = attrs.evolve(NONE, calls=1, on_exceeded="stop")
    await nursery.start(bridge.all.run)
    for _ in range(20):
        try:
            bridge.all.check("wild", CALL)
        except ArmorclawError:
            await trio.sleep(1)
    assert [agent for agent, _ in bridge.stopped] == ["wild"]


async def test_who_is_to_be_stopped_does_not_wait_for_a_store_that_hangs(
    bridge: Bridge, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(bridge.all, "_note", hang)
    bridge.quotas["wild"] = attrs.evolve(NONE, calls=1, on_exceeded="stop")
    await nursery.start(bridge.all.run)
    for _ in range(20):
        try:
            bridge.all.check("wild", CALL)
        except ArmorclawError:
            await trio.sleep(1)
    assert [agent for agent, _ in bridge.stopped] == ["wild"]


async def test_cancelled_it_tells_the_rest_when_it_runs_again(
    bridge: Bridge, autojump_clock: trio.testing.MockClock
) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, calls=10)
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.all.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    for _ in range(9):
        bridge.all.check("echo", CALL)
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.all.run)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert [content["level"] for _, _, content in bridge.notes] == ["soft"]


async def test_those_who_rest_are_forgotten_when_there_are_too_many(
    bridge: Bridge, autojump_clock: trio.testing.MockClock
) -> None:
    for number in range(MAX_AGENTS):
        bridge.quotas[f"a{number}"] = NONE
        bridge.all.check(f"a{number}", CALL)
    await trio.sleep(WINDOW + SLOT)
    bridge.quotas["last"] = NONE
    bridge.all.check("last", CALL)
    assert list(bridge.all.used()) == ["last"]


async def test_one_with_a_connection_is_not_forgotten(bridge: Bridge, autojump_clock: trio.testing.MockClock) -> None:
    """What it uses over that one and over its next counts together."""
    for number in range(MAX_AGENTS):
        bridge.quotas[f"a{number}"] = attrs.evolve(NONE, calls=5)
        bridge.all.check(f"a{number}", CALL)
    held = bridge.all.of("a7")
    await trio.sleep(WINDOW + SLOT)
    bridge.quotas["last"] = NONE
    bridge.all.check("last", CALL)
    assert list(bridge.all.used()) == ["a7", "last"]
    assert bridge.all.of("a7") is held


async def test_what_an_agent_uses_of_files(bridge: Bridge) -> None:
    bridge.quotas["echo"] = attrs.evolve(NONE, media=Size(5))
    bridge.all.require("echo", "media")
    bridge.all.spend("echo", "media", 5)
    assert bridge.all.used()["echo"]["media"] == 5
    with pytest.raises(ArmorclawError) as caught:
        bridge.all.require("echo", "media")
    assert (caught.value.name, caught.value.data["quota"]) == ("rate_limited", "media")
    bridge.all.require("nobody", "media")
    bridge.all.spend("nobody", "media", 5)
