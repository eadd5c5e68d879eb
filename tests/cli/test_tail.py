"""`events tail` and `matrix tail`: from when, until when, and what of it."""

from __future__ import annotations

import json
import time
from datetime import datetime
from typing import Any
from unittest.mock import ANY

import pytest

from tests.cli.conftest import FakeBridge, Run


def event(seq: int, ago: float = 0, **members: Any) -> dict[str, Any]:
    at = round((time.time() - ago) * 1000)
    return {
        "redelivered": 0,
        "seq": seq,
        "id": f"i{seq}",
        "type": "agent.state",
        "at_ms": at,
        "content": {},
        **members,
    }


MESSAGE: dict[str, Any] = {"type": "m.room.message", "room_id": "!r:x", "sender": "@a:x"}


@pytest.fixture
def journal(fake: FakeBridge) -> FakeBridge:
    """Forty events; the subscription goes on from where it is asked to."""

    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        begin = params["from"]
        if begin == "now":
            return {"subscription": "#1", "cursor": 40}
        events = [event(seq, ago=100 * (40 - seq)) for seq in range(1, 41)]
        if isinstance(begin, str):
            at_ms = datetime.fromisoformat(begin).timestamp() * 1000
            begin = sum(each["at_ms"] < at_ms for each in events)
        fake.events = events[begin:]
        return {"subscription": "#2", "cursor": begin}

    fake.answers = {"events.subscribe": subscribe, "events.unsubscribe": {"ok": True}}
    return fake


def seqs(out: str) -> list[int]:
    return [json.loads(line)["seq"] for line in out.splitlines()]


@pytest.mark.parametrize(
    "words, first",
    [([], 21), (["--since", "35"], 36), (["--since", "0"], 1), (["--since", "350s"], 37), (["--since", "61m"], 4)],
)
def test_since(run: Run, journal: FakeBridge, words: list[str], first: int) -> None:
    done = run("events", "tail", "--json", *words)
    assert (done.status, done.err) == (0, "")
    assert seqs(done.out) == list(range(first, 41))
    assert set(json.loads(done.out.splitlines()[0])) == {"seq", "id", "type", "at_ms", "content"}


def test_nothing_new(run: Run, journal: FakeBridge) -> None:
    done = run("events", "tail", "--since", "40")
    assert (done.status, done.out) == (0, "")
    assert [method for method, _ in journal.asked] == ["events.subscribe", "events.unsubscribe"]
    journal.answers["events.subscribe"] = {"subscription": "#1", "cursor": 40}
    assert run("events", "tail", "--since", "0s").out == ""  # that of a time is where the bridge says


def test_by_severity(run: Run, journal: FakeBridge) -> None:
    """And what is missing, whatever it may have been."""
    severities = {39: "error", 38: "warning", 36: "info"}

    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        if params["from"] == "now":
            return {"subscription": "#1", "cursor": 40}
        found = [event(seq, severity=severities[seq]) for seq in sorted(severities)]
        journal.events = [event(30, type="gap", severity="warning"), *found, event(40)]
        return {"subscription": "#2", "cursor": params["from"]}

    journal.answers["events.subscribe"] = subscribe
    words = ["events", "tail", "--since", "1", "--severity", "error", "--severity", "info"]
    assert seqs(run(*words, "--json").out) == [30, 36, 39]
    assert "agent.state  error  {}" in run(*words).out
    assert journal.asked[-1][1] == {"from": 1, "filter": {}}
    assert run("events", "tail", "--severity", "mild").status == 2


def test_one_that_the_bridge_found_too_slow_goes_on(run: Run, journal: FakeBridge) -> None:
    original = journal.reply
    begun: list[Any] = []

    def reply(request: dict[str, Any]) -> Any:
        begin = request["params"].get("from")
        if request["method"] != "events.subscribe" or begin == "now":
            yield from original(request)
            return
        begun.append(begin)
        number = f"#{len(begun) + 1}"
        yield {"id": request["id"], "result": {"subscription": number, "cursor": begin}}
        for seq in range(begin + 1, min(begin + 3, 41)):
            yield {"method": "event", "params": {"subscription": number, **event(seq)}}
        if begin < 38:
            closed = {"subscription": number, "reason": "too slow: it took nothing for 10 s", "cursor": begin + 2}
            yield {"method": "events.closed", "params": closed}

    journal.reply = reply  # type: ignore[method-assign]
    done = run("events", "tail", "--since", "34", "--json")
    assert (done.status, done.err) == (0, "")
    assert seqs(done.out) == list(range(35, 41))
    assert begun == [34, 36, 38]


@pytest.mark.parametrize("since", ["", "x", "10", "-1", "10w", "m", "1.5h", "9" * 30])
def test_since_when(run: Run, fake: FakeBridge, since: str) -> None:
    fake.answers = {"events.subscribe": {"subscription": "#1", "cursor": 0}, "events.unsubscribe": {}}
    assert run("events", "tail", "--since", since).status == (0 if since == "10" else 2)


def test_following_ends_with_the_bridge(run: Run, journal: FakeBridge) -> None:
    """Everything until then is shown, with what is new; the filter is the bridge's to apply."""

    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        if params["from"] != "now":
            journal.events = [event(39, **MESSAGE), event(40), event(41, **MESSAGE)]
        return {"subscription": "#2", "cursor": 40}

    journal.answers["events.subscribe"] = subscribe
    original = journal.reply

    def reply(request: dict[str, Any]) -> Any:
        yield from original(request)
        if request["method"] == "events.subscribe" and request["params"]["from"] != "now":
            yield {"method": "events.closed", "params": {"subscription": "#2", "reason": "the end"}}

    journal.reply = reply  # type: ignore[method-assign]
    done = run("matrix", "tail", "-f", "--json", "--room", "!r:x")
    assert seqs(done.out) == [39, 41]
    assert (done.status, done.err.splitlines()[1]) == (75, "why: the end")
    assert journal.asked[-1] == (
        "events.subscribe",
        {"from": ANY, "filter": {"types": ["m.room.message"], "rooms": ["!r:x"]}},
    )
    begun = datetime.fromisoformat(str(journal.asked[-1][1]["from"]))
    assert abs(time.time() - begun.timestamp() - 86_400) < 60


def test_for_people(run: Run, fake: FakeBridge) -> None:
    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        if params["from"] == "now":
            return {"subscription": "#1", "cursor": 3}
        fake.events = [
            event(1, **MESSAGE, content={"body": "hi\x1b[2J\nthere"}),
            event(2, agent="echo", content={"é": "\x07"}),
            event(3, **{**MESSAGE, "room_id": "!other:x"}, content={}),
        ]
        return {"subscription": "#1", "cursor": 0}

    fake.answers = {"events.subscribe": subscribe, "events.unsubscribe": {}}
    lines = run("events", "tail").out.splitlines()
    assert lines[0].startswith("1  20")
    assert lines[1].endswith('agent.state  echo  {"é":"\\u0007"}')
    messages = run("matrix", "tail").out.splitlines()
    assert [line.partition("  ")[2] for line in messages] == ["!r:x  @a:x: hi�[2J�there", "!other:x  @a:x: None"]
    assert run("matrix", "tail", "--room", "!r:x").out.count("\n") == 1


def test_for_people_what_is_gone(run: Run, fake: FakeBridge) -> None:
    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        content = {"from": 1, "to": 1, "reason": "retention"}
        fake.events = [event(1, type="gap", content=content), event(2, **MESSAGE, erased=True)]
        return {"subscription": "#1", "cursor": 0 if params["from"] != "now" else 2}

    fake.answers = {"events.subscribe": subscribe, "events.unsubscribe": {}}
    assert run("matrix", "tail").out.splitlines()[0].endswith("some messages are gone: retention")
    assert run("events", "tail").out.splitlines()[1].endswith("!r:x  @a:x  (erased)")
