from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

import armorclaw
from armorclaw.containers import snapshot
from armorclaw.containers.snapshot import snapshot_code, snapshot_library
from armorclaw.errors import ArmorclawError


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "hers"
    (folder / "sub" / "__pycache__").mkdir(parents=True)
    (folder / "main.py").write_text("print('hi')")
    (folder / "sub" / "tool").write_text("#!/bin/sh")
    (folder / "sub" / "tool").chmod(0o700)
    (folder / "sub" / "__pycache__" / "x.pyc").write_bytes(b"x")
    (folder / "link.py").symlink_to("main.py")
    return folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_a_folder(code: Path, tmp_path: Path) -> None:
    (code / "main.py").chmod(0o600)
    old = os.umask(0o077)
    try:
        copy = snapshot_code(code, tmp_path)
    finally:
        os.umask(old)
    assert copy.parent == tmp_path / "code"
    assert len(copy.name) == 64
    found = {path.relative_to(copy).as_posix(): mode(path) for path in copy.rglob("*") if not path.is_symlink()}
    assert found == {"main.py": 0o444, "sub": 0o555, "sub/tool": 0o555}
    assert mode(copy) == 0o555
    assert mode(copy.parent) == 0o711
    assert (copy / "link.py").read_text() == "print('hi')"
    assert os.listdir(copy.parent) == [copy.name]


def test_a_single_file(code: Path, tmp_path: Path) -> None:
    copy = snapshot_code(code / "main.py", tmp_path)
    assert [path.name for path in copy.iterdir()] == ["main.py"]
    assert (copy / "main.py").read_text() == "print('hi')"


def test_named_by_content(code: Path, tmp_path: Path) -> None:
    first = snapshot_code(code, tmp_path)
    inode = first.stat().st_ino
    assert snapshot_code(code, tmp_path) == first
    assert first.stat().st_ino == inode  # not made anew
    names = {first}
    for change in (
        lambda: (code / "main.py").write_text("print('ho')"),
        lambda: (code / "main.py").rename(code / "other.py"),
        lambda: (code / "other.py").chmod(0o755),
        lambda: (code / "empty").mkdir(),
    ):
        change()
        if (code / "link.py").is_symlink():
            (code / "link.py").unlink()
        names.add(snapshot_code(code, tmp_path))
    assert len(names) == 5
    assert (first / "main.py").read_text() == "print('hi')"  # the old copy is what it was


def test_a_damaged_copy_is_replaced(code: Path, tmp_path: Path) -> None:
    first = snapshot_code(code, tmp_path)
    (first / "main.py").chmod(0o644)
    (first / "main.py").write_text("")
    assert snapshot_code(code, tmp_path) == first
    assert (first / "main.py").read_text() == "print('hi')"
    assert os.listdir(first.parent) == [first.name]


def test_many_at_once_make_one(code: Path, tmp_path: Path) -> None:
    made: list[Path] = []
    threads = [threading.Thread(target=lambda: made.append(snapshot_code(code, tmp_path))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 8
    assert len(set(made)) == 1
    assert os.listdir(made[0].parent) == [made[0].name]


def refusal(source: Path, state: Path) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        snapshot_code(source, state)
    if (state / "code").exists():
        assert os.listdir(state / "code") == []
    return caught.value


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "sub/../../outside", "sub/out/x"])
def test_a_link_that_leads_out(code: Path, tmp_path: Path, target: str) -> None:
    (tmp_path / "outside").write_text("private")
    (code / "sub" / "out").symlink_to("../..")
    (code / "bad").symlink_to(target)
    if target != "sub/out/x":
        (code / "sub" / "out").unlink()
    error = refusal(code, tmp_path / "state")
    assert error.name == "config_invalid"
    assert "leads out" in error.why


def test_a_loop_of_links_is_no_way_out(code: Path, tmp_path: Path) -> None:
    (code / "a").symlink_to("b")
    (code / "b").symlink_to("a")
    assert refusal(code, tmp_path / "state").name == "config_invalid"


def test_a_hard_link_may_be_anybodys_file(code: Path, tmp_path: Path) -> None:
    (tmp_path / "private").write_text("private")
    os.link(tmp_path / "private", code / "sub" / "mine.py")
    for source in (code, code / "sub" / "mine.py"):
        error = refusal(source, tmp_path / "state")
        assert (error.name, "hard link" in error.why) == ("config_invalid", True)
        assert "mine.py" in error.what
    os.unlink(tmp_path / "private")
    snapshot_code(code, tmp_path)  # its only name now


def test_an_older_folder_of_copies_becomes_unlistable(code: Path, tmp_path: Path) -> None:
    (tmp_path / "code").mkdir(mode=0o755)
    snapshot_code(code, tmp_path)
    assert mode(tmp_path / "code") == 0o711
    assert mode(snapshot_library(tmp_path).parent) == 0o711


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to look as somebody else does")
def test_others_reach_a_copy_by_name_only(code: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="ac-") as state:
        os.chmod(state, 0o711)
        copy = snapshot_code(code, Path(state))
        for program, path, status in (("cat", copy / "main.py", 0), ("ls", copy, 0), ("ls", copy.parent, 2)):
            words = [program, str(path)]
            done = subprocess.run(words, user=10001, group=10001, extra_groups=[], capture_output=True, check=False)
            assert done.returncode == status, words


def test_an_installer_may_have_linked_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "installed" / "armorclaw"
    shutil.copytree(Path(armorclaw.__file__).parent, package)
    os.link(package / "__init__.py", tmp_path / "cache")
    monkeypatch.setattr(armorclaw, "__file__", str(package / "__init__.py"))
    copy = snapshot_library(tmp_path)
    assert (copy / "armorclaw" / "__init__.py").stat().st_nlink == 1


def test_neither_file_nor_folder(code: Path, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(code / "s"))
        assert refusal(code, tmp_path / "state").name == "config_invalid"
    (code / "s").unlink()
    os.mkfifo(code / "pipe")  # must not be opened: that would wait for a writer
    assert refusal(code, tmp_path / "state").name == "config_invalid"


def test_too_large(code: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (code / "huge").open("wb") as file:
        file.truncate(snapshot.MAX_BYTES + 1)
    assert refusal(code, tmp_path / "state").name == "too_large"
    (code / "huge").unlink()
    monkeypatch.setattr(snapshot, "MAX_FILES", 3)
    assert refusal(code, tmp_path / "state").name == "too_large"


def test_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing", tmp_path / "state").name == "not_found"


def test_the_bridges_own_state_is_nobodys_code(code: Path) -> None:
    for state in (code / "state", code):
        assert refusal(code, state).name == "config_invalid"
        assert refusal(code / "..", state).name == "config_invalid"


def test_a_disk_that_refuses(code: Path, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder should be")
    with pytest.raises(ArmorclawError) as caught:
        snapshot_code(code, tmp_path / "state")
    assert caught.value.name == "storage_failed"


def test_the_library_stands_alone(tmp_path: Path) -> None:
    copy = snapshot_library(tmp_path)
    assert copy.parent == tmp_path / "lib"
    assert sorted(path.name for path in (copy / "armorclaw").iterdir()) == [
        "__init__.py",
        "_version.py",
        "agent",
        "rpc",
    ]
    assert sorted(path.name for path in (copy / "armorclaw" / "rpc").iterdir()) == [
        "__init__.py",
        "flow.py",
        "framing.py",
        "jsoncodec.py",
        "jsonrpc.py",
    ]
    assert all(mode(path) in (0o444, 0o555) for path in copy.rglob("*"))
    seen = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", f"import sys; sys.path.insert(0, {str(copy)!r}); "
         "import armorclaw.agent, armorclaw.rpc.jsonrpc; print(armorclaw.agent.__file__)"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert seen.stdout.startswith(str(copy))
    assert snapshot_library(tmp_path) == copy
