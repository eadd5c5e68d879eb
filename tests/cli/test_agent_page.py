"""`containers inspect` for people."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.cli.conftest import FakeBridge, Run

NOW = int(time.time() * 1000)
END: dict[str, Any] = {
    "generation": 2,
    "container_id": "c2",
    "at_ms": NOW - 180_000,
    "ran_ms": 4200,
    "cause": "oom",
    "code": None,
    "signal": 9,
    "oom": True,
    "text": "killed by SIGKILL, out of memory",
}
AGENT: dict[str, Any] = {
    "name": "echo",
    "state": "ready",
    "wanted": True,
    "ready": True,
    "generation": 3,
    "restarts": 2,
    "status": "thinking\x1b[2J",
    "last_end": END["text"],
    "container_name": "armorclaw-1-echo",
    "container_id": "0123456789abcdef",
    "since_ms": NOW - 170_000,
    "adopted": False,
    "runs_on": "docker",
    "runtime": "auto",
    "image": "python:3.12-slim",
    "command": ["python3", "/agent/main.py"],
    "code": None,
    "uid": 10001,
    "rooms": ["!a:x"],
    "keys": [],
    "env": ["LANG"],
    "limits": {"memory": 512 * 2**20, "cpus": 1.0, "pids": 128, "files": 1024, "tmp": 64 * 2**20},
    "ready_timeout": 30.0,
    "health": {
        "engine": "running",
        "engine_age_ms": 2000,
        "session": "connected",
        "session_age_ms": 169_000,
        "ping_ms": 0.4,
        "ping_age_ms": 3000,
        "pings_missed": 0,
        "unacknowledged": 2,
        "oldest_unacknowledged_ms": 61_000,
        "work_age_ms": 500,
        "reading_age_ms": None,
    },
    "usage": {"memory_bytes": 80 * 2**20, "cpu_percent": 3.21, "pids": 4},
    "peaks": {"memory_bytes": 120 * 2**20, "cpu_percent": 99.0, "pids": 7},
    "egress": ["api.example.org:443"],
    "data": {"soft": 256 * 2**20, "hard": 2**30},
    "quota": {"events": 1200, "messages": 1200, "bytes": 2**30, "calls": 60000, "media": 0, "soft": 0.8},
    "on_restart": "adopt",
    "lifetime": 0.0,
    "idle_timeout": 90.0,
    "on_idle": "sleep",
    "patience": {"period": 10.0, "timeout": 1.0},
    "restart_policy": {"policy": "always", "in_row": 6, "per_hour": 20, "stable": 600.0, "longest_pause": 60.0},
    "ends": [{**END, "generation": 1, "at_ms": NOW - 7_300_000, "cause": "exit", "text": "exit 3"}, END],
}


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: NOW / 1000 + 0.01)


def shown(run: Run, fake: FakeBridge, agent: dict[str, Any]) -> str:
    fake.answers["containers.inspect"] = agent
    done = run("containers", "inspect", "echo")
    assert (done.status, done.err) == (0, "")
    return done.out


def test_all_of_it(run: Run, fake: FakeBridge) -> None:
    text = shown(run, fake, AGENT)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "echo: ready, container started 3m ago, generation 3, 2 restarts, it says: thinking�[2J",
        "runtime docker (declared: auto)",
        "command python3, /agent/main.py",
        "container 0123456789ab armorclaw-1-echo",
        "engine running, 2s ago",
        "session connected, 3m ago",
        "ping answered in 0.4 ms, 3s ago",
        "pings missed 0",
        "unacknowledged 2 events, the oldest for 61s",
        "last work 500ms ago",
        "processor 3.2 % 99.0 % 100.0 %",
        "memory 80 MiB 120 MiB 512 MiB",
        "processes 4 7 128",
        "egress api.example.org:443",
        "/data 1.0 GiB",
        "patience period 10, timeout 1",
        "after the bridge adopt",
        "when idle sleep after 90 s",
        "quota a minute events 1200, messages 1200, bytes 1.0 GiB, calls 60000, media 0, soft 0.8",
        "restart policy always, in_row 6, per_hour 20, stable 600, longest_pause 60",
        "2 3m 4s oom killed by SIGKILL, out of memory",
        "1 2h 4s exit exit 3",
    ):
        assert line in lines, text
    assert lines.index("2 3m 4s oom killed by SIGKILL, out of memory") < lines.index("1 2h 4s exit exit 3")


def test_what_is_not_known_is_left_out(run: Run, fake: FakeBridge) -> None:
    nothing = {**AGENT, "health": {}, "usage": None, "peaks": None, "ends": [], "runs_on": None, "container_id": None}
    text = shown(run, fake, nothing | {"since_ms": None, "status": "", "wanted": False, "state": "stopped"})
    assert text.startswith("echo: stopped, generation 3, 2 restarts, stopped by hand\n")
    assert "Health" not in text
    assert "Last ends" not in text
    assert "auto (nothing runs)" in text
    assert "None" not in text


def test_why_it_could_not_even_be_started(run: Run, fake: FakeBridge) -> None:
    why = "image_missing: there is no image python:9"
    assert why in shown(run, fake, {**AGENT, "state": "failed", "ends": [], "last_end": why})
    text = shown(run, fake, {**AGENT, "state": "failed", "last_end": why})
    assert text.index(why) < text.index(END["text"])
    assert shown(run, fake, AGENT).count(END["text"]) == 1


def test_the_name_of_a_sandbox_is_shown_whole(run: Run, fake: FakeBridge) -> None:
    name = "sandbox-0123456789-echo-77"
    assert name in shown(run, fake, {**AGENT, "container_id": name})


def test_one_of_a_thing_is_one(run: Run, fake: FakeBridge) -> None:
    text = shown(run, fake, {**AGENT, "restarts": 1, "health": {**AGENT["health"], "unacknowledged": 1}})
    assert "1 restart," in text
    assert "1 event, the oldest" in text


def test_health_of_which_nothing_is_known(run: Run, fake: FakeBridge) -> None:
    text = shown(run, fake, {**AGENT, "health": dict.fromkeys(AGENT["health"])})
    assert "Health" not in text


def test_a_bridge_of_another_version(run: Run, fake: FakeBridge) -> None:
    assert shown(run, fake, {"name": "echo", "state": "ready"}).startswith("echo: ready")
