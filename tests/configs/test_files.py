"""Nothing leads out of the folder, whatever a name says and whatever lies there."""

from __future__ import annotations

import ctypes
import os
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.config import SHARED_CONFIGS
from armorclaw.configs.files import ConfigFiles, folded, is_file_name
from armorclaw.errors import ArmorclawError


def keep(files: ConfigFiles, name: str, data: bytes = b"new", owner: str = "ada") -> None:
    draft = files.draft()
    try:
        draft.write(data)
        draft.finish()
        files.publish(draft, owner, name)
    finally:
        draft.close()


def names(files: ConfigFiles, owner: str = "ada") -> list[str]:
    return [entry.name for entry in files.entries()[owner]]


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/shadow",
        "/etc/passwd",
        "a/../../b",
        "a/b",
        "..",
        ".",
        "..%2f",
        "a\0.json",
        "/proc/self/environ",
        "file:///etc/passwd",
        "http://169.254.169.254/latest/",
        "x" * 256,
        "é" * 128,
        "-rf",
        "~root",
        ".hidden",
        " a",
        "a ",
        "",
        "a\nb",
        "a\x1b[31m",
        "a\u202eb",
        "a\ud800",
        "a\\b",
    ],
)
def test_names_that_are_refused(name: str) -> None:
    assert not is_file_name(name)


@pytest.mark.parametrize("name", ["a", "agent.toml", "x" * 255, "Übersicht 2.md", "a%2fb", "a..b", "日本語.txt"])
def test_names_that_are_fine(name: str, root: Path) -> None:
    assert is_file_name(name)
    files = ConfigFiles(root)
    keep(files, name)
    assert names(files) == [name]


@given(st.text(max_size=300))
def test_a_name_is_never_a_path(name: str) -> None:
    if is_file_name(name):
        assert os.path.basename(name) == name
        assert os.path.normpath(name) == name
        assert name not in (os.curdir, os.pardir)
        assert len(os.fsencode(name)) <= 255


@given(st.text(max_size=20))
def test_folding_is_stable(name: str) -> None:
    assert folded(folded(name)) == folded(name)
    assert folded(name.upper().lower()) == folded(name.upper())


def test_kept_for_the_agent_to_read_and_for_nobody_to_change(root: Path) -> None:
    files = ConfigFiles(root)
    umask = os.umask(0o077)
    try:
        keep(files, "a.txt")
    finally:
        os.umask(umask)
    assert (root / "ada" / "a.txt").read_bytes() == b"new"
    assert stat.S_IMODE((root / "ada" / "a.txt").stat().st_mode) == 0o644
    assert stat.S_IMODE((root / "ada").stat().st_mode) == 0o700  # until an agent's start opens it for that agent
    assert list((root / "_drafts").iterdir()) == []
    keep(files, "a.txt", b"newer")
    assert (root / "ada" / "a.txt").read_bytes() == b"newer"


def test_what_lies_under_the_name_is_replaced_and_never_opened(root: Path) -> None:
    """A link, a link in a loop, a pipe (which would block), a hard link of a secret, a dangling link."""
    files = ConfigFiles(root)
    secret = root.parent / "secret"
    keep(files, "first")
    folder = root / "ada"
    (folder / "link").symlink_to(secret)
    (folder / "loop").symlink_to("loop")
    (folder / "dangling").symlink_to(root.parent / "made")
    os.mkfifo(folder / "pipe")
    os.link(secret, folder / "hard")
    (folder / "deep").mkdir()
    assert names(files) == ["first"]  # and listing opens none of them
    for name in ("link", "loop", "dangling", "pipe", "hard"):
        keep(files, name)
    assert secret.read_text() == "of the host"
    assert secret.stat().st_nlink == 1
    assert not (root.parent / "made").exists()
    assert names(files) == ["dangling", "first", "hard", "link", "loop", "pipe"]
    with pytest.raises(ArmorclawError) as caught:
        keep(files, "deep")
    assert caught.value.name == "storage_failed"
    assert str(root) not in str(caught.value.payload())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices")
def test_a_device_is_replaced(root: Path) -> None:
    files = ConfigFiles(root)
    keep(files, "first")
    try:
        os.mknod(root / "ada" / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("no devices can be made here")
    assert names(files) == ["first"]
    keep(files, "zero")
    assert (root / "ada" / "zero").read_bytes() == b"new"


@pytest.mark.parametrize("which", ["", "ada", "_drafts"])
def test_a_folder_that_is_a_link_is_not_used(root: Path, which: str) -> None:
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    if which:
        root.mkdir()
    (root / which).symlink_to(elsewhere) if which else root.symlink_to(elsewhere)
    files = ConfigFiles(root)
    with pytest.raises(ArmorclawError) as caught:
        keep(files, "a")
    assert caught.value.name == "storage_failed"
    assert list(elsewhere.rglob("*")) == []


@contextmanager
def swapping(swap: Callable[[], object], times: int = 10_000) -> Iterator[threading.Event]:
    """Swaps as fast as it can; the event is set once it has done so `times` times."""
    done, failed = threading.Event(), []

    def run() -> None:
        try:
            for _ in range(times):
                swap()
        except OSError as error:
            failed.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield done
    finally:
        thread.join()
    assert failed == []


def exchange(one: Path, other: Path) -> None:
    """Swaps two names in one step."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(-100, bytes(one), -100, bytes(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


def test_a_folder_swapped_for_a_link_ten_thousand_times(root: Path) -> None:
    """Half of the time the folder of an agent is a link to outside: each file is inside, or refused."""
    files = ConfigFiles(root)
    keep(files, "first")
    outside = root.parent / "outside"
    outside.mkdir()
    aside = root / "_aside"
    aside.symlink_to(outside)
    kept = refused = rounds = 0
    while min(kept, refused) <= 10:  # the disk may be slow, and the swaps are not
        rounds += 1
        assert rounds < 20
        with swapping(lambda: exchange(root / "ada", aside)) as done:
            while not done.is_set():
                try:
                    keep(files, f"n{kept % 50}")
                    kept += 1
                except ArmorclawError:
                    refused += 1
    assert list(outside.iterdir()) == []


def test_a_file_swapped_for_a_link_ten_thousand_times(root: Path) -> None:
    """Under the very name that is being written there is a link to the secret most of the time."""
    files = ConfigFiles(root)
    keep(files, "a")
    secret = root.parent / "secret"
    target, link = root / "ada" / "a", root / "ada" / "_link"

    def swap() -> None:
        link.symlink_to(secret)
        link.rename(target)

    with swapping(swap) as done:
        while not done.is_set():
            keep(files, "a")
            assert all(entry.size == len(b"new") for entry in files.entries()["ada"] if entry.name == "a")
    assert secret.read_text() == "of the host"
    keep(files, "a")
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()


def test_what_a_killed_bridge_was_writing_goes(root: Path) -> None:
    draft = ConfigFiles(root).draft()
    draft.write(b"half")
    assert len(list((root / "_drafts").iterdir())) == 1  # and then it was killed
    files = ConfigFiles(root)
    keep(files, "a")
    assert list((root / "_drafts").iterdir()) == []
    other = files.draft()
    keep(files, "b")
    assert len(list((root / "_drafts").iterdir())) == 1  # what is being written now stays
    other.close()
    draft.close()
    assert names(files) == ["a", "b"]


def test_only_folders_of_agents_are_looked_into(root: Path) -> None:
    files = ConfigFiles(root)
    keep(files, "a")
    keep(files, "b", owner=SHARED_CONFIGS)
    (root / "Not an agent").mkdir()
    (root / "Not an agent" / "x").write_text("")
    (root / "file").write_text("")
    (root / "link").symlink_to(root.parent)
    assert {owner: [entry.name for entry in found] for owner, found in files.entries().items()} == {
        SHARED_CONFIGS: ["b"],
        "ada": ["a"],
    }
    assert list(files.entries()) == [SHARED_CONFIGS, "ada"]


def test_no_descriptor_stays_open(root: Path) -> None:
    files = ConfigFiles(root)
    keep(files, "a")
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        keep(files, "a")
        files.entries()
    (root / "bob").symlink_to(root)
    for _ in range(20):
        with pytest.raises(ArmorclawError):
            keep(files, "a", owner="bob")
    assert len(os.listdir("/proc/self/fd")) == before
