from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.containers.peers import children_of, descends_from, only_from, pid_namespace, session
from armorclaw.rpc.unix import peer_of

pytestmark = pytest.mark.mission("P0.1")

NOBODY = 2**22 + 1  # above the largest pid there can be


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "100"], start_new_session=True) as process:
        yield process
        process.kill()


def test_descent(sleeper: subprocess.Popen[bytes]) -> None:
    assert descends_from(sleeper.pid, sleeper.pid)
    assert descends_from(sleeper.pid, os.getpid())
    assert not descends_from(os.getpid(), sleeper.pid)
    assert not descends_from(NOBODY, os.getpid())
    assert sleeper.pid in children_of(os.getpid())
    assert children_of(NOBODY) == []


def test_descent_through_shells() -> None:
    script = "exec 3>&1; sh -c 'sh -c \"echo \\$\\$ >&3; exec sleep 100\" & wait' & echo; wait"
    with subprocess.Popen(["/bin/sh", "-c", script], stdout=subprocess.PIPE, start_new_session=True) as top:
        assert top.stdout is not None
        lines = [top.stdout.readline(), top.stdout.readline()]
        pid = int(b"".join(lines))
        try:
            assert descends_from(pid, top.pid)
            assert session(pid) == top.pid
        finally:
            os.killpg(top.pid, 9)


def test_a_name_full_of_brackets_deceives_nobody(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 1 (b"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([str(program), "100"], start_new_session=True) as process:
        try:
            assert session(process.pid) == process.pid
            assert descends_from(process.pid, os.getpid())
        finally:
            process.kill()


def test_session(sleeper: subprocess.Popen[bytes]) -> None:
    assert session(sleeper.pid) == sleeper.pid
    assert session(os.getpid()) == os.getsid(0)
    assert session(NOBODY) is None


def test_pid_namespace(sleeper: subprocess.Popen[bytes]) -> None:
    assert pid_namespace(sleeper.pid) == pid_namespace(os.getpid()) is not None
    assert pid_namespace(NOBODY) is None


class Everybodys:
    """A container that owns whoever asks; for what is checked besides."""

    id = "x"
    asked = 0

    def owns(self, peer: Any) -> bool:
        self.asked += 1
        return bool(peer.uid == 0)


def test_only_from_its_container_and_only_while_it_lives(tmp_path: Path) -> None:
    path = tmp_path / "s"
    running: Any = Everybodys()
    allow = only_from(running)
    script = f"import socket, time; s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r}); time.sleep(100)"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        with subprocess.Popen(["/usr/bin/python3", "-S", "-c", script]) as process:
            sock = listener.accept()[0]
            with sock, peer_of(sock) as peer:
                assert peer.pid == process.pid
                assert allow(peer)
                assert not allow(attrs.evolve(peer, uid=10001))
                process.kill()
                process.wait()
                # Its pid could be another's by now, so what is read about it does not count.
                assert not allow(peer)
    assert running.asked == 3
