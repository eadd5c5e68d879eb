"""`armorclaw image build`, as a person or a program calls it, with a real engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from armorclaw.testing.engines import EngineWithImage
from tests.containers.images.wheelhouse import Wheelhouse

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(docker: EngineWithImage, tmp_path: Path) -> Run:
    config = tmp_path / "armorclaw.toml"
    config.write_text(f"[bridge]\nengine_socket = {json.dumps(docker.socket_path)}\n")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "armorclaw", "image", "build", "--config", str(config), *words]
        return subprocess.run(
            command, capture_output=True, text=True, check=False, env={**env, "PIP_CONFIG_FILE": os.devnull}
        )

    return run


def test_stdout_is_the_image_and_stderr_how_it_was_made(run: Run, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "wheels")
    house.wheel("greeting")
    wanted = ["-r", str(house.requirements("greeting")), "--tag", "armorclaw-cli:1"]
    done = run(*wanted)
    assert (done.returncode, done.stdout) == (0, "armorclaw-cli:1\n"), done.stderr
    first, *_, last = done.stderr.splitlines()
    assert first.startswith("base armorclaw-python:latest: Python 3.")
    assert "with greeting==1.0" in done.stderr
    assert last.endswith("of libraries, made")
    again = run(*wanted, "--json")
    built = json.loads(again.stdout)
    assert (built["tag"], built["packages"], built["made"]) == ("armorclaw-cli:1", ["greeting==1.0"], False)
    assert built["pinned"] in last


def test_what_is_wrong_is_said_in_three_lines(run: Run, tmp_path: Path) -> None:
    house = Wheelhouse(tmp_path / "wheels")
    done = run("-r", str(house.requirements("nowhere")))
    assert (done.returncode, done.stdout) == (11, "")
    said, why, hint = done.stderr.splitlines()[-3:]
    assert said.startswith("armorclaw: there is no wheel of nowhere for Python 3.")
    assert (why[:5], hint[:6]) == ("why: ", "hint: ")
    done = run("--base", "python:3.12-none")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "hint: docker pull python:3.12-none"
    done = run("-r", str(tmp_path / "gone"))
    assert (done.returncode, done.stderr.splitlines()[-1]) == (4, f"armorclaw: {tmp_path}/gone does not exist")


def test_no_engine(tmp_path: Path) -> None:
    config = tmp_path / "armorclaw.toml"
    config.write_text(f'[bridge]\nengine_socket = "{tmp_path}/none.sock"\n')
    command = [sys.executable, "-m", "armorclaw", "image", "build", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert f"the container engine at {tmp_path}/none.sock" in done.stderr
    assert "Traceback" not in done.stderr
