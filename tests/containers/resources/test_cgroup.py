"""What control groups tell: version 1 for real where the tests run as root, version 2 from a tree of files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.local.group import NoGroups, Parent
from armorclaw.containers.resources import cgroup as module
from armorclaw.containers.resources.cgroup import V2, Cgroup, Hierarchies, folders_of, memberships
from armorclaw.containers.resources.usage import Usage
from armorclaw.testing.plugin import missing

pytestmark = pytest.mark.mission("P0.4")

HYBRID = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
UNIFIED = "30 23 0:26 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime - cgroup2 cgroup2 rw,nsdelegate\n"


def test_mixed_versions() -> None:
    theirs = "9:name=systemd:/docker/ab\n4:memory:/docker/ab\n2:cpu,cpuacct:/docker/ab\n0::/docker/ab\n"
    ours = "9:name=systemd:/\n4:memory:/bridge\n2:cpu,cpuacct:/\n0::/\n"
    assert folders_of(theirs, ours, HYBRID) == {
        "name=systemd": Path("/sys/fs/cgroup/systemd/docker/ab"),
        "memory": Path("/sys/fs/cgroup/memory/docker/ab"),
        "cpu": Path("/sys/fs/cgroup/cpu,cpuacct/docker/ab"),
        "cpuacct": Path("/sys/fs/cgroup/cpu,cpuacct/docker/ab"),
        V2: Path("/sys/fs/cgroup/unified/docker/ab"),
    }


def test_version_2_alone() -> None:
    ours = "0::/system.slice/armorclaw.service\n"
    path = "/system.slice/docker-ab.scope"
    assert folders_of(f"0::{path}\n", ours, UNIFIED) == {V2: Path(f"/sys/fs/cgroup{path}")}


@pytest.mark.parametrize(
    "theirs",
    [
        "0::/system.slice/armorclaw.service\n",  # the bridge's own
        "0::/system.slice\n",  # above it
        "0::/\n",
        "0::/../other\n",  # outside of what the bridge may see
        "",
    ],
)
def test_a_group_that_the_bridge_is_in_tells_nothing(theirs: str) -> None:
    assert folders_of(theirs, "0::/system.slice/armorclaw.service\n", UNIFIED) == {}


def test_a_name_that_only_begins_alike_is_another_group() -> None:
    assert folders_of("0::/a\n", "0::/ab\n", UNIFIED) == {V2: Path("/sys/fs/cgroup/a")}


def test_what_is_mounted_is_part_of_it_only() -> None:
    """As in a container: its own group is shown as the root."""
    mounted = "30 23 0:26 /docker/ab /sys/fs/cgroup/my\\040place ro - cgroup2 cgroup2 rw\n"
    hierarchies = Hierarchies.parse(mounted)
    assert hierarchies.folder(V2, "/docker/ab/x") == Path("/sys/fs/cgroup/my place/x")
    assert hierarchies.folder(V2, "/docker/ab") == Path("/sys/fs/cgroup/my place")
    assert hierarchies.folder(V2, "/docker/abc") is None
    assert hierarchies.folder("memory", "/docker/ab") is None


def test_mounted_twice_where_more_is_shown() -> None:
    twice = UNIFIED + "31 23 0:26 /a /mnt/a rw - cgroup2 cgroup2 rw\n"
    assert Hierarchies.parse(twice).folder(V2, "/a/b") == Path("/sys/fs/cgroup/a/b")


def test_memberships() -> None:
    assert memberships("4:memory:/a:b\n2:cpu,cpuacct:/\n0::/x\n") == {
        "memory": "/a:b",
        "cpu": "/",
        "cpuacct": "/",
        V2: "/x",
    }


FILES = {
    "cpu.stat": "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_throttled 2\nthrottled_usec 70\n",
    "memory.current": "10000000\n",
    "memory.max": "67108864\n",
    "memory.stat": "anon 1\nfile 9\ninactive_anon 7\ninactive_file 4000000\nactive_file 5\n",
    "memory.events": "low 0\nhigh 0\nmax 12\noom 3\noom_kill 2\noom_group_kill 0\n",
    "pids.current": "5\n",
    "pids.max": "128\n",
    "io.stat": "8:0 rbytes=100 wbytes=10 rios=1 wios=1 dbytes=0 dios=0\n253:1 rbytes=1 wbytes=2 rios=0 wios=0\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_all_that_version_2_tells(tree: Path) -> None:
    group = Cgroup({V2: tree})
    assert group.usage() == Usage(1_500_000, 6_000_000, 67108864, 5, 101, 12)
    assert (group.throttled_ns(), group.oom_kills(), group.pids_limit) == (70_000, 2, 128)
    (tree / "pids.current").write_text("6\n")
    assert group.usage().pids == 6
    group.close()
    group.close()
    assert group.usage() == Usage(memory_limit=67108864)
    assert group.oom_kills() == 2  # what was known stays so


def test_without_limits(tree: Path) -> None:
    (tree / "memory.max").write_text("max\n")
    (tree / "pids.max").write_text("max\n")
    group = Cgroup({V2: tree})
    assert (group.memory_limit, group.pids_limit) == (None, None)
    group.close()


def test_a_controller_that_is_not_handed_down(tree: Path) -> None:
    for path in tree.iterdir():
        if not path.name.startswith("cpu."):
            path.unlink()
    group = Cgroup({V2: tree})
    assert group.usage() == Usage(cpu_ns=1_500_000)
    assert group.oom_kills() is None
    group.close()


def test_disks_that_are_not_counted(tree: Path) -> None:
    (tree / "io.stat").write_text("")
    group = Cgroup({V2: tree})
    assert (group.usage().read_bytes, group.usage().written_bytes) == (None, None)
    group.close()


@given(st.sampled_from(sorted(FILES)), st.binary(max_size=40))
def test_any_content_is_stood(tmp_path_factory: pytest.TempPathFactory, name: str, content: bytes) -> None:
    tree = tmp_path_factory.mktemp("tree")
    (tree / name).write_bytes(content)
    group = Cgroup({V2: tree})
    group.usage()
    group.throttled_ns()
    group.oom_kills()
    group.close()


def test_the_bridges_own_group_is_nobody_elses() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        assert Cgroup.of(os.getpid()) is None
        assert Cgroup.of(child.pid) is None  # it is in ours
        child.kill()
    assert Cgroup.of(2**22 + 1) is None


# -- version 1, for real


@pytest.fixture
def group() -> Iterator[dict[str, Path]]:
    """An empty group in each hierarchy of version 1."""
    try:
        parent = Parent.find()
    except NoGroups as why:
        missing(str(why))
    if parent.version != 1:
        missing("version 1 of control groups is not used here")
    folders = {name: folder / f"armorclaw-test-{os.getpid()}" for name, folder in parent.folders.items()}
    for folder in folders.values():
        folder.mkdir()
    yield folders
    for folder in folders.values():
        with suppress(FileNotFoundError):
            folder.rmdir()


EATS = """
import sys
sys.stdin.readline()
held = []
while True: held.append(b"1" * 1048576)
"""


def start(folders: dict[str, Path], script: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, "-S", "-c", script], stdin=subprocess.PIPE)
    for folder in folders.values():
        (folder / "cgroup.procs").write_text(str(child.pid))
    return child


def test_a_process_of_version_1(group: dict[str, Path]) -> None:
    (group["memory"] / "memory.limit_in_bytes").write_text(str(64 << 20))
    (group["pids"] / "pids.max").write_text("9")
    script = "held = b'1' * (20 << 20)\nimport time\nwhile time.process_time() < 0.3: pass\nprint()\ninput()"
    child = start(group, "import sys\nsys.stdin.readline()\n" + script)
    before = len(os.listdir("/proc/self/fd"))
    found = Cgroup.of(child.pid)
    assert found is not None
    try:
        assert child.stdin is not None
        child.stdin.write(b"\n")
        child.stdin.flush()
        while (found.usage().cpu_ns or 0) < 250_000_000:
            assert child.poll() is None
        usage = found.usage()
        assert usage.memory_bytes is not None
        assert 20 << 20 <= usage.memory_bytes < 64 << 20
        assert (usage.memory_limit, usage.pids, found.pids_limit) == (64 << 20, 1, 9)
        assert (found.oom_kills(), found.throttled_ns()) == (0, 0)
    finally:
        child.kill()
        child.communicate()
    assert found.usage().cpu_ns
    for folder in group.values():
        folder.rmdir()
    assert found.usage() == Usage(memory_limit=64 << 20)
    assert found.gone
    assert found.oom_kills() == 0
    found.close()
    assert len(os.listdir("/proc/self/fd")) <= before


def test_a_kill_for_want_of_memory_is_known_when_the_group_has_gone(group: dict[str, Path]) -> None:
    """Nobody has looked between the kill and the removal, as when an engine is quicker than the bridge."""
    (group["memory"] / "memory.limit_in_bytes").write_text(str(16 << 20))
    child = start(group, EATS)
    found = Cgroup.of(child.pid)
    assert found is not None
    child.communicate(b"\n")
    assert child.returncode == -9
    for folder in group.values():
        folder.rmdir()
    assert until_known(found) == 1
    assert found.oom_kills() == 1
    found.close()


def test_an_end_without_want_of_memory_is_none(group: dict[str, Path]) -> None:
    child = start(group, "input()")
    found = Cgroup.of(child.pid)
    assert found is not None
    child.communicate(b"\n")
    for folder in group.values():
        folder.rmdir()
    seen = {found.oom_kills() for _ in range(1000)} | {until_known(found)}
    assert seen <= {0, None}
    found.close()


@pytest.mark.parametrize("strange", ["cgroup", "mountinfo"])
def test_a_kernel_that_tells_otherwise(strange: str, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {"cgroup": "0::/a\n", "mountinfo": "1 2 0:3 / /sys rw - cgroup2 x rw\n", strange: "no - cgroup2 such\n"}
    monkeypatch.setattr(module, "_text", lambda path: texts[path.rpartition("/")[2]])
    assert Cgroup.of(1) is None


def test_a_second_counter_that_cannot_be_made_takes_the_first_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, made = os.eventfd, list[int]()

    def eventfd(*args: int) -> int:
        if made:
            raise OSError(24, "too many open files")
        made.append(original(*args))
        return made[0]

    monkeypatch.setattr(os, "eventfd", eventfd)
    Cgroup({"memory": tmp_path})
    with pytest.raises(OSError, match="descriptor"):
        os.fstat(made[0])


def test_who_is_in_it(tmp_path: Path) -> None:
    (tmp_path / "cgroup.procs").write_text("12\n0\n345\n")
    assert Cgroup({module.V2: tmp_path}).processes() == [12, 345]
    (tmp_path / "cgroup.procs").unlink()
    assert Cgroup({module.V2: tmp_path}).processes() == []
    assert Cgroup({}).processes() == []


def until_known(group: Cgroup) -> int:
    """The kernel tells of a removal a little later."""
    end = time.monotonic() + 10
    while (kills := group.oom_kills()) is None:
        assert time.monotonic() < end
        time.sleep(0.001)
    return kills
