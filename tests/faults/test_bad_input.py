"""Hostile input to a daemon: others are answered meanwhile, and afterwards nothing is left of it."""

from __future__ import annotations

import grp
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import attrs
import pytest

from armorclaw.rpc.blocking import call
from armorclaw.testing.handles import BridgeProcess, to_toml, wait_until

HERE = Path(__file__).parent
GROUP = grp.getgrgid(65534).gr_name  # a group that nobody is in; attack.py runs as it

ANSWER = 10.0
"""Seconds in which others are answered, on a machine that may have much else to do."""

LONGEST = 0.05
"""Seconds of the processor that one turn of the daemon may take: what others wait for each other."""

ATTEMPTS = 3
"""One must hold: a core that is shared with another program makes seconds of the processor longer, too."""

DESCRIPTORS = 1024
"""What a system allows by default; connections alone may need as many."""


@attrs.frozen
class Footprint:
    """What the daemon holds."""

    descriptors: int
    threads: int
    tasks: int
    kilobytes: int


class Measured(BridgeProcess):
    """The daemon with a watch on its turns."""

    def spawn(self) -> None:
        file = self.folder / "armorclaw.toml"
        file.write_text(to_toml(self.config), encoding="utf-8")
        self._figures = self.folder / "figures.json"
        words = ["prlimit", f"--nofile={DESCRIPTORS}:", sys.executable, str(HERE / "measured.py"), str(self._figures)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*words, "run", "--config", str(file)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def forget(self) -> None:
        """Measure turns from now on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGUSR1)

    def figures(self) -> dict[str, Any]:
        assert self.process is not None
        self._figures.unlink(missing_ok=True)
        self.process.send_signal(signal.SIGUSR2)
        wait_until(self._figures.exists, 10, "the figures are there")
        found: dict[str, Any] = json.loads(self._figures.read_text())
        return found

    def footprint(self) -> Footprint:
        assert self.process is not None
        of = Path(f"/proc/{self.process.pid}")
        status = dict(line.split(":", 1) for line in (of / "status").read_text().splitlines())
        return Footprint(
            descriptors=len(os.listdir(of / "fd")),
            threads=int(status["Threads"]),
            tasks=self.figures()["living"],
            kilobytes=int(status["VmRSS"].split()[0]),
        )

    def has_let_go(self, before: Footprint) -> bool:
        """Whether it holds no more than it did."""
        now = self.footprint()
        return all(getattr(now, what) <= getattr(before, what) for what in ("descriptors", "threads", "tasks"))


@pytest.fixture(scope="module")
def bridge() -> Iterator[Measured]:
    folder = Path(tempfile.mkdtemp(prefix="armorclaw-", dir="/tmp"))
    folder.chmod(0o711)
    server = {"server": {"group": GROUP}} if os.geteuid() == 0 else {}
    made = Measured(folder, server)
    made.start()
    for _ in range(20):
        made.call("status")
    try:
        yield made
        assert made.stop() == 0
        said = made.log.read_text()
        assert "Traceback" not in said
        assert '"level": "error"' not in said
    finally:
        made.kill()
        shutil.rmtree(folder)


@contextmanager
def attack(name: str, bridge: Measured) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, str(HERE / "attack.py"), name, str(bridge.socket), "65534"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


class Other:
    """Somebody who just wants to know how the bridge is: on a connection of long standing, and on new ones."""

    def __init__(self, bridge: Measured) -> None:
        self._bridge = bridge
        self._sock = socket.socket(socket.AF_UNIX)
        self._sock.settimeout(ANSWER)
        self._sock.connect(str(bridge.socket))
        self._lines = self._sock.makefile("rb")
        self.answers = 0

    def ask(self) -> None:
        self._sock.sendall(b'{"jsonrpc":"2.0","id":1,"method":"health"}\n')
        assert json.loads(self._lines.readline())["result"]["status"] == "healthy"
        assert call(str(self._bridge.socket), "health", {}, timeout=ANSWER)["status"] == "healthy"
        self.answers += 2

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lines.close()
        self._sock.close()


def under(bridge: Measured, *names: str) -> dict[str, Any]:
    """What came of the attacks, during which another was answered, and after which nothing is left."""
    for _ in range(ATTEMPTS):
        before = bridge.footprint()
        bridge.forget()
        found = attacked(bridge, names)
        longest = bridge.figures()
        wait_until(lambda: bridge.has_let_go(before), 30, f"it holds no more than {before}")  # noqa: B023 - at once
        assert bridge.footprint().kilobytes < before.kilobytes + 48 * 1024
        if longest["longest"] < LONGEST:
            return found
    pytest.fail(f"others were held up: {longest}")


def attacked(bridge: Measured, names: tuple[str, ...]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with Other(bridge) as other, attack(names[0], bridge) as first, attack(names[-1], bridge) as second:
        running = {names[0]: first, names[-1]: second}
        while any(process.poll() is None for process in running.values()):
            other.ask()
            time.sleep(0.05)
        for name, process in running.items():
            assert process.stdout is not None
            assert process.wait() == 0
            found[name] = json.loads(process.stdout.read())
    assert other.answers >= 2
    return found


def until_made(bridge: Measured, wanted: int, made: Callable[[dict[str, Any]], int], *names: str) -> dict[str, Any]:
    """As `under`, again until they have made so much: what else a machine has to do keeps attackers from it, too."""
    deadline = time.monotonic() + 60
    so_far = 0
    while True:
        found = under(bridge, *names)
        so_far += made(found)
        if so_far >= wanted:
            return found
        assert time.monotonic() < deadline, f"{names} have made {so_far}"


@pytest.mark.mission("S.6")
def test_slow_ones_and_deaf_ones(bridge: Measured) -> None:
    """A thousand that send a byte a second, and some that send ten thousand calls and read no answer."""
    found = under(bridge, "loris", "deaf")
    slow, deaf = found["loris"], found["deaf"]
    assert slow["heard"] == {"-32700": slow["sockets"]}
    assert deaf["cut"] == 4
    assert deaf["taken"] < deaf["all"]
    assert slow["left"] == 0  # as all of the deaf, none was there for good


@pytest.mark.mission("S.6")
def test_rubbish_at_full_speed(bridge: Measured) -> None:
    def after_the_first(found: dict[str, Any]) -> int:
        """Connections in the place of those that the bridge closed."""
        return int(found["rubbish"]["connections"]) - 30

    found = until_made(bridge, 1, after_the_first, "rubbish", "descriptors")
    assert found["descriptors"]["answered"] == 200


@pytest.mark.mission("S.6")
def test_a_crowd_that_knocks_and_runs(bridge: Measured) -> None:
    until_made(bridge, 51, lambda found: int(found["knocking"]["count"]), "knocking", "knocking")


@pytest.mark.mission("S.6")
def test_asked_to_stop_under_attack(armorclaw_folder: Path) -> None:
    server = {"server": {"group": GROUP}} if os.geteuid() == 0 else {}
    with Measured(armorclaw_folder, server) as bridge:
        with attack("rubbish", bridge), attack("deaf", bridge), attack("knocking", bridge):
            time.sleep(1.0)
            began = time.monotonic()
            assert bridge.stop() == 0
            assert time.monotonic() - began < ANSWER
    said = bridge.log.read_text()
    assert "Traceback" not in said
    assert not bridge.socket.exists()
