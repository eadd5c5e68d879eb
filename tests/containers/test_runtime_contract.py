"""What every runtime promises (armorclaw/containers/runtime.py), held against each of them with real containers."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest
import trio

from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import Exit

pytestmark = pytest.mark.mission("K.start")

ENGINES = ["docker", "podman"]
Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any

WAITS = "door.recv(1)"  # until the bridge hangs up


async def test_check_names_what_it_is(runtime: Runtime, runtime_kind: str) -> None:
    assert runtime.kind == runtime_kind
    assert runtime_kind in (await runtime.check()).lower()


@pytest.mark.parametrize("code", [0, 3])
@pytest.mark.mission("P0.1")
async def test_exit_code(runtime: Runtime, make_spec: MakeSpec, code: int) -> None:
    async with runtime.launch(make_spec(f"raise SystemExit({code})", hello=False)) as running:
        await running.start()
        with trio.fail_after(30):
            end = await running.wait()
    assert (end.code, end.signal, end.text) == (code, None, f"exit {code}")
    assert end.oom is not True


async def test_an_exit_that_looks_like_a_signal(runtime: Runtime, make_spec: MakeSpec) -> None:
    async with runtime.launch(make_spec("raise SystemExit(137)", hello=False)) as running:
        await running.start()
        with trio.fail_after(30):
            end = await running.wait()
    if runtime.kind == "process":
        assert (end.code, end.signal, end.text) == (137, None, "exit 137")
    else:
        assert (end.code, end.signal, end.text) == (None, signal.SIGKILL, "killed by SIGKILL (or exit 137)")


@pytest.mark.mission("P0.2")
async def test_killed_from_outside(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(WAITS)
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        _, peer = await listener.accept()
        os.kill(peer.pid, signal.SIGKILL)
        with trio.fail_after(30):
            end = await running.wait()
    assert (end.code, end.signal) == (None, signal.SIGKILL)
    assert end.text.startswith("killed by SIGKILL")


async def test_an_end_before_the_wait_is_not_missed(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("raise SystemExit(3)")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        _, peer = await listener.accept()
        await peer.ended()
        with trio.fail_after(30):
            assert (await running.wait()).code == 3


async def test_many_wait_and_a_cancelled_wait_loses_nothing(
    runtime: Runtime, make_spec: MakeSpec, door: Door
) -> None:
    spec = make_spec(f"{WAITS}\nraise SystemExit(4)")
    ends: list[Exit] = []
    async with door(spec) as listener, runtime.launch(spec) as running:

        async def wait() -> None:
            ends.append(await running.wait())

        await running.start()
        stream, _ = await listener.accept()
        with trio.move_on_after(0.1) as cut:
            await running.wait()
        assert cut.cancelled_caught
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait)
                nursery.start_soon(wait)
                await stream.aclose()
            ends.append(await running.wait())
    assert [end.code for end in ends] == [4, 4, 4]


@pytest.mark.mission("K.stop")
async def test_stop_lets_it_end_by_itself(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    script = f"signal.signal(signal.SIGTERM, lambda *_: os._exit(5))\ndoor.send(b'1')\n{WAITS}"
    spec = make_spec(script)
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        assert await stream.receive_some(1) == b"1"
        with trio.fail_after(30):
            await running.stop(60)
            assert (await running.wait()).code == 5
            await running.stop(10)  # it has ended: nothing more to do


@pytest.mark.mission("K.stop")
async def test_stop_kills_what_does_not_listen(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(f"signal.signal(signal.SIGTERM, signal.SIG_IGN)\ndoor.send(b'1')\n{WAITS}")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        assert await stream.receive_some(1) == b"1"
        began = trio.current_time()
        with trio.fail_after(30):
            await running.stop(1)
            assert (await running.wait()).signal == signal.SIGKILL
        assert trio.current_time() - began >= 0.9


async def test_leaving_removes_it(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(WAITS)
    async with door(spec) as listener:
        async with runtime.launch(spec) as running:
            await running.start()
            _, peer = await listener.accept()
            assert not peer.gone()
        assert peer.gone()
    assert await runtime.survivors(spec.instance) == []


async def test_leaving_without_a_start(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec()
    async with runtime.launch(spec) as running:
        assert running.id
    assert await runtime.survivors(spec.instance) == []


async def test_an_error_in_the_block_removes_it_and_passes(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(WAITS)
    async with door(spec) as listener:
        with pytest.raises(ZeroDivisionError):  # noqa: PT012
            async with runtime.launch(spec) as running:
                await running.start()
                _, peer = await listener.accept()
                raise ZeroDivisionError
        assert peer.gone()


async def test_cancellation_while_it_runs_removes_it(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(WAITS)
    async with door(spec) as listener:
        with trio.CancelScope() as scope:
            async with runtime.launch(spec) as running, trio.open_nursery() as nursery:
                await running.start()
                _, peer = await listener.accept()
                nursery.start_soon(running.wait)
                scope.cancel(reason="the test says so")
        assert scope.cancelled_caught
        assert peer.gone()
    assert await runtime.survivors(spec.instance) == []


@pytest.mark.parametrize("seconds", [0.0, 0.005, 0.02, 0.05, 0.1, 0.2])
async def test_cancellation_at_any_moment_leaves_nothing(
    runtime: Runtime, make_spec: MakeSpec, open_runtime: Any, seconds: float
) -> None:
    spec = make_spec("import time; time.sleep(60)", hello=False)
    with trio.move_on_after(seconds):
        async with runtime.launch(spec) as running:
            await running.start()
            await running.wait()
    async with open_runtime() as other:
        assert await other.survivors(spec.instance) == []


async def test_it_starts_again_under_the_same_name(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("raise SystemExit(0)", hello=False)
    ids = set()
    for _ in range(2):
        async with runtime.launch(spec) as running:
            await running.start()
            with trio.fail_after(30):
                await running.wait()
            ids.add(running.id)
    assert len(ids) == 2


async def test_the_environment_is_what_was_declared(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("door.sendall(json.dumps(dict(os.environ)).encode())", env={"GREETING": "grüß dich = ja"})
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        seen = await listener.report()
    assert seen["GREETING"] == "grüß dich = ja"
    own = {"GREETING", "ARMORCLAW_SOCKET"}
    assert not (set(seen) - own) & set(os.environ) - {"PATH", "HOME", "HOSTNAME", "TERM", "LC_CTYPE", "PWD"}


@pytest.mark.mission("K.socket")
async def test_owns_its_own_process_and_no_other(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    ada, bob = make_spec(WAITS, name="ada"), make_spec(WAITS, name="bob")
    async with (
        door(ada) as door_ada,
        door(bob) as door_bob,
        runtime.launch(ada) as running_ada,
        runtime.launch(bob) as running_bob,
    ):
        await running_ada.start()
        await running_bob.start()
        _, peer_ada = await door_ada.accept()
        _, peer_bob = await door_bob.accept()
        assert running_ada.owns(peer_ada)
        assert running_bob.owns(peer_bob)
        assert not running_ada.owns(peer_bob)
        assert not running_bob.owns(peer_ada)
        assert not running_ada.owns(type(peer_ada)(os.getpid(), peer_ada.uid))  # this very process
        assert not running_ada.owns(type(peer_ada)(peer_ada.pid, os.getuid()))  # right process, wrong user
        assert not running_ada.owns(type(peer_ada)(2**22 + 1, peer_ada.uid))  # no process at all


async def test_owns_a_child_process_too(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(
        """
        if os.fork() == 0:
            door = socket.socket(socket.AF_UNIX)
            door.connect(os.environ["ARMORCLAW_SOCKET"])
        door.recv(1)
        """
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        first, second = await listener.accept(), await listener.accept()
        assert first[1].pid != second[1].pid
        assert running.owns(first[1])
        assert running.owns(second[1])
