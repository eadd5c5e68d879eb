"""One homeserver for a whole test run, however many processes the run has.

The first process that needs it starts a keeper, which starts Synapse and serves a Unix socket; every process holds a
connection for as long as it uses the homeserver. When the last connection is gone, even by kill -9, the keeper stops
Synapse and ends. So nobody owns it, and nobody can leave it behind.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from armorclaw.errors import ArmorclawError
from armorclaw.testing.homeserver import START_TIMEOUT, Homeserver

LINGER = 2.0
"""Seconds the keeper waits for another user after the last one has gone."""


@contextmanager
def shared_homeserver(folder: Path) -> Iterator[Homeserver]:
    """The homeserver that all users of `folder` share, for the length of a block. Raises start_failed."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(START_TIMEOUT + 10)
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not _connect(connection, folder):
                _start_keeper(folder)
                if not _connect(connection, folder):
                    raise ArmorclawError("start_failed", "the keeper of the shared homeserver does not answer")
            answer = json.loads(connection.makefile("rb").readline() or b'{"error": "its keeper went away"}')
        if "error" in answer:
            raise ArmorclawError("start_failed", "the shared homeserver did not start", why=answer["error"])
        yield Homeserver.attach(folder / "synapse")


def _connect(connection: socket.socket, folder: Path) -> bool:
    try:
        connection.connect(_address(folder))
    except OSError:
        return False
    return True


def _address(folder: Path) -> str:
    # abstract, since the folders of a test run are often deeper than the 107 bytes a socket's path may have
    return f"\0armorclaw-homeserver-{os.getuid()}-{folder.stat().st_ino}"


def _start_keeper(folder: Path) -> None:
    command = [sys.executable, "-m", "armorclaw.testing.keeper", str(folder)]
    # it listens before it says so: whoever connects next waits for Synapse, not for the socket
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, start_new_session=True
    ) as keeper:
        assert keeper.stdout is not None
        ready = keeper.stdout.readline()
        keeper.stdout.close()
        keeper.returncode = 0  # not ours to wait for: it outlives this process
    if ready != b"listening\n":
        raise ArmorclawError("start_failed", "the keeper of the shared homeserver did not start")


def keep(folder: Path) -> None:
    """Be the keeper of `folder` until nobody uses the homeserver any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(_address(folder))
        listener.listen(64)
        os.write(1, b"listening\n")
        os.close(1)
        homeserver = Homeserver(folder / "synapse")
        try:
            homeserver.start()
            _serve(listener, json.dumps({"url": homeserver.url}).encode() + b"\n")
        except ArmorclawError as error:
            connection, _ = listener.accept()
            with connection:
                connection.sendall(json.dumps({"error": " ".join(error.lines())}).encode() + b"\n")
        finally:
            homeserver.stop()
            shutil.rmtree(folder / "synapse", ignore_errors=True)


def _serve(listener: socket.socket, greeting: bytes) -> None:
    """Greet everyone; return when the last has been gone for LINGER seconds."""
    users: set[socket.socket] = set()
    alone_since = time.monotonic()
    while users or time.monotonic() - alone_since < LINGER:
        readable, _, _ = select.select([listener, *users], [], [], LINGER)
        for each in readable:
            if each is listener:
                user, _ = listener.accept()
                user.sendall(greeting)
                users.add(user)
            elif not each.recv(64):
                users.discard(each)
                each.close()
                alone_since = time.monotonic()


if __name__ == "__main__":
    keep(Path(sys.argv[1]))
