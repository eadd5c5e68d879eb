"""`armorclaw demo` as a person runs it: the proof is real, and nothing is left afterwards."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from armorclaw.testing.engines import EngineWithImage

COMMAND = [sys.executable, "-m", "armorclaw", "demo"]

PATIENCE = 20.0
"""Seconds in which what was told to end must be gone, on a machine that may have much else to do."""


def processes() -> dict[int, tuple[int, str]]:
    """pid → (its parent, its arguments), of all that run."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "stat").read_text().rpartition(")")[2].split()
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if words[0] != "Z":
            found[int(entry.name)] = (int(words[1]), command)
    return found


def family(root: int, folder: str) -> set[int]:
    """The descendants of `root`, and whoever else has the folder among its arguments."""
    all_of_them = processes()
    found = {root}
    while more := {pid for pid, (parent, _) in all_of_them.items() if parent in found} - found:
        found |= more
    return found | {pid for pid, (_, command) in all_of_them.items() if folder in command}


@attrs.define
class Demo:
    """A demo that runs."""

    process: subprocess.Popen[str]
    lines: list[str] = attrs.field(factory=list)

    def read_until(self, text: str) -> str:
        """The line that has `text`."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if text in line:
                return line
        assert self.process.stderr is not None
        raise AssertionError(f"{text!r} never came: {self.lines} {self.process.stderr.read()}")

    @property
    def folder(self) -> str:
        """Where it keeps everything."""
        match = re.search(r"(/\S*/armorclaw-demo-\w+)/run/bridge.sock", "".join(self.lines))
        assert match
        return match[1]

    def interrupt(self) -> int:
        """Ctrl-C, and the exit status."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(PATIENCE)


@contextmanager
def demo(*arguments: str, **environ: str) -> Iterator[Demo]:
    with subprocess.Popen(
        [*COMMAND, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    ) as process:
        try:
            yield Demo(process)
        finally:
            process.kill()


def assert_nothing_left(folder: str, pids: set[int]) -> None:
    deadline = time.monotonic() + PATIENCE  # a process whose parent is gone takes a moment to go
    while (left := pids & processes().keys()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not left, [processes().get(pid) for pid in left]
    assert not Path(folder).exists()
    assert folder not in Path("/proc/self/mountinfo").read_text()
    assert folder not in Path("/proc/net/unix").read_text()


@pytest.mark.mission("M.send", "P1.1")
def test_the_proof() -> None:
    """Plain lines when it is not a terminal; both event ids and the latency are shown."""
    done = subprocess.run(
        [*COMMAND, "--once", "--runtime", "sandbox"], capture_output=True, text=True, timeout=110, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    lines = done.stdout.splitlines()
    steps = [line for line in lines if line.startswith("✓ ")]
    assert len(steps) == 6
    assert all(re.search(r" \d+\.\d\d s$", step) for step in steps)
    assert re.search(r"proof: a message and its answer: \d+ ms", steps[-1])
    asked = re.fullmatch(r" +@you:localhost: (.+)   (\$\S+)", lines[-2])
    answered = re.fullmatch(r" +@echo:localhost: echo: (.+)   (\$\S+)", lines[-1])
    assert asked is not None
    assert answered is not None
    assert asked[1] == answered[1]
    assert asked[2] != answered[2]


@pytest.mark.parametrize("kind", ["sandbox", "docker", "podman"])
def test_ctrl_c_leaves_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    environ = {}
    engine: EngineWithImage | None = None
    if kind != "sandbox":
        engine = request.getfixturevalue(kind)
        assert engine is not None
        environ = {"DOCKER_HOST" if kind == "docker" else "CONTAINER_HOST": f"unix://{engine.socket_path}"}
    with demo("--runtime", kind, **environ) as running:
        running.read_until("Ctrl-C ends everything")
        folder = running.folder
        socket = f"{folder}/run/bridge.sock"
        status = json.loads(
            subprocess.check_output([*COMMAND[:-1], "status", "--json", "--socket", socket], text=True)
        )
        assert [agent["runtime"] for agent in status["agents"]] == [kind]
        pids = family(running.process.pid, folder)
        assert len(pids) >= (4 if kind == "sandbox" else 2)  # an engine's containers are its own children
        if engine is not None:
            assert containers(engine) == status["container_ids"]
        assert running.interrupt() == 0  # the proof was shown
    assert_nothing_left(folder, pids)
    if engine is not None:
        assert containers(engine) == []


def containers(engine: EngineWithImage) -> list[str]:
    from armorclaw.testing.engines import _http

    return [row["Id"] for row in _http(engine.engine.folder, "GET", "/containers/json?all=true") or []]


def homeserver_of(parent: int) -> tuple[int, str]:
    """The process that a demo has just started, and the demo's folder."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for pid, (its_parent, command) in processes().items():
            if its_parent == parent and (match := re.search(r"(/\S+)/synapse/homeserver.yaml", command)):
                return pid, match[1]
        time.sleep(0.01)
    raise AssertionError("it starts no homeserver")


@pytest.mark.parametrize("after", [0.0, 0.7])
def test_ctrl_c_before_the_proof(after: float) -> None:
    """Even while the homeserver is starting; the status tells that nothing was shown."""
    with demo("--runtime", "sandbox") as running:
        pid, folder = homeserver_of(running.process.pid)
        time.sleep(after)
        assert running.interrupt() == 130
        assert running.process.stdout is not None
        assert running.process.stdout.read().splitlines()[-1].startswith("✗ ")
        assert running.process.stderr is not None
        assert running.process.stderr.read() == ""
    assert_nothing_left(folder, {pid})


def test_unsafe_is_said_in_red() -> None:
    """On a terminal; and it is an ordinary process of the host."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*COMMAND, "--unsafe"],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        try:
            said = b""
            while b"Ctrl-C ends" not in said:
                said += os.read(ours, 4096)
            agents = [command for _, command in processes().values() if "echo_agent.py" in command]
            assert agents
            assert "bwrap" not in " ".join(agents)
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()
            os.close(ours)
    warning = next(line for line in said.decode().splitlines() if "UNSAFE" in line)
    assert "\x1b[1;31m" in warning


def test_unsafe_is_not_a_runtime_among_others() -> None:
    done = subprocess.run(
        [*COMMAND, "--unsafe", "--runtime", "sandbox"], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("armorclaw: --unsafe and --runtime cannot both be followed\nhint: armorclaw demo --help\n")


def test_without_a_homeserver(tmp_path: Path) -> None:
    """Three lines, its own status, and nothing is left."""
    (tmp_path / "synapse").mkdir()
    (tmp_path / "synapse" / "__init__.py").write_text("")
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", ""), os.getcwd()])
    done = subprocess.run(
        [*COMMAND, "--once"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": paths},
        check=False,
    )
    assert done.returncode == 1
    what, hint = done.stderr.splitlines()
    assert what.startswith("armorclaw: there is no Synapse for ")
    assert hint == "hint: pip install 'armorclaw[demo]'"
    assert done.stdout == "✗ homeserver (Synapse)\n"
