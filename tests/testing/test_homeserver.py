"""The homeserver helper against a real Synapse, and what it says when there is none."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.testing.homeserver import Homeserver


@pytest.fixture(scope="module")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    with Homeserver(tmp_path_factory.mktemp("hs") / "synapse") as running:
        yield running


def log_in(url: str, user: str, password: str) -> str:
    body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": password}
    request = urllib.request.Request(f"{url}/_matrix/client/v3/login", json.dumps(body).encode())
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
        token: str = json.loads(answer.read())["access_token"]
        return token


def test_a_registered_user_can_log_in(homeserver: Homeserver) -> None:
    assert homeserver.register("ann", "secret") == "@ann:localhost"
    assert log_in(homeserver.url, "ann", "secret")


def test_a_second_user_of_the_same_name_is_a_conflict(homeserver: Homeserver) -> None:
    homeserver.register("bob", "secret")
    with pytest.raises(ArmorclawError) as caught:
        homeserver.register("bob", "other")
    assert caught.value.name == "conflict"


def test_users_and_port_survive_a_kill(homeserver: Homeserver) -> None:
    homeserver.register("carl", "secret")
    url = homeserver.url
    homeserver.kill()
    homeserver.kill()  # nothing to do
    homeserver.start()
    assert homeserver.url == url
    assert log_in(url, "carl", "secret")


def test_it_is_in_a_session_of_its_own_and_its_files_are_private(homeserver: Homeserver) -> None:
    assert homeserver.pid is not None
    assert os.getsid(homeserver.pid) == homeserver.pid != os.getsid(0)
    assert homeserver.state_dir.stat().st_mode & 0o077 == 0
    assert (homeserver.state_dir / "homeserver.yaml").stat().st_mode & 0o077 == 0


def test_starting_twice_is_refused(homeserver: Homeserver) -> None:
    with pytest.raises(ArmorclawError) as caught:
        homeserver.start()
    assert caught.value.name == "already_running"


def test_without_synapse_it_says_what_to_install(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S -I "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(ArmorclawError) as caught:
        Homeserver(tmp_path / "hs", python=str(bare)).start()
    assert caught.value.name == "runtime_missing"
    assert "armorclaw[demo]" in caught.value.hint


def test_a_start_that_fails_names_the_reason(tmp_path: Path) -> None:
    broken = Homeserver(tmp_path, server_name="not a name")
    with pytest.raises(ArmorclawError) as caught:
        broken.start()
    assert caught.value.name == "start_failed"
    assert caught.value.why
    assert broken.pid is None


def test_it_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from armorclaw.testing.homeserver import Homeserver\n"
        "hs = Homeserver(sys.argv[1]); hs.start(); print(hs.pid, flush=True); time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "hs")], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    with owner.stdout:
        child = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 30
    while _alive(child):
        assert time.monotonic() < deadline, "Synapse outlived its owner"
        time.sleep(0.02)


def test_importing_it_costs_nothing_heavy() -> None:
    heavy = ("synapse", "twisted", "httpx", "trio", "mautrix")
    script = f"import sys, armorclaw.testing.homeserver; print([m for m in {heavy} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
