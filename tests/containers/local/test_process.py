"""The unsafe runtime: what little it promises, and how it makes up for mounts."""

from __future__ import annotations

import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.local.process import on_host
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec, Limits, Mount
from armorclaw.errors import ArmorclawError

Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any

PROCESS = pytest.mark.parametrize("runtime_kind", ["process"], indirect=True)


def spec(command: tuple[str, ...] = ("x",), env: dict[str, str] | None = None, *mounts: Mount) -> ContainerSpec:
    return ContainerSpec("test", "ada", None, command, env or {}, 1, 1, Path("/host/ada"), mounts)


@pytest.mark.parametrize(
    "inside, outside",
    [
        ("/opt/armorclaw", "/host/lib"),
        ("/opt/armorclaw/", "/host/lib/"),
        ("/opt/armorclaw/x.py", "/host/lib/x.py"),
        ("/opt/armorclaw:/agent:/usr/lib", "/host/lib:/host/code:/usr/lib"),
        ("--path=/agent/main.py", "--path=/host/code/main.py"),
        ("open('/agent/data')", "open('/host/code/data')"),
        ("/run/armorclaw/containers/ada.sock", "/host/ada/ada.sock"),
        ("/agent/deep/er", "/host/deep/er"),
        ("/opt/armorclaw-2", "/opt/armorclaw-2"),
        ("/usr/opt/armorclaw", "/usr/opt/armorclaw"),
        ("/agentx", "/agentx"),
    ],
)
def test_targets_become_sources(inside: str, outside: str) -> None:
    mounts = (
        Mount(Path("/host/lib"), "/opt/armorclaw"),
        Mount(Path("/host/code"), "/agent"),
        Mount(Path("/host/deep"), "/agent/deep"),
    )
    command, env = on_host(spec((inside, "b"), {"A": inside}, *mounts))
    assert command == [outside, "b"]
    assert env["A"] == outside


@given(word=st.text(alphabet="/abc:= ", max_size=12))
def test_what_names_no_target_stays(word: str) -> None:
    mount = Mount(Path("/host"), "/zzz")
    assert on_host(spec((word,), {}, mount))[0] == [word]


def test_a_source_is_not_replaced_again() -> None:
    mounts = (Mount(Path("/agent/x"), "/opt/armorclaw"), Mount(Path("/code"), "/agent"))
    assert on_host(spec(("/opt/armorclaw/y",), {}, *mounts))[0] == ["/agent/x/y"]


@PROCESS
async def test_check_says_that_it_is_unsafe(runtime: Runtime) -> None:
    facts = await runtime.check()
    assert "UNSAFE" in facts
    assert "limited in total (control groups, version" in facts


@PROCESS
@pytest.mark.usefixtures("without_groups")
async def test_check_says_what_does_not_hold_without_groups(runtime: Runtime) -> None:
    facts = await runtime.check()
    assert "limited per process only, as the test says so, and what it starts may outlive it" in facts


@PROCESS
async def test_finds_its_library_code_and_socket(
    runtime: Runtime, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    code = folder / "code"
    code.mkdir(mode=0o755)
    (code / "helper.py").write_text("answer = 42")
    (code / "main.py").write_text(
        "import helper, os, socket\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.connect(os.environ['ARMORCLAW_SOCKET'])\n"
        "s.sendall(b'%d' % helper.answer)\n"
    )
    made = make_spec(
        command=("python3", "-S", "-B", "/agent/main.py"),
        mounts=(Mount(code, "/opt/armorclaw"), Mount(code, "/agent")),
        env={"PYTHONPATH": "/opt/armorclaw"},
    )
    assert made.env["ARMORCLAW_SOCKET"].startswith(SOCKET_DIR)
    async with door(made) as listener, runtime.launch(made) as running:
        await running.start()
        assert await listener.report() == 42


@PROCESS
@pytest.mark.usefixtures("without_groups")
async def test_its_own_uid_limits_and_no_new_privileges(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    made = make_spec(
        """
        import resource
        names = ("AS", "CORE", "NOFILE", "NPROC")
        door.sendall(json.dumps({
            "status": open("/proc/self/status").read(),
            "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names},
            "session": os.getsid(0) == os.getpid(),
            "me": os.getresuid() + os.getresgid(),
        }).encode())
        """,
        limits=Limits(memory=256 * 1024 * 1024, files=64, pids=50),
    )
    async with door(made) as listener, runtime.launch(made) as running:
        await running.start()
        seen = await listener.report()
    assert "NoNewPrivs:\t1" in seen["status"]
    assert "CapEff:\t0000000000000000" in seen["status"]
    assert seen["limits"] == {"AS": 256 * 1024 * 1024, "CORE": 0, "NOFILE": 64, "NPROC": 50}
    assert seen["me"] == [10001] * 6
    assert seen["session"]


@PROCESS
async def test_its_group_ends_with_it(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    made = make_spec(
        """
        if os.fork() == 0:
            door = socket.socket(socket.AF_UNIX)
            door.connect(os.environ["ARMORCLAW_SOCKET"])
            time.sleep(100)
        door.recv(1)
        """
    )
    async with door(made) as listener, runtime.launch(made) as running:
        await running.start()
        first, _ = await listener.accept()
        _, child = await listener.accept()
        await first.aclose()
        with trio.fail_after(30):
            assert (await running.wait()).code == 0
        await child.ended()


@PROCESS
async def test_what_left_its_group_ends_with_it_too(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    """For that there is the control group."""
    made = make_spec(
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.setsid()
                door = socket.socket(socket.AF_UNIX)
                door.connect(os.environ["ARMORCLAW_SOCKET"])
                time.sleep(100)
            os._exit(0)
        door.recv(1)
        """
    )
    async with door(made) as listener:
        async with runtime.launch(made) as running:
            await running.start()
            await listener.accept()
            _, child = await listener.accept()
            assert not child.gone()
        assert child.gone()


@PROCESS
async def test_what_it_prints_is_kept(runtime: Runtime, make_spec: MakeSpec, folder: Path) -> None:
    async with runtime.launch(make_spec("print('hello')", hello=False)) as running:
        await running.start()
        await running.wait()
    assert (folder / "logs" / "ada.log").read_text() == "hello\n"


@PROCESS
async def test_a_program_that_is_not_there(runtime: Runtime, make_spec: MakeSpec) -> None:
    for program in ("/nowhere", "nowhere"):
        async with runtime.launch(make_spec(command=(program,))) as running:
            with pytest.raises(ArmorclawError) as caught:
                await running.start()
        assert caught.value.name == "start_failed"


@PROCESS
async def test_nothing_survives(runtime: Runtime) -> None:
    assert not runtime.survives
    assert await runtime.survivors("any") == []
    assert await runtime.check_image("any") == "any"


BRIDGE = """
import pickle, sys, trio
from armorclaw.containers.local.process import ProcessRuntime
async def main():
    logs, spec = pickle.load(sys.stdin.buffer)
    async with ProcessRuntime(logs).launch(spec) as running:
        await running.start()
        await trio.sleep_forever()
trio.run(main)
"""


@PROCESS
@pytest.mark.mission("P0.3")
async def test_ends_with_a_bridge_that_is_killed(make_spec: MakeSpec, door: Door, folder: Path) -> None:
    made = make_spec("signal.signal(signal.SIGTERM, signal.SIG_IGN)\ntime.sleep(100)")
    async with door(made) as listener:
        with subprocess.Popen(  # noqa: ASYNC220  # not tied to this loop: it is to be killed
            [sys.executable, "-c", BRIDGE], stdin=subprocess.PIPE
        ) as bridge:
            assert bridge.stdin is not None
            bridge.stdin.write(pickle.dumps((folder / "logs", made)))
            bridge.stdin.close()
            _, peer = await listener.accept()
            bridge.send_signal(signal.SIGKILL)
        await peer.ended()


@PROCESS
@pytest.mark.long
async def test_lives_longer_than_trios_worker_threads(runtime: Runtime, make_spec: MakeSpec) -> None:
    async with runtime.launch(make_spec("import time; time.sleep(100)", hello=False)) as running:
        await running.start()
        with trio.move_on_after(12) as cut:
            await running.wait()
        assert cut.cancelled_caught
