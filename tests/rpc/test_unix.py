from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import socket
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc import unix
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.quiet import Quiet
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import (
    AGENT_CONNECTIONS,
    TURN_AWAYS,
    Gate,
    PeerCredentials,
    bind_unix,
    gate_for,
    peer_of,
    remove_stale,
    same_user,
    serve_unix,
)
from tests.rpc.conftest import House, Raw, call

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user for a moment: sudo pytest")


@asynccontextmanager
async def listening(path: Path, house: House, **more: Any) -> AsyncIterator[None]:
    more = {"role": Role.OPERATOR, "around": Surroundings(), "path": path, **more}
    listener = bind_unix(path)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: serve_unix(listener, house.registry, task_status=task_status, **more))
        yield
        nursery.cancel_scope.cancel()


async def test_a_call(short: Path, house: House) -> None:
    async with listening(short / "s", house):
        async with await trio.open_unix_socket(short / "s") as stream:
            answer = (await Raw(stream).ask("who"))["result"]
    assert answer == {"role": "operator", "agent": None, "uid": os.geteuid(), "pid": os.getpid()}
    assert not (short / "s").exists()


async def test_what_shell_scripts_do(short: Path, house: House) -> None:
    """socat writes, half-closes, and gives up half a second after that."""
    async with listening(short / "s", house):
        for sent in (json.dumps(call("echo", text="a"), indent=2), json.dumps(call("sleep", seconds=0.1)) * 2 + "\n"):
            done = await trio.run_process(
                ["socat", "-", f"UNIX-CONNECT:{short}/s"], stdin=sent.encode(), capture_stdout=True
            )
            assert all("result" in json.loads(line) for line in done.stdout.splitlines())
            assert done.stdout.count(b"\n") == sent.count('"echo"') + sent.count('"sleep"')


# the file


async def test_the_mode_is_right_from_the_first_instant(short: Path) -> None:
    """Somebody looks all the time while sockets come and go; whatever is there is closed to others."""
    path = short / "s"
    seen: Counter[int] = Counter()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            try:
                seen[stat.S_IMODE(os.stat(path).st_mode)] += 1
            except FileNotFoundError:
                pass

    thread = threading.Thread(target=look)
    old = os.umask(0)
    try:
        thread.start()
        rounds = 0
        with trio.fail_after(20):
            while rounds < 100 or seen.total() < 100:
                bind_unix(path).socket.close()
                path.unlink()
                rounds += 1
                await trio.lowlevel.checkpoint()
    finally:
        os.umask(old)
        stop.set()
        thread.join()
    assert set(seen) == {0o600}


async def test_binding_leaves_the_umask_alone(short: Path) -> None:
    old = os.umask(0o027)
    try:
        bind_unix(short / "s").socket.close()
        bind_unix(short / "t", mode=0o660).socket.close()
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(old)
    assert stat.S_IMODE((short / "s").stat().st_mode) == 0o600
    assert stat.S_IMODE((short / "t").stat().st_mode) == 0o660


@as_root
async def test_another_mode_and_owner_are_there_before_the_name_is(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, int, int]] = []
    rename = os.rename

    def watch(old: str, new: str) -> None:
        found = os.stat(old)
        seen.append((os.path.basename(old), stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid))
        assert not os.path.exists(new)
        rename(old, new)

    monkeypatch.setattr(os, "rename", watch)
    listener = bind_unix(short / "s", mode=0o660, uid=12345, gid=54321)
    assert seen == [("s.new", 0o660, 12345, 54321)]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short / "s"))
    listener.socket.close()
    assert os.listdir(short) == ["s"]


async def test_a_stale_socket_is_replaced(short: Path) -> None:
    bind_unix(short / "s").socket.close()
    assert (short / "s").exists()
    bind_unix(short / "s").socket.close()
    (short / "s").rename(short / "s.new")
    bind_unix(short / "s", mode=0o660).socket.close()


@pytest.mark.parametrize("mode", [0o600, 0o660])
async def test_a_living_socket_is_not(short: Path, mode: int) -> None:
    living = bind_unix(short / "s")
    with pytest.raises(ArmorclawError) as refused:
        bind_unix(short / "s", mode=mode)
    assert refused.value.name == "already_running"
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(short / "s"))
    living.socket.close()


def test_a_living_socket_with_a_full_backlog_is_not_either(short: Path) -> None:
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(short / "s"))
        busy.listen(0)
        waiting.connect(str(short / "s"))
        with pytest.raises(ArmorclawError, match="another bridge listens"):
            bind_unix(short / "s")


def test_something_else_in_the_way_is_left_alone(short: Path) -> None:
    (short / "s").write_text("precious")
    with pytest.raises(ArmorclawError) as refused:
        bind_unix(short / "s")
    assert refused.value.name == "conflict"
    assert (short / "s").read_text() == "precious"
    (short / "l").symlink_to(short / "s")
    with pytest.raises(ArmorclawError):
        remove_stale(short / "l")


@pytest.mark.parametrize("mode, most", [(0o600, 107), (0o660, 103)])
async def test_a_path_may_have_so_many_bytes(short: Path, mode: int, most: int) -> None:
    room = most - len(str(short)) - 1
    bind_unix(short / ("é" * (room // 2) + "x" * (room % 2)), mode=mode).socket.close()
    with pytest.raises(ArmorclawError) as refused:
        bind_unix(short / ("x" * (room + 1)), mode=mode)
    assert refused.value.name == "path_too_long"


def test_a_folder_that_is_not_there(short: Path, open_fds: Callable[[], int]) -> None:
    before = open_fds()
    with pytest.raises(FileNotFoundError):
        bind_unix(short / "no" / "s")
    assert open_fds() == before


# who calls


def test_who_is_at_the_other_end(short: Path) -> None:
    program = f"import socket, sys; s = socket.socket(1); s.connect({str(short / 's')!r}); sys.stdin.read()"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "s"))
        listener.listen()
        child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
        connection, _ = listener.accept()
    with connection, peer_of(connection) as peer:
        assert (peer.pid, peer.uid, peer.gid) == (child.pid, os.getuid(), os.getgid())
        assert peer.alive()
        child.communicate()
        assert not peer.alive()


def test_whether_one_lives_is_known_with_any_number_of_connections() -> None:
    """select() takes no descriptor above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1100)), hard))
    try:
        with subprocess.Popen(["sleep", "60"]) as child:
            pidfd = os.pidfd_open(child.pid)
            try:
                peer = PeerCredentials(child.pid, 0, 0, fcntl.fcntl(pidfd, fcntl.F_DUPFD_CLOEXEC, 1050))
            finally:
                os.close(pidfd)
            with peer:
                assert peer.alive()
                child.kill()
                child.wait()
                assert not peer.alive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def connect_as(uid: int, path: Path) -> subprocess.CompletedProcess[str]:
    """Another user calls; what it reads."""
    program = (
        f"import os, socket; os.setgroups([]); os.setgid({uid}); os.setuid({uid}); s = socket.socket(1);"
        f"s.connect({str(path)!r}); s.sendall(b'{json.dumps(call('note', text='x'))}'); print(s.recv(9999).decode())"
    )
    return subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, timeout=30)


@as_root
async def test_another_user_cannot_open_it(short: Path, house: House) -> None:
    async with listening(short / "s", house):
        done = await trio.to_thread.run_sync(connect_as, 12345, short / "s")
    assert "PermissionError" in done.stderr


@as_root
async def test_another_user_that_can_open_it_is_refused_unread(short: Path, house: House) -> None:
    refused: list[PeerCredentials] = []
    async with listening(short / "s", house, on_refused=refused.append):
        (short / "s").chmod(0o666)
        with structlog.testing.capture_logs():
            done = await trio.to_thread.run_sync(connect_as, 12345, short / "s")
    assert json.loads(done.stdout)["error"]["data"]["name"] == "denied"
    assert [peer.uid for peer in refused] == [12345]
    assert house.seen == []


@as_root
async def test_another_user_that_is_allowed_is_served(short: Path, house: House) -> None:
    async with listening(short / "s", house, allow=lambda peer: peer.uid == 12345, role=Role.AGENT, agent="a"):
        (short / "s").chmod(0o666)
        done = await trio.to_thread.run_sync(connect_as, 12345, short / "s")
    assert json.loads(done.stdout)["result"] == {}
    assert house.seen == ["x"]


def test_the_usual_rule() -> None:
    assert same_user(PeerCredentials(1, os.geteuid(), 1))
    assert same_user(PeerCredentials(1, 0, 1))
    assert not same_user(PeerCredentials(1, os.geteuid() + 12345, 1))


# how many


async def test_so_many_connections_and_no_more(short: Path, house: House) -> None:
    gate = Gate(per_uid=2)
    with structlog.testing.capture_logs() as logs:
        async with listening(short / "s", house, gate=gate):
            streams = [await trio.open_unix_socket(short / "s") for _ in range(3)]
            assert "result" in await Raw(streams[0]).ask("echo")
            assert "result" in await Raw(streams[1]).ask("echo")
            refused = await Raw(streams[2]).ask("echo")
            assert refused["error"]["data"] == {
                "name": "unavailable",
                "hint": "try again in a moment",
                "retryable": True,
            }
            await streams[0].aclose()
            await trio.testing.wait_all_tasks_blocked(0.01)
            streams.append(await trio.open_unix_socket(short / "s"))
            assert "result" in await Raw(streams[3]).ask("echo")
            for stream in streams:
                await stream.aclose()
    assert [entry["event"] for entry in logs] == ["too many connections"]
    assert gate == Gate(per_uid=2)


def test_a_gate_counts_by_user_and_in_all() -> None:
    gate = Gate(per_uid=2, total=3)
    assert [gate.enter(1), gate.enter(1), gate.enter(1)] == [True, True, False]
    assert [gate.enter(2), gate.enter(2), gate.enter(3)] == [True, False, False]
    gate.leave(1)
    assert [gate.enter(3), gate.enter(1)] == [True, False]


async def test_an_agent_has_fewer_and_those_turned_away_hold_nothing(
    short: Path, house: House, open_fds: Callable[[], int]
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with listening(short / "s", house, role=Role.AGENT, agent="echo"):
            before = open_fds()
            streams = [await trio.open_unix_socket(short / "s") for _ in range(AGENT_CONNECTIONS)]
            assert all(["result" in await Raw(stream).ask("echo") for stream in streams])
            more = [await trio.open_unix_socket(short / "s") for _ in range(100)]
            await trio.testing.wait_all_tasks_blocked(0.01)
            ours = open_fds() - before - len(streams) - len(more)
            assert ours == AGENT_CONNECTIONS + TURN_AWAYS
            refusals = [await Raw(stream).rest() for stream in more]
            assert all(b"too many connections" in refusal for refusal in refusals)
            for stream in more:
                await stream.aclose()
            assert all(["result" in await Raw(stream).ask("echo") for stream in streams])
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with await trio.open_unix_socket(short / "s") as again:  # those places are free again
                assert b"too many connections" in await Raw(again).rest()
            for stream in streams:
                await stream.aclose()
    assert 1 <= [entry["event"] for entry in logs].count("too many connections") <= 5


async def test_all_who_are_turned_away_are_told_even_if_they_write_first(short: Path, house: House) -> None:
    with structlog.testing.capture_logs():
        async with listening(short / "s", house, gate=Gate(per_uid=1)):
            async with await trio.open_unix_socket(short / "s") as served:
                assert "result" in await Raw(served).ask("echo")
                more = []
                for _ in range(3 * TURN_AWAYS):
                    sock = socket.socket(socket.AF_UNIX)
                    sock.connect(str(short / "s"))
                    sock.sendall(json.dumps(call("echo")).encode())  # while it waits to be accepted
                    more.append(sock)
                await trio.testing.wait_all_tasks_blocked(0.01)
                for sock in more:
                    with sock:
                        sock.settimeout(1)
                        assert json.loads(sock.recv(9999))["error"]["data"]["name"] == "unavailable"


async def test_strangers_who_knock_do_not_fill_the_log(short: Path, house: House) -> None:
    with structlog.testing.capture_logs() as logs:
        async with listening(short / "s", house, role=Role.AGENT, allow=lambda _: False):
            for _ in range(50):
                async with await trio.open_unix_socket(short / "s"):
                    pass
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert 1 <= [entry["event"] for entry in logs].count("caller refused") <= 5


def test_only_agents_have_a_narrow_gate() -> None:
    assert gate_for(Role.AGENT) == Gate(per_uid=AGENT_CONNECTIONS, total=AGENT_CONNECTIONS)
    assert gate_for(Role.OPERATOR) == Gate(per_uid=64, total=1024)


async def test_accepting_goes_on_when_descriptors_run_out(
    short: Path, house: House, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    listener = bind_unix(short / "s")
    faults = [OSError(errno.EMFILE, "x"), OSError(errno.ECONNABORTED, "x"), OSError(errno.EBADF, "x")]

    class Faulty:
        async def accept(self) -> None:
            await trio.lowlevel.checkpoint()
            raise faults.pop(0)

    with structlog.testing.capture_logs() as logs:
        assert await unix.accept_one(Faulty(), Quiet()) is None  # type: ignore[arg-type]
        assert await unix.accept_one(Faulty(), Quiet()) is None  # type: ignore[arg-type]
        with pytest.raises(OSError):
            await unix.accept_one(Faulty(), Quiet())  # type: ignore[arg-type]
    assert [entry["event"] for entry in logs] == ["cannot accept"]
    await listener.aclose()


async def test_one_connection_does_not_take_the_others_along(
    short: Path, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slip(self: Peer) -> None:
        raise RuntimeError("slip")

    monkeypatch.setattr(Peer, "_converse", slip)
    with structlog.testing.capture_logs() as logs:
        async with listening(short / "s", house):
            async with await trio.open_unix_socket(short / "s") as broken:
                assert await Raw(broken).rest() == b""
            monkeypatch.undo()
            async with await trio.open_unix_socket(short / "s") as stream:
                assert "result" in await Raw(stream).ask("echo")
    assert [entry["event"] for entry in logs] == ["connection failed"]


async def test_nothing_is_left(short: Path, house: House, open_fds: Callable[[], int]) -> None:
    before = open_fds()
    async with listening(short / "s", house):
        for _ in range(50):
            async with await trio.open_unix_socket(short / "s") as stream:
                await Raw(stream).send('{"half":')
    assert open_fds() == before
    assert os.listdir(short) == []
