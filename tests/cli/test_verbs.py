"""Verbs of the client: what each asks, and what it shows of the answer."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from armorclaw.cli import outbox
from armorclaw.delivery.shapes import State
from armorclaw.errors import ArmorclawError
from armorclaw.testing.handles import wait_until
from tests.cli.conftest import FakeBridge, Run, Stream

KEY = {
    "id": "openai-default",
    "provider": "openai",
    "display_name": "",
    "created_at": 1_700_000_000,
    "expires_at": 0,
    "tags": ["a", "b"],
}
AGENT = {
    "name": "echo",
    "state": "ready",
    "runtime": "docker",
    "generation": 2,
    "since_ms": None,
    "ready": True,
    "last_end": "exit 3\x1b[2J",
    "restarts": 4,
    "status": "thinking",
    "cpu_percent": 12.34,
    "memory_bytes": 5 * 1024**2,
}
DELIVERY = {
    "delivery_id": "d_1",
    "state": "failed",
    "room_id": "!r:x",
    "agent": None,
    "attempts": 3,
    "reason": "forbidden",
    "created_ms": 1_700_000_000_000,
}
FOLLOWER = {
    "owner": "",
    "subscription": "archive",
    "named": True,
    "connected": True,
    "behind": 12,
    "in_hand": 3,
    "oldest_s": 4.2,
    "acknowledged": 5,
    "dead": 1,
    "redelivered": 2,
    "missed": 0,
}
LETTER = {
    "owner": "echo",
    "subscription": "main",
    "seq": 7,
    "at_ms": 1_700_000_000_000,
    "given": 20,
    "lost": 4,
    "reason": "given 20 times",
    "again": True,
    "type": "m.room.message",
    "room_id": "!r:x",
}
READING = {"name": "echo", "state": "ready", "at_ms": 1, "cpu_percent": 12.34, "memory_bytes": 5 * 1024**2, "pids": 3}


@pytest.mark.parametrize(
    "words, stdin, method, params, answer, shown",
    [
        (["health"], "", "health", {}, {"status": "healthy", "reasons": []}, "healthy"),
        (
            ["containers", "start", "a"],
            "",
            "start",
            {"name": "a"},
            {"status": "running", "ready": False},
            "a running, not ready yet",
        ),
        (["containers", "stop", "a"], "", "stop", {"name": "a"}, {"status": "stopping"}, "a stopping"),
        (["containers", "restart", "a"], "", "containers.restart", {"name": "a"}, {"status": "running"}, "a running"),
        (
            ["keys", "add", "openai"],
            "canary\nmore\n",
            "store_key",
            {"provider": "openai", "token": "canary"},
            {"id": "openai-default"},
            "stored openai-default",
        ),
        (
            ["keys", "add", "xai", "--id", "x", "--name", "N", "--expires", "5", "--tag", "t", "--tag", "u"],
            " canary ",
            "store_key",
            {
                "provider": "xai",
                "token": "canary",
                "id": "x",
                "display_name": "N",
                "expires_at": 5,
                "tags": ["t", "u"],
            },
            {"id": "x"},
            "stored x",
        ),
        (["keys", "rm", "x", "--yes"], "", "delete_key", {"id": "x"}, {"status": "deleted", "id": "x"}, "deleted x"),
        (["keys", "rotate", "x"], "canary", "rotate_key", {"id": "x", "token": "canary"}, {"id": "x"}, "rotated x"),
        (
            ["matrix", "login", "@a:b"],
            "pass word\r\n",
            "matrix.login",
            {"username": "@a:b", "password": "pass word"},
            {"status": "logging_in", "user_id": None},
            "logging_in",
        ),
        (
            ["matrix", "send", "!r:x", "hi", "--key", "k"],
            "",
            "matrix.send",
            {"room_id": "!r:x", "message": "hi", "idempotency_key": "k"},
            {"status": "sent", "event_id": "$1", "delivery_id": "d"},
            "sent $1",
        ),
        (
            ["matrix", "send", "!r:x", "--account", "b"],
            "two\nlines é\n",
            "matrix.send",
            {"room_id": "!r:x", "message": "two\nlines é", "account": "b"},
            {"status": "queued", "event_id": None, "delivery_id": "d"},
            "queued d",
        ),
        (["outbox", "retry", "d"], "", "delivery.retry", {"delivery_id": "d"}, {"state": "queued"}, "queued d"),
        (
            ["outbox", "drop", "d", "--yes"],
            "",
            "delivery.cancel",
            {"delivery_id": "d"},
            {"state": "cancelled"},
            "cancelled d",
        ),
        (
            ["events", "redrive", "--agent", "echo", "main", "7"],
            "",
            "events.redrive",
            {"agent": "echo", "subscription": "main", "seq": 7},
            {"ok": True},
            "to be given again: 7",
        ),
        (
            ["events", "drop", "archive", "7", "--yes"],
            "",
            "events.drop",
            {"subscription": "archive", "seq": 7},
            {"ok": True},
            "dropped 7",
        ),
    ],
)
def test_one_call(
    run: Run, fake: FakeBridge, words: list[str], stdin: str, method: str, params: Any, answer: Any, shown: str
) -> None:
    fake.answers[method] = answer
    done = run(*words, stdin=stdin)
    assert (done.status, done.out, done.err) == (0, shown + "\n", "")
    assert fake.asked == [(method, params)]
    done = run(*words, "--json", stdin=stdin)
    assert (done.status, done.err) == (0, "")
    assert json.loads(done.out) == answer
    assert done.out.count("\n") == 1


def test_a_key_is_never_shown(run: Run, fake: FakeBridge) -> None:
    fake.answers["store_key"] = ArmorclawError("invalid_params", "no")
    done = run("keys", "add", "openai", stdin="canary")
    assert done.status == 2
    assert "canary" not in done.out + done.err


@pytest.mark.parametrize("stdin", ["", "\n", "  \nlater", b"\xff\xfe"])
def test_no_key_on_stdin(run: Run, fake: FakeBridge, stdin: str | bytes) -> None:
    done = run("keys", "add", "openai", stdin=stdin)
    assert (done.status, done.out, fake.asked) == (2, "", [])


@pytest.mark.parametrize("stdin", ["", "\n", " \t\n\n"])
def test_no_message_on_stdin(run: Run, fake: FakeBridge, stdin: str) -> None:
    done = run("matrix", "send", "!r:x", stdin=stdin)
    assert (done.status, done.out, fake.asked) == (2, "", [])
    assert done.err == "armorclaw: no message came on stdin\nhint: armorclaw matrix send --help\n"


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "1e300", "x"])
@pytest.mark.parametrize("words", [("call", "status", "--timeout"), ("containers", "stats", "--interval")])
def test_what_is_no_number_of_seconds(run: Run, fake: FakeBridge, words: tuple[str, ...], seconds: str) -> None:
    done = run(*words, seconds)
    assert (done.status, done.out, fake.asked) == (2, "", [])


def test_health_has_a_status_of_its_own(run: Run, fake: FakeBridge) -> None:
    fake.answers["health"] = {"status": "degraded", "reasons": ["one", "two"]}
    done = run("health")
    assert (done.status, done.out) == (8, "degraded\n")
    assert done.err.splitlines()[:3] == ["armorclaw: the bridge is degraded", "why: one", "     two"]
    assert json.loads(run("health", "--json").out) == fake.answers["health"]


@pytest.mark.parametrize(
    "words, method, row, shown",
    [
        (["keys", "ls"], "list_keys", KEY, ["openai-default", "openai", "2023-11-1", "never", "a, b"]),
        (
            ["containers", "ls"],
            "containers.list",
            AGENT,
            ["echo", "ready", "4", "12.3", "5 MiB", "thinking", "exit 3�[2J"],
        ),
        (["outbox", "ls"], "delivery.list", DELIVERY, ["d_1", "failed", "2023-11-1", "!r:x", "3", "forbidden"]),
        (
            ["events", "ls"],
            "events.stats",
            FOLLOWER,
            ["(operators)", "archive", "yes", "12", "3", "4s", "2", "0", "1"],
        ),
        (
            ["events", "dead"],
            "events.dead_letters",
            LETTER,
            ["echo", "main", "7", "2023-11-1", "20", "4", "m.room.message", "!r:x", "yes", "given 20 times"],
        ),
    ],
)
def test_a_table(
    run: Run, fake: FakeBridge, words: list[str], method: str, row: dict[str, Any], shown: list[str]
) -> None:
    fake.answers[method] = [row, row]
    heads, *lines = run(*words).out.splitlines()
    assert heads.isupper()
    assert len(lines) == 2
    at = 0
    for text in shown:
        at = lines[0].index(text, at) + len(text)
    assert json.loads(run(*words, "--json").out) == [row, row]
    fake.answers[method] = []
    assert run(*words).out.count("\n") == 1


def test_what_is_filtered_by_the_bridge(run: Run, fake: FakeBridge) -> None:
    fake.answers = {"list_keys": [], "delivery.list": [], "events.dead_letters": []}
    run("keys", "ls", "--provider", "xai")
    run("outbox", "ls", "--state", "unknown", "--room", "!r:x", "--limit", "5")
    run("events", "dead", "--agent", "echo", "--limit", "5")
    assert fake.asked == [
        ("list_keys", {"provider": "xai"}),
        ("delivery.list", {"state": "unknown", "room_id": "!r:x", "limit": 5}),
        ("events.dead_letters", {"agent": "echo", "limit": 5}),
    ]


def test_every_state_of_a_message_can_be_asked_for() -> None:
    assert get_args(State) == outbox.STATES


def test_inspect_as_json(run: Run, fake: FakeBridge) -> None:
    fake.answers["containers.inspect"] = {"name": "a", "é": [1]}
    done = run("containers", "inspect", "a", "--json")
    assert json.loads(done.out) == {"name": "a", "é": [1]}
    assert done.out.count("\n") == 1


def test_metrics(run: Run, fake: FakeBridge) -> None:
    fake.answers["metrics"] = {"content_type": "text/plain", "text": "# HELP a\na 1.0\n"}
    assert run("metrics").out == "# HELP a\na 1.0\n"
    assert json.loads(run("metrics", "--json").out) == fake.answers["metrics"]


def test_a_bridge_that_knows_less(run: Run, fake: FakeBridge) -> None:
    """Figures that are null or not there at all are shown as nothing."""
    bare = {name: AGENT[name] for name in ("name", "state", "since_ms", "last_end")}
    fake.answers["containers.list"] = [bare, {**AGENT, "cpu_percent": None, "memory_bytes": None, "status": ""}]
    done = run("containers", "ls")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[1].split() == ["echo", "ready", "exit", "3�[2J"]


def test_the_list_fits(run: Run, fake: FakeBridge) -> None:
    """Into 100 columns, whatever agents say of themselves; names are never cut."""
    long = {**AGENT, "name": "n" * 32, "status": "word " * 100, "last_end": "killed " * 70}
    fake.answers["containers.list"] = [long, {**AGENT, "since_ms": 1}]
    lines = run("containers", "ls").out.splitlines()
    assert max(map(len, lines)) == 100
    assert lines[1].startswith("n" * 32 + "  ready")
    assert lines[1].count("…") == 2
    assert json.loads(run("containers", "ls", "--json").out)[0] == long


ROW = {"what": "routes", "claimed": "none", "found": "none", "holds": True, "source": "/proc/PID/net/route"}


@pytest.mark.parametrize(
    "changes, word, status",
    [
        ({}, "yes", 0),
        ({"holds": False, "found": "eth0"}, "NO", 1),
        ({"holds": None, "found": "not known: Permission denied"}, "?", 0),
        ({"holds": None, "claimed": None}, "-", 0),
    ],
)
def test_isolation(run: Run, fake: FakeBridge, changes: dict[str, Any], word: str, status: int) -> None:
    fake.answers["containers.isolation"] = [ROW, {**ROW, **changes}]
    done = run("containers", "isolation", "a")
    assert (done.status, done.err) == (status, "")
    assert [line.split()[0] for line in done.out.splitlines()] == ["HOLDS", "yes", word]
    done = run("containers", "isolation", "a", "--json")
    assert (done.status, json.loads(done.out)) == (status, fake.answers["containers.isolation"])


def test_logs(run: Run, fake: FakeBridge) -> None:
    pieces = [
        {"stream": "stdout", "text": "one\ntw"},
        {"stream": "bridge", "text": "started again\n"},
        {"stream": "stderr", "text": "o\n\x1b[31m"},
    ]
    end = {"lines": 2, "bytes": 9, "truncated": True}
    fake.answers["containers.logs"] = Stream(pieces, end)
    done = run("containers", "logs", "a", "--tail", "5", "--since", "1000000d")
    assert (done.status, done.out) == (0, "one\ntwo\n\x1b[31m")
    assert done.err == "armorclaw: started again\narmorclaw: some of it is not kept any more\n"
    assert fake.asked == [("containers.logs", {"name": "a", "follow": False, "tail": 5, "since_ms": 0})]
    lines = run("containers", "logs", "a", "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == pieces


def test_stats(run: Run, fake: FakeBridge) -> None:
    stopped = {"name": "b", "state": "stopped", "at_ms": 1}
    fake.answers["containers.stats"] = Stream([[READING, stopped], [READING, stopped]], {"readings": 2})
    done = run("containers", "stats", "--count", "2", "--interval", "0.5")
    heads, first, second, *more = done.out.splitlines()
    assert fake.asked == [("containers.stats", {"count": 2, "interval_ms": 500})]
    assert first.split() == ["echo", "ready", "12.3", "5", "MiB", "3"]
    assert second.split() == ["b", "stopped"]
    assert more == [first, second]
    assert heads.index("MEMORY") + 6 == first.index("MiB") + 3, "columns are aligned"
    lines = run("containers", "stats", "echo", "--json").out.splitlines()
    assert [json.loads(line) for line in lines] == [READING, stopped] * 2
    assert fake.asked[-1] == ("containers.stats", {"name": "echo", "interval_ms": 1000})


def test_stats_with_their_past(run: Run, fake: FakeBridge) -> None:
    peaks = {"cpu_peak_percent": 99.95, "memory_peak_bytes": 6 * 1024**2, "memory_limit": 1024**3}
    fake.answers["containers.stats"] = Stream([[READING, READING], [{**READING, **peaks}]], {"readings": 1})
    heads, *lines = run("containers", "stats", "echo", "--history").out.splitlines()
    asked = {"name": "echo", "count": 1, "interval_ms": 1000, "history": True}
    assert fake.asked == [("containers.stats", asked)]
    assert heads.startswith("TIME")
    assert len(lines) == 3
    assert lines[-1].split()[1:] == ["echo", "ready", "12.3", "100.0", "5", "MiB", "6", "MiB", "1.0", "GiB", "3"]
    assert max(map(len, lines)) <= 110
    run("containers", "stats", "--history", "--count", "5")
    assert fake.asked[-1][1]["count"] == 5


def test_stats_that_fail_have_no_heads(run: Run, fake: FakeBridge) -> None:
    fake.answers["containers.stats"] = ArmorclawError("container_not_found", "there is no agent 'x'")
    done = run("containers", "stats", "x")
    assert (done.status, done.out) == (4, "")


def test_call(run: Run, fake: FakeBridge) -> None:
    fake.answers = {"a.b": {"x": "é"}, "n": None}
    assert run("call", "a.b").out == '{"x":"\\u00e9"}\n'
    assert run("call", "n", "--params", "[1]").out == "null\n"
    assert run("call", "n", "--params", "-", stdin='{"a": 1}').out == "null\n"
    assert fake.asked == [("a.b", None), ("n", [1]), ("n", {"a": 1})]


def test_call_of_a_stream(run: Run, fake: FakeBridge) -> None:
    progress = {"method": "$/progress", "params": {"done": 1, "total": 2, "message": "on it\x07"}}
    fake.answers["s"] = Stream([1, {"a": 2}, progress], {"end": True})
    done = run("call", "s")
    assert done.out == '1\n{"a":2}\n{"end":true}\n'
    assert done.err == "1 of 2 on it�\n"
    fake.answers["silent"] = Stream([], ends=False)
    assert run("call", "silent", "--timeout", "0.05").status == 7
    wait_until(lambda: fake.asked[-1] == ("$/cancelRequest", {"id": 1}), 5, "it was cancelled")


@pytest.mark.parametrize("params", ["", "{", "1", "null", '"x"', "[" * 100_000])
def test_params_that_are_none(run: Run, fake: FakeBridge, params: str) -> None:
    done = run("call", "x", "--params", params)
    assert (done.status, done.out, fake.asked) == (2, "", [])
