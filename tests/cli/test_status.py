"""`armorclaw status`: data for programs, lines for people."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from armorclaw.cli.status import lines
from armorclaw.testing.handles import BridgeProcess

STATUS: dict[str, Any] = {
    "version": "1.2.3",
    "state": "running",
    "socket": "/run/armorclaw/bridge.sock",
    "containers": 1,
    "container_ids": ["abc"],
    "uptime_s": 61,
    "accounts": [],
    "agents": [],
}


def test_a_line_for_each_part() -> None:
    accounts = [
        {"account": "main", "state": "connected", "user_id": "@bot:x", "reason": "", "rooms_missing": ["!r:x"]},
        {"account": "other", "state": "waiting", "user_id": None, "reason": "cannot connect", "rooms_missing": []},
        {
            "account": "deaf",
            "state": "connected",
            "user_id": "@deaf:x",
            "reason": "",
            "rooms_missing": [],
            "encryption": "lost",
            "hint": "log in anew",
            "deaf": True,
            "decrypt_failures": 3,
        },
    ]
    agents = [
        {"name": "echo", "state": "ready", "generation": 1, "runtime": "docker", "last_end": ""},
        {"name": "sick", "state": "restarting", "generation": 7, "runtime": "sandbox", "last_end": "exit 3"},
    ]
    assert lines({**STATUS, "accounts": accounts, "agents": agents}) == [
        "bridge   running, version 1.2.3, up 61 s, /run/armorclaw/bridge.sock",
        "matrix   main             connected    @bot:x",
        "         not in the granted room !r:x",
        "matrix   other            waiting        cannot connect",
        "matrix   deaf             connected    @deaf:x",
        "         the keys of its device are lost: encrypted rooms cannot be used",
        "         log in anew",
        "         it cannot decrypt: 3 messages in the last hour",
        "agent    echo             ready        generation 1  docker",
        "agent    sick             restarting   generation 7  sandbox  last end: exit 3",
    ]


@pytest.mark.mission("C.status")
def test_of_a_bridge_that_runs(armorclaw_folder: Path) -> None:
    with BridgeProcess(armorclaw_folder, {}) as bridge:
        words = [sys.executable, "-m", "armorclaw", "status", "--config", str(armorclaw_folder / "armorclaw.toml")]
        shown = subprocess.check_output(words, text=True)
        data = json.loads(subprocess.check_output([*words, "--json"], text=True))
        answered = bridge.call("status")
    assert {**data, "uptime_s": 0} == {**answered, "uptime_s": 0}
    assert shown.startswith("bridge   running, version ")
    assert shown.count("\n") == 1
