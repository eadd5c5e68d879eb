"""The folder at /data: whose it is, how it is measured, and what an agent may put in the way of that."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import attrs
import pytest

from armorclaw import config
from armorclaw.containers.resources.data import (
    ENTRY_BYTES,
    MAX_DEPTH,
    DataSize,
    check_room,
    data_folder,
    make_data_folder,
    measure,
)
from armorclaw.errors import ArmorclawError
from armorclaw.structure import Size

pytestmark = pytest.mark.mission("P0.4")

MUCH = 1 << 40
ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")


@ROOT
def test_it_is_the_agents_alone(tmp_path: Path) -> None:
    folder = make_data_folder(tmp_path, "ada", 10007)
    assert folder == tmp_path / "data" / "ada"
    facts = folder.stat()
    assert (facts.st_uid, facts.st_gid, facts.st_mode & 0o777) == (10007, 10007, 0o700)
    assert folder.parent.stat().st_mode & 0o777 == 0o711


@ROOT
def test_again_it_is_set_right_and_kept(tmp_path: Path) -> None:
    folder = make_data_folder(tmp_path, "ada", 10007)
    (folder / "kept").write_text("x")
    folder.chmod(0o777)
    make_data_folder(tmp_path, "ada", 10007)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "kept").read_text() == "x"


def test_by_any_other_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    folder = make_data_folder(tmp_path, "ada", 10007)
    assert folder.stat().st_uid == os.getuid()
    assert folder.stat().st_mode & 0o777 == 0o777  # the container's uid is another
    assert folder.parent.stat().st_mode & 0o777 == 0o700  # and nobody else comes by


def test_it_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("in the way")
    with pytest.raises(ArmorclawError) as caught:
        make_data_folder(tmp_path, "ada", 10007)
    assert caught.value.name == "storage_failed"
    assert str(tmp_path) not in str(caught.value)


def test_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(10_000))
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / "two").write_bytes(bytes(100))
    paths = [tmp_path / "one", tmp_path / "below", tmp_path / "below" / "two"]
    expected = sum(path.stat().st_blocks * 512 for path in paths) + 3 * ENTRY_BYTES
    assert measure(tmp_path, MUCH) == DataSize(expected)
    assert measure(tmp_path / "missing", MUCH) == DataSize(0)


def test_nothing_is_followed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "big").write_bytes(bytes(5_000_000))
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "file").symlink_to(outside / "big")
    (inside / "folder").symlink_to(outside)
    (inside / "loop").symlink_to(inside)
    assert measure(inside, MUCH).bytes < 10 * ENTRY_BYTES
    (tmp_path / "itself").symlink_to(outside)
    assert not measure(tmp_path / "itself", MUCH).complete


def test_one_file_of_many_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(bytes(1 << 20))
    for number in range(10):
        (tmp_path / f"name{number}").hardlink_to(tmp_path / "first")
    assert 1 << 20 <= measure(tmp_path, MUCH).bytes < 2 << 20


def test_a_file_with_holes_counts_as_what_it_takes(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 40)
    assert measure(tmp_path, MUCH).bytes < 1 << 20


def test_empty_files_count_too(tmp_path: Path) -> None:
    """So that entries are bounded by the limit, and the time to measure with them."""
    for number in range(300):
        (tmp_path / str(number)).touch()
    assert measure(tmp_path, MUCH).bytes >= 300 * ENTRY_BYTES
    assert measure(tmp_path, 10 * ENTRY_BYTES).bytes == 11 * ENTRY_BYTES  # it stops when it has seen enough


def test_folders_without_end(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(MAX_DEPTH + 3):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    before = len(os.listdir("/proc/self/fd"))
    size = measure(tmp_path, 5_000_000)
    assert size.bytes > 5_000_000
    assert "nested" in size.why
    assert len(os.listdir("/proc/self/fd")) == before


def test_files_without_a_name_count_once_while_they_are_open(tmp_path: Path) -> None:
    empty, others = measure(tmp_path, MUCH), measure(tmp_path, MUCH, [os.getpid()])
    removed = (tmp_path / "removed").open("w+b", buffering=0)
    removed.write(bytes(1 << 20))
    os.unlink(removed.name)
    again = os.dup(removed.fileno())
    never = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR)
    os.write(never, bytes(1 << 20))
    assert measure(tmp_path, MUCH) == empty
    full = measure(tmp_path, MUCH, [os.getpid(), os.getpid()])
    assert 2 << 20 <= full.bytes - others.bytes < 3 << 20
    assert measure(tmp_path, 1 << 20, [os.getpid()]).bytes < 2 << 20  # it stops when it has seen enough
    removed.close()
    for fd in (again, never):
        os.close(fd)
    assert measure(tmp_path, MUCH, [os.getpid(), 2**22 + 1]) == others


def test_files_of_another_file_system_do_not_count(tmp_path: Path) -> None:
    memory = os.memfd_create("another")
    os.write(memory, bytes(1 << 20))
    try:
        assert measure(tmp_path, MUCH, [os.getpid()]).bytes < 1 << 20
    finally:
        os.close(memory)


def test_pipes_and_sockets_hold_up_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    found: list[DataSize] = []
    thread = threading.Thread(target=lambda: found.append(measure(tmp_path, MUCH)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [DataSize(ENTRY_BYTES)]


def test_there_is_no_room_for_folders_without_end(tmp_path: Path) -> None:
    declared = config.Agent(name="ada", command=("x",))
    folder = data_folder(tmp_path, "ada")
    (folder / "/".join("d" * (MAX_DEPTH + 1))).mkdir(parents=True)
    with pytest.raises(ArmorclawError) as caught:
        check_room(declared, tmp_path)
    text = " ".join(caught.value.lines())
    assert "nested" in text
    assert "raise the limit" not in text
    assert "bytes" not in text


def test_room_to_start(tmp_path: Path) -> None:
    declared = config.Agent(name="ada", command=("x",), data=config.AgentData(Size(1000), Size(50_000)))
    check_room(declared, tmp_path)  # there is no folder yet
    folder = data_folder(tmp_path, "ada")
    folder.mkdir(parents=True)
    check_room(declared, tmp_path)
    (folder / "big").write_bytes(bytes(100_000))
    with pytest.raises(ArmorclawError) as caught:
        check_room(declared, tmp_path)
    assert caught.value.name == "quota_exceeded"
    assert "ada" in str(caught.value)
    assert str(tmp_path) not in " ".join(caught.value.lines())
    check_room(attrs.evolve(declared, data=config.AgentData(Size(1000), Size(500_000))), tmp_path)
