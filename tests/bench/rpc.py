"""Calls over a Unix socket: what the bridge adds to a bare echo, in CPU time of the server for each call.

Six servers take turns in one run, each alone with one load generator (`_rpc_load.c`): the product with everything it
does in earnest (envelope, roles, limits that are counted, params and results as attrs classes), and others that do
the least one could (`_rpc_sides.py`, and `_rpc_echo.c`, which knows no JSON at all). A figure is the best of its
rounds: what disturbs only ever adds. C is compiled at run time.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import attrs

from tests.bench import Figure
from tests.bench._real import ROOT, folder

ROUNDS, SECONDS = 15, 0.3
QUICK_ROUNDS, QUICK_SECONDS = 7, 0.2
MORE_SINGLE = 3
"""Times per round that requests come one after the other: what they wait depends much on the neighbours."""

IDLE = 1000
"""Connections that have asked once and are silent now."""

PATIENCE = 10.0
"""Seconds that a server may take to start."""

ROOM = "!abcdefghijklmnopqr:example.org"


@attrs.frozen
class Load:
    """Connections, requests in flight on each, and the request."""

    connections: int
    depth: int
    request: bytes


@attrs.frozen
class Server:
    """A process to ask."""

    path: Path
    process: subprocess.Popen[str]

    def resident(self) -> int:
        """Bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@attrs.frozen
class Took:
    """Microseconds: CPU of the server for each answer, and what half of the clients waited at most."""

    cpu: float
    p50: float


def request(method: str, size: int, **params: object) -> bytes:
    """A line of `size` bytes; what is missing is made up in the body."""
    message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": {"room_id": ROOM, **params, "body": ""}}
    missing = size - 1 - len(json.dumps(message, separators=(",", ":")))
    message["params"] = {"room_id": ROOM, **params, "body": "x" * missing}
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def conversation() -> list[dict[str, str]]:
    """What a bridge hands on: 40 messages of a few sentences each."""
    said = 'She said: "It works."\nWell, then: what about the other one, the one that does not (yet)?\n'
    return [{"role": "user" if turn % 2 else "assistant", "content": said * 4} for turn in range(40)]


SMALL = request("echo", 200)
LARGE = request("forward", 16 * 1024)
TALK = request("forward", 16 * 1024, messages=conversation())

FULL, SINGLE = Load(16, 16, SMALL), Load(1, 1, SMALL)
WIDE, WIDE_TALK = Load(16, 1, LARGE), Load(16, 1, TALK)


def run(quick: bool) -> list[Figure]:
    """About 35 s when quick, 100 s otherwise."""
    rounds, seconds = (QUICK_ROUNDS, QUICK_SECONDS) if quick else (ROUNDS, SECONDS)
    with ExitStack() as stack:
        home = stack.enter_context(folder())
        load, echo = (compiled(home, name) for name in ("load", "echo"))
        servers = {
            kind: stack.enter_context(python_server(home, kind)) for kind in ("product", "uvloop", "asyncio", "naive")
        }
        servers["C"] = stack.enter_context(server(home / "c.sock", [str(echo), str(home / "c.sock")]))
        servers["crowded"] = stack.enter_context(python_server(home, "product", "crowded"))
        each_idle = stack.enter_context(crowd(servers["crowded"]))
        plan = [
            *((kind, FULL) for kind in ("uvloop", "product", "naive")),
            *((kind, SINGLE) for kind in ("C", "product", "crowded") * MORE_SINGLE),
            *((kind, what) for what in (WIDE, WIDE_TALK) for kind in ("asyncio", "product")),
        ]
        found: dict[tuple[str, Load], list[Took]] = defaultdict(list)
        for _ in range(rounds):
            for kind, what in plan:
                found[kind, what].append(ask(load, servers[kind], what, seconds))
    cpu = {key: min(took.cpu for took in all_took) for key, all_took in found.items()}
    p50 = {key: min(took.p50 for took in all_took) for key, all_took in found.items()}
    ours = cpu["product", FULL]
    return [
        Figure("16 x 16, 200 B, bare uvloop and orjson, CPU", cpu["uvloop", FULL], "us"),
        Figure("16 x 16, 200 B, product, CPU", ours, "us"),
        Figure("16 x 16, 200 B, naive Trio, CPU", cpu["naive", FULL], "us"),
        Figure("16 x 16, product / uvloop", ours / cpu["uvloop", FULL], "x", 4.0),
        Figure("16 x 16, product / naive", ours / cpu["naive", FULL], "x", 1 / 8),
        Figure("one after the other, C echo, p50", p50["C", SINGLE], "us"),
        Figure("one after the other, product, p50", p50["product", SINGLE], "us"),
        Figure("one after the other, product / C echo", p50["product", SINGLE] / p50["C", SINGLE], "x", 1.5),
        Figure("16 x 1, 16 KiB forwarded, asyncio and orjson, CPU", cpu["asyncio", WIDE], "us"),
        Figure("16 x 1, 16 KiB forwarded, product, CPU", cpu["product", WIDE], "us"),
        Figure("16 x 1, 16 KiB forwarded, product / asyncio", cpu["product", WIDE] / cpu["asyncio", WIDE], "x", 0.8),
        Figure("the same, 40 messages of some lines", cpu["product", WIDE_TALK] / cpu["asyncio", WIDE_TALK], "x"),
        Figure(f"p50 beside {IDLE} idle / alone", p50["crowded", SINGLE] / p50["product", SINGLE], "x", 1.1),
        Figure(f"idle connection, of {IDLE}", each_idle / 1000, "kB", 12.0),
    ]


def compiled(home: Path, name: str) -> Path:
    """The program of `_rpc_NAME.c`."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        sys.exit("rpc: this benchmark compiles its load generator: install a C compiler (apt install gcc)")
    source = Path(__file__).with_name(f"_rpc_{name}.c")
    subprocess.run([compiler, "-O2", "-o", str(home / name), str(source)], check=True)
    return home / name


def python_server(home: Path, kind: str, name: str = "") -> AbstractContextManager[Server]:
    """One of `_rpc_sides.py`."""
    path = home / f"{name or kind}.sock"
    return server(path, [sys.executable, "-m", "tests.bench._rpc_sides", kind, str(path)])


@contextmanager
def server(path: Path, command: list[str]) -> Iterator[Server]:
    """On the first core; it listens at `path`."""
    process = subprocess.Popen(pinned(0, command), cwd=ROOT, stdout=subprocess.DEVNULL, text=True)
    try:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                connect(path).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.02)
        yield Server(path, process)
    finally:
        process.kill()
        process.wait()


def pinned(core: int, command: list[str]) -> list[str]:
    """The server has one core and its clients another, if there are two."""
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[core]), *command] if len(cores) > 1 and shutil.which("taskset") else command


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    try:
        sock.connect(str(path))
    except OSError:
        sock.close()
        raise
    return sock


@contextmanager
def crowd(server: Server) -> Iterator[float]:
    """Hold `IDLE` connections; what each of them made the server grow by, in bytes."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(resource.getrlimit(resource.RLIMIT_NOFILE)),) * 2)
    with ExitStack() as stack:
        for number in range(IDLE + 50):
            if number == 50:  # by then all is imported that a first call imports
                before = server.resident()
            sock = stack.enter_context(connect(server.path))
            sock.sendall(SMALL)
            assert sock.recv(4096).endswith(b"}\n")
        yield (server.resident() - before) / IDLE


def ask(load: Path, server: Server, what: Load, seconds: float) -> Took:
    """Run the load generator, on the second core."""
    command = [str(load), str(server.path), str(server.process.pid)]
    command += [str(each) for each in (what.connections, what.depth, seconds)]
    ended = subprocess.run(pinned(1, command), input=what.request, check=True, capture_output=True)
    _, cpu, p50, _ = (float(each) for each in ended.stdout.split())
    return Took(cpu, p50)
