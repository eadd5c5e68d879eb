"""Agents in processes of their own, as the bridge starts them."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from .conftest import FINGERPRINT, ROOT, FakeBridge, Refuse, Spawn, no_warnings

ASYNC_ECHO = """
from armorclaw.agent import AsyncAgent

agent = AsyncAgent()

@agent.on_message
async def reply(msg):
    await msg.reply("echo: " + msg.body)

agent.run()
"""

SLOW = """
import time
from armorclaw.agent import Agent

agent = Agent()

@agent.on_message
def reply(msg):
    agent.call("begun")
    time.sleep(0.3)
    msg.reply("late")

agent.run()
print("after run")
"""


@pytest.fixture(params=["blocking", "asyncio"])
def echo(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "blocking":
        return str(ROOT / "examples/echo/main.py")
    script = tmp_path / "main.py"
    script.write_text(ASYNC_ECHO)
    return str(script)


@pytest.mark.mission("P0.2")
def test_the_example_answers_and_ends_on_sigterm(spawn: Spawn, bridge: FakeBridge, echo: str) -> None:
    process = spawn(echo)
    bridge.wait_for("events.subscribe")
    assert bridge.of("agent.ready")[0]["fingerprint"] == FINGERPRINT
    bridge.wait_acked(bridge.say("hello"))
    assert bridge.of("matrix.send")[0]["message"] == "echo: hello"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0
    slow = re.compile(r"Executing <.*> took \d+\.\d+ seconds\n")  # asyncio in development mode, on a busy machine
    assert slow.sub("", err) == ""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_handler_that_runs_is_finished_first(spawn: Spawn, bridge: FakeBridge, number: int) -> None:
    process = spawn("-c", SLOW)
    bridge.wait_for("agent.ready")
    seq = bridge.say("x")
    bridge.wait_for("begun")
    process.send_signal(number)
    process.send_signal(number)  # a wrapper and a terminal may both send one
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "after run\n")
    no_warnings(err)
    assert bridge.acked == {seq}
    assert bridge.of("matrix.send")[0]["message"] == "late"


def test_shutdown_ends_the_process_with_0(spawn: Spawn, bridge: FakeBridge, echo: str) -> None:
    process = spawn(echo)
    bridge.wait_for("events.subscribe")
    bridge.wait(lambda: bridge._session is not None)
    bridge.ask("agent.shutdown")
    assert process.wait(30) == 0


def test_sigterm_while_there_is_no_bridge(spawn: Spawn, bridge: FakeBridge, echo: str) -> None:
    bridge.stop()
    process = spawn(echo)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("armorclaw: waiting for the bridge at ")
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_a_refused_agent_ends_with_the_reason(spawn: Spawn, bridge: FakeBridge, echo: str) -> None:
    def refuse(params: Any) -> Any:
        raise Refuse(-32001, "denied")

    bridge.script["agent.ready"] = refuse
    process = spawn(echo)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "refused: denied" in err


SEALED_OFF = """
import ctypes, os, resource
from armorclaw.agent import {kind}

agent = {kind}()

@agent.on_message
{word}def look(msg):
    core = resource.getrlimit(resource.RLIMIT_CORE)
    opened = [os.path.realpath("/proc/self/fd/" + fd) for fd in os.listdir("/proc/self/fd")]
    memfds = [path for path in opened if "memfd" in path]
    {wait}agent.call("seen", dumpable=ctypes.CDLL(None).prctl(3), core=core, memfds=memfds)

agent.run()
"""


@pytest.mark.parametrize(("kind", "word", "wait"), [("Agent", "", ""), ("AsyncAgent", "async ", "await ")])
def test_the_process_is_sealed_off(spawn: Spawn, bridge: FakeBridge, kind: str, word: str, wait: str) -> None:
    """PR_GET_DUMPABLE is 3 in <linux/prctl.h>: with 0, nobody of the same uid may read its memory."""
    spawn("-c", SEALED_OFF.format(kind=kind, word=word, wait=wait))
    bridge.wait_acked(bridge.say("x"))
    assert bridge.of("seen") == [{"dumpable": 0, "core": [0, 0], "memfds": []}]
