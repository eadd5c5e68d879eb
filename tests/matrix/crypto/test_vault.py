"""The files of keys: where they are, who may read them, and what becomes of them when something is wrong."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.vault import KeysLost, Vault

KEY = bytes(range(32))


@pytest.fixture
def vault(tmp_path: Path) -> Vault:
    return Vault(tmp_path / "matrix", lambda: KEY, Clock(wall=lambda: 1_700_000_000.0))


def file(tmp_path: Path) -> Path:
    return tmp_path / "matrix" / "main.db"


def fill(vault: Vault, rows: int = 1) -> None:
    """A file with something in it, closed."""
    db = vault.open("main", expected=False)
    db.run("CREATE TABLE t (x)")
    db.run_many("INSERT INTO t VALUES (?)", ((os.urandom(1000),) for _ in range(rows)))
    db.close()


def test_only_we_can_read_it_and_only_with_the_key(vault: Vault, tmp_path: Path) -> None:
    fill(vault)
    assert stat.S_IMODE(file(tmp_path).stat().st_mode) == 0o600
    assert stat.S_IMODE(file(tmp_path).parent.stat().st_mode) == 0o700
    assert b"SQLite" not in file(tmp_path).read_bytes()
    with pytest.raises(KeysLost):
        Vault(tmp_path / "matrix", lambda: bytes(32)).open("main", expected=True)


def test_a_name_is_no_way_out_of_the_folder(vault: Vault, tmp_path: Path) -> None:
    vault.open("../../evil/%", expected=False).close()
    assert [path.name for path in (tmp_path / "matrix").iterdir()] == ["..%2F..%2Fevil%2F%25.db"]


def test_there_is_one_or_there_is_none(vault: Vault) -> None:
    assert not vault.exists("main")
    assert vault.set_aside("main", "for no reason") is None
    fill(vault)
    assert vault.exists("main")


def test_what_is_set_aside_is_kept(vault: Vault, tmp_path: Path) -> None:
    fill(vault)
    before = file(tmp_path).read_bytes()
    name = vault.set_aside("main", "logged out")
    assert name == "main.db.aside-20231114T221320Z"
    assert not vault.exists("main")
    assert (tmp_path / "matrix" / name).read_bytes() == before
    fill(vault)
    assert vault.set_aside("main", "again") == f"{name}-2"


def test_a_file_that_should_be_there_and_is_not_is_lost(vault: Vault, tmp_path: Path) -> None:
    with pytest.raises(KeysLost, match="missing"):
        vault.open("main", expected=True)
    assert not vault.exists("main")
    fill(vault)
    file(tmp_path).write_bytes(b"")
    with pytest.raises(KeysLost, match="empty"):
        vault.open("main", expected=True)


def test_a_log_without_its_file_is_lost(vault: Vault, tmp_path: Path) -> None:
    fill(vault)
    file(tmp_path).rename(f"{file(tmp_path)}-wal")
    assert vault.exists("main")
    with pytest.raises(KeysLost, match="log"):
        vault.open("main", expected=False)
    assert vault.set_aside("main", "lost") == "main.db.aside-20231114T221320Z-wal"


def read(vault: Vault) -> None:
    """All that is in the file."""
    db = vault.open("main", expected=True)
    try:
        db.all("SELECT x FROM t")
    finally:
        db.close()


@pytest.mark.parametrize("place", [0, 100, 5000, -1])
def test_a_damaged_file_is_lost_and_left_as_it_is(vault: Vault, tmp_path: Path, place: int) -> None:
    fill(vault, rows=20)
    data = bytearray(file(tmp_path).read_bytes())
    data[place] ^= 1
    file(tmp_path).write_bytes(data)
    with pytest.raises(KeysLost):
        read(vault)
    assert file(tmp_path).read_bytes() == bytes(data)


def test_a_file_that_was_cut_is_lost(vault: Vault, tmp_path: Path) -> None:
    fill(vault, rows=20)
    os.truncate(file(tmp_path), file(tmp_path).stat().st_size // 2)
    with pytest.raises(KeysLost):
        read(vault)


def test_damage_found_at_work_is_loss(vault: Vault, tmp_path: Path) -> None:
    fill(vault, rows=2000)
    db = vault.open("main", expected=True)
    try:
        with open(file(tmp_path), "r+b") as raw:
            raw.seek(100 * 4096)
            raw.write(os.urandom(1_000_000))
        with pytest.raises(KeysLost):
            db.all("SELECT sum(length(x)) FROM t")
    finally:
        db.close()


def test_a_disk_that_gives_nothing_is_trouble_that_passes(vault: Vault, tmp_path: Path) -> None:
    fill(vault)
    file(tmp_path).unlink()
    file(tmp_path).mkdir()
    with pytest.raises(ArmorclawError) as caught:
        vault.open("main", expected=True)
    assert caught.value.name == "storage_failed"
    assert caught.value.kind.retryable
