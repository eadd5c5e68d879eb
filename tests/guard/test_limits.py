from __future__ import annotations

import timeit
from contextlib import ExitStack
from typing import Any

import attrs
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from armorclaw.clock import Clock
from armorclaw.config import LimitsSection
from armorclaw.errors import ArmorclawError
from armorclaw.guard import limits as module
from armorclaw.guard.limits import MAX_PAUSE, REFUSALS, Bucket, Budget, Connection, Limits, Quota, budgets
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.registry import Method, Role
from armorclaw.structure import Frequency

PLENTY = Rate(1e6, 1e6)


@attrs.define
class Hands:
    """A monotonic clock that the test sets, even backwards."""

    now: float = 1_000.0

    def clock(self) -> Clock:
        return Clock(monotonic=lambda: self.now)


@pytest.fixture
def hands() -> Hands:
    return Hands()


def budget(**given: Any) -> Budget:
    return Budget(**{"calls": PLENTY, "connection": PLENTY, "read": Rate(1e9, 1e9), "accepts": PLENTY, **given})


def method(name: str = "m", rate: Rate | None = None) -> Method:
    return Method(name, lambda call, params: None, rate=rate)


def used_up(connection: Connection, what: Method | None = None, *, at_most: int = 10_000) -> int:
    """How many calls go through at this moment."""
    connection.pause(0)
    for count in range(at_most):
        if connection.admit(what) is not None:
            return count
    return at_most


# the bucket

rates = st.builds(Rate, st.floats(0.01, 10_000), st.integers(1, 200))


@given(rates, st.lists(st.tuples(st.floats(0, 3), st.integers(1, 80)), max_size=40), st.floats(0, 1e6))
def test_no_window_gives_more_than_burst_and_rate(rate: Rate, steps: list[tuple[float, int]], start: float) -> None:
    """Whichever two moments are taken."""
    bucket, now, given_at = Bucket(rate), start, []
    for pause, wanted in steps:
        now += pause
        for _ in range(wanted):
            if (wait := bucket.take(now)) == 0:
                given_at.append(now)
            else:
                assert wait <= 1.01 / rate.per_second
                break
    for first in range(0, len(given_at), 7):
        for last in range(first, len(given_at), 5):
            span = given_at[last] - given_at[first]
            assert last - first + 1 <= rate.burst + span * rate.per_second * (1 + 1e-6) + 0.01


@given(rates)
def test_a_rested_bucket_gives_its_burst_and_then_its_rate(rate: Rate) -> None:
    bucket = Bucket(rate)
    assert [bucket.take(5.0) for _ in range(int(rate.burst))] == [0.0] * int(rate.burst)
    wait = bucket.take(5.0)
    assert wait == pytest.approx(1 / rate.per_second)
    assert bucket.take(5.0 + wait) == 0.0
    assert not bucket.is_full(5.0 + wait)
    assert bucket.is_full(5.0 + wait + (rate.burst + 1) / rate.per_second)


@given(rates, st.lists(st.floats(-1e5, 1e5), min_size=1, max_size=30))
def test_a_clock_that_jumps_does_no_harm(rate: Rate, jumps: list[float]) -> None:
    """At each moment a burst at most; and nobody waits longer than for one token once the clock goes on."""
    bucket, now = Bucket(rate), 1e6
    for jump in jumps:
        now += jump
        got = 0
        while (wait := bucket.take(now)) == 0:
            got += 1
        assert got <= rate.burst
        assert wait <= 1.01 / rate.per_second
        assert bucket.take(now + wait * 1.01) == 0


@given(rates, st.lists(st.tuples(st.floats(-1e4, 1e4), st.floats(0, 1e6)), max_size=20))
def test_what_is_owed_is_never_waited_for_longer_than_said(rate: Rate, charges: list[tuple[float, float]]) -> None:
    bucket, now = Bucket(rate), 1e6
    for jump, tokens in charges:
        now += jump
        assert 0 <= bucket.charge(now, tokens) <= MAX_PAUSE + 1e-6


# callers


def test_one_caller_never_uses_up_anothers(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(calls=Rate(10, 20)), Role.OPERATOR: budget(calls=Rate(5, 7))})
    with ExitStack() as stack:
        ada, ada2, bob, root, user = (
            stack.enter_context(limits.listener(role, agent=agent).enter(uid))
            for role, agent, uid in (
                (Role.AGENT, "ada", 1),
                (Role.AGENT, "ada", 1),
                (Role.AGENT, "bob", 1),
                (Role.OPERATOR, None, 0),
                (Role.OPERATOR, None, 1),
            )
        )
        assert used_up(ada) == 20
        assert used_up(ada2) == 0  # more connections gain nothing
        assert used_up(bob) == 20
        assert used_up(root) == 7
        assert used_up(user) == 7


def test_one_connection_leaves_something_to_the_same_users_others(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.OPERATOR: budget(calls=Rate(40, 40), connection=Rate(10, 10))})
    listener = limits.listener(Role.OPERATOR)
    with listener.enter(0) as wild, listener.enter(0) as other:
        assert used_up(wild) == 10
        assert used_up(other) == 10


def test_coming_again_does_not_make_the_bucket_full(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(calls=Rate(1, 5))})
    for expected in (5, 0, 0):
        with limits.listener(Role.AGENT, agent="ada").enter(1) as connection:
            assert used_up(connection) == expected


def test_a_method_may_have_a_rate_of_its_own(hands: Hands) -> None:
    """Each caller has it for itself; refused calls of it cost nothing of what holds for all."""
    limits = Limits(hands.clock(), {Role.OPERATOR: budget(calls=Rate(1, 10), connection=Rate(1, 10))})
    login = method("matrix.login", Rate(5 / 60, 2))
    listener = limits.listener(Role.OPERATOR)
    with listener.enter(0) as root, listener.enter(0) as again, listener.enter(1) as user:
        assert used_up(root, login) == 2
        assert used_up(again, login) == 0
        assert used_up(user, login) == 2
        refusal = root.admit(login)
        assert refusal is not None
        assert refusal.payload() == {
            "code": -32008,
            "message": "too many calls of matrix.login",
            "data": {
                "name": "rate_limited",
                "hint": "wait as many seconds as retry_after says, then try again",
                "retryable": True,
                "retry_after": 12.0,
            },
        }
        assert used_up(root, method()) == 8


def test_retry_after_is_enough(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(calls=Rate(3, 2))})
    with limits.listener(Role.AGENT, agent="ada").enter(1) as connection:
        for _ in range(20):
            used_up(connection)
            refusal = connection.admit(None)
            assert refusal is not None
            hands.now += refusal.data["retry_after"]
            connection.pause(0)
            assert connection.admit(None) is None


# what goes on regardless is slowed down


def test_a_flood_is_read_more_slowly(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(calls=Rate(10, 10))})
    with limits.listener(Role.AGENT, agent="ada").enter(1) as connection:
        refused = 0
        for _ in range(200):
            for _ in range(64):
                refused += connection.admit(None) is not None
            hands.now += connection.pause(0)
        passed = hands.now - 1_000
        assert refused == pytest.approx(REFUSALS.burst + REFUSALS.per_second * passed, rel=0.05)


def test_bytes_are_paced(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(read=Rate(1_000_000, 2_000_000))})
    with limits.listener(Role.AGENT, agent="ada").enter(1) as connection:
        for _ in range(1_000):
            hands.now += connection.pause(100_000)
    assert hands.now - 1_000 == pytest.approx(98, rel=0.01)


def test_few_refusals_and_bytes_cost_no_time(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.AGENT: budget(calls=Rate(10, 10))})
    with limits.listener(Role.AGENT, agent="ada").enter(1) as connection:
        for _ in range(100):
            connection.admit(None)
        assert connection.pause(1_000_000) == 0


def test_a_listener_accepts_no_faster_than_it_should(hands: Hands) -> None:
    listener = Limits(hands.clock(), {Role.AGENT: budget(accepts=Rate(50, 100))}).listener(Role.AGENT, agent="ada")
    accepted = 0
    while hands.now < 1_010:
        hands.now += listener.pause()
        accepted += 1
    assert accepted == pytest.approx(600, abs=2)


# what is remembered


def test_callers_at_rest_are_forgotten(hands: Hands) -> None:
    limits = Limits(hands.clock(), {Role.OPERATOR: budget(calls=Rate(1, 100))})
    listener = limits.listener(Role.OPERATOR)
    with listener.enter(10_000_000) as stays:
        used_up(stays)
        for uid in range(20_000):
            hands.now += 0.01
            with listener.enter(uid) as connection:
                connection.pause(0)
                connection.admit(None)  # back after a second
            assert len(limits._callers) <= 512
        assert limits.caller(Role.OPERATOR, 10_000_000).connections == 1


def test_who_waits_for_a_method_is_not_forgotten(hands: Hands) -> None:
    """Or he would only have to come with enough others."""
    limits = Limits(hands.clock(), {Role.OPERATOR: budget()})
    listener, login = limits.listener(Role.OPERATOR), method("matrix.login", Rate(5 / 60, 2))
    with listener.enter(7) as connection:
        assert used_up(connection, login) == 2
    for uid in range(1_000, 1_600):
        hands.now += 0.01
        with listener.enter(uid):
            pass
    with listener.enter(7) as connection:
        assert used_up(connection, login) == 0


def test_beyond_the_cap_newcomers_share(hands: Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CALLERS", 300)
    limits = Limits(hands.clock(), {Role.OPERATOR: budget(calls=Rate(0.001, 4))})
    listener = limits.listener(Role.OPERATOR)
    for uid in range(300):
        with listener.enter(uid) as connection:
            assert used_up(connection) == 4
    with listener.enter(1_000) as one, listener.enter(1_001) as two, listener.enter(3) as known:
        assert used_up(one) == 4
        assert used_up(two) == 0
        assert used_up(known) == 0
        assert len(limits._callers) == 300
    hands.now += 10_000
    with listener.enter(1_001) as two:
        assert used_up(two) == 4
    assert len(limits._callers) == 1


class Callers(RuleBasedStateMachine):
    """Connections of a few callers come, call and go; against what the sum of grants may be."""

    RATE, BURST = 2.0, 5.0

    @initialize()
    def begin(self) -> None:
        self.hands = Hands()
        self.limits = Limits(self.hands.clock(), {Role.AGENT: budget(calls=Rate(self.RATE, self.BURST))})
        self.open: list[tuple[str, ExitStack, Connection]] = []
        self.granted: dict[str, list[float]] = {}
        self.refused_at_rest = False

    @rule(name=st.sampled_from(["ada", "bob", "cy"]))
    def connect(self, name: str) -> None:
        stack = ExitStack()
        self.open.append((name, stack, stack.enter_context(self.limits.listener(Role.AGENT, agent=name).enter(1))))

    @rule(which=st.integers(0, 5), times=st.integers(1, 12))
    def call(self, which: int, times: int) -> None:
        if not self.open:
            return
        name, _, connection = self.open[which % len(self.open)]
        connection.pause(0)
        history = self.granted.setdefault(name, [])
        rested = not history or self.hands.now - history[-1] > self.BURST / self.RATE
        for count in range(times):
            if connection.admit(None) is None:
                history.append(self.hands.now)
            elif rested and count == 0:
                self.refused_at_rest = True

    @rule(which=st.integers(0, 5))
    def leave(self, which: int) -> None:
        if self.open:
            self.open.pop(which % len(self.open))[1].close()

    @rule(seconds=st.floats(0, 5))
    def wait(self, seconds: float) -> None:
        self.hands.now += seconds

    @rule()
    def sweep(self) -> None:
        now = self.hands.now
        known = self.limits._callers
        self.limits._callers = {who: caller for who, caller in known.items() if not caller.at_rest(now)}

    @invariant()
    def nobody_got_too_much_or_paid_for_another(self) -> None:
        assert not getattr(self, "refused_at_rest", False)
        for history in getattr(self, "granted", {}).values():
            for first in range(len(history)):
                span = history[-1] - history[first]
                assert len(history) - first <= self.BURST + self.RATE * span + 0.01


TestCallers = Callers.TestCase


# quotas


def test_a_quota_is_each_holders_own() -> None:
    quota = Quota("subscriptions", 2)
    with quota.hold("ada", "agent ada"), quota.hold("ada", "agent ada"), quota.hold("bob", "agent bob"):
        with pytest.raises(ArmorclawError) as caught, quota.hold("ada", "agent ada"):
            raise AssertionError("there are three")
        assert (caught.value.name, str(caught.value)) == ("queue_full", "agent ada has 2 subscriptions")
    with pytest.raises(ZeroDivisionError), quota.hold("ada", "agent ada"):
        _ = 1 / 0
    assert not quota._held


# defaults


def test_the_configuration_sets_what_agents_and_operators_may_do(hands: Hands) -> None:
    limits = Limits(hands.clock(), budgets(LimitsSection(agent_calls=Frequency(3), operator_calls=Frequency(0.1))))
    with (
        limits.listener(Role.AGENT, agent="ada").enter(1) as agent,
        limits.listener(Role.OPERATOR).enter(1) as operator,
    ):
        assert used_up(agent) == 6
        assert used_up(operator) == 1  # never less than one call


def test_every_role_has_a_budget(hands: Hands) -> None:
    limits = Limits(hands.clock())
    for role in Role:
        with limits.listener(role, agent="ada" if role is Role.AGENT else None).enter(1) as connection:
            assert connection.admit(None) is None


async def test_admitting_is_cheap() -> None:
    """Half a microsecond is the aim; a busy machine gets room."""
    limits = Limits(Clock(), budgets(LimitsSection(operator_calls=Frequency(1e9))))
    what = method()
    with limits.listener(Role.OPERATOR).enter(0) as connection:
        assert trio.current_time() > 0
        best = min(timeit.repeat(lambda: connection.admit(what), number=10_000, repeat=20)) / 10_000
    assert best < 2e-6
