"""What `armorclaw run` does to its own process, tried in processes of their own."""

from __future__ import annotations

import json
import os
import pty
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from armorclaw.testing.handles import BridgeProcess, to_toml, wait_until


def python(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
        env={**os.environ, **environ},
        check=True,
    )


@pytest.mark.mission("S.3")
def test_hardened_before_the_first_secret() -> None:
    """No core file, no look into its memory by others of the same user, files of its own only."""
    done = python(
        "import os, resource, ctypes\n"
        "from armorclaw.cli.process import harden\n"
        "harden()\n"
        "print(resource.getrlimit(resource.RLIMIT_CORE), oct(os.umask(0)), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    assert done.stdout == "(0, 0) 0o77 0\n"
    assert resource.getrlimit(resource.RLIMIT_CORE) != (0, 0) or os.geteuid() != 0


@pytest.mark.parametrize(
    "given, found",
    [((64, 256), (256, 256)), ((64, 2048), (512, 2048)), ((1024, 2048), (1024, 2048)), ((64, 64), (64, 64))],
)
def test_it_has_room_for_all_connections(given: tuple[int, int], found: tuple[int, int]) -> None:
    """Whatever a shell or a service manager allows at first."""
    done = python(
        "import resource\n"
        "from armorclaw.cli import process\n"
        "process.DESCRIPTORS = 512\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, {given})\n"
        "process.allow_connections()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    assert done.stdout == f"{found}\n"


_LOG = """
import logging, structlog
from armorclaw.cli.process import set_up_logging
set_up_logging()
log = structlog.get_logger("x")
log.debug("hidden")
log.warning("first", zeta=1, alpha="a")
logging.getLogger("httpx").warning("hidden")
"""


def test_log_lines_are_json_where_nobody_looks() -> None:
    done = python(_LOG)
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    said = json.loads(line)
    assert list(said) == ["timestamp", "level", "event", "zeta", "alpha"]
    assert (said["level"], said["event"]) == ("warning", "first")


def test_log_lines_are_for_people_on_a_terminal() -> None:
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", _LOG], stderr=theirs, timeout=30, check=True)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert "first" in said
    assert "{" not in said


_FORGED = """
import structlog
from armorclaw.cli.process import set_up_logging
set_up_logging()
log = structlog.get_logger("x")
log.warning("first", why="a\\x1b[31m\\n2026 [error] forged\\u202e", room="!a\\x1b]0;t\\x07:x", agent="ada")
"""


def test_no_value_makes_a_line_of_its_own() -> None:
    """Nor colours of its own, nor a title of the window, nor text that runs backwards."""
    (line,) = python(_FORGED).stderr.splitlines()
    assert json.loads(line)["why"] == "a\x1b[31m\n2026 [error] forged\u202e"
    assert line.isprintable()
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", _FORGED], stderr=theirs, timeout=30, check=True)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert len(said.splitlines()) == 1
    own = re.sub(r"\x1b\[[0-9;]*m", "", said).rstrip()
    assert own.isprintable()
    assert "\x1b[31ma" not in said
    assert r"!a\x1b]0;t\x07:x" in own


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(abstract: bool, armorclaw_folder: Path) -> None:
    """READY=1 once callers are answered, STOPPING=1 when it begins to end."""
    address = f"\0armorclaw-test-{os.getpid()}" if abstract else str(armorclaw_folder / "notify")
    config = armorclaw_folder / "armorclaw.toml"
    config.write_text(to_toml({"bridge": {"state_dir": "state", "runtime_dir": "run"}}))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(address)
        systemd.settimeout(60)
        with subprocess.Popen(
            [sys.executable, "-m", "armorclaw", "run", "--config", str(config)],
            stderr=subprocess.DEVNULL,
            env={**os.environ, "NOTIFY_SOCKET": address.replace("\0", "@")},
        ) as daemon:
            try:
                assert systemd.recv(100) == b"READY=1"
                assert (armorclaw_folder / "run" / "bridge.sock").exists()
                daemon.send_signal(signal.SIGTERM)
                assert systemd.recv(100) == b"STOPPING=1"
                assert daemon.wait(30) == 0
            finally:
                daemon.kill()


def test_a_systemd_that_does_not_listen_is_no_hindrance(armorclaw_folder: Path) -> None:
    done = python("from armorclaw.cli.process import notify; notify('READY=1')", NOTIFY_SOCKET="/nowhere/at/all")
    assert "systemd does not listen" in done.stdout + done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_daemon_in_order(number: signal.Signals, armorclaw_folder: Path) -> None:
    with BridgeProcess(armorclaw_folder, {}) as bridge:
        process = bridge.process
        assert process is not None
        process.send_signal(number)
        assert process.wait(30) == 0
        bridge.process = None
        events = [json.loads(line)["event"] for line in bridge.log.read_text().splitlines()]
        events = [event for event in events if event != "the event loop stood still"]  # a busy machine makes it so
        assert events[0] == "bridge up"
        assert events[-4:] == ["stopping", "draining", "drained", "bridge stopped"]
        assert not bridge.socket.exists()


def test_a_second_signal_ends_it_at_once(armorclaw_folder: Path) -> None:
    """For an agent that takes its time; it goes as well."""
    code = armorclaw_folder / "main.py"
    code.write_text("import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(60)\n")
    agents = {"deaf": {"runtime": "process", "code": code, "ready_timeout": 0}}
    with BridgeProcess(armorclaw_folder, {"agents": agents}) as bridge:
        wait_until(lambda: bridge.call("status")["agents"][0]["state"] in ("running", "ready"), 30, "the agent runs")
        process = bridge.process
        assert process is not None
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: '"stopping"' in bridge.log.read_text(), 20, "it is stopping")
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM
        bridge.process = None


@pytest.mark.mission("S.1", "S.3")
def test_what_it_makes_is_its_own(armorclaw_folder: Path) -> None:
    """Whatever the umask it was started under."""
    before = os.umask(0)
    try:
        with BridgeProcess(armorclaw_folder, {}) as bridge:
            assert stat.S_IMODE(bridge.socket.stat().st_mode) == 0o600
            state = armorclaw_folder / "state"
            modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in state.iterdir() if path.is_file()}
    finally:
        os.umask(before)
    assert modes.pop("armorclaw.key") == 0o400
    assert modes
    assert set(modes.values()) == {0o600}
