"""Control groups for agents without an engine: version 1 for real, version 2 over a tree of files."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.containers.local.group import Groups, NoGroups, Parent
from armorclaw.containers.resources.cgroup import V2
from armorclaw.containers.spec import Limits
from armorclaw.errors import ArmorclawError
from armorclaw.testing.plugin import missing

pytestmark = pytest.mark.mission("P0.2")

LIMITS = Limits(memory=64 << 20, cpus=0.5, pids=10)
INSTANCE = f"test{os.getpid()}"


@pytest.fixture
def parent() -> Iterator[Parent]:
    """Where this process may make groups, whichever version it is."""
    try:
        found = Parent.find()
    except NoGroups as why:
        missing(str(why))
    yield found
    trio.run(Groups("sandbox", found).clean, INSTANCE)
    assert left(found) == []


def left(parent: Parent) -> list[Path]:
    return [path for folder in parent.folders.values() for path in folder.glob(f"armorclaw-{INSTANCE}")]


def text(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


async def test_it_holds_what_is_put_in_and_ends_it(parent: Parent) -> None:
    groups = Groups("sandbox", parent)
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220  # killed by the group
        async with groups.group(INSTANCE, "sandbox-ada-1", LIMITS) as group:
            group.add(child.pid)
            assert f"/armorclaw-{INSTANCE}/sandbox-ada-1" in text(child.pid)
            usage = group.usage()
            assert (usage.memory_limit, usage.pids) == (64 << 20, 1)
            assert group.oom_kills() == 0
        assert child.wait() == -signal.SIGKILL
        assert group.oom_kills() == 0
    assert left(parent) == []


async def test_two_agents_of_one_instance(parent: Parent) -> None:
    groups = Groups("sandbox", parent)
    async with groups.group(INSTANCE, "sandbox-ada-1", LIMITS):
        async with groups.group(INSTANCE, "sandbox-bob-1", LIMITS):
            pass
        assert left(parent)
    assert left(parent) == []


async def test_cancelled_it_is_removed_all_the_same(parent: Parent) -> None:
    groups = Groups("sandbox", parent)
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220
        with trio.CancelScope() as scope:
            async with groups.group(INSTANCE, "sandbox-ada-1", LIMITS) as group:
                group.add(child.pid)
                scope.cancel(reason="the test says so")
                await trio.sleep_forever()
        assert child.wait() == -signal.SIGKILL
    assert left(parent) == []


async def test_what_a_killed_bridge_left_is_ended_by_the_next(parent: Parent) -> None:
    with subprocess.Popen(["sleep", "60"]) as child:  # noqa: ASYNC220
        for folder in parent.folders.values():
            stale = folder / f"armorclaw-{INSTANCE}" / "sandbox-ada-0"
            stale.mkdir(parents=True)
            (stale / "cgroup.procs").write_text(str(child.pid))
            (stale.parent / "process-bob-0").mkdir()
        async with Groups("sandbox", parent).group(INSTANCE, "sandbox-ada-1", LIMITS):
            assert child.wait() == -signal.SIGKILL
            names = {path.name for top in left(parent) for path in top.iterdir() if path.is_dir()}
            assert names == {"sandbox-ada-1", "process-bob-0"}  # what is of the other runtime is that one's affair
    await Groups("process", parent).clean(INSTANCE)


async def test_what_cannot_be_removed_is_waited_for_by_trio(tmp_path: Path, autojump_clock: MockClock) -> None:
    """Others run meanwhile."""
    for number in range(5):
        (tmp_path / "armorclaw-x" / f"sandbox-ada-{number}" / "stays").mkdir(parents=True)
    began = trio.current_time()
    await Groups("sandbox", Parent({"memory": tmp_path})).clean("x")
    assert trio.current_time() - began >= 0.05


async def test_limits_that_the_kernel_refuses(parent: Parent) -> None:
    with pytest.raises(ArmorclawError) as caught:
        async with Groups("sandbox", parent).group(INSTANCE, "sandbox-ada-1", Limits(pids=-5)):
            pytest.fail("it was made")
    assert caught.value.name == "engine_refused"
    assert left(parent) == []


# -- version 2, as a tree of files: the kernel's part is played by nobody


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A /proc/self and a mounted hierarchy, in which the bridge is /system.slice/armorclaw.service."""
    own = tmp_path / "cgroup" / "system.slice" / "armorclaw.service"
    own.mkdir(parents=True)
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (tmp_path / "mountinfo").write_text(f"30 23 0:26 / {tmp_path}/cgroup rw - cgroup2 cgroup2 rw\n")
    (tmp_path / "cgroup.own").write_text("0::/system.slice/armorclaw.service\n")
    return tmp_path


def find(tree: Path) -> Parent:
    proc = tree / "proc"
    proc.mkdir(exist_ok=True)
    for name, source in (("mountinfo", "mountinfo"), ("cgroup", "cgroup.own")):
        (proc / name).write_text((tree / source).read_text())
    return Parent.find(proc)


def delegated(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    def getxattr(path: Any, name: str) -> bytes:
        if name == "user.delegate" and Path(path) in folders:
            return b"1"
        raise OSError

    monkeypatch.setattr(os, "getxattr", getxattr)


def test_not_delegated(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delegated(monkeypatch)
    with pytest.raises(NoGroups, match="Delegate=yes"):
        find(tree)


def test_delegated(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree / "cgroup" / "system.slice" / "armorclaw.service"
    delegated(monkeypatch, own)
    assert find(tree).folders == {V2: own}
    assert (own / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"


def test_delegated_with_the_bridge_in_a_subgroup(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `DelegateSubgroup=` does it."""
    own = tree / "cgroup" / "system.slice" / "armorclaw.service"
    (own / "bridge").mkdir()
    (tree / "cgroup.own").write_text("0::/system.slice/armorclaw.service/bridge\n")
    delegated(monkeypatch, own)
    assert find(tree).folders == {V2: own}


def test_it_steps_aside_where_it_is_in_the_way(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tree / "cgroup" / "system.slice" / "armorclaw.service"
    delegated(monkeypatch, own)
    write = Path.write_text

    def busy_with_processes(path: Path, data: str) -> int:
        if path == own / "cgroup.subtree_control" and not (own / "bridge" / "cgroup.procs").exists():
            raise OSError(16, "Device or resource busy")
        return write(path, data)

    monkeypatch.setattr(Path, "write_text", busy_with_processes)
    proc = tree / "proc"
    proc.mkdir()
    write(proc / "mountinfo", (tree / "mountinfo").read_text())
    write(proc / "cgroup", (tree / "cgroup.own").read_text())
    assert Parent.find(proc).folders == {V2: own}
    assert (own / "bridge" / "cgroup.procs").read_text() == str(os.getpid())
    (own / "bridge" / "cgroup.procs").unlink()
    (own / "cgroup.procs").write_text(f"{os.getpid()}\n1\n")  # not alone: others are not moved about
    with pytest.raises(NoGroups, match="busy"):
        Parent.find(proc)


def test_at_the_root(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    delegated(monkeypatch)
    (tree / "cgroup.own").write_text("0::/\n")
    assert find(tree).folders == {V2: tree / "cgroup"}


def test_no_control_groups_at_all(tree: Path) -> None:
    (tree / "mountinfo").write_text("")
    with pytest.raises(NoGroups, match="mounted"):
        find(tree)
    with pytest.raises(NoGroups, match="/proc"):
        Parent.find(tree / "nowhere")


def test_another_user(monkeypatch: pytest.MonkeyPatch, tree: Path) -> None:
    delegated(monkeypatch, tree / "cgroup" / "system.slice" / "armorclaw.service")
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(NoGroups, match="may not"):
        find(tree)


async def test_what_is_written_for_version_2(tmp_path: Path) -> None:
    parent = Parent({V2: tmp_path})
    folder = tmp_path / "armorclaw-inst" / "sandbox-ada-1"
    async with Groups("sandbox", parent).group("inst", "sandbox-ada-1", LIMITS) as group:
        group.add(7)
        written = {path.name: path.read_text() for path in folder.iterdir()}
        for path in folder.iterdir():  # a real one goes with its files
            path.unlink()
    assert written == {
        "memory.max": str(64 << 20),
        "pids.max": "10",
        "cpu.max": "50000 100000",
        "cgroup.procs": "7",
    }
    assert (tmp_path / "armorclaw-inst" / "cgroup.subtree_control").read_text() == "+memory +pids +cpu"
    assert not folder.exists()
