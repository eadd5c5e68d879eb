from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.store import Database
from armorclaw.store.keyfile import load_key, load_or_create_key


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return tmp_path / "key"


def refused(key_file: Path, path: Path) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        load_or_create_key(key_file, path)
    assert caught.value.name == "key_file_unreadable"
    assert str(key_file) in caught.value.what
    assert caught.value.why
    assert caught.value.hint
    return caught.value


def test_made_once_then_kept(key_file: Path, path: Path) -> None:
    key = load_or_create_key(key_file, path)
    assert len(key) == 32
    assert key_file.stat().st_mode & 0o7777 == 0o400
    assert re.fullmatch(r"[0-9a-f]{64}\n", key_file.read_text())
    path.write_bytes(b"a database")
    assert load_or_create_key(key_file, path) == key
    assert sorted(os.listdir(key_file.parent)) == [path.name, key_file.name]


def test_two_keys_differ(tmp_path: Path, path: Path) -> None:
    assert load_or_create_key(tmp_path / "a", path) != load_or_create_key(tmp_path / "b", path)


def test_no_new_key_beside_a_database(key_file: Path, path: Path) -> None:
    path.write_bytes(b"a database")
    error = refused(key_file, path)
    assert "missing" in error.what
    assert str(path) in error.why
    assert not key_file.exists()


@pytest.mark.parametrize("mode", [0o440, 0o404, 0o420, 0o644])
def test_a_loose_mode_is_refused(key_file: Path, path: Path, mode: int) -> None:
    load_or_create_key(key_file, path)
    key_file.chmod(mode)
    error = refused(key_file, path)
    assert f"{mode:04o}" in error.why
    assert error.hint == f"chmod 0400 {key_file}"
    assert len(load_key(key_file, private=False)) == 32  # how a systemd credential may look


@pytest.mark.parametrize(
    "content", ["", "\n", "ab" * 31, "ab" * 33, "zz" * 32, "ab " * 32, "ab" * 32 + "\n\n", "é" * 32]
)
def test_an_odd_content_is_refused_and_not_shown(key_file: Path, path: Path, content: str) -> None:
    key_file.write_text(content)
    key_file.chmod(0o400)
    error = refused(key_file, path)
    assert "64 hexadecimal digits" in error.why
    assert "abab" not in "".join(error.lines())
    assert key_file.read_text() == content


def test_not_a_file(key_file: Path, path: Path) -> None:
    key_file.mkdir()
    assert "not a regular file" in refused(key_file, path).why


def test_a_pipe_does_not_hang(key_file: Path, path: Path) -> None:
    os.mkfifo(key_file, 0o400)
    assert "not a regular file" in refused(key_file, path).why


def test_a_dangling_link_is_not_filled(key_file: Path, path: Path) -> None:
    key_file.symlink_to(path.parent / "elsewhere")
    refused(key_file, path)
    assert not (path.parent / "elsewhere").exists()


def test_an_unreadable_file(key_file: Path, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_or_create_key(key_file, path)

    def denied(*_: object) -> int:
        raise PermissionError(13, "Permission denied")  # root may read anything, so it cannot be asked here

    monkeypatch.setattr(os, "open", denied)
    assert refused(key_file, path).why == "Permission denied"


def test_a_missing_directory(tmp_path: Path, path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none" / "key", path).why


def test_a_leftover_of_a_crash_is_replaced(key_file: Path, path: Path) -> None:
    Path(f"{key_file}.new").write_text("half")
    assert len(load_or_create_key(key_file, path)) == 32
    assert not Path(f"{key_file}.new").exists()


async def test_with_the_database_it_opens(key_file: Path, path: Path) -> None:
    key = partial(load_or_create_key, key_file, path)
    async with Database.open(path, key) as db:
        await db.write(lambda c: c.execute("INSERT INTO agents (name, number) VALUES ('a', 1)").rowcount)
    async with Database.open(path, key) as db:
        assert await db.read(lambda c: c.execute("SELECT name FROM agents").fetchall()) == [("a",)]
    os.remove(key_file)
    with pytest.raises(ArmorclawError) as caught:
        async with Database.open(path, key):
            pass
    assert caught.value.name == "key_file_unreadable"
