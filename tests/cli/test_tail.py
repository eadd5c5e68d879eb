"""`events tail` and `matrix tail`: from when, until when, and what of it."""

from __future__ import annotations

import json
import time
from typing import Any

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
        fake.events = [event(seq, ago=100 * (40 - seq)) for seq in range(begin + 1, 41)]
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
        {"from": 0, "filter": {"types": ["m.room.message"], "rooms": ["!r:x"]}},
    )


def test_for_people(run: Run, fake: FakeBridge) -> None:
    def subscribe(params: dict[str, Any]) -> dict[str, Any]:
        fake.events = [
            event(1, **MESSAGE, content={"body": "hi\x1b[2J\nthere"}),
            event(2, agent="echo", content={"é": "\x07"}),
            event(3, **{**MESSAGE, "room_id": "!other:x"}, content={}),
        ]
        return {"subscription": "#1", "cursor": 3}

    fake.answers = {"events.subscribe": subscribe, "events.unsubscribe": {}}
    lines = run("events", "tail").out.splitlines()
    assert lines[0].startswith("1  20")
    assert lines[1].endswith('agent.state  echo  {"é":"\\u0007"}')
    messages = run("matrix", "tail").out.splitlines()
    assert [line.partition("  ")[2] for line in messages] == ["!r:x  @a:x: hi�[2J�there", "!other:x  @a:x: None"]
    assert run("matrix", "tail", "--room", "!r:x").out.count("\n") == 1
