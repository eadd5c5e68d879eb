"""The limits of an agent as a whole, in every runtime: what holds it, and what is known when it runs into one."""

from __future__ import annotations

import errno
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw import config
from armorclaw.clock import Surroundings
from armorclaw.containers.resources.cgroup import Cgroup
from armorclaw.containers.resources.data import DATA, make_data_folder, measure
from armorclaw.containers.resources.watch import Resources
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.spec import Limits, Mount
from armorclaw.structure import Size

pytestmark = pytest.mark.mission("P0.2")

Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any
MIB = 1024 * 1024

EAT = """
def eat():
    held = []
    while True: held.append(b"1" * 1048576)
"""


async def accounts(running: Running) -> Cgroup:
    pid = await running.main_pid()
    assert pid is not None
    found = Cgroup.of(pid)
    assert found is not None, "no control group of its own"
    return found


def groups_of(pid: int | None) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text()


async def kills_at_last(group: Cgroup) -> int:
    """The kernel tells of a removal a little later."""
    for _ in range(500):
        if (kills := group.oom_kills()) is not None:
            return kills
        await trio.sleep(0.01)
    pytest.fail("it is never known")


async def hung_up(stream: trio.SocketStream) -> None:
    with trio.fail_after(30):
        try:
            while await stream.receive_some(100):
                pass
        except trio.BrokenResourceError:  # it died with something unread
            pass


async def test_the_accounts_of_a_container(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    limits = Limits(memory=96 * MIB, pids=50, cpus=0.5)
    spec = make_spec("block = b'1' * (20 << 20)\ndoor.send(b'1')\ndoor.recv(1)", limits=limits)
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, peer = await listener.accept()
        await stream.receive_some(1)
        group = await accounts(running)
        usage = group.usage()
        assert usage.memory_bytes is not None
        assert 20 * MIB <= usage.memory_bytes <= 96 * MIB
        assert (usage.memory_limit, group.pids_limit, group.oom_kills()) == (96 * MIB, 50, 0)
        assert 1 <= (usage.pids or 0) <= 4
        assert usage.cpu_ns
        assert group.throttled_ns() is not None
        assert groups_of(peer.pid) == groups_of(await running.main_pid())
    group.close()


async def test_a_main_process_killed_for_want_of_memory(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door
) -> None:
    """The whole container is gone at once: it is known at the end of its session, and after it."""
    spec = make_spec(EAT + "door.recv(1)\neat()", limits=Limits(memory=48 * MIB))
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        group = await accounts(running)
        await stream.send_all(b"x")
        await hung_up(stream)
        assert group.oom_kills() == 1
        end = await running.wait()
        assert end.signal == signal.SIGKILL
        assert end.oom is (None if runtime_kind == "podman" else True)
        assert group.oom_kills() == 1
    assert group.oom_kills() == 1
    group.close()


async def test_nobody_looked_before_it_was_gone(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(EAT + "door.recv(1)\neat()", limits=Limits(memory=48 * MIB))
    async with door(spec) as listener:
        async with runtime.launch(spec) as running:
            await running.start()
            stream, _ = await listener.accept()
            group = await accounts(running)
            await stream.send_all(b"x")
            with trio.fail_after(30):
                await running.wait()
        assert await kills_at_last(group) == 1
    group.close()


async def test_a_child_killed_for_want_of_memory(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door
) -> None:
    """The main process lives on, and ends later for another reason."""
    script = """
        if os.fork() == 0: eat()
        door.send(b"%d" % os.WTERMSIG(os.wait()[1]))
        door.recv(1)
        os._exit(3)
        """
    spec = make_spec(EAT + "\n".join(line.strip() for line in script.splitlines()), limits=Limits(memory=48 * MIB))
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        group = await accounts(running)
        with trio.fail_after(30):
            assert await stream.receive_some(9) == b"9"
        assert group.oom_kills() == 1
        await stream.send_all(b"x")
        end = await running.wait()
        assert end.code == 3
        assert end.oom is (None if runtime_kind == "podman" else True)
    group.close()


async def test_a_plain_end_is_no_want_of_memory(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("door.recv(1)\nos.kill(os.getpid(), 9)\nos._exit(4)")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        group = await accounts(running)
        await stream.send_all(b"x")
        end = await running.wait()
        assert not end.oom
    assert await kills_at_last(group) == 0
    group.close()


async def test_a_fork_bomb(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    """It stays within its limit, the bridge can fork meanwhile, and all of it goes with the container."""
    script = """
    def bomb():
        while True:
            try:
                if os.fork() == 0:
                    os.setsid()
            except OSError as error:
                if os.getpid() == first:
                    door.send(b"%d" % error.errno)
                    door.recv(1)
                time.sleep(60)
    first = os.getpid()
    bomb()
    """
    spec = make_spec(script.replace("\n    ", "\n"), limits=Limits(memory=256 * MIB, pids=40))
    async with door(spec) as listener:
        async with runtime.launch(spec) as running:
            await running.start()
            stream, _ = await listener.accept()
            group = await accounts(running)
            with trio.fail_after(30):
                assert int(await stream.receive_some(9)) == errno.EAGAIN
            assert 30 <= (group.usage().pids or 0) <= 40
        assert not group.usage().pids
    group.close()


@pytest.mark.parametrize("runtime_kind", ["docker", "podman", "sandbox"], indirect=True)
async def test_a_full_tmp(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door, tmp_path: Path
) -> None:
    """It is seen from outside, without a word of the agent."""
    spec = make_spec(
        """
        with open("/tmp/x", "wb") as file:
            file.write(bytes(15 * 1024 * 1024))
        door.send(b"1")
        door.recv(1)
        """,
        limits=Limits(memory=64 * MIB, tmp=16 * MIB),
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        await stream.receive_some(1)
        seen = await watched(running, tmp_path, lambda kinds: "tmp" in kinds, tmp=16 * MIB)
    (event,) = [facts for facts in seen if facts["what"] == "tmp"]
    assert event["level"] == "high"
    assert 15 * MIB <= event["used"] <= event["limit"] == 16 * MIB


async def watched(
    running: Running, state: Path, until: Callable[[set[str]], bool], *, tmp: int
) -> list[dict[str, Any]]:
    """The events of resources of that container, until they are what `until` wants."""

    class Generation:
        adopted = False

    class Watched:
        name = "ada"
        runs = True
        generation: Any = Generation()
        declared = config.Agent(name="ada", command=("x",), limits=config.AgentLimits(tmp=Size(tmp)))

        def end(self, *_: object, **__: object) -> None:
            pytest.fail("it was ended")

    Watched.generation.running = running
    seen: list[dict[str, Any]] = []
    done = trio.Event()

    def note(agent: Any, kind: str, **facts: Any) -> None:
        seen.append(facts)
        if until({str(each["what"]) for each in seen}):
            done.set()

    def alert(*_: Any, **__: Any) -> None:
        return

    agent: Any = Watched()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            resources = Resources(lambda: [agent], Surroundings(), note, alert, state)
            await nursery.start(resources.run)
            await done.wait()
            nursery.cancel_scope.cancel(reason="seen")
    return seen


# -- /data


@pytest.fixture
def in_data(runtime: Runtime, make_spec: MakeSpec, door: Door, folder: Path) -> Callable[[str], Awaitable[Any]]:
    """`await in_data(script)`: what a generation of one agent that has its /data says."""

    async def run(script: str) -> Any:
        data = make_data_folder(folder, "ada", 10001)
        spec = make_spec(
            f'data = os.environ["ARMORCLAW_DATA_DIR"]\n{script}\ndoor.sendall(json.dumps(said).encode())',
            mounts=(Mount(data, DATA, writable=True),),
            env={"ARMORCLAW_DATA_DIR": DATA},
        )
        (spec.socket_dir / "ada.sock").unlink(missing_ok=True)  # of the generation before
        async with door(spec) as listener, runtime.launch(spec) as running:
            await running.start()
            return await listener.report()

    return run


async def test_data_outlives_its_generations(in_data: Any, runtime_kind: str, folder: Path) -> None:
    said = await in_data('open(f"{data}/memory", "w").write("I was here"); said = [data, os.getuid()]')
    assert said[1] == 10001
    assert said[0] == (str(folder / "data" / "ada") if runtime_kind == "process" else DATA)
    assert await in_data('said = open(f"{data}/memory").read()') == "I was here"
    kept = folder / "data" / "ada" / "memory"
    assert kept.stat().st_uid == 10001
    assert measure(kept.parent, 1 << 30).bytes >= 4096


async def test_what_it_leaves_there_is_not_followed(in_data: Any, folder: Path) -> None:
    await in_data('os.symlink("/usr", f"{data}/all"); os.mkfifo(f"{data}/pipe"); said = 1')
    size = measure(folder / "data" / "ada", 1 << 30)
    assert (size.complete, size.bytes < 100_000) == (True, True)


@pytest.mark.parametrize("runtime_kind", ["docker", "podman", "sandbox"], indirect=True)
async def test_only_its_own_folder_can_be_written_to(in_data: Any, runtime_kind: str) -> None:
    said = await in_data(
        """
said = {}
for name in (os.path.dirname(os.environ["ARMORCLAW_SOCKET"]), "/", "/usr", f"{data}/.."):
    try:
        open(f"{name}/x", "w")
        said[name] = 0
    except OSError as error:
        said[name] = error.errno
said["device"] = None
try:
    os.mknod(f"{data}/device", 0o20600, os.makedev(1, 8))
except OSError as error:
    said["device"] = error.errno
"""
    )
    assert said.pop("device") == errno.EPERM
    assert set(said.values()) <= {errno.EROFS, errno.EACCES}
