"""Client verbs against a bridge that runs: that what they ask is what it offers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armorclaw.testing.handles import BridgeProcess, wait_until
from tests.cli.conftest import Run

AGENT = """\
import time
print("first line", flush=True)
time.sleep(60)
"""


@pytest.fixture
def bridge(armorclaw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BridgeProcess]:
    """With one agent, which prints a line; found by way of the environment, as it was started."""
    code = armorclaw_folder / "main.py"
    code.write_text(AGENT)
    agents = {"talker": {"runtime": "process", "code": code, "ready_timeout": 0}}
    monkeypatch.setenv("ARMORCLAW_SOCKET", str(armorclaw_folder / "run" / "bridge.sock"))
    with BridgeProcess(armorclaw_folder, {"agents": agents}) as bridge:
        wait_until(lambda: bridge.call("containers.list")[0]["state"] in ("running", "ready"), 20, "it runs")
        yield bridge


def told(run: Run, *words: str, stdin: str = "") -> Any:
    """What it says as JSON; several lines as a list."""
    done = run(*words, "--json", stdin=stdin)
    assert (done.status, done.err) == (0, ""), done
    lines = [json.loads(line) for line in done.out.splitlines()]
    return lines[0] if len(lines) == 1 else lines


def test_keys(run: Run, bridge: BridgeProcess) -> None:
    assert told(run, "keys", "add", "openai", "--tag", "t", stdin="sk-1")["id"] == "openai-default"
    (key,) = told(run, "keys", "ls")
    assert (key["id"], key["tags"]) == ("openai-default", ["t"])
    told(run, "keys", "rotate", "openai-default", stdin="sk-2")
    assert told(run, "call", "get_key", "--params", '{"id":"openai-default"}')["token"] == "sk-2"
    told(run, "keys", "rm", "openai-default", "--yes")
    assert told(run, "keys", "ls") == []
    assert run("keys", "rm", "openai-default", "--yes").status == 4
    assert b"sk-" not in bridge.log.read_bytes()


def test_containers(run: Run, bridge: BridgeProcess) -> None:
    assert told(run, "containers", "ls")[0]["name"] == "talker"
    assert told(run, "containers", "inspect", "talker")["runs_on"] == "process"
    wait_until(lambda: "first line\n" in run("containers", "logs", "talker").out, 20, "its line is there")
    assert run("containers", "logs", "talker", "--tail", "0").out == ""
    readings = told(run, "containers", "stats", "talker", "--count", "2", "--interval", "0.1")
    assert [row.get("name") for row in readings] == ["talker", "talker"]
    assert "main.py" in run("containers", "inspect", "talker").out
    assert run("containers", "logs", "talker", "-t").out.endswith(" first line\n")
    done = run("containers", "isolation", "talker")
    assert (done.status, done.err) == (1, ""), "a plain process is not confined"
    assert "pid namespace" in done.out
    wait_until(lambda: len(run("containers", "stats", "--history").out.splitlines()) >= 2, 20, "a reading is kept")
    assert 'armorclaw_agent_state{agent="talker"' in run("metrics").out
    assert run("containers", "restart", "talker").status == 0
    assert run("containers", "stop", "talker").status == 0
    assert told(run, "containers", "ls")[0]["state"] == "stopped"
    assert told(run, "containers", "start", "talker")["name"] == "talker"
    assert run("containers", "logs", "nobody").status == 4


def test_events(run: Run, bridge: BridgeProcess) -> None:
    """Those that there are, as they are; then following them, until Ctrl-C."""
    shown = run("events", "tail", "--since", "0", "--json").out.splitlines()
    assert shown
    seqs = [json.loads(line)["seq"] for line in shown]
    assert seqs == list(range(1, len(seqs) + 1))
    assert run("matrix", "tail").status == 0
    words = [sys.executable, "-m", "armorclaw", "events", "tail", "--follow", "--since", str(seqs[-1]), "--json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        bridge.call("stop", name="talker")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["seq"] == seqs[-1] + 1
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_who_follows_and_what_was_given_up(run: Run, bridge: BridgeProcess) -> None:
    for severity in ("info", "warning"):
        params = json.dumps({"type": "app.said", "content": {"é": 1}, "severity": severity})
        told(run, "call", "events.publish", "--params", params)
    lines = run("events", "tail", "--since", "10m", "--severity", "warning", "--json").out.splitlines()
    (event,) = [event for event in map(json.loads, lines) if event["type"] == "app.said"]
    assert (event["severity"], event["content"]) == ("warning", {"é": 1})
    (row,) = [row for row in told(run, "events", "ls") if row["owner"] == "talker"]
    assert (row["subscription"], row["named"], row["connected"], row["dead"]) == ("main", True, False, 0)
    assert run("events", "ls").out.splitlines()[1].split()[:3] == ["talker", "main", "no"]
    assert told(run, "events", "dead") == []
    for verb in (["redrive"], ["drop", "--yes"]):
        done = run("events", *verb, "--agent", "talker", "main", "1")
        assert (done.status, done.out) == (4, "")
        assert done.err.startswith("armorclaw: no dead letter 1 of subscription 'main'")


def test_the_rest(run: Run, bridge: BridgeProcess) -> None:
    assert told(run, "health")["status"] == "healthy"
    assert told(run, "outbox", "ls") == []
    assert run("outbox", "drop", "d_none", "--yes").status == 4
    assert run("matrix", "send", "!r:x", "hi").status != 0
    assert run("matrix", "login", "bot", stdin="pw").status == 1
    assert run("call", "nonsense").status == 2
    assert run("call", "webrtc.list").status in (0, 69)


def test_a_bridge_without_a_file(armorclaw_folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """`armorclaw run` takes variables and flags, and clients find it by the same variables."""
    monkeypatch.setenv("ARMORCLAW_BRIDGE_STATE_DIR", str(armorclaw_folder / "s"))
    monkeypatch.setenv("ARMORCLAW_BRIDGE_RUNTIME_DIR", str(armorclaw_folder / "r"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(armorclaw_folder / "none"))
    words = [sys.executable, "-m", "armorclaw", "run", "--set", "bridge.uid_base=23456"]
    with subprocess.Popen(words, stderr=subprocess.DEVNULL, env=dict(os.environ)) as process:
        try:
            wait_until(lambda: run("health").status == 0, 20, "it answers")
            assert told(run, "status")["socket"] == str(armorclaw_folder / "r" / "bridge.sock")
        finally:
            process.terminate()
        assert process.wait(30) == 0
