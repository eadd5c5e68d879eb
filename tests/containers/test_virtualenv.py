"""A virtual environment of the host, for agents without an image."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from armorclaw import config
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.virtualenv import VirtualEnvironment, find_virtualenv
from armorclaw.errors import ArmorclawError

SYSTEM = "/usr/bin/python3"
UID = 10001
REPORT = """
import greeting
door.sendall(json.dumps([sys.prefix, sys.base_prefix, greeting.TEXT, os.environ["VIRTUAL_ENV"],
                         os.access(sys.prefix, os.W_OK)]).encode())
"""


def make(place: Path, python: str | Path = SYSTEM) -> Path:
    subprocess.run([python, "-m", "venv", "--without-pip", str(place)], check=True)
    [packages] = place.glob("lib/python3*/site-packages")
    (packages / "greeting.py").write_text("TEXT = 'good morning'\n")
    return place


def elsewhere(place: Path) -> Path:
    """A Python that is not below /usr: its program, and where it finds its library."""
    (place / "bin").mkdir(parents=True)
    (place / "lib").mkdir()
    real = Path(SYSTEM).resolve()
    shutil.copy(real, place / "bin" / real.name)
    (place / "bin" / "python3").symlink_to(real.name)
    (place / "lib" / real.name).symlink_to(f"/usr/lib/{real.name}")
    return place / "bin" / "python3"


def found(path: Path, state: Path = Path("/var/lib/nobody-has-this")) -> VirtualEnvironment:
    return find_virtualenv(path, UID, state)


def fault(path: Path, state: Path = Path("/var/lib/nobody-has-this")) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as raised:
        found(path, state)
    assert raised.value.name == "config_invalid"
    assert str(path) in raised.value.what
    return raised.value


def test_one_of_the_systems_python(folder: Path) -> None:
    venv = found(make(folder / "venv"))
    assert [(mount.source, mount.target) for mount in venv.mounts] == [(folder / "venv", f"{folder}/venv")]
    assert venv.variables("/usr/bin") == {"PATH": f"{folder}/venv/bin:/usr/bin", "VIRTUAL_ENV": f"{folder}/venv"}


def test_one_of_another_python_brings_that_along(folder: Path) -> None:
    venv = found(make(folder / "venv", elsewhere(folder / "python")))
    assert {mount.source for mount in venv.mounts} == {folder / "venv", folder / "python"}
    assert not any(mount.writable for mount in venv.mounts if hasattr(mount, "writable"))


@pytest.mark.parametrize("runtime_kind", ["sandbox", "process"], indirect=True)
@pytest.mark.parametrize("own_python", [False, True], ids=["system", "own"])
async def test_inside_it_is_the_python(
    runtime: Runtime, make_spec: Any, door: Any, folder: Path, own_python: bool, runtime_kind: str
) -> None:
    python = elsewhere(folder / "python") if own_python else Path(SYSTEM)
    venv = found(make(folder / "venv", python))
    template = make_spec(REPORT)
    spec = make_spec(
        REPORT,
        command=("python3", "-c", template.command[-1]),
        env=venv.variables("/usr/bin:/bin"),
        mounts=venv.mounts,
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        prefix, base, text, variable, writable = await listener.report()
    assert (prefix, text, variable) == (f"{folder}/venv", "good morning", f"{folder}/venv")
    assert base == (f"{folder}/python" if own_python else "/usr")
    assert not writable or runtime_kind == "process"


def test_what_is_none(folder: Path) -> None:
    assert fault(folder / "gone").why == "it does not exist"
    error = fault(folder)
    assert (error.why, error.hint) == ("it has no pyvenv.cfg", f"make one: python3 -m venv {folder}")
    assert fault(Path("some/venv")).why == "the path is not absolute"
    file = folder / "file"
    file.write_text("")
    assert fault(file).why == "it has no pyvenv.cfg"


def test_one_whose_python_is_gone(folder: Path) -> None:
    venv = make(folder / "venv", elsewhere(folder / "python"))
    shutil.rmtree(folder / "python")
    assert fault(venv).why == "its bin/python3 leads nowhere"


def test_one_that_is_too_old(folder: Path) -> None:
    venv = make(folder / "venv")
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion = 3.8.19\n")
    assert fault(venv).why == "it has Python 3.8"
    (venv / "pyvenv.cfg").write_text("home = /usr/bin\nversion_info = 3.10.1.final.0\n")
    found(venv)


@pytest.mark.skipif(os.geteuid() != 0, reason="root's agents have uids of their own")
def test_what_the_agent_may_not_read(folder: Path) -> None:
    venv = make(folder / "venv")
    (venv / "lib").chmod(0o700)
    assert fault(venv).why == f"{venv}/lib cannot be read by uid {UID}"
    (venv / "lib").chmod(0o755)
    folder.chmod(0o700)
    error = fault(venv)
    assert error.why == f"{folder} cannot be read by uid {UID}"
    assert f"chmod o+rx {folder}" in error.hint
    folder.chmod(0o711)
    found(venv)


def test_what_is_the_bridges(folder: Path) -> None:
    venv = make(folder / "state" / "venv")
    assert fault(venv, folder / "state").why == "the bridge's own state is there"
    assert fault(venv, venv / "inner").why == "the bridge's own state is there"
    (folder / "link").symlink_to(folder / "state")
    assert fault(folder / "link" / "venv", folder / "state").why == "the bridge's own state is there"


@pytest.mark.parametrize("place", ["home", "home/.local"])
def test_a_python_in_a_home_would_show_all_of_it(place: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = make(folder / "venv", elsewhere(folder / place))

    class User:
        pw_dir = str(folder / "home")

    monkeypatch.setattr("pwd.getpwall", lambda: [User])
    assert f"installed in {folder}/{place}, which would be shown" in fault(venv).why


@pytest.mark.skipif(not os.access("/", os.W_OK), reason="makes a folder in /")
def test_a_place_that_is_taken_inside() -> None:
    place = Path("/agent")
    if place.exists():
        pytest.skip("this host has an /agent")
    try:
        assert fault(make(place / "venv")).why == "inside, /agent/venv is taken by something else"
    finally:
        shutil.rmtree(place)


def test_it_is_for_agents_without_an_image(tmp_path: Path) -> None:
    def faults(**agent: Any) -> list[str]:
        _, found = config.Config.examine({"agents": {"ada": {"command": ["x"], **agent}}}, folder=tmp_path)
        return [str(each) for each in found]

    for runtime in ("auto", "sandbox", "process"):
        assert faults(python="/srv/venv", runtime=runtime) == []
    for wrong in ({"runtime": "docker", "image": "x"}, {"image": "x"}, {"runtime": "podman", "image": "x"}):
        [said] = faults(python="/srv/venv", **wrong)
        assert "virtual environment of this host" in said
        assert "armorclaw image build" in said
    made, _ = config.Config.examine({"agents": {"ada": {"command": ["x"], "python": "venv"}}}, folder=tmp_path)
    assert made is not None
    assert made.agents["ada"].python == tmp_path / "venv"
