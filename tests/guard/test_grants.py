from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armorclaw.guard.grants import Grants

AGENTS = ("echo", "writer", "critic")
ACCOUNTS = ("main", "other")
ROOMS = ("!a:x", "!b:x", "!c:x")


def test_nothing_is_granted_by_default() -> None:
    grants = Grants()
    assert grants.rooms_of("echo") == frozenset()
    assert grants.account_of("echo") is None
    assert not grants.may("echo", "!a:x")
    assert grants.agents_in("main", "!a:x") == frozenset()
    grants.forget("echo")


def test_a_room_is_its_very_id() -> None:
    """Not what looks like it, or what some would take for the same."""
    grants = Grants()
    grants.set("ada", "main", ["!a\u00e9:x"])
    assert grants.may("ada", "!a\u00e9:x")
    for other in (
        "!\u0430\u00e9:x",
        "!ae\u0301:x",
        "!A\u00e9:x",
        "!a\u00e9:X",
        "!a\u00e9:x ",
        "!a\u00e9:x\0",
        "!a\u00e9",
    ):
        assert not grants.may("ada", other)
        assert grants.agents_in("main", other) == frozenset()
    assert not grants.may("\u0430da", "!a\u00e9:x")


def test_listeners_hear_of_changes_only_and_may_leave() -> None:
    grants = Grants()
    heard: list[tuple[str, frozenset[str]]] = []
    stop = grants.on_change(lambda agent: heard.append((agent, grants.rooms_of(agent))))
    grants.set("echo", "main", ["!a:x"])
    grants.set("echo", "main", ("!a:x", "!a:x"))
    grants.forget("echo")
    grants.forget("echo")
    stop()
    grants.set("echo", "main", [])
    assert heard == [("echo", frozenset({"!a:x"})), ("echo", frozenset())]


class BothSides(RuleBasedStateMachine):
    """The lookup by room always agrees with the lookup by agent."""

    def __init__(self) -> None:
        super().__init__()
        self.grants = Grants()
        self.model: dict[str, tuple[str, set[str]]] = {}

    @rule(agent=st.sampled_from(AGENTS), account=st.sampled_from(ACCOUNTS), rooms=st.sets(st.sampled_from(ROOMS)))
    def set(self, agent: str, account: str, rooms: set[str]) -> None:
        self.grants.set(agent, account, rooms)
        self.model[agent] = (account, rooms)

    @rule(agent=st.sampled_from(AGENTS))
    def forget(self, agent: str) -> None:
        self.grants.forget(agent)
        self.model.pop(agent, None)

    @invariant()
    def agrees(self) -> None:
        for agent in AGENTS:
            account, rooms = self.model.get(agent, (None, set()))
            assert self.grants.account_of(agent) == account
            assert self.grants.rooms_of(agent) == rooms
            assert [self.grants.may(agent, room) for room in ROOMS] == [room in rooms for room in ROOMS]
        for account in ACCOUNTS:
            for room in ROOMS:
                expected = {
                    agent for agent, (whose, rooms) in self.model.items() if whose == account and room in rooms
                }
                assert self.grants.agents_in(account, room) == expected


TestBothSides = BothSides.TestCase
TestBothSides.settings = settings(max_examples=50, stateful_step_count=20)
