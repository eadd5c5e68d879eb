"""What the kernel says, read of processes that are known."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from armorclaw.containers.isolation import kernel
from armorclaw.containers.isolation.kernel import Groups, Mount

MINE = "/system.slice/armorclaw.service"


def test_this_process() -> None:
    me = kernel.status(os.getpid())
    assert me.uids == (*os.getresuid(), os.geteuid())
    assert me.groups == frozenset(os.getgroups())
    assert kernel.inside(os.getpid(), os.geteuid()) == os.geteuid()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert kernel.limits(os.getpid())["Max open files"] == (soft, hard)
    assert "lo" in kernel.network_devices(os.getpid())
    assert any(mount.target == "/" for mount in kernel.mounts("self"))
    assert all(kernel.namespace(os.getpid(), name) == kernel.namespace("self", name) for name in kernel.NAMESPACES)


def test_a_tree_of_processes() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & echo; wait"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = kernel.tree(process.pid)
        try:
            assert len(found) == 3
            assert found[0] == process.pid
            assert kernel.started(process.pid) <= kernel.started(found[-1])
        finally:
            for pid in [*found[1:], process.pid]:
                os.kill(pid, 9)


def test_one_that_is_not_there() -> None:
    for read in (kernel.started, kernel.status, kernel.mounts, kernel.limits, kernel.network_devices, Groups):
        with pytest.raises(FileNotFoundError):
            read(2**22 + 1)  # above what the kernel gives
    assert kernel.tree(2**22 + 1) == [2**22 + 1]


def mount(root: str, target: str, device: str = "8:1") -> Mount:
    return Mount(device, root, target, ("ro",), "ext4", ("rw",))


@pytest.mark.parametrize(
    "shown, lies_at",
    [
        (mount("/srv/agents/code", "/agent"), "/srv/agents/code"),
        (mount("/vol/a", "/data"), "/mnt/a"),  # by the mount that is nearest
        (mount("/", "/host"), "/"),
        (mount("/volume", "/v"), "/volume"),
        (mount("/x", "/x", "0:99"), None),
    ],
)
def test_where_a_mount_lies_on_the_host(shown: Mount, lies_at: str | None) -> None:
    ours = [mount("/", "/"), mount("/vol", "/mnt"), mount("/", "/proc", "0:4")]
    assert kernel.host_path(shown, ours) == lies_at


def test_odd_names_of_mounts(monkeypatch: pytest.MonkeyPatch) -> None:
    line = r"72 48 8:1 /a\040b /c\011d rw,nosuid master:2 - ext4 /dev/vda rw,size=1k"
    monkeypatch.setattr(kernel, "text_of", lambda pid, name: line)
    (found,) = kernel.mounts(1)
    assert (found.root, found.target, found.kind, found.is_writable) == ("/a b", "/c\td", "ext4", True)


Maker = Callable[[str, Mapping[str, str]], Groups]


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """`v2(path, files)`: version 2, the bridge in MINE, a process in the group `path`, where the files are."""

    def make(path: str, files: Mapping[str, str]) -> Groups:
        for name, text in files.items():
            file = tmp_path / name.lstrip("/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        texts: dict[str, dict[str | int, str]] = {
            "cgroup": {"self": f"0::{MINE}/bridge", 7: f"0::{path}"},
            "mountinfo": {"self": f"30 20 0:26 / {tmp_path} rw - cgroup2 cgroup2 rw"},
        }
        monkeypatch.setattr(kernel, "text_of", lambda pid, name: texts[name][pid])
        return Groups(7)

    return make


def test_version_2(v2: Maker) -> None:
    """The least of its group and of those above that are its own: Podman puts processes one below."""
    groups = v2(
        "/machine.slice/libpod-x.scope/container",
        {
            "/machine.slice/libpod-x.scope/container/memory.max": "max",
            "/machine.slice/libpod-x.scope/container/cpu.max": "max 100000",
            "/machine.slice/libpod-x.scope/memory.max": "1048576",
            "/machine.slice/libpod-x.scope/cpu.max": "50000 100000",
            "/machine.slice/memory.max": "max",
        },
    )
    assert groups.version("memory") == 2
    assert groups.least("memory", "memory.limit_in_bytes", "memory.max") == 1048576
    assert groups.cpus() == 0.5
    assert groups.least("pids", "pids.max", "pids.max") is None
    assert groups.has_one("pids")


def test_groups_beside_the_bridge(v2: Maker) -> None:
    """What holds the bridge as well is no limit of its own."""
    files = {f"{MINE}/memory.max": "5", f"{MINE}/armorclaw-i/a/memory.max": "max"}
    groups = v2(f"{MINE}/armorclaw-i/a", files)
    assert groups.least("memory", "x", "memory.max") is None
    assert groups.has_one("memory")
    assert not v2(MINE, {}).has_one("memory")
    assert not v2("/", {}).has_one("memory")


def test_groups_that_are_not_in_sight(v2: Maker) -> None:
    with pytest.raises(ValueError, match="not mounted here"):
        v2("/../other", {}).least("memory", "x", "memory.max")
