"""What really confines an agent: found in the kernel and the engine, for each way to run one."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.config import MIB
from armorclaw.containers.engines.config import container_config
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.isolation import examine as isolation
from armorclaw.containers.isolation import kernel, mounted
from armorclaw.containers.isolation.examine import Inspected, examine
from armorclaw.containers.isolation.verdicts import Subject
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.shapes import IsolationFact
from armorclaw.containers.spec import Limits, Mount
from armorclaw.errors import ArmorclawError
from armorclaw.testing.engines import EngineWithImage
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("S.2")

Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any
LIMITS = Limits(memory=64 * MIB, cpus=0.5, pids=50, files=256, tmp=8 * MIB)
WAITS = "door.recv(1)"


def subject_of(kind: str, pid: int, folder: Path, **others: Any) -> Subject:
    limits = attrs.asdict(LIMITS)
    return Subject(kind=kind, pid=pid, uid=10001, folders=(folder,), **(limits | others))


async def rows_of(running: Running, kind: str, folder: Path) -> dict[str, IsolationFact]:
    pid = await running.main_pid()
    assert pid is not None
    told = await running.inspect() if isinstance(running, Inspected) else None
    assert (told is not None) == (kind in ("docker", "podman"))
    rows = await trio.to_thread.run_sync(examine, subject_of(kind, pid, folder, told=told))
    assert len({row.what for row in rows}) == len(rows)
    return {row.what: row for row in rows}


def failing(rows: dict[str, IsolationFact]) -> set[str]:
    return {row.what for row in rows.values() if row.holds is False}


@asynccontextmanager
async def agent(runtime: Runtime, make_spec: MakeSpec, door: Door, **spec: Any) -> AsyncIterator[Running]:
    """One that runs, has connected, and waits."""
    made = make_spec(spec.pop("script", WAITS), limits=LIMITS, **spec)
    async with door(made) as listener, runtime.launch(made) as running:
        await running.start()
        await listener.accept()
        yield running


# What a sandbox has only where the bridge may make a control group for it.
OF_A_GROUP = {"memory of all", "processors"}


@pytest.mark.parametrize("runtime_kind", ["docker", "podman", "sandbox"], indirect=True)
async def test_what_is_claimed_holds(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    async with agent(runtime, make_spec, door) as running:
        rows = await rows_of(running, runtime_kind, folder)
    assert failing(rows) <= (OF_A_GROUP if "memory of each" in rows else set()), rows
    assert not [row for row in rows.values() if row.claimed is not None and row.holds is None], rows
    for what, found in {
        "system calls": "filter",
        "capabilities": "none",
        "capabilities to be gained": "none",
        "net namespace": "its own",
        "network devices": "lo",
        "routes": "none",
        "open files of each": "256",
        "core files": "0",
    }.items():
        assert rows[what].found.partition(" in all")[0] == found
    assert rows["user"].found == "10001 inside, 10001 on the host"
    assert "/tmp" in rows["places to write"].found
    assert rows["/tmp"].found.endswith(", 8 MiB")
    assert rows["/run/armorclaw/containers from the host"].found.startswith(str(folder))
    if "memory of each" not in rows:
        assert (rows["memory of all"].found, rows["processors"].found) == ("64 MiB", "0.5")
        assert rows["processes and threads"].found == "50"
    if runtime_kind != "sandbox":
        assert rows["engine: main process"].holds


@pytest.mark.parametrize("runtime_kind", ["process"], indirect=True)
async def test_a_plain_process_is_not_confined(
    runtime: Runtime, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    async with agent(runtime, make_spec, door) as running:
        rows = await rows_of(running, "process", folder)
    wrong = failing(rows)
    assert {"system calls", "pid namespace", "net namespace", "mnt namespace", "network devices", "files"} <= wrong
    assert "device files" in wrong
    assert rows["memory of each" if "memory of each" in rows else "memory of all"].holds
    if os.geteuid() == 0:
        assert rows["user"].holds


def weak(**host: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        config["HostConfig"] |= host
        if "NetworkMode" in host:
            config["NetworkDisabled"] = False

    return change


def as_root(config: dict[str, Any]) -> None:
    config["User"] = "0:0"
    config["HostConfig"]["CapDrop"] = []


def etc_writable(config: dict[str, Any]) -> None:
    config["HostConfig"]["Mounts"].append({"Type": "bind", "Source": "/etc", "Target": "/host"})


WEAK: dict[str, tuple[Callable[[dict[str, Any]], None], set[str]]] = {
    "as root": (as_root, {"user", "further groups", "capabilities", "capabilities to be gained", "/dev"}),
    "privileges": (weak(SecurityOpt=[]), {"new privileges", "engine: security options"}),
    "no filter": (
        weak(SecurityOpt=["no-new-privileges", "seccomp=unconfined"]),
        {"system calls", "engine: security options"},
    ),
    "the host's network": (
        weak(NetworkMode="host"),
        {"net namespace", "network devices", "routes", "engine: network", "engine: shared with the host"},
    ),
    "the host's processes": (weak(PidMode="host"), {"pid namespace", "engine: shared with the host"}),
    "a root to write to": (weak(ReadonlyRootfs=False), {"root file system"}),
    "a folder of the host": (etc_writable, {"places to write", "/host from the host"}),
    "no limits": (
        weak(Memory=0, MemorySwap=0, NanoCpus=0, PidsLimit=0, Ulimits=[]),
        {"memory of all", "processors", "processes and threads", "open files of each"},
    ),
    "a /tmp without limit": (weak(Tmpfs={"/tmp": "rw,size=1g"}), {"/tmp"}),
    "privileged": (
        weak(Privileged=True),
        {"engine: privileged", "capabilities to be gained", "system calls", "device files", "use of devices"},
    ),
}


@pytest.mark.parametrize("runtime_kind", ["docker"], indirect=True)
@pytest.mark.parametrize("how", WEAK)
async def test_a_weakened_container_is_found_out(
    engine_runtime: EngineRuntime, private: EngineWithImage, make_spec: MakeSpec, folder: Path, how: str
) -> None:
    """Made with the engine by hand, under our own labels: whatever it was asked to be, this is what it is."""
    change, expected = WEAK[how]
    spec = make_spec("import time; time.sleep(60)", limits=LIMITS, hello=False)
    config = container_config(spec, "docker")
    change(config)
    engine = engine_runtime.engine
    container, _ = await engine.create(f"weak-{folder.name}", config)
    try:
        await engine.start(container)
        told = await engine.inspect(container)
        subject = subject_of("docker", told["State"]["Pid"], folder, told=told)
        rows = {row.what: row for row in await trio.to_thread.run_sync(examine, subject)}
    finally:
        with trio.CancelScope(shield=True):
            await engine.remove(container)
    wrong = failing(rows)
    if how == "the host's network" and rows["routes"].holds is not False:
        expected = expected - {"routes"}  # a host without any
    assert expected <= wrong, {what: rows[what] for what in expected - wrong if what in rows}
    assert "mnt namespace" not in wrong


@pytest.mark.parametrize("runtime_kind", ["docker", "sandbox"], indirect=True)
async def test_every_process_counts(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    """Not the first alone: those that it started are looked at as well."""
    script = "import subprocess\nsubprocess.Popen(['/usr/bin/python3', '-S', '-c', 'import time; time.sleep(60)'])"
    async with agent(runtime, make_spec, door, script=f"{script}\n{WAITS}") as running:
        with trio.fail_after(30):
            while True:  # the child is there a moment later
                rows = await rows_of(running, runtime_kind, folder)
                if (
                    rows["capabilities"].found == "none in all 3 processes"
                ):  # init or bubblewrap, the agent, its child
                    break
                await trio.sleep(0.05)


@pytest.mark.parametrize("runtime_kind", ["sandbox"], indirect=True)
async def test_what_is_mounted_of_the_host_is_named(
    runtime: Runtime, make_spec: MakeSpec, door: Door, folder: Path, tmp_path: Path
) -> None:
    """The bridge's own folders are claimed, any other place is not."""
    for each in (folder / "code", folder.parent / f"{folder.name}-other"):
        each.mkdir(mode=0o755)
    other = folder.parent / f"{folder.name}-other"
    try:
        mounts = (Mount(folder / "code", "/agent"), Mount(other, "/other"))
        async with agent(runtime, make_spec, door, mounts=mounts) as running:
            rows = await rows_of(running, "sandbox", folder)
    finally:
        other.rmdir()
    assert rows["/agent from the host"].holds is True
    assert rows["/other from the host"].holds is False
    assert rows["/other from the host"].found.startswith(str(other))


@pytest.mark.parametrize(
    "target, path, claimed",
    [
        ("/srv/venv", "/srv/venv", True),
        ("/srv/python/3.12", "/srv/python/3.12", True),  # what it was made of
        ("/srv/venv", "/srv/other", False),
        ("/srv/other", "/srv/other", False),
        ("/srv", "/srv", False),
        ("/", "/", False),
        ("/run/docker.sock", "/run/docker.sock", False),
        ("/state", "/state", False),
        ("/anywhere", "/state/code/x", True),
    ],
)
def test_which_places_of_the_host_are_claimed(
    target: str, path: str, claimed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os.path, "realpath", lambda name: "/srv/python/3.12/bin/python3.12")
    subject = subject_of("sandbox", 1, Path("/state"), python=Path("/srv/venv"))
    assert mounted._is_claimed(subject, target, path) is claimed


@pytest.mark.parametrize("runtime_kind", ["process"], indirect=True)
async def test_one_that_has_ended(runtime: Runtime, make_spec: MakeSpec, folder: Path) -> None:
    async with runtime.launch(make_spec("", hello=False)) as running:
        pid = await running.main_pid()
        assert pid is not None
        await running.start()
        await running.wait()
        assert await running.main_pid() is None
    with pytest.raises(ArmorclawError) as caught:
        examine(subject_of("process", pid, folder))
    assert caught.value.name == "unavailable"


async def test_what_cannot_be_read_is_not_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every row the claim stays, and nothing is said to hold."""

    def refuse(*_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for name in ("status", "namespace", "mounts", "network_devices", "routes", "limits", "devices"):
        monkeypatch.setattr(kernel, name, refuse)
    monkeypatch.setattr(kernel.Groups, "__init__", refuse)
    monkeypatch.setattr(kernel, "has_swap", lambda: True)
    rows = {row.what: row for row in examine(subject_of("sandbox", os.getpid(), folder))}
    for row in rows.values():
        if row.what not in ("choice when the host has no memory", "security module"):
            assert (row.holds, row.found) == (None, "not known: Permission denied"), row
            assert row.claimed


# -- on the wire


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


async def test_the_method(house: FakeHouse) -> None:
    await house.up(declared(ready_timeout=0))
    await house.until("running")
    house.runtime.last.pid = os.getpid()  # of ours, which nothing confines
    rows = await house.call("containers.isolation", name="ada")
    assert {row["what"]: row["holds"] for row in rows}["net namespace"] is False
    assert rows[0].keys() == {"what", "claimed", "found", "holds", "source"}


@pytest.mark.parametrize("why", ["stopped", "no process"])
async def test_nothing_runs(house: FakeHouse, why: str) -> None:
    await house.up(declared(ready_timeout=0))
    await house.until("running")
    if why == "stopped":
        await house.call("stop", name="ada")
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.isolation", name="ada")
    assert caught.value.name == "unavailable"


async def test_an_engine_that_does_not_answer(house: FakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolation, "PATIENCE", 0.05)
    await house.up(declared(ready_timeout=0))
    await house.until("running")
    house.runtime.takes["main_pid"] = 60
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.isolation", name="ada")
    assert caught.value.name == "timed_out"
    house.runtime.takes.clear()
