"""What only engines have: images, names, survivors, the hardening, and an engine that is lost."""

from __future__ import annotations

import io
import json
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from armorclaw.containers.engines.config import container_name
from armorclaw.containers.engines.http import Engine, EngineFault
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.image import HostFiles
from armorclaw.containers.printed import LogWanted
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec, Found, Limits, Mount
from armorclaw.errors import ArmorclawError

ENGINES = ["docker", "podman"]
pytestmark = pytest.mark.parametrize("runtime_kind", ENGINES, indirect=True)

# Fixtures whose types live in conftest.py, which test modules cannot import.
Door = Any
MakeSpec = Any
LeaveSurvivor = Callable[[ContainerSpec], Found]

WAITS = "door.recv(1)"


# -- images and names


@pytest.mark.parametrize(
    "image, docker_says, podman_says",
    [
        ("python:3.99-slim", "docker pull python:3.99-slim", "podman pull docker.io/library/python:3.99-slim"),
        ("ghcr.io/a/b:1", "docker pull ghcr.io/a/b:1", "podman pull ghcr.io/a/b:1"),
        ("sha256:" + "0" * 64, "an id cannot be pulled", "an id cannot be pulled"),
        ("../../etc?x=1", "docker pull", "podman pull"),
    ],
)
@pytest.mark.mission("K.start")
async def test_missing_image_names_the_pull_command(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, image: str, docker_says: str, podman_says: str
) -> None:
    with pytest.raises(ArmorclawError) as asked:
        await engine_runtime.check_image(image)
    spec = make_spec(image=image)
    with pytest.raises(ArmorclawError) as launched:
        async with engine_runtime.launch(spec):
            pytest.fail("there is no such image")
    hint = docker_says if engine_runtime.kind == "docker" else podman_says
    for error in (asked.value, launched.value):
        assert error.name == "image_missing"
        assert error.hint.startswith(hint)
    assert await engine_runtime.survivors(spec.instance) == []


async def test_a_present_image_has_an_id(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    image = make_spec().image
    assert (await engine_runtime.check_image(image)).removeprefix("sha256:") == image.removeprefix("sha256:")


async def test_no_image_is_said_before_the_engine_is_asked(
    engine_runtime: EngineRuntime, make_spec: MakeSpec
) -> None:
    with pytest.raises(ArmorclawError) as raised:
        async with engine_runtime.launch(make_spec(image=None)):
            pytest.fail("nothing to run")
    assert raised.value.name == "invalid_params"


async def test_a_name_taken_by_a_stranger_is_left_alone(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec, engine = make_spec(), engine_runtime.engine
    name = container_name(spec)
    stranger, _ = await engine.create(name, {"Image": spec.image, "Cmd": ["x"], "HostConfig": _podman_needs()})
    try:
        with pytest.raises(ArmorclawError) as raised:
            async with engine_runtime.launch(spec):
                pytest.fail("the name is taken")
        assert raised.value.name == "conflict"
        assert raised.value.hint == f"remove it: {engine_runtime.kind} rm -f {name}"
        assert (await engine.inspect(name))["Id"] == stranger
        with pytest.raises(ArmorclawError) as refused:
            await engine_runtime.discard(Found(stranger, spec.name, spec.digest(), running=False))
        assert refused.value.name == "denied"
    finally:
        await engine.remove(stranger)


async def test_two_generations_at_once_are_refused(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec = make_spec()
    async with engine_runtime.launch(spec) as first:
        with pytest.raises(ArmorclawError) as raised:
            async with engine_runtime.launch(spec):
                pytest.fail("the name is taken")
        assert raised.value.name == "conflict"
        assert (await engine_runtime.engine.inspect(first.id))["Id"] == first.id


async def test_a_leftover_of_ours_makes_way(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, leave_survivor: LeaveSurvivor
) -> None:
    left = leave_survivor(make_spec(WAITS, hello=False))
    async with engine_runtime.launch(make_spec("raise SystemExit(7)", hello=False)) as running:
        assert running.id != left.id
        await running.start()
        with trio.fail_after(20):
            assert (await running.wait()).code == 7


async def test_a_program_that_is_not_there(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec = make_spec(command=("/no/such/program",))
    with trio.fail_after(20):
        if engine_runtime.kind == "docker":  # its init process starts, and finds nothing
            async with engine_runtime.launch(spec) as running:
                await running.start()
                end = await running.wait()
            assert (end.code, end.text) == (127, "exit 127 (the command was not found)")
        else:
            with pytest.raises(ArmorclawError) as raised:
                async with engine_runtime.launch(spec) as running:
                    await running.start()
            assert raised.value.name == "start_failed"
            assert "/no/such/program" in raised.value.why
    assert await engine_runtime.survivors(spec.instance) == []


async def test_a_mount_that_is_not_there_is_not_made(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, folder: Path
) -> None:
    spec = make_spec(mounts=(Mount(folder / "absent", "/opt/x"),))
    with pytest.raises(ArmorclawError) as raised:
        async with engine_runtime.launch(spec):
            pytest.fail("it cannot be mounted")
    assert raised.value.name == "engine_refused"
    assert "absent" in raised.value.what
    assert not await trio.Path(folder / "absent").exists()


async def test_what_the_engine_refuses(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec = make_spec(mounts=(Mount(Path("/usr"), "relative/../path"),))
    with pytest.raises(ArmorclawError) as raised:
        async with engine_runtime.launch(spec) as running:
            await running.start()
    assert raised.value.name in ("engine_refused", "start_failed")
    assert raised.value.why
    assert await engine_runtime.survivors(spec.instance) == []


@pytest.mark.mission("S.2")
async def test_a_volume_of_the_image_is_no_way_to_the_disk(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, door: Door
) -> None:
    engine = engine_runtime.engine
    host = await trio.to_thread.run_sync(HostFiles.of_python)

    async def tar() -> AsyncIterator[bytes]:
        buffer = io.BytesIO()
        host.write_tar(buffer)
        yield buffer.getvalue()

    image = await engine.import_image(
        tar(), repository="armorclaw-volume", tag="latest", changes=["VOLUME /data", "VOLUME /var/lib/x"]
    )
    try:
        script = """
        mounts = {line.split()[1]: [line.split()[2], line.split()[3]] for line in open("/proc/mounts")}
        door.sendall(json.dumps([mounts.get("/data"), mounts.get("/var/lib/x")]).encode())
        """
        spec = make_spec(script, image=image)
        async with door(spec) as listener, engine_runtime.launch(spec) as running:
            await running.start()
            for kind, options in await listener.report():
                assert kind == "tmpfs"
                assert {"noexec", "nosuid", "nodev", "size=65536k"} <= set(options.split(","))
            inspected = await engine.inspect(running.id)
        assert [mount for mount in inspected["Mounts"] if mount["Type"] == "volume"] == []
    finally:
        await engine.remove_image(image)


@pytest.mark.mission("S.6")
async def test_memory_that_runs_out_is_told(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec = make_spec("x = bytearray(b'1') * 500_000_000", hello=False)
    async with engine_runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(30):
            end = await running.wait()
    assert end.signal == 9
    assert end.oom is (True if engine_runtime.kind == "docker" else None)


async def test_logs_are_taken_apart(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    spec = make_spec(
        "import sys; [print(n, 'out' * 100) for n in range(20)]; print('bad', file=sys.stderr)", hello=False
    )
    written = {"stdout": b"", "stderr": b""}
    async with engine_runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(20):
            await running.wait()
            async with engine_runtime.engine.logs(running.id, LogWanted()) as reader:
                async for piece in reader:
                    written[piece.stream] += piece.data
    lines = b"".join(b"%d %b\n" % (n, b"out" * 100) for n in range(20))
    assert written == {"stdout": lines, "stderr": b"bad\n"}


# -- survivors of a bridge that was killed


async def test_a_survivor_is_adopted(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, leave_survivor: LeaveSurvivor, door: Door
) -> None:
    spec = make_spec(f"{WAITS}\nraise SystemExit(6)")
    async with door(spec) as listener:
        left = leave_survivor(spec)
        stream, peer = await listener.accept()
        assert await engine_runtime.survivors(spec.instance) == [left]
        assert await engine_runtime.survivors("another") == []
        async with engine_runtime.adopt(left) as running:
            assert running.id == left.id
            await running.start()  # nothing to do
            assert running.owns(peer)
            assert await engine_runtime.survivors(spec.instance) == []  # held
            await stream.aclose()
            with trio.fail_after(20):
                assert (await running.wait()).code == 6
        assert await engine_runtime.survivors(spec.instance) == []


async def test_a_survivor_that_ended_meanwhile_tells_its_exit(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, leave_survivor: LeaveSurvivor, door: Door
) -> None:
    spec = make_spec("raise SystemExit(6)")
    async with door(spec) as listener:
        left = leave_survivor(spec)
        _, peer = await listener.accept()
        await peer.ended()
        async with engine_runtime.adopt(left) as running:
            with trio.fail_after(20):
                assert (await running.wait()).code == 6


async def test_a_survivor_is_discarded(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, leave_survivor: LeaveSurvivor, door: Door
) -> None:
    spec = make_spec(WAITS)
    async with door(spec) as listener:
        left = leave_survivor(spec)
        _, peer = await listener.accept()
        await engine_runtime.discard(left)
        assert peer.gone()
        await engine_runtime.discard(left)  # gone already
        with pytest.raises(ArmorclawError) as raised:
            async with engine_runtime.adopt(left):
                pytest.fail("it is gone")
        assert raised.value.name == "container_not_found"


async def test_what_an_engine_does_not_show_is_not_gone(
    engine_runtime: EngineRuntime,
    make_spec: MakeSpec,
    leave_survivor: LeaveSurvivor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left = leave_survivor(make_spec(WAITS, hello=False))

    async def inspect(container: str) -> dict[str, Any]:
        raise EngineFault(500, "database is locked", "GET", "/containers")

    with monkeypatch.context() as patched:
        patched.setattr(engine_runtime.engine, "inspect", inspect)
        with pytest.raises(ArmorclawError, match="database is locked") as raised:
            await engine_runtime.discard(left)
        assert raised.value.name == "engine_refused"
    await engine_runtime.discard(left)
    assert await engine_runtime.survivors(make_spec().instance) == []


# -- hardening, as the engine has it and as it is inside

PROBE = """
def attempt(call):
    try:
        call()
        return "allowed"
    except OSError as error:
        return error.strerror

def touch(path):
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o755))

def execute():
    with open("/tmp/x", "w") as file: file.write("#!/usr/bin/python3\\n")
    os.chmod("/tmp/x", 0o755)
    os.execv("/tmp/x", ["/tmp/x"])

import resource
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
facts = {key: status[key].strip() for key in
         ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp", "Groups")}
facts["ids"] = [os.getuid(), os.geteuid(), os.getgid(), os.getegid()]
facts["interfaces"] = [name for _, name in socket.if_nameindex()]
facts["root"] = attempt(lambda: touch("/x"))
facts["usr"] = attempt(lambda: touch("/usr/x"))
facts["socket_dir"] = attempt(lambda: touch("/run/armorclaw/containers/x"))
facts["unlink"] = attempt(lambda: os.unlink(os.environ["ARMORCLAW_SOCKET"]))
facts["mount"] = attempt(lambda: touch("/opt/given/x"))
facts["given"] = open("/opt/given/file").read()
facts["tmp"] = attempt(lambda: touch("/tmp/y"))
facts["execute"] = attempt(execute)
facts["shm"] = attempt(lambda: touch("/dev/shm/x"))
facts["proc"] = attempt(lambda: open("/proc/sys/kernel/hostname", "w"))
facts["tmp_size"] = os.statvfs("/tmp").f_blocks * os.statvfs("/tmp").f_frsize
facts["files"] = resource.getrlimit(resource.RLIMIT_NOFILE)
facts["core"] = resource.getrlimit(resource.RLIMIT_CORE)
facts["oom_score_adj"] = int(open("/proc/self/oom_score_adj").read())
facts["writable"] = sorted(place for place in (line.split()[1] for line in open("/proc/mounts"))
                           if os.path.isdir(place) and os.access(place, os.W_OK))
facts["runnable"] = [line.split()[1] for line in open("/proc/mounts")
                     if line.split()[2] == "tmpfs" and "rw" in line.split()[3].split(",")
                     and "noexec" not in line.split()[3].split(",") and os.access(line.split()[1], os.W_OK)
                     and os.path.isdir(line.split()[1])]
facts["namespaces"] = {name: os.readlink("/proc/self/ns/" + name)
                       for name in ("mnt", "net", "pid", "ipc", "uts", "cgroup")}
facts["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
facts["devices"] = sorted(os.listdir("/dev"))
door.sendall(json.dumps(facts).encode())
"""


@pytest.mark.mission("S.2")
async def test_hardening_from_inside(
    engine_runtime: EngineRuntime, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    given = folder / "given"
    given.mkdir()
    given.chmod(0o777)  # it is the mount that forbids writing, not the mode
    (given / "file").write_text("as given")
    limits = Limits(memory=64 * 1024 * 1024, files=300, tmp=8 * 1024 * 1024)
    spec = make_spec(PROBE, mounts=(Mount(given, "/opt/given"),), limits=limits)
    spec.socket_dir.chmod(0o777)
    async with door(spec) as listener, engine_runtime.launch(spec) as running:
        await running.start()
        facts = await listener.report()
        inspected = await engine_runtime.engine.inspect(running.id)
    for capabilities in ("CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"):
        assert int(facts[capabilities], 16) == 0, capabilities
    assert facts["NoNewPrivs"] == "1"
    assert facts["Seccomp"] == "2"
    assert facts["ids"] == [10001] * 4
    assert set(facts["Groups"].split()) <= {"10001"}
    assert facts["interfaces"] == ["lo"]
    read_only = "Read-only file system"
    for place in ("root", "usr", "socket_dir", "unlink", "mount"):
        assert facts[place] == read_only, place
    assert facts["given"] == "as given"
    assert facts["tmp"] == "allowed"
    assert facts["execute"] == "Permission denied"
    assert facts["shm"] != "allowed"
    assert facts["proc"] != "allowed"
    assert facts["tmp_size"] == 8 * 1024 * 1024
    assert facts["files"] == [300, 300]
    assert facts["core"] == [0, 0]
    assert facts["oom_score_adj"] == 500
    assert facts["writable"] == ["/dev/mqueue", "/tmp"]  # mqueue: 800 kB at most, nothing executable
    assert facts["runnable"] == []
    shared = {name for name, link in facts["namespaces"].items() if os.readlink(f"/proc/self/ns/{name}") == link}
    assert shared <= ({"cgroup"} if engine_runtime.kind == "podman" else set())
    assert len(facts["processes"]) <= 2  # itself, and Docker's init
    assert not [name for name in facts["devices"] if name.startswith(("sd", "vd", "nvme", "loop", "kmsg", "mem"))]
    _check_inspected(engine_runtime.kind, inspected, spec, limits)


def _check_inspected(kind: str, inspected: dict[str, Any], spec: ContainerSpec, limits: Limits) -> None:
    host, config = inspected["HostConfig"], inspected["Config"]
    assert host["Privileged"] is False
    assert not host["CapAdd"]
    assert host["ReadonlyRootfs"] is True
    assert host["NetworkMode"] == "none"
    assert host["PidMode"] in ("", "private")
    assert host["IpcMode"] == "none" or kind == "podman"  # 4.3 says "shareable" of the namespace it made
    assert host["UTSMode"] in ("", "private")
    assert host["UsernsMode"] == ""
    assert not host["Devices"]
    assert not host["Binds"] or kind == "podman"
    assert host["Memory"] == limits.memory
    assert host["MemorySwap"] == limits.memory
    assert host["NanoCpus"] == 1_000_000_000
    assert host["PidsLimit"] == limits.pids
    assert host["OomScoreAdj"] == 500
    assert host["AutoRemove"] is False
    assert host["RestartPolicy"]["Name"] in ("no", "")
    assert host["PublishAllPorts"] is False
    assert "/tmp" in host["Tmpfs"]
    assert {(mount["Destination"], mount["RW"]) for mount in inspected["Mounts"] if mount["Type"] == "bind"} == {
        (SOCKET_DIR, False),
        ("/opt/given", False),
    }
    assert config["User"] == "10001:10001"
    assert config["Labels"]["armorclaw.instance"] == spec.instance
    assert config["Labels"]["armorclaw.agent"] == spec.name
    assert config["Labels"]["armorclaw.spec-hash"] == spec.digest()
    if kind == "docker":
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["CgroupnsMode"] == "private"
        assert host["Init"] is True
        assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
        assert "seccomp=unconfined" not in host["SecurityOpt"]


@pytest.mark.mission("S.6")
async def test_processes_are_limited(engine_runtime: EngineRuntime, make_spec: MakeSpec, door: Door) -> None:
    script = """
    made = 0
    try:
        while made < 200:
            if os.fork() == 0:
                time.sleep(60)
            made += 1
    except OSError as error:
        door.sendall(json.dumps([made, error.errno]).encode())
    """
    spec = make_spec(script, limits=Limits(memory=256 * 1024 * 1024, pids=32))
    async with door(spec) as listener, engine_runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(20):
            stream, peer = await listener.accept()
            made, number = await _value(stream)
        assert running.owns(peer)
    assert 25 <= made < 32
    assert number == 11  # EAGAIN


async def _value(stream: trio.SocketStream) -> list[int]:
    return cast(list[int], json.loads(await stream.receive_some(4096)))


def _podman_needs() -> dict[str, Any]:
    return {
        "NetworkMode": "none",
        "Ulimits": [{"Name": name, "Soft": 100, "Hard": 100} for name in ("nofile", "nproc")],
    }


# -- an engine that is lost


@pytest.fixture
def own_engine(runtime_kind: str, engine_maker: Any) -> Iterator[Any]:
    """An engine that this test may kill."""
    with engine_maker(runtime_kind) as engine:
        yield engine


@pytest.mark.mission("P0.1")
async def test_an_engine_that_dies_is_no_exit_of_the_agent(own_engine: Any, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(WAITS, image=own_engine.image)
    async with door(spec) as listener, EngineRuntime.open(own_engine.socket_path) as runtime:
        with pytest.raises(ArmorclawError) as raised:  # noqa: PT012
            async with runtime.launch(spec) as running:
                await running.start()
                _, peer = await listener.accept()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_kill_when_waited_for, own_engine.engine)
                    with trio.fail_after(30):
                        try:
                            await running.wait()
                        except ArmorclawError as error:
                            lost = error
                assert running.owns(peer)  # it lives on
                raise lost
        assert raised.value.name == "engine_unreachable"
        assert not peer.gone()

        with pytest.raises(ArmorclawError) as absent:
            await runtime.check()
        assert absent.value.name == "engine_unreachable"

        await trio.to_thread.run_sync(own_engine.engine.restart)
        left = await runtime.survivors(spec.instance)  # the same client serves on
        assert [found.id for found in left] == [running.id]
        await runtime.discard(left[0])
        assert await runtime.survivors(spec.instance) == []
        await peer.ended()


async def _kill_when_waited_for(engine: Any) -> None:
    await trio.sleep(0.05)
    await trio.to_thread.run_sync(engine.kill)


async def test_no_engine(runtime_kind: str, folder: Path) -> None:
    with pytest.raises(ArmorclawError) as raised:
        async with EngineRuntime.open(folder / "absent.sock"):
            pytest.fail("nobody is there")
    assert raised.value.name == "engine_unreachable"
    assert raised.value.why == "there is no such socket"
    assert str(folder) in raised.value.what


async def test_an_engine_serves_many_streams(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    """Each wait holds a connection for the life of a container: the pool must not end at httpx's 100."""
    engine: Engine = engine_runtime.engine
    spec = make_spec()
    async with engine_runtime.launch(spec) as running:

        async def wait() -> None:
            async with engine.waiting(running.id, "next-exit"):
                await trio.sleep_forever()

        async with trio.open_nursery() as nursery:
            for _ in range(110):
                nursery.start_soon(wait)
            await trio.sleep(0.3)
            with trio.fail_after(30):
                assert (await engine.inspect(running.id))["Id"] == running.id
            nursery.cancel_scope.cancel(reason="seen")
