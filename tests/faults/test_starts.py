"""What keeps a bridge from starting, or a caller from reaching it, is said in three lines: what, why, what next.

Each has an exit status of its own, nobody sees a traceback, and once the cause is gone nothing is missing.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from armorclaw.errors import ERRORS, ArmorclawError
from armorclaw.testing.engines import Kind, engine_with_image, why_missing
from armorclaw.testing.handles import AgentFactory, BridgeProcess, to_toml, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from armorclaw.testing.plugin import missing
from tests.faults.disk import small_disk
from tests.house import House, echo

NOBODY = 65534
TOKEN = "sk-kept-over-every-fault"
SECONDS = 30.0
"""In which anything must have happened, on a machine that may have much else to do."""

PYTHON = [sys.executable, "-m", "armorclaw"]

# as a user that may not even read the interpreter: everything is imported before the change
AS_NOBODY = f"""
import os, sys
import armorclaw.cli.daemon, armorclaw.cli.root, armorclaw.cli.run, armorclaw.cli.status
import armorclaw.config_layers, armorclaw.rpc.denied, armorclaw.rpc.failure
os.setgroups([])
os.setresgid({NOBODY}, {NOBODY}, {NOBODY})
os.setresuid({NOBODY}, {NOBODY}, {NOBODY})
armorclaw.cli.main(sys.argv[1:])
"""


def run(*arguments: str | Path, command: list[str] = PYTHON) -> subprocess.CompletedProcess[str]:
    words = [*command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL, check=False)


def complaint(done: subprocess.CompletedProcess[str], name: str) -> str:
    """What it said, which must have the form of every error and the status of this one."""
    assert done.returncode == ERRORS[name].exit_status, done
    assert done.stdout == ""
    lines = [
        line for line in done.stderr.splitlines() if not line.startswith("{")
    ]  # what it logged before, as of lag
    assert [line.partition(": ")[0] for line in lines] in (
        ["armorclaw", "why", "hint"],
        ["armorclaw", "hint"],
    ), done.stderr
    assert all(line.partition(": ")[2] for line in lines)
    return done.stderr


def write_config(folder: Path, **sections: Any) -> Path:
    file = folder / "armorclaw.toml"
    sections.setdefault("bridge", {"state_dir": folder / "state", "runtime_dir": folder / "run"})
    file.write_text(to_toml(sections))
    return file


@pytest.fixture
def bridge(armorclaw_folder: Path) -> Iterator[BridgeProcess]:
    """A daemon without Matrix that keeps a key; not started."""
    made = BridgeProcess(armorclaw_folder, {})
    made.start()
    made.call("store_key", id="kept", provider="openai", token=TOKEN)
    assert made.stop() == 0
    yield made
    made.kill()


def assert_nothing_lost(bridge: BridgeProcess) -> None:
    bridge.start()
    assert bridge.call("get_key", id="kept")["token"] == TOKEN
    assert bridge.stop() == 0


def run_config(bridge: BridgeProcess, *, command: list[str] = PYTHON) -> subprocess.CompletedProcess[str]:
    return run("run", "--config", bridge.folder / "armorclaw.toml", command=command)


# -- the configuration


def test_no_configuration(tmp_path: Path) -> None:
    said = complaint(run("run", "--config", tmp_path / "none.toml"), "config_invalid")
    assert f"cannot read {tmp_path}/none.toml\nwhy: No such file" in said


def test_a_configuration_that_is_not_toml(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text("[bridge]\nstate_dir = \n")
    assert "why: Invalid value (at line 2" in complaint(run("run", "--config", tmp_path / "c.toml"), "config_invalid")


@pytest.mark.parametrize("verb", [["run"], ["config", "check"]])
def test_every_fault_of_a_configuration_is_named_at_once(tmp_path: Path, verb: list[str]) -> None:
    file = write_config(
        tmp_path,
        bridge={"stat_dir": "x", "uid_base": -1},
        accounts={"main": {"homeserver": "ftp://matrix.org", "user": "@bot:matrix.org", "password": "hunter2"}},
        agents={"../../etc": {"image": "x"}, "b": {}},
    )
    done = run(*verb, "--config", file)
    assert (done.returncode, done.stdout) == (11, "")
    first, *faults, hint = done.stderr.splitlines()
    assert first == f"armorclaw: {file}: 6 faults"
    assert hint == f"hint: mend this and see with: armorclaw config check --config {file}"
    assert faults[0].startswith("why: ")
    shown = [fault[5:].removeprefix(f"{file}:").partition(": ")[2] for fault in faults]
    assert all(" → " in fault for fault in shown)
    assert sorted(fault.partition(": ")[0] for fault in shown) == [
        "accounts.main.homeserver",
        "accounts.main.password",
        'agents."../../etc"',
        "agents.b",
        "bridge.stat_dir",
        "bridge.uid_base",
    ]
    assert "hunter2" not in done.stderr


def test_an_agent_with_a_name_that_is_a_path(bridge: BridgeProcess) -> None:
    """Refused over the socket as in the configuration, before any file is made."""
    bridge.start()
    before = sorted(bridge.folder.rglob("*"))
    for name in ("../up", "a/b", ".", "", "a\0b", "A", "a" * 40):
        with pytest.raises(ArmorclawError) as caught:
            bridge.call("start", name=name, runtime="sandbox", command=["true"])
        assert caught.value.name == "invalid_params", name
    assert [path for path in sorted(bridge.folder.rglob("*")) if path not in before] == []


def test_a_socket_path_that_is_too_long(armorclaw_folder: Path) -> None:
    where = {"state_dir": armorclaw_folder / "state", "runtime_dir": armorclaw_folder / ("r" * 100)}
    said = complaint(run("run", "--config", write_config(armorclaw_folder, bridge=where)), "path_too_long")
    assert "107 bytes" in said
    assert said.endswith("hint: choose a shorter runtime_dir\n")


def test_a_socket_path_that_is_too_long_for_an_agent(armorclaw_folder: Path) -> None:
    """The bridge's own would fit."""
    where = {"state_dir": armorclaw_folder / "state", "runtime_dir": armorclaw_folder / ("r" * 50)}
    file = write_config(armorclaw_folder, bridge=where, agents={"a" * 30: {"command": ["true"]}})
    said = complaint(run("run", "--config", file), "path_too_long")
    assert "a" * 30 in said
    assert "a shorter name" in said


# -- somebody else is there already


def test_a_second_daemon(bridge: BridgeProcess) -> None:
    bridge.start()
    assert bridge.process is not None
    said = complaint(run_config(bridge), "already_running")
    assert f"why: process {bridge.process.pid} holds " in said
    assert bridge.call("status")["state"] == "running"
    assert bridge.stop() == 0
    assert_nothing_lost(bridge)


def test_a_second_daemon_at_the_same_socket(bridge: BridgeProcess, tmp_path: Path) -> None:
    bridge.start()
    file = write_config(tmp_path, bridge={"state_dir": tmp_path / "state", "runtime_dir": bridge.socket.parent})
    assert str(bridge.socket) in complaint(run("run", "--config", file), "already_running")
    assert bridge.call("status")["state"] == "running"


def test_the_socket_of_a_daemon_that_was_killed_is_no_hindrance(bridge: BridgeProcess) -> None:
    bridge.start()
    bridge.kill()
    assert bridge.socket.exists()
    assert_nothing_lost(bridge)


# -- the key file and the disk


@pytest.mark.parametrize(
    "harm, why",
    [
        (lambda key: key.chmod(0o644), "its mode 0644 lets others at it"),
        (lambda key: key.rename(key.with_name("away")), "can be read with its key only"),
        (lambda key: (key.unlink(), key.write_text("short"), key.chmod(0o400)), "64 hexadecimal digits"),
        (lambda key: (key.unlink(), key.mkdir()), "not a regular file"),
    ],
    ids=["loose", "missing", "short", "folder"],
)
def test_a_key_file_that_cannot_be_used(bridge: BridgeProcess, harm: Any, why: str) -> None:
    key = bridge.folder / "state" / "armorclaw.key"
    kept = key.read_bytes()
    harm(key)
    said = complaint(run_config(bridge), "key_file_unreadable")
    assert why in said
    assert kept.decode().strip() not in said
    key.rmdir() if key.is_dir() else key.unlink(missing_ok=True)
    key.write_bytes(kept)
    key.chmod(0o400)
    assert_nothing_lost(bridge)


def test_a_key_of_another_database(bridge: BridgeProcess) -> None:
    key = bridge.folder / "state" / "armorclaw.key"
    kept = key.read_bytes()
    for content, name in ((b"ab" * 32, "storage_corrupt"), (kept, "")):
        key.chmod(0o600)
        key.write_bytes(content)
        key.chmod(0o400)
        if name:
            assert "the key does not fit: it is not the one" in complaint(run_config(bridge), name)
    assert_nothing_lost(bridge)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_files_of_somebody_else(bridge: BridgeProcess) -> None:
    """The key is root's; whoever else runs the bridge gets no further than the lock, or the key."""
    nobody = [sys.executable, "-c", AS_NOBODY]
    state, config = bridge.folder / "state", bridge.folder / "armorclaw.toml"
    config.chmod(0o644)
    assert "armorclaw.db.lock\nwhy: Permission denied\n" in complaint(
        run("run", "--config", config, command=nobody), "storage_failed"
    )
    for path in (state, *state.glob("armorclaw.db*")):
        os.chown(path, NOBODY, NOBODY)
    said = complaint(run("run", "--config", config, command=nobody), "key_file_unreadable")
    assert f"armorclaw.key\nwhy: Permission denied\nhint: run as the user that owns {state}" in said
    assert_nothing_lost(bridge)


def test_a_folder_that_cannot_be_made(armorclaw_folder: Path) -> None:
    (armorclaw_folder / "file").write_text("")
    where = {"state_dir": armorclaw_folder / "file" / "state", "runtime_dir": armorclaw_folder / "run"}
    said = complaint(run("run", "--config", write_config(armorclaw_folder, bridge=where)), "storage_failed")
    assert "why: Not a directory\nhint: make it: install -d" in said


def test_a_full_disk_at_the_first_start(armorclaw_folder: Path) -> None:
    """At a later start there is room that was kept back: see test_storage."""
    disk = armorclaw_folder / "disk"
    disk.mkdir()
    where = {"state_dir": disk / "state", "runtime_dir": armorclaw_folder / "run"}
    file = write_config(armorclaw_folder, bridge=where)
    with small_disk(disk, "512k") as small:
        small.fill()
        said = complaint(run("run", "--config", file, command=[*small.inside, *PYTHON]), "key_file_unreadable")
        assert "No space left" in said
        assert str(disk) in said.splitlines()[-1]
        small.free()
        command = [*small.inside, *PYTHON, "run", "--config", str(file)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            wait_until(lambda: answers(armorclaw_folder / "run" / "bridge.sock"), SECONDS, "the bridge is up")
            process.send_signal(signal.SIGTERM)
            assert process.wait(20) == 0


def answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# -- callers


def test_no_daemon(tmp_path: Path) -> None:
    said = complaint(run("status", "--socket", tmp_path / "none.sock"), "daemon_unreachable")
    assert said.endswith("why: there is no such socket\nhint: start it with: armorclaw run\n")


def test_a_daemon_that_has_died(bridge: BridgeProcess) -> None:
    bridge.start()
    bridge.kill()
    said = complaint(run("status", "--socket", bridge.socket), "daemon_unreachable")
    assert "left from one that has ended" in said


@pytest.mark.mission("S.1")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to become somebody else")
def test_a_socket_that_is_not_for_this_user(bridge: BridgeProcess) -> None:
    bridge.start()
    nobody = [sys.executable, "-c", AS_NOBODY]
    said = complaint(run("status", "--socket", bridge.socket, command=nobody), "socket_denied")
    assert "why: it is for its owner alone\nhint: run as the user that owns the bridge" in said


def test_a_socket_path_no_socket_can_have(tmp_path: Path) -> None:
    complaint(run("status", "--socket", tmp_path / ("x" * 120)), "path_too_long")


# -- what the bridge needs is not there: it runs all the same, and says what it waits for


def log_of(bridge: BridgeProcess) -> str:
    return bridge.log.read_text()


def test_without_matrix(bridge: BridgeProcess) -> None:
    bridge.start()
    nobody = {"user_id": None, "logged_in": False}
    assert bridge.call("matrix.status") == {"enabled": False, "status": "not_configured", **nobody}
    assert bridge.call("health") == {"status": "healthy", "reasons": []}
    with pytest.raises(ArmorclawError) as caught:
        bridge.call("matrix.send", room_id="!room:x", message="hello")
    assert caught.value.name == "matrix_not_configured"
    assert "[accounts.main]" in caught.value.hint


@pytest.mark.mission("M.login")
def test_a_homeserver_that_is_not_up_yet(bridge: BridgeProcess, homeserver: Homeserver) -> None:
    """It comes up, says that it waits, and connects by itself once there is a homeserver."""
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
    homeserver.register(name := f"late-{port}", "secret")
    (bridge.folder / "password").write_text("secret")
    bridge.config["accounts"] = {
        "main": {
            "homeserver": f"http://127.0.0.1:{port}",
            "user": name,
            "password_file": bridge.folder / "password",
        }
    }
    bridge.start(connected=False)
    (account,) = wait_until(
        lambda: [a for a in bridge.call("status")["accounts"] if a["state"] == "waiting"],
        SECONDS,
        "it says that it waits",
    )
    assert "cannot connect" in account["reason"]
    assert bridge.call("health")["status"] == "degraded"
    assert '"waiting for homeserver"' in log_of(bridge)
    assert f"http://127.0.0.1:{port}" in log_of(bridge)
    shown = run("status", "--socket", bridge.socket).stdout
    assert "waiting" in shown
    assert "cannot connect" in shown
    forward = ["socat", f"TCP-LISTEN:{port},fork,reuseaddr,bind=127.0.0.1", f"TCP:127.0.0.1:{homeserver.port}"]
    with subprocess.Popen(forward) as process:
        try:
            wait_until(bridge._connected, SECONDS, "it is connected")
        finally:
            process.terminate()
    assert bridge.stop() == 0


@pytest.mark.mission("K.start", "K.status")
def test_an_engine_that_is_not_there(bridge: BridgeProcess) -> None:
    """Its agents say why they do not run, all others run, and once it is there they run by themselves."""
    if reason := why_missing("docker"):
        missing(reason)
    link = bridge.folder / "engine.sock"
    bridge.config["bridge"]["engine_socket"] = link
    code = bridge.folder / "main.py"
    code.write_text("from armorclaw.agent import Agent\nAgent().run()\n")
    bridge.config["agents"] = {
        "boxed": {"runtime": "docker", "image": "placeholder", "code": code},
        "near": {"runtime": "sandbox", "code": code},
    }
    bridge.start()
    wait_until(lambda: standing(bridge, "near")["ready"], SECONDS, "the other agent is ready")
    wait_until(lambda: standing(bridge, "boxed")["last_end"], SECONDS, "the agent says what is wrong")
    with pytest.raises(ArmorclawError) as caught:
        bridge.call("start", name="third", image="placeholder", runtime="docker")
    assert caught.value.name == "engine_unreachable"
    assert caught.value.kind.exit_status == 75
    assert "there is no such socket" in str(caught.value)
    wait_until(lambda: standing(bridge, "boxed")["state"] == "restarting", SECONDS, "it waits between two attempts")
    boxed = standing(bridge, "boxed")
    assert f"…/{link.name}" in boxed["last_end"]  # observers read it, too: the path is for the log
    assert '"agent waits", "agent": "boxed"' in log_of(bridge)
    assert str(link) in log_of(bridge)
    waits = ["agent boxed is restarting"]
    wait_until(lambda: bridge.call("health")["reasons"] == waits, SECONDS, "it is the one thing that is amiss")
    bridge.stop()
    with engine_with_image("docker") as engine:
        bridge.config["agents"]["boxed"]["image"] = engine.image
        bridge.start()
        link.symlink_to(engine.socket_path)
        wait_until(lambda: standing(bridge, "boxed")["ready"], SECONDS, "the agent is ready")
        assert bridge.stop() == 0


def standing(bridge: BridgeProcess, name: str) -> dict[str, Any]:
    return next(row for row in bridge.call("containers.list") if row["name"] == name)


@pytest.mark.mission("P0.1", "P0.3")
@pytest.mark.parametrize("kind", ["docker", "podman"])
def test_an_engine_that_dies_while_agents_run(
    kind: Kind, homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Any
) -> None:
    """The bridge and the other agents live on; once the engine is back, what was said meanwhile is answered, once."""
    if reason := why_missing(kind):
        missing(reason)
    with engine_with_image(kind) as engine:
        bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
        bridge.config["bridge"]["engine_socket"] = engine.socket_path
        alice: Person = matrix_user("alice")
        room = alice.create_room("a room", invite=[bridge.user_id])
        with bridge:
            house = House(bridge, alice, room, kind, engine.image, AgentFactory(bridge, missing))
            agent = house.start(echo)
            assert house.ask("before") == "echo: before"
            engine.engine.kill()
            alice.send(room, "meanwhile")
            wait_until(lambda: agent.standing["state"] in ("unknown", "restarting"), SECONDS, "the loss is noticed")
            assert bridge.call("status")["accounts"][0]["connected"]
            time.sleep(0.5)
            engine.engine.restart()
            agent.wait_ready(seconds=60.0)
            alice.send(room, "after")
            assert house.hear_until("echo: after") == ["echo: meanwhile", "echo: after"]
            assert bridge.call("health")["status"] == "healthy"


@pytest.mark.parametrize("house_runtime", ["docker", "podman"], indirect=True)
def test_an_image_that_is_missing(house: House) -> None:
    """Never pulled silently: the error names the command that pulls it."""
    house.bridge.stop()
    house.bridge.config["agents"] = {"boxed": {"runtime": house.runtime, "image": "no-such-image:1"}}
    house.bridge.start()
    wait_until(lambda: standing(house.bridge, "boxed")["state"] == "restarting", SECONDS, "it cannot start")
    assert "no-such-image:1" in standing(house.bridge, "boxed")["last_end"]
    assert f'"hint": "{house.runtime} pull ' in log_of(house.bridge)


def test_a_command_that_is_not_there(bridge: BridgeProcess) -> None:
    """An agent that cannot be started says so; it is not "stopped", which is what a person asks for."""
    bridge.config["agents"] = {"y": {"runtime": "sandbox", "command": ["no-such-program"]}}
    bridge.start()
    wait_until(lambda: standing(bridge, "y")["state"] == "restarting", SECONDS, "it cannot start")
    assert "no-such-program" in standing(bridge, "y")["last_end"]


def test_asked_to_stop_while_it_starts(armorclaw_folder: Path) -> None:
    """An engine that accepts and never answers holds the start up, not the stop."""
    hung = socket.socket(socket.AF_UNIX)
    with hung:
        hung.bind(str(armorclaw_folder / "engine.sock"))
        hung.listen()
        bridge = BridgeProcess(armorclaw_folder, {})
        bridge.config["bridge"]["engine_socket"] = armorclaw_folder / "engine.sock"
        bridge.spawn()
        wait_until(lambda: (armorclaw_folder / "state" / "armorclaw.db").exists(), SECONDS, "it has begun to start")
        began = time.monotonic()
        assert bridge.stop() == 0
        assert time.monotonic() - began < 15  # its answer is waited for twice as long
