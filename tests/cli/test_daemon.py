"""The daemon and signals: the first has it finish what it has, the second does not wait."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from armorclaw.rpc import blocking

# the daemon as it is, with an agent inside that takes its time over each message
_PROGRAM = """
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from armorclaw.cli import daemon
from armorclaw.config import BridgeSection, Config
from armorclaw.events.event import Event

folder, seconds, drain_s, said = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4:]
ROOM = "!r:x"
real = daemon.open_bridge


async def handle(message):
    print("begun", message.body, message.redelivered, flush=True)
    with trio.move_on_after(seconds):
        while not (folder / "go on").exists():
            await trio.sleep(0.01)
    print("done", message.body, flush=True)


@asynccontextmanager
async def open_bridge(config):
    async with real(config) as bridge, trio.open_nursery() as nursery:
        agent = bridge.attach("slow", rooms=[ROOM])
        agent.on_message(handle)
        await nursery.start(agent.run)
        for text in said:
            content = {"msgtype": "m.text", "body": text}
            where = {"account": "main", "room_id": ROOM, "sender": "@a:x", "event_id": f"${text}"}
            await bridge.journal.record([Event.make("m.room.message", content, at_ms=0, **where)])
        yield bridge


daemon.open_bridge = open_bridge
section = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run", drain_s=drain_s)
trio.run(daemon.daemon, Config(bridge=section))
print("ended", flush=True)
"""


class Daemon:
    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.socket = folder / "run" / "bridge.sock"
        self.go_on = folder / "go on"
        self._said: IO[str] = process.stdout

    def line(self) -> str:
        return self._said.readline().strip()

    def signal(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def until_draining(self, connection: blocking.Connection) -> None:
        deadline = time.monotonic() + 30
        while connection.call("status")["state"] != "draining":
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def end(self) -> tuple[int, list[str]]:
        """Its exit status, and what it said at last."""
        rest = self._said.read().splitlines()
        return self.process.wait(30), rest


Start = Callable[..., Daemon]


@pytest.fixture
def start(armorclaw_folder: Path) -> Iterator[Start]:
    """`start("text", seconds=…, drain_s=…)`: a daemon whose agent hears the texts, and is at each so long at most."""
    begun: list[subprocess.Popen[str]] = []

    def run(*said: str, seconds: float, drain_s: float) -> Daemon:
        words = [sys.executable, "-c", _PROGRAM, str(armorclaw_folder), str(seconds), str(drain_s), *said]
        process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        begun.append(process)
        return Daemon(process, armorclaw_folder)

    yield run
    for process in begun:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@contextmanager
def connected(daemon: Daemon) -> Iterator[blocking.Connection]:
    with blocking.Connection(str(daemon.socket), timeout=30) as connection:
        connection.call("status")  # it is accepted, which connecting alone does not tell
        yield connection


@pytest.mark.mission("P3.1")
def test_sigterm_finishes_what_is_in_hand(start: Start) -> None:
    """Of two messages in a room, one is being handled and one waits for it: both were given, so both are done."""
    daemon = start("one", "two", seconds=60, drain_s=60)
    assert daemon.line() == "begun one 0"
    with connected(daemon) as connection:
        daemon.signal()
        daemon.until_draining(connection)
        assert connection.call("delivery.list") == []
    daemon.go_on.touch()
    status, said = daemon.end()
    assert said == ["done one", "begun two 0", "done two", "ended"]
    assert status == 0
    assert not daemon.socket.exists()


def test_what_takes_too_long_comes_again_in_the_next_life(start: Start) -> None:
    """And is marked; the end is in time and in order all the same."""
    daemon = start("one", seconds=60, drain_s=0.5)
    assert daemon.line() == "begun one 0"
    began = time.monotonic()
    daemon.signal()
    assert daemon.end() == (0, ["ended"])
    assert 0.4 < time.monotonic() - began < 30
    daemon = start(seconds=0, drain_s=0.5)
    assert [daemon.line(), daemon.line()] == ["begun one 1", "done one"]


def test_a_second_signal_does_not_wait(start: Start) -> None:
    daemon = start("one", seconds=60, drain_s=60)
    assert daemon.line() == "begun one 0"
    with connected(daemon) as connection:
        daemon.signal()
        daemon.until_draining(connection)
        began = time.monotonic()
        daemon.signal()
        assert daemon.end() == (-signal.SIGTERM, [])
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("drain_s", [0, 60])
def test_nothing_in_hand_is_no_reason_to_wait(start: Start, drain_s: float) -> None:
    daemon = start("one", seconds=0, drain_s=drain_s)
    assert [daemon.line(), daemon.line()] == ["begun one 0", "done one"]
    began = time.monotonic()
    daemon.signal()
    assert daemon.end() == (0, ["ended"])
    assert time.monotonic() - began < 30
