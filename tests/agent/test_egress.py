"""The port that leads out: real sockets, a small CONNECT proxy on a Unix socket in the bridge's place."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from armorclaw.agent import egress
from armorclaw.agent.egress import Forwarder, proxy_variables

from .conftest import ROOT, FakeBridge, Spawn, eventually

PATIENCE = 30.0


class Proxy:
    """What the bridge has on its socket; `serve` gets each connection in a thread of its own."""

    def __init__(self, path: str, serve: Callable[[socket.socket], None]) -> None:
        self.path = path
        self._serve = serve
        self._listener: socket.socket | None = None
        self.accepted = 0

    def start(self) -> None:
        listener = self._listener = socket.socket(socket.AF_UNIX)
        listener.bind(self.path)
        listener.listen(256)
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        os.unlink(self.path)
        assert self._listener is not None
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            self.accepted += 1
            threading.Thread(target=self._one, args=(sock,), daemon=True).start()

    def _one(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            self._serve(sock)


def head_of(sock: socket.socket) -> bytes:
    head = b""
    while b"\r\n\r\n" not in head:
        came = sock.recv(4096)
        if not came:
            break
        head += came
    return head


def tunnel(sock: socket.socket) -> None:
    """A CONNECT proxy that lets everybody through to an echo."""
    if head_of(sock).startswith(b"CONNECT "):
        sock.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        echo(sock)


def echo(sock: socket.socket) -> None:
    while came := sock.recv(65_536):
        sock.sendall(came)


@pytest.fixture
def path() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ac-") as folder:
        yield f"{folder}/egress.sock"


@pytest.fixture
def port(path: str) -> int:
    """Of a forwarder; its thread ends with the tests, as with an agent."""
    forwarder = Forwarder(path)
    threading.Thread(target=forwarder.run, daemon=True).start()
    return forwarder.port


def client(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)


def read_all(sock: socket.socket) -> bytes:
    return b"".join(iter(lambda: sock.recv(65_536), b""))


@contextlib.contextmanager
def serving(path: str, serve: Callable[[socket.socket], None] = echo) -> Iterator[Proxy]:
    proxy = Proxy(path, serve)
    proxy.start()
    try:
        yield proxy
    finally:
        with contextlib.suppress(FileNotFoundError):
            proxy.stop()


def test_bytes_go_both_ways_and_so_do_the_ends(path: str, port: int) -> None:
    def after_the_end(sock: socket.socket) -> None:
        came = read_all(sock)
        sock.sendall(came[::-1])  # it heard the end of one direction, and the other is still open

    with serving(path, after_the_end), client(port) as sock:
        sock.sendall(b"abc")
        sock.shutdown(socket.SHUT_WR)
        assert read_all(sock) == b"cba"


def test_what_the_bridge_ends_first_still_takes_what_comes(path: str, port: int) -> None:
    heard: list[bytes] = []
    over = threading.Event()

    def ends(sock: socket.socket) -> None:
        sock.sendall(b"all there is")
        sock.shutdown(socket.SHUT_WR)
        heard.append(read_all(sock))
        over.set()

    with serving(path, ends), client(port) as sock:
        assert read_all(sock) == b"all there is"
        sock.sendall(b"and thanks")
        sock.shutdown(socket.SHUT_WR)
        assert over.wait(PATIENCE)
    assert heard == [b"and thanks"]


def test_it_listens_on_the_loopback_only(path: str, port: int) -> None:
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = {row[1].split(":")[0] for row in rows if row[3] == "0A" and int(row[1].split(":")[1], 16) == port}
    assert ours == {"0100007F"}


def test_much_arrives_whole_and_slow_readers_cost_no_memory(path: str, port: int) -> None:
    size = 64 * 1024 * 1024
    sent: list[int] = []  # by connection

    def flood(sock: socket.socket) -> None:
        number, chunk = len(sent), bytes(range(256)) * 256
        sent.append(0)
        while sent[number] < size:
            sock.sendall(chunk)
            sent[number] += len(chunk)

    with serving(path, flood), client(port) as sock:
        quiet_since, before = time.monotonic(), [-1]
        while time.monotonic() - quiet_since < 0.3:  # until nothing moves any more
            if sent != before:
                before, quiet_since = list(sent), time.monotonic()
            time.sleep(0.01)
        assert sent[0] < size // 2  # it stopped reading the bridge
        with client(port) as other:  # and nobody else waits for that
            assert other.recv(1)
        whole = 0
        while came := sock.recv(1 << 20):
            whole += len(came)
        assert whole == size


def test_what_is_sent_faster_than_taken_waits_as_well(path: str, port: int) -> None:
    go = threading.Event()
    got: list[int] = []
    over = threading.Event()

    def slow(sock: socket.socket) -> None:
        assert go.wait(PATIENCE)
        got.append(len(read_all(sock)))
        over.set()

    with serving(path, slow), client(port) as sock:
        sock.settimeout(0.3)
        sent = 0
        with contextlib.suppress(TimeoutError):
            while sent < 64 * 1024 * 1024:
                sent += sock.send(bytes(65_536))
        assert sent < 32 * 1024 * 1024
        go.set()
        sock.shutdown(socket.SHUT_WR)
        assert over.wait(PATIENCE)
    assert got == [sent]


def test_a_bridge_that_is_away_is_told_at_once_and_found_again(path: str, port: int) -> None:
    for _ in range(2):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
        connection.set_tunnel("example.org", 443)
        with pytest.raises(OSError, match="503 Bridge Unavailable"):
            connection.connect()
    with serving(path), client(port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    with pytest.raises(OSError, match="503"):
        connection.connect()
    with serving(path), client(port) as sock:
        sock.sendall(b"y")
        assert sock.recv(1) == b"y"


def test_connections_end_with_the_bridge(path: str, port: int) -> None:
    def leaves(sock: socket.socket) -> None:
        head_of(sock)

    with serving(path, leaves), client(port) as sock:
        sock.sendall(b"GET\r\n\r\n")
        assert sock.recv(1) == b""


def test_a_client_that_is_gone_ends_the_connection_to_the_bridge(path: str, port: int) -> None:
    ended = threading.Event()

    def until_end(sock: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            read_all(sock)
        ended.set()

    with serving(path, until_end):
        sock = client(port)
        sock.sendall(b"x")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset, as of who was killed
        sock.close()
        assert ended.wait(PATIENCE)


def test_too_many_wait_for_their_turn(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress, "MAX_CONNECTIONS", 2)
    forwarder = Forwarder(path)
    threading.Thread(target=forwarder.run, daemon=True).start()
    with serving(path) as proxy, contextlib.ExitStack() as stack:
        first, second, third = (stack.enter_context(client(forwarder.port)) for _ in range(3))
        for sock in (first, second, third):
            sock.sendall(b"x")
        assert first.recv(1) == second.recv(1) == b"x"
        third.settimeout(0.3)
        with pytest.raises(TimeoutError):
            third.recv(1)
        assert proxy.accepted == 2
        third.settimeout(PATIENCE)
        first.close()
        assert third.recv(1) == b"x"
        eventually(lambda: len(forwarder._sides) == 4, "the end of the first")


def test_without_descriptors_it_waits_for_some(path: str, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket.accept
    refused: list[float] = []

    def accept(listener: socket.socket) -> tuple[socket.socket, object]:
        if listener.getsockname()[1:] == (port,) and len(refused) < 3:
            refused.append(time.monotonic())
            raise OSError(24, "Too many open files")
        return real(listener)

    monkeypatch.setattr(socket.socket, "accept", accept)
    with serving(path), client(port) as sock:
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    assert len(refused) == 3
    assert refused[2] - refused[0] > 0.15  # it does not spin


def test_a_forked_child_holds_nothing(path: str, port: int) -> None:
    """Or what the parent closes would not end."""
    del port
    code = f"""
import os, socket, sys, time
os.environ["ARMORCLAW_EGRESS_SOCKET"] = {path!r}
from armorclaw.agent.egress import open_egress
port = open_egress()
assert open_egress() == port
def ask(port):
    with socket.create_connection(("127.0.0.1", port), timeout=30) as sock:
        sock.sendall(b"x")
        return sock.recv(1)
kept = socket.create_connection(("127.0.0.1", port), timeout=30)
kept.sendall(b"k"); kept.recv(1)
child = os.fork()
if not child:
    ok = ask(port) == b"x"                      # the parent's serves it
    ok = ok and open_egress() != port and ask(open_egress()) == b"x"   # and one of its own
    time.sleep(0.5)
    os._exit(0 if ok else 1)
other = socket.create_connection(("127.0.0.1", port), timeout=30)
other.sendall(b"x"); assert other.recv(1) == b"x"
kept.shutdown(socket.SHUT_WR)
assert kept.recv(1) == b""                      # ended although the child lives
assert os.waitpid(child, 0)[1] == 0
assert ask(port) == b"x"
print("fine")
"""
    with serving(path):
        done = subprocess.run(
            [sys.executable, "-W", "error::ResourceWarning", "-c", code],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": "internal.example, .local"}, "internal.example,.local,127.0.0.1,localhost"),
        ({"no_proxy": "localhost"}, "localhost,127.0.0.1"),
    ],
)
def test_the_variables(before: dict[str, str], after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in before.items():
        monkeypatch.setenv(name, value)
    variables = proxy_variables(1234)
    assert variables["HTTPS_PROXY"] == variables["https_proxy"] == "http://127.0.0.1:1234"
    assert variables["NO_PROXY"] == variables["no_proxy"] == after
    assert variables["NODE_USE_ENV_PROXY"] == "1"
    assert len(variables) == 5


# where agents begin

_SHOW = """
import json, os, sys
loaded = "armorclaw.agent.egress" in sys.modules
print(json.dumps([os.environ.get("HTTPS_PROXY"), os.environ.get("NO_PROXY"), loaded]))
"""


@pytest.mark.parametrize("name", ["Agent", "AsyncAgent"])
def test_an_agent_opens_it_when_it_is_made(spawn: Spawn, path: str, name: str) -> None:
    code = f"from armorclaw.agent import {name}; {name}(); {name}()" + _SHOW
    out, err = spawn("-c", code, ARMORCLAW_EGRESS_SOCKET=path).communicate(timeout=20)
    proxy, spared, _ = json.loads(out)
    assert proxy.startswith("http://127.0.0.1:")
    assert spared == "127.0.0.1,localhost"
    assert err == ""


def test_without_the_variable_nothing_is_loaded_or_set(spawn: Spawn) -> None:
    code = "from armorclaw.agent import Agent, AsyncAgent; Agent(); AsyncAgent()" + _SHOW
    out, _ = spawn("-c", code).communicate(timeout=20)
    assert json.loads(out) == [None, None, False]


_ASK = """
import socket, os
host, port = os.environ["HTTPS_PROXY"].removeprefix("http://").split(":")
with socket.create_connection((host, int(port)), timeout=30) as sock:
    sock.sendall(b"CONNECT example.org:443 HTTP/1.1\\r\\n\\r\\n")
    print(sock.recv(100).decode().split("\\r\\n")[0], flush=True)
"""


def test_a_wrapped_program_has_it(spawn: Spawn, path: str) -> None:
    with serving(path, tunnel):
        process = spawn(
            "-m", "armorclaw.agent", "exec", "--", sys.executable, "-c", _ASK, ARMORCLAW_EGRESS_SOCKET=path
        )
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out, err) == (0, "HTTP/1.1 200 OK\n", "")


def test_programs_of_single_messages_have_it(spawn: Spawn, path: str, bridge: FakeBridge) -> None:
    with serving(path, tunnel):
        spawn(
            *("-m", "armorclaw.agent", "exec", "--per-message", "--", sys.executable, "-c", _ASK),
            ARMORCLAW_EGRESS_SOCKET=path,
        )
        bridge.wait_acked(bridge.say("x"))
    assert bridge.of("matrix.send")[0]["message"] == "HTTP/1.1 200 OK"
