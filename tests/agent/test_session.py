"""The conversation against a model of the bridge that loses connections at the worst moments."""

from __future__ import annotations

import json
from collections import deque
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from armorclaw.agent.errors import AgentError
from armorclaw.agent.session import Session

from .conftest import PAYLOAD


class Outcome:
    """A waiter that notes what it was given, and that it was given once."""

    def __init__(self) -> None:
        self.given: list[Any] = []

    def set_result(self, result: Any) -> None:
        self.given.append(result)

    def set_exception(self, error: AgentError) -> None:
        self.given.append(error.name)


class Model(RuleBasedStateMachine):
    """The bridge holds every event until it is acknowledged and hands it to each new connection again."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.session = Session(clock=lambda: self.now)
        self.up = False
        self.number = 0
        self.to_bridge: deque[dict[str, Any]] = deque()
        self.to_agent = bytearray()
        self.pushed = 0
        self.unacked: dict[int, bool] = {}  # whether this connection has it
        self.acked: set[int] = set()
        self.subscribed = False
        self.in_hand: list[tuple[int, str]] = []
        self.finished: set[int] = set()
        self.calls: list[tuple[Outcome, bool]] = []

    # the bridge

    def send(self, **message: Any) -> None:
        self.to_agent += json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n"

    def push(self, seq: int) -> None:
        self.unacked[seq] = True
        params = {"subscription": f"s{self.number}", "seq": seq, "id": f"e{seq}", "type": "t", "redelivered": 0}
        self.send(method="event", params=params)

    def carry(self) -> None:
        for line in self.session.take_bytes().splitlines():
            self.to_bridge.append(json.loads(line))
        for wire in self.session.take_events():
            key = (wire["seq"], wire["id"])
            assert key not in self.in_hand, "handed out twice at the same time"
            assert wire["seq"] not in self.finished, "handed out after it was handled"
            self.in_hand.append(key)

    # what may happen

    @precondition(lambda self: not self.up)
    @rule()
    def connect(self) -> None:
        self.up, self.subscribed = True, False
        self.number += 1
        self.session.connected()
        self.carry()

    @precondition(lambda self: self.up)
    @rule()
    def lose(self) -> None:
        self.up = False
        self.to_bridge.clear()
        self.to_agent.clear()
        self.unacked = dict.fromkeys(self.unacked, False)
        self.session.disconnected()
        self.carry()

    @precondition(lambda self: self.to_bridge)
    @rule(busy=st.booleans())
    def bridge_reads(self, busy: bool) -> None:
        request = self.to_bridge.popleft()
        method, params, number = request["method"], request["params"], request["id"]
        if busy and method != "x":
            data = {"name": "unavailable", "retryable": True}
            self.send(id=number, error={"code": -32002, "message": "busy", "data": data})
            return
        result: dict[str, Any] = {}
        if method == "secrets.take":
            result = {"secrets": PAYLOAD.decode()}
        elif method == "events.subscribe":
            result = {"subscription": f"s{self.number}"}
            self.subscribed = True
        elif method == "events.ack":
            assert params["subscription"] == f"s{self.number}", "an acknowledgement for an old connection"
            seq = params["seq"]
            if params.get("working"):
                assert "nack_ms" not in params
            elif seq in self.acked:
                pass  # it was given again before the bridge knew
            else:
                assert self.unacked.get(seq), "an acknowledgement of what this connection does not have"
                if "nack_ms" in params:
                    self.push(seq)
                else:
                    del self.unacked[seq]
                    self.acked.add(seq)
        self.send(id=number, result=result)
        if method == "events.subscribe":
            for seq in self.unacked:
                self.push(seq)

    @precondition(lambda self: self.to_agent)
    @rule(share=st.floats(0.01, 1.0))
    def agent_reads(self, share: float) -> None:
        size = max(1, int(len(self.to_agent) * share))
        data = bytes(self.to_agent[:size])
        del self.to_agent[:size]
        self.session.received(data)
        self.carry()

    @rule()
    def happen(self) -> None:
        self.pushed += 1
        self.unacked[self.pushed] = False
        if self.up and self.subscribed:
            self.push(self.pushed)

    @precondition(lambda self: self.subscribed and any(self.unacked.values()))
    @rule(which=st.integers(0, 100))
    def take_too_long(self, which: int) -> None:
        """The bridge gives an event again on the same connection."""
        given = [seq for seq, known in self.unacked.items() if known]
        self.push(given[which % len(given)])

    @precondition(lambda self: self.in_hand)
    @rule(which=st.integers(0, 100))
    def say_working(self, which: int) -> None:
        self.session.working(self.in_hand[which % len(self.in_hand)])
        self.carry()

    @precondition(lambda self: self.in_hand)
    @rule(ok=st.booleans(), which=st.integers(0, 100))
    def finish(self, ok: bool, which: int) -> None:
        key = self.in_hand.pop(which % len(self.in_hand))
        if ok:
            self.finished.add(key[0])
        self.session.finished(key, retry_ms=None if ok else 1000)
        self.carry()

    @rule(resend=st.booleans())
    def call(self, resend: bool) -> None:
        outcome = Outcome()
        self.calls.append((outcome, resend))
        self.session.call("x", {}, outcome, resend=resend)
        self.carry()

    @precondition(lambda self: self.up)
    @rule(steps=st.integers(1, 12))
    def flow(self, steps: int) -> None:
        """A while in which nothing goes wrong: chance alone rarely gets through the greeting."""
        for _ in range(steps):
            if self.to_bridge:
                self.bridge_reads(busy=False)
            elif self.to_agent:
                self.agent_reads(share=1.0)

    @rule()
    def tick(self) -> None:
        if self.session.due is not None:
            self.now = self.session.due
        self.session.tick()
        self.carry()

    @invariant()
    def every_call_is_settled_at_most_once(self) -> None:
        for outcome, resend in self.calls:
            assert len(outcome.given) <= 1
            assert not (resend and outcome.given == ["unavailable"])

    def teardown(self) -> None:
        """However it went so far: once the connection holds, everything is put right."""
        for _ in range(10_000):
            if not self.up:
                self.connect()
            if self.to_bridge:
                self.bridge_reads(busy=False)
            elif self.to_agent:
                self.agent_reads(share=1.0)
            elif self.session.due is not None:
                self.tick()
            elif self.in_hand:
                self.finish(ok=True, which=0)
            else:
                break
        assert self.session.quiet
        assert self.session.serving
        assert not self.unacked, "events that nobody will handle any more"
        assert all(len(outcome.given) == 1 for outcome, _ in self.calls)


Model.TestCase.settings = settings(max_examples=80, stateful_step_count=60)
TestModel = Model.TestCase


def serving() -> Session:
    session = Session(say=print)
    session.connected()
    results = [{"secrets": PAYLOAD.decode()}, {}, {"subscription": "s"}]
    session.received(reply(1, error={"code": -32602, "message": "no descriptors"}))
    for number, result in enumerate(results):
        session.received(reply(number + 2, result=result))
    assert session.serving
    session.take_bytes()
    return session


def reply(number: int | None, **members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": number, **members}).encode() + b"\n"


@pytest.mark.parametrize(
    "result",
    [{}, None, [], {"secrets": 5}, {"secrets": "{}"}, {"secrets": "nonsense sk-canary"}, {"secrets": "☀"}],
    ids=repr,
)
def test_secrets_in_a_strange_shape_end_it_without_showing_them(result: Any) -> None:
    session = Session()
    session.connected()
    session.received(reply(1, error={"code": -32602, "message": "no descriptors"}))
    with pytest.raises(AgentError, match="the answer has no secrets in it") as caught:
        session.received(reply(2, result=result))
    assert "canary" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("params", [None, [], {}, {"seq": "1"}, {"seq": None, "id": 4}, {"seq": True}], ids=repr)
def test_events_in_a_strange_shape_are_left_alone(params: Any) -> None:
    session = serving()
    session.received(json.dumps({"jsonrpc": "2.0", "method": "event", "params": params}).encode() + b"\n")
    assert session.take_events() == []


def test_unknown_answers_and_notifications_are_ignored(capsys: pytest.CaptureFixture[str]) -> None:
    session = serving()
    session.received(reply(99, result={}) + b'{"jsonrpc":"2.0","method":"delivery","params":{}}\n')
    session.received(reply(None, error={"code": -32700, "message": "parse error"}))
    assert session.take_bytes() == b""
    assert "the bridge complains: parse error" in capsys.readouterr().out


def test_a_stream_that_is_no_json_is_given_up() -> None:
    session = serving()
    with pytest.raises(ConnectionError, match="does not speak JSON-RPC"):
        session.received(b"HTTP/1.1 400 Bad Request\nServer: x\nConnection: close\n\n")


def test_calls_fail_once_it_is_over() -> None:
    session = Session()
    early, late = Outcome(), Outcome()
    session.call("x", {}, early)
    session.abandon(AgentError(0, "over", "over"))
    session.call("x", {}, late)
    assert (early.given, late.given) == (["over"], ["over"])


def test_a_call_nobody_waits_for_is_forgotten() -> None:
    session = serving()
    outcome = Outcome()
    session.call("x", {}, outcome, resend=True)
    number = json.loads(session.take_bytes())["id"]
    session.forget(outcome)
    session.received(reply(number, result={}))
    assert outcome.given == []
    session.call("x", {}, outcome, resend=True)
    session.forget(outcome)
    session.disconnected()
    session.connected()
    session.received(reply(1, result={}) + reply(2, result={"subscription": "s"}))
    assert b'"x"' not in session.take_bytes()
    assert outcome.given == []


def test_working_is_said_of_what_this_connection_has_in_hand() -> None:
    """Of anything else the bridge would not know what is meant."""
    session = serving()
    session.working((1, "e1"))
    assert session.take_bytes() == b""
    event = {"subscription": "s", "seq": 1, "id": "e1", "type": "t", "redelivered": 0}
    session.received(json.dumps({"jsonrpc": "2.0", "method": "event", "params": event}).encode() + b"\n")
    session.working((1, "e1"))
    said = json.loads(session.take_bytes())
    assert (said["method"], said["params"]) == ("events.ack", {"subscription": "s", "seq": 1, "working": True})
    session.received(reply(said["id"], error={"code": -32002, "message": "busy", "data": {"retryable": True}}))
    assert session.due is None  # nobody waits for it
    session.disconnected()
    session.working((1, "e1"))
    assert session.take_bytes() == b""


def test_the_answer_to_a_wish_to_have_it_again_does_not_make_what_was_handled_since_forgotten() -> None:
    session = serving()

    def given() -> list[int]:
        params = {"subscription": "s", "seq": 1, "id": "e1", "type": "t"}
        session.received(json.dumps({"jsonrpc": "2.0", "method": "event", "params": params}).encode() + b"\n")
        return [wire["seq"] for wire in session.take_events()]

    def said() -> list[int]:
        return [json.loads(line)["id"] for line in session.take_bytes().splitlines()]

    assert given() == [1]
    session.finished((1, "e1"), retry_ms=1000)
    (again,) = said()
    assert given() == [1]  # as it had taken so long, on its way before the bridge knew
    session.finished((1, "e1"))
    said()
    session.received(reply(again, result={}))
    assert given() == []  # and this is what was wished for
    assert said()  # it is acknowledged once more
