"""One event to 100 subscribers over Unix sockets: the bridge beside uvloop's write-to-all, and redis pub/sub.

Servers take turns in one run, each alone with one load generator (`_fanout_load.c`), which publishes events that are
kept nowhere and is all the subscribers. CPU is the server's time for each delivery, while 16 events are under way.
Times are from an event's publishing until the last subscriber has it, at 50 events a second; they are taken once more
beside a subscriber that was stopped (SIGSTOP), and has been given more than its buffers hold. A figure is the best of
its rounds: what disturbs only ever adds. C is compiled at run time; redis is the host's own (`apt install
redis-server`), run privately.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.bench import Figure
from tests.bench._real import folder
from tests.bench.rpc import Server, connect, pinned, server

SUBSCRIBERS = 100
ROUNDS, SECONDS, PACED_SECONDS = 9, 0.5, 2.0
QUICK_ROUNDS, QUICK_SECONDS, QUICK_PACED_SECONDS = 5, 0.3, 1.2
FILL_SECONDS = 0.4
PACE = 50
"""Events a second where times are taken."""

AT_ONCE = 16
"""Events under way, where as many as possible are published: not answered, or not with everybody."""

CHANNEL = b"bench"
SUBSCRIBE = b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{"filter":{"types":["app.bench"]}}}\n'


@attrs.frozen
class Told:
    """What the clients say to one sort of server."""

    subscribe: bytes
    publish: bytes


@attrs.frozen
class Took:
    """Microseconds: CPU of the server for each delivery, and until the last had an event."""

    cpu: float
    p50: float
    p99: float


def publishing() -> bytes:
    content = {"n": "@00000000", "text": "the quick brown fox jumps over the lazy dog, again and again and again"}
    params = {"type": "app.bench", "content": content, "ephemeral": True}
    request = {"jsonrpc": "2.0", "id": 1, "method": "events.publish", "params": params}
    return json.dumps(request, separators=(",", ":")).encode() + b"\n"


def redis_words(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


LINES = Told(SUBSCRIBE, publishing())
FRAME = 280
"""Bytes of an `event` notification; what redis delivers is as long."""

REDIS = Told(redis_words(b"SUBSCRIBE", CHANNEL), redis_words(b"PUBLISH", CHANNEL, b"@00000000".ljust(FRAME, b"x")))


def run(quick: bool) -> list[Figure]:
    """About 40 s when quick, 110 s otherwise."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    paced_seconds = QUICK_PACED_SECONDS if quick else PACED_SECONDS
    with ExitStack() as stack:
        home = stack.enter_context(folder())
        load = compiled(home)
        sides = {kind: stack.enter_context(side(home, kind)) for kind in ("product", "trio", "uvloop")}
        sides["redis"] = stack.enter_context(redis(home))
        found: dict[str, list[Took]] = defaultdict(list)

        def take(name: str, kind: str, window: int, rate: int, length: float) -> None:
            told = REDIS if kind == "redis" else LINES
            found[name].append(ask(load, sides[kind], told, window, rate, length))

        for _ in range(rounds):
            for kind in ("uvloop", "product"):
                take(f"{kind} alone", kind, 1, 0, seconds)
                take(f"{kind} at once", kind, AT_ONCE, 0, seconds)
            take("trio alone", "trio", 1, 0, seconds)
            take("redis at once", "redis", AT_ONCE, 0, seconds)
            for kind in ("redis", "product"):
                take(f"{kind} paced", kind, AT_ONCE, PACE, paced_seconds)
            with stopped(sides["product"]):
                ask(load, sides["product"], LINES, AT_ONCE, 0, FILL_SECONDS)  # until it is full, and beyond
                take("stopped", "product", AT_ONCE, PACE, paced_seconds)
    cpu = {name: min(took.cpu for took in all_took) for name, all_took in found.items()}
    p99 = {name: min(took.p99 for took in all_took) for name, all_took in found.items()}
    ours, bare = cpu["product at once"], cpu["uvloop at once"]
    return [
        Figure("a delivery, redis, CPU", cpu["redis at once"], "us"),
        Figure("a delivery, uvloop, CPU", bare, "us"),
        Figure("a delivery, bridge, CPU", ours, "us"),
        Figure("a delivery, bridge / uvloop", ours / bare, "x", 1.5),
        Figure("the same, one event under way at a time", cpu["product alone"] / cpu["uvloop alone"], "x"),
        Figure("the same, bare writes from a task of Trio", cpu["trio alone"] / cpu["uvloop alone"], "x"),
        Figure("until the last has it, redis, p99", p99["redis paced"], "us"),
        Figure("until the last has it, bridge, p99", p99["product paced"], "us"),
        Figure("until the last has it, bridge / redis, p99", p99["product paced"] / p99["redis paced"], "x", 5.0),
        Figure("p99 beside a stopped subscriber / without", p99["stopped"] / p99["product paced"], "x", 1.2),
    ]


def compiled(home: Path) -> Path:
    """The program of `_fanout_load.c`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("fanout: this benchmark compiles its load generator: install a C compiler (apt install gcc)")
    program = home / "load"
    subprocess.run([compiler, "-O2", "-o", str(program), str(Path(__file__).with_name("_fanout_load.c"))], check=True)
    return program


@contextmanager
def side(home: Path, kind: str) -> Iterator[Server]:
    """One of `_fanout_sides.py`."""
    path, place = home / f"{kind}.sock", home / kind
    place.mkdir()
    command = [sys.executable, "-m", "tests.bench._fanout_sides", kind, str(path), str(place)]
    with server(path, command) as running:
        yield running


@contextmanager
def redis(home: Path) -> Iterator[Server]:
    """A redis that keeps nothing, on a socket of its own."""
    program = shutil.which("redis-server")
    if program is None:
        sys.exit("fanout: this benchmark measures beside redis: install it (apt install redis-server)")
    path = home / "redis.sock"
    options = {"port": "0", "unixsocket": str(path), "save": "", "appendonly": "no", "dir": str(home)}
    command = [program, *(word for name, value in options.items() for word in (f"--{name}", value))]
    with server(path, command) as running:
        yield running


@contextmanager
def stopped(side: Server) -> Iterator[None]:
    """One more subscriber, whose process is stopped."""
    sock = connect(side.path)
    sock.sendall(SUBSCRIBE)
    assert b"result" in sock.recv(4096)
    pid = os.fork()
    if pid == 0:  # it holds the connection, and never reads again
        try:
            sock.setblocking(True)
            while sock.recv(4096):
                pass
        finally:
            os._exit(0)
    sock.close()
    try:
        os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def ask(load: Path, side: Server, told: Told, window: int, rate: int, seconds: float) -> Took:
    """Run the load generator, on the second core."""
    command = [str(load), str(side.path), str(side.process.pid)]
    command += [str(each) for each in (SUBSCRIBERS, window, rate, seconds, len(told.subscribe))]
    given = told.subscribe + told.publish
    ended = subprocess.run(pinned(1, command), input=given, check=True, capture_output=True)
    _, cpu, p50, p99 = (float(each) for each in ended.stdout.split())
    return Took(cpu, p50, p99)
