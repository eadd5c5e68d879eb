from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.containers.local.spawn import Child, Gate, spawned
from armorclaw.errors import ArmorclawError

SLEEP = ["/bin/sleep", "100"]
SHELL = ["/bin/sh", "-c"]


def state(pid: int) -> str:
    """The letter of proc(5), or "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def ended(pid: int) -> None:
    with trio.fail_after(30):
        while state(pid) not in ("", "Z"):  # noqa: ASYNC110  # the kernel has no event for us
            await trio.sleep(0.001)


async def output_of(command: list[str], **options: object) -> bytes:
    reader, writer = os.pipe2(os.O_CLOEXEC)
    async with trio.lowlevel.FdStream(reader) as stream:
        async with spawned(command, output=writer, **{"env": {}, **options}):  # type: ignore[arg-type]
            os.close(writer)
            with trio.fail_after(30):
                return b"".join([bytes(chunk) async for chunk in stream])


@pytest.mark.parametrize("script, status", [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill -TERM $$", -15)])
async def test_status(script: str, status: int) -> None:
    async with spawned([*SHELL, script], env={}) as child:
        with trio.fail_after(30):
            assert await child.wait() == status
        assert child.returncode == status
        assert await child.wait() == status


async def test_any_number_may_wait() -> None:
    seen = []

    async def wait(child: Child) -> None:
        seen.append(await child.wait())

    async with spawned(SLEEP, env={}) as child, trio.open_nursery() as nursery:
        with trio.move_on_after(0.01) as cut:
            await child.wait()
        assert cut.cancelled_caught
        for _ in range(3):
            nursery.start_soon(wait, child)
        await trio.testing.wait_all_tasks_blocked()
        child.send_signal(signal.SIGKILL)
    assert seen == [-9, -9, -9]


async def test_forks_on_the_thread_that_runs_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a death signal would come when Trio's worker thread ends: 10 s later (see the long test)."""
    threads = []
    popen: Any = subprocess.Popen

    def watched(*args: Any, **options: Any) -> Any:
        threads.append(threading.get_ident())
        return popen(*args, **options)

    monkeypatch.setattr(subprocess, "Popen", watched)
    async with spawned(SLEEP, env={}):
        pass
    assert threads == [threading.get_ident()]


@pytest.mark.long
async def test_a_death_signal_does_not_come_while_the_bridge_lives() -> None:
    async with spawned(["/usr/bin/setpriv", "--pdeathsig", "KILL", *SLEEP], env={}) as child:
        await trio.to_thread.run_sync(time.sleep, 0)  # a worker thread that will have ended by then
        with trio.move_on_after(12):
            await child.wait()
        assert child.returncode is None


async def test_leaving_ends_it_and_its_group() -> None:
    async with spawned([*SHELL, "trap '' TERM; sleep 100 & echo $!; wait"], env={}) as child:
        assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
        pid = child.pid
    assert state(pid) == ""


async def test_what_the_leader_leaves_behind_ends_with_it() -> None:
    pid = int(await output_of([*SHELL, "sleep 100 >/dev/null 2>&1 & echo $!"]))
    await ended(pid)


async def test_cancellation_ends_it() -> None:
    with trio.CancelScope() as scope:
        async with spawned(SLEEP, env={}) as child:
            scope.cancel()
            await child.wait()
    assert child.returncode == -9


async def test_signals_after_its_end_do_nothing() -> None:
    async with spawned(["/bin/true"], env={}) as child:
        await ended(child.pid)
        child.send_signal(signal.SIGTERM)
        await child.wait()
        child.send_signal(signal.SIGTERM)
        child.send_signal_to_group(signal.SIGTERM)


async def test_gets_this_environment_and_no_more() -> None:
    assert await output_of(["/usr/bin/env"], env={"A": "b c"}) == b"A=b c\n"


async def test_gets_no_descriptor_of_ours() -> None:
    extra = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(extra, True)
    passed = os.open("/dev/null", os.O_RDONLY)
    try:
        seen = await output_of(["/bin/ls", "/proc/self/fd"], pass_fds=[passed])
    finally:
        os.close(extra)
        os.close(passed)
    listing = passed + 1 if passed == 3 else 3  # what ls itself opened
    assert {int(word) for word in seen.split()} == {0, 1, 2, passed, listing}


async def test_takes_on_a_user() -> None:
    assert await output_of(["/usr/bin/id"], user=(10001, 10002)) == b"uid=10001 gid=10002 groups=10002\n"


@pytest.mark.parametrize("command", [["/nowhere"], ["/etc/passwd"], ["/bin/echo", "a\0b"]])
async def test_what_cannot_be_started(command: list[str]) -> None:
    with pytest.raises(ArmorclawError) as caught:
        async with spawned(command, env={}):
            pass
    assert caught.value.name == "start_failed"
    assert caught.value.why


async def test_gate_holds_until_opened(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    with closing(Gate()) as gate:
        async with spawned([*Gate.WORDS, "/bin/sh", "-c", f"cat; echo > {mark}; exit 5"], env={}, gate=gate) as child:
            with trio.fail_after(30):
                assert await gate.reached()
                await trio.sleep(0.05)
                assert not mark.exists()
                gate.open()
                assert await child.wait() == 5  # cat read nothing: its input is /dev/null
    assert mark.exists()


async def test_gate_tells_that_the_command_never_came() -> None:
    with closing(Gate()) as gate:
        async with spawned(["/bin/true", *Gate.WORDS, "/bin/true"], env={}, gate=gate) as child:
            with trio.fail_after(30):
                assert not await gate.reached()
                await child.wait()
            with pytest.raises(BrokenPipeError):
                gate.open()


async def test_gate_does_not_open_when_the_bridge_is_gone(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    gate = Gate()
    async with spawned([*Gate.WORDS, "/usr/bin/touch", str(mark)], env={}, gate=gate) as child:
        with trio.fail_after(30):
            assert await gate.reached()
            gate.close()
            assert await child.wait() != 0
    assert not mark.exists()
