"""The private engines themselves: nothing of them may outlive a test run, however that ended."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from armorclaw.testing import engines
from armorclaw.testing.engines import EngineFailed, Kind, private_engine, why_missing

KINDS: list[Kind] = ["docker", "podman"]


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    chosen: Kind = request.param
    if reason := why_missing(chosen):
        if os.environ.get("ARMORCLAW_REQUIRE_ALL") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return chosen


def answers(socket_path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(30)
        try:
            connection.connect(socket_path)
            connection.sendall(b"GET /_ping HTTP/1.0\r\nHost: x\r\n\r\n")
            return b" 200 OK" in connection.recv(100)
        except OSError:
            return False


def holders(folder: Path) -> list[int]:
    return list(engines._processes(folder, engines._OURS, False))


def mounts(folder: Path) -> list[str]:
    return [line for line in Path("/proc/self/mounts").read_text().splitlines() if f" {folder}/" in line]


def test_two_at_once_and_nothing_left(kind: Kind) -> None:
    with private_engine(kind) as first, private_engine(kind) as second:
        assert first.folder != second.folder
        assert answers(first.socket_path)
        assert answers(second.socket_path)
    for engine in (first, second):
        assert not engine.folder.exists()
        assert holders(engine.folder) == []
        assert mounts(engine.folder) == []


def test_a_crash_of_the_daemon_is_survived(kind: Kind) -> None:
    with private_engine(kind) as engine:
        engine.kill()
        assert not answers(engine.socket_path)
        engine.restart()
        assert answers(engine.socket_path)
        engine.kill()
    assert not engine.folder.exists()
    assert holders(engine.folder) == []


_RUN = """
import sys, time
from armorclaw.testing.engines import private_engine
with private_engine(sys.argv[1]) as engine:
    print(engine.folder, engine.daemon.pid, flush=True)
    time.sleep(60)
"""


def test_what_a_killed_run_left_is_cleared_away(kind: Kind) -> None:
    with subprocess.Popen([sys.executable, "-c", _RUN, kind], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        folder, daemon = run.stdout.readline().split()
        os.kill(int(daemon), signal.SIGSTOP)  # so that it cannot even notice
        run.kill()
    try:
        with private_engine(kind) as engine:  # takes the first free slot: the same
            assert str(engine.folder) == folder
            assert not engines._is_running(int(daemon))
            assert answers(engine.socket_path)
    finally:
        if engines._is_running(int(daemon)) and int(daemon) in holders(Path(folder)):
            os.kill(int(daemon), signal.SIGKILL)
    assert not Path(folder).exists()


def test_a_daemon_that_does_not_come_up_shows_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_podman", lambda folder: ["sh", "-c", "echo no luck; exit 3"])
    with pytest.raises(EngineFailed, match=r"podman ended with 3:\nno luck"), private_engine("podman"):
        pytest.fail("it does not come up")


def test_a_folder_of_somebody_else_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    root = tmp_path / "engines"
    root.mkdir(mode=0o755)
    monkeypatch.setattr(engines, "_ROOT", root)
    with pytest.raises(EngineFailed, match="not a private folder"), private_engine("podman"):
        pytest.fail("others may write there")


@pytest.mark.parametrize("program, hint", [("docker", "apt-get install docker.io"), ("podman", "podman runc")])
def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch, program: Kind, hint: str) -> None:
    monkeypatch.setattr(engines, "_path", lambda: "/nonexistent")
    reason = why_missing(program)
    assert reason is not None
    assert hint in reason
