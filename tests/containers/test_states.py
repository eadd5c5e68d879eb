"""The table of states: nothing leads astray, nothing is out of reach, and the code goes by it."""

from __future__ import annotations

from typing import Any, cast

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armorclaw.clock import Clock, Surroundings
from armorclaw.containers import agent as module
from armorclaw.containers.agent import Agent
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.states import AT_REST, ENDING, RUNS, TRANSITIONS, Fact, State
from tests import states
from tests.containers.fakes import declared

pytestmark = pytest.mark.mission("P0.1", "P0.2")


def reached(start: State) -> set[State]:
    """Where facts can lead from there."""
    seen, left = {start}, [start]
    while left:
        for to in TRANSITIONS[left.pop()].values():
            if to not in seen:
                seen.add(to)
                left.append(to)
    return seen


def test_every_state_is_reachable_and_none_is_a_dead_end() -> None:
    assert set(TRANSITIONS) == set(State)
    for state in State:
        assert reached(state) == set(State)


def test_every_fact_means_something_somewhere() -> None:
    assert {fact for row in TRANSITIONS.values() for fact in row} == set(Fact)


def test_every_state_is_of_one_kind() -> None:
    kinds = (AT_REST, ENDING, RUNS, {State.STARTING})
    assert sorted(state for kind in kinds for state in kind) == sorted(State)


def test_every_agent_can_be_told_to_end_and_does() -> None:
    for row in TRANSITIONS.values():
        assert row[Fact.TOLD_TO_END] is State.STOPPING
    assert TRANSITIONS[State.STOPPING][Fact.ENDED] is State.STOPPED


def test_the_page_is_what_the_table_says() -> None:
    text = states.PAGE.read_text(encoding="utf-8")
    assert states.page(text) == text, "run: python -m tests.states"


class StubHouse:
    """Takes records, and gives none of the rest."""

    def __init__(self) -> None:
        self.around = Surroundings(clock=Clock(monotonic=lambda: 0.0))
        self.records: list[dict[str, Any]] = []

    def tell(self, agent: Agent, kind: str, **facts: Any) -> None:
        self.records.append(facts)


class Walk(RuleBasedStateMachine):
    """Any facts, in any order: the agent goes where the table says, or stays and says that this is a bug."""

    def __init__(self) -> None:
        super().__init__()
        self.house = StubHouse()
        self.agent = Agent(declared(), cast(AgentSocket, None), cast(Any, self.house))
        self.expected = State.STOPPED
        self.errors: list[dict[str, Any]] = []
        self.log = module.log
        module.log = cast(Any, self)

    def error(self, _: str, **facts: Any) -> None:
        self.errors.append(facts)

    def teardown(self) -> None:
        module.log = self.log

    @rule(fact=st.sampled_from(Fact))
    def learn(self, fact: Fact) -> None:
        known = fact in TRANSITIONS[self.expected]
        changes, errors, progress = len(self.house.records), len(self.errors), self.agent.progress
        self.agent.learn(fact, "why")
        before, self.expected = self.expected, TRANSITIONS[self.expected].get(fact, self.expected)
        assert (len(self.errors) == errors) is known
        assert progress.is_set() is known
        assert len(self.house.records) - changes == (before is not self.expected)

    @rule(data=st.data())
    def learn_what_can_be(self, data: st.DataObject) -> None:
        self.learn(data.draw(st.sampled_from(sorted(TRANSITIONS[self.expected]))))

    @invariant()
    def the_state_is_that_of_the_table(self) -> None:
        assert self.agent.state is self.expected

    @invariant()
    def the_events_tell_it_all(self) -> None:
        at = State.STOPPED.value
        for record in self.house.records:
            assert record["from"] == at
            at = record["to"]
        assert at == self.expected


TestWalk = Walk.TestCase
TestWalk.settings = settings(max_examples=50, stateful_step_count=40)
