"""The folder of an agent's configs: who may read it, and that it changes nothing else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from armorclaw.containers.recipe import configs_folder, environment, make_configs_folder
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import declared

pytestmark = pytest.mark.mission("C.attach_config")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="a bridge run by root")
def test_as_root_it_is_the_agents_alone(tmp_path: Path) -> None:
    made = make_configs_folder(tmp_path, "ada", 12345)
    assert made == configs_folder(tmp_path, "ada") == tmp_path / "configs" / "ada"
    assert (mode(made), made.stat().st_uid, made.stat().st_gid) == (0o750, 0, 12345)
    assert mode(made.parent) == 0o711


def test_as_anyone_else_it_is_open_behind_a_closed_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    made = make_configs_folder(tmp_path, "ada", 12345)
    assert (mode(made), mode(made.parent)) == (0o755, 0o700)


def test_what_is_in_it_stays_and_so_does_the_folder(tmp_path: Path) -> None:
    made = make_configs_folder(tmp_path, "ada", 12345)
    (made / "a.json").write_text("{}")
    before = made.stat().st_ino
    made.chmod(0o700)  # as whoever attached something before the first start may have made it
    assert make_configs_folder(tmp_path, "ada", 12345).stat().st_ino == before
    assert (made / "a.json").read_text() == "{}"
    assert mode(made) != 0o700


def test_a_file_in_its_place(tmp_path: Path) -> None:
    (tmp_path / "configs").write_text("")
    with pytest.raises(ArmorclawError) as raised:
        make_configs_folder(tmp_path, "ada", 12345)
    assert raised.value.name == "storage_failed"
    assert str(tmp_path) not in str(raised.value)


def test_the_variables() -> None:
    found = environment(declared(), "/s")
    assert (found["ARMORCLAW_CONFIG_DIR"], found["ARMORCLAW_DATA_DIR"], found["HOME"]) == ("/config", "/data", "/tmp")


def test_the_way_out_is_told_only_to_whom_has_one() -> None:
    """Being part of what is run, it also has a container replaced that was made without the other."""
    assert "ARMORCLAW_EGRESS_SOCKET" not in environment(declared(), "/s")
    allowed = environment(declared(egress=("api.test:443",)), "/s")
    assert allowed["ARMORCLAW_EGRESS_SOCKET"] == "/run/armorclaw/containers/egress.sock"
    assert environment(declared(egress=("other.test:443",)), "/s") == allowed  # a change of the list replaces nothing
