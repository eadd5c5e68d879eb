"""Where a client finds the socket: flag, variable, file, default."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from armorclaw import layers
from armorclaw.config_layers import effective
from armorclaw.errors import ArmorclawError
from armorclaw.layers import socket_path, usual_files


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of the host, elsewhere; it does not exist yet."""
    monkeypatch.setattr(layers, "SYSTEM_FILE", str(tmp_path / "etc.toml"))
    return tmp_path / "etc.toml"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "xdg" / "armorclaw").mkdir(parents=True)
    return tmp_path / "xdg" / "armorclaw" / "armorclaw.toml"


def environ(tmp_path: Path, **more: str) -> dict[str, str]:
    return {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "XDG_RUNTIME_DIR": str(tmp_path / "run"), **more}


def test_the_usual_files_are_those_there_are(system: Path, own: Path, tmp_path: Path) -> None:
    assert usual_files(environ(tmp_path)) == []
    own.touch()
    system.touch()
    assert usual_files(environ(tmp_path)) == [str(system), str(own)]
    assert str(own) not in usual_files({"XDG_CONFIG_HOME": "xdg"}), "a relative one does not count"


def test_each_layer_is_stronger_than_the_one_before(system: Path, own: Path, tmp_path: Path) -> None:
    def found(config: str | None = None, socket: str | None = None, **more: str) -> str:
        return socket_path(config, socket, environ(tmp_path, **more))

    assert found().endswith("/bridge.sock")
    system.write_text('[bridge]\nruntime_dir = "one"\n')
    assert found() == str(tmp_path / "one" / "bridge.sock")
    own.write_text('[bridge]\nruntime_dir = "two"\n')
    assert found() == str(own.parent / "two" / "bridge.sock")
    assert found(ARMORCLAW_BRIDGE_RUNTIME_DIR="/three") == "/three/bridge.sock"
    system.write_text('[bridge]\nsocket = "four"\n')
    assert found(ARMORCLAW_BRIDGE_RUNTIME_DIR="/three") == str(tmp_path / "four"), "it says more than the folder does"
    assert found(ARMORCLAW_BRIDGE_SOCKET="/five") == "/five"
    assert found(ARMORCLAW_BRIDGE_SOCKET="/five", ARMORCLAW_SOCKET="/six") == "/six"
    file = tmp_path / "c.toml"
    file.write_text('[bridge]\nsocket = "seven"\n')
    assert found(str(file), ARMORCLAW_SOCKET="/six") == str(tmp_path / "seven"), "a flag is stronger than a variable"
    assert found(str(file), "/eight") == "/eight"


@pytest.mark.parametrize(
    "text",
    ["", '[bridge]\nruntime_dir = "run"', '[bridge]\nsocket = "~/s"', '[bridge]\nruntime_dir = "/r"\nsocket = "s"'],
)
@pytest.mark.parametrize(
    "variables", [{}, {"ARMORCLAW_BRIDGE_RUNTIME_DIR": "here"}, {"ARMORCLAW_BRIDGE_SOCKET": "~/there"}]
)
def test_it_is_where_the_bridge_listens(text: str, variables: dict[str, str], tmp_path: Path) -> None:
    """The short way to the socket and the whole configuration must agree."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "c.toml").write_text(text)
    file = tmp_path / "link.toml"
    file.symlink_to(tmp_path / "real" / "c.toml")
    whole = effective(file, environ=variables).config.bridge.socket
    assert socket_path(str(file), environ=variables) == str(whole)


@pytest.mark.parametrize(
    "text", ["bridge = 1", "[bridge]\nsocket = 1", '[bridge]\nruntime_dir = "a\\u0000"', "[", "[" * 9999]
)
def test_a_file_that_is_wrong(text: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ArmorclawError) as caught:
        socket_path(str(file))
    assert caught.value.name == "config_invalid"
    assert caught.value.hint


def test_a_usual_file_that_is_not_ours_to_read_is_no_hindrance(
    system: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    system.write_text('[bridge]\nsocket = "/x"\n')
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert socket_path(environ=environ(tmp_path)) != "/x"


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A uid that has no folder of a session; this process runs as it, as far as it can tell."""
    uid = tmp_path.stat().st_uid + 1_234_567
    monkeypatch.setattr("os.geteuid", lambda: uid)
    return uid


def test_without_a_folder_of_the_session(stranger: int, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    environ = {"TMPDIR": str(tmp_path)}
    assert layers.default_runtime_dir(environ) == str(tmp_path / f"runtime-{stranger}" / "armorclaw")
    assert not recwarn.list


@pytest.mark.parametrize("kind", ["folder", "link", "file"])
def test_a_folder_that_somebody_else_made(
    stranger: int, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = tmp_path / f"runtime-{stranger}"
    if kind == "folder":
        taken.mkdir()
    elif kind == "link":
        taken.symlink_to("/")
    else:
        taken.touch()
    environ = {"TMPDIR": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "xdg")}
    with pytest.raises(ArmorclawError) as caught:
        socket_path(environ=environ)
    assert caught.value.name == "config_invalid"
    assert "XDG_RUNTIME_DIR" in caught.value.hint
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    with pytest.raises(ArmorclawError) as caught:
        effective(environ=environ)
    assert caught.value.name == "config_invalid"
    assert effective(environ=environ, flags=["bridge.runtime_dir=/r"]).config.bridge.runtime_dir == Path("/r")


def test_what_the_import_brings() -> None:
    program = (
        "import sys, armorclaw.layers as layers; layers.socket_path()\n"
        "layers.default_runtime_dir({}); print(*sys.modules)"
    )
    modules = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"trio", "attr", "attrs", "cattrs", "tomllib", "pathlib", "platformdirs", "armorclaw.errors"}
    assert not heavy & set(modules)
