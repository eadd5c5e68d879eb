"""The example programs, run as a reader would run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armorclaw.testing.handles import AgentFactory, BridgeProcess, to_toml, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person


@pytest.mark.mission("P1.1")
@pytest.mark.parametrize(
    ("program", "answers"),
    [
        ("in_a_trio_program.py", {"tea": "order 1: tea", "cake": "order 2: cake"}),
        ("in_an_asyncio_program.py", {"tea": "aet", "cake": "ekac"}),
    ],
)
def test_a_person_is_answered(
    program: str,
    answers: dict[str, str],
    homeserver: Homeserver,
    armorclaw_folder: Path,
    matrix_user: Callable[[str], Person],
) -> None:
    settings = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    config = armorclaw_folder / "armorclaw.toml"
    config.write_text(to_toml(settings.config))
    alice = matrix_user("alice")
    room = alice.create_room("a room", invite=[settings.user_id])
    command = [sys.executable, str(Path(__file__).parent / program), str(config), room]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "listening\n" in iter(process.stdout.readline, "")  # after what structlog says by default
            alice.catch_up()
            for text, answer in answers.items():
                alice.send(room, text)
                assert alice.wait_for(lambda seen: True).body == answer
            process.send_signal(signal.SIGINT)  # Ctrl-C
            assert process.wait(20) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert not settings.socket.exists()


HERE = Path(__file__).parent


def ask(bridge: BridgeProcess, *words: str) -> list[dict[str, Any]]:
    environ = {**os.environ, "ARMORCLAW_SOCKET": str(bridge.socket)}
    done = subprocess.run(
        ["sh", str(HERE / "ask.sh"), *words], env=environ, check=True, capture_output=True, text=True, timeout=20
    )
    assert done.stdout.isascii()
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.mission("C.streaming", "P3.4", "P3.5")
def test_an_agent_is_asked_from_the_shell(
    bridge: BridgeProcess, agent: AgentFactory, matrix_user: Callable[[str], Person]
) -> None:
    assert ask(bridge, "status")[0]["result"]["state"] == "running"
    assert ask(bridge, "no.such.method")[0]["error"]["code"] == -32601
    alice = matrix_user("alice")
    room = alice.create_room("a room", invite=[bridge.user_id])
    agent(HERE / "counter/main.py", rooms=[room], name="counter")
    alice.send(room, "100")
    assert alice.wait_for(lambda seen: seen.sender == bridge.user_id).body == "25 primes"
    params = {"agent": "counter", "method": "primes", "params": {"below": 50}}
    said = ask(bridge, "agent.call", json.dumps(params))
    assert [each["params"]["data"] for each in said if each.get("method") == "$/chunk"] == [
        *(2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)  # more than 8: half-closed, it needs no credit
    ]
    assert [each["params"]["done"] for each in said if each.get("method") == "$/progress"][-1] == 15
    assert said[-1] == {"jsonrpc": "2.0", "id": 1, "result": 15}


@pytest.mark.mission("C.streaming", "P3.4")
def test_watching(bridge: BridgeProcess, agent: AgentFactory, matrix_user: Callable[[str], Person]) -> None:
    alice = matrix_user("alice")
    room = alice.create_room("a room", invite=[bridge.user_id])
    agent(HERE / "counter/main.py", rooms=[room], name="counter")
    command = [sys.executable, str(HERE / "watch.py"), str(bridge.socket)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            assert process.stdout.readline().startswith("bridge ")
            wait_until(lambda: watches(bridge), 20, "it has subscribed")
            alice.send(room, "not a number")
            missing = {f"{alice.user_id} in {room}: not a number", "ValueError: invalid literal"}  # agent's traceback
            while missing:
                line = process.stdout.readline()
                assert line, process.stderr.read()
                missing -= {text for text in missing if text in line}
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 0
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()


def watches(bridge: BridgeProcess) -> bool:
    """Whether the program that watches has subscribed: what is said before, it does not see."""
    return any(row["subscription"] == "watch" and row["connected"] for row in bridge.call("events.stats"))
