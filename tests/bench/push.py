"""From a /sync answer to the agent's socket: the bridge beside bare Trio with one commit.

This process is the homeserver and the agent at once: it writes the answer to a long poll into a TCP connection, and
takes the time until the whole `event` frame has come out of the Unix socket. Between the two lies, in a process of
its own, the bridge (HTTP, session, journal, subscription, JSON-RPC), or the floor, which gets the same bytes, commits
them with synchronous=FULL in a thread, and writes the same frame. They take turns in blocks. A frame is acknowledged,
as an agent does, once its time is taken.

Events that are ephemeral come from `events.publish` on one connection and go to a subscriber on another; their floor
is bare Trio, which reads the same request and writes the same answer and frame, and there is no commit.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tests.bench import Figure, percentile
from tests.bench._push_sides import ROOM, USER
from tests.bench._real import ROOT, folder

MESSAGES, QUICK_MESSAGES = 500, 150
BLOCK = 10
WARM_UP = 20
INTERVAL = 0.02
"""Seconds from one message to the next: 50 a second."""

PATIENCE = 30.0
"""Seconds to wait for anything before giving up."""


def run(quick: bool) -> list[Figure]:
    """About 18 s when quick, 55 s otherwise."""
    count = QUICK_MESSAGES if quick else MESSAGES
    with ExitStack() as stack:
        bridge = stack.enter_context(product())
        frame = [bridge.carry(number) for number in range(WARM_UP)][-1]
        bare, lax = (stack.enter_context(floor(kind, frame)) for kind in ("floor", "lax"))
        for number in range(WARM_UP):
            bare.carry(number)
            lax.carry(number)
        product_ms, floor_ms, lax_ms = _in_turns([bridge, bare, lax], range(WARM_UP, WARM_UP + count))
        ephemeral = stack.enter_context(passing())
        given = [ephemeral.carry(number) for number in range(WARM_UP)][-1]
        trio = stack.enter_context(passing(given, ephemeral.answer))
        for number in range(WARM_UP):
            trio.carry(number)
        passing_ms, trio_ms = _in_turns([ephemeral, trio], range(WARM_UP, WARM_UP + count))
    figures = []
    for share, limit in ((0.5, 4.0), (0.99, 8.0)):
        ours, least = percentile(passing_ms, share), percentile(trio_ms, share)
        name = f"ephemeral, p{share * 100:g}"
        figures += [
            Figure(f"{name}, bridge", ours, "ms"),
            Figure(f"{name}, bare Trio", least, "ms"),
            Figure(f"{name}, bridge / bare Trio", ours / least, "x", limit),
        ]
    for share, limit in ((0.5, 5.0), (0.99, 10.0)):
        ours, least = percentile(product_ms, share), percentile(floor_ms, share)
        name = f"p{share * 100:g}"
        figures += [
            Figure(f"bridge, {name}", ours, "ms"),
            Figure(f"floor, {name}", least, "ms"),
            Figure(f"floor with the bridge's kind of commit, {name}", percentile(lax_ms, share), "ms"),
            Figure(f"bridge / floor, {name}", ours / least, "x", limit),
        ]
    return figures


class Side(Protocol):
    """A process with the homeserver before it and the agent behind it."""

    seconds: float
    """How long the last message took."""

    def carry(self, number: int) -> bytes:
        """Send message `number` through; the frame that came out."""
        ...


def _in_turns(sides: Sequence[Side], numbers: range) -> list[list[float]]:
    """Milliseconds of each message of each side."""
    found: list[list[float]] = [[] for _ in sides]
    for start in range(0, len(numbers), BLOCK):
        for side, times in zip(sides, found, strict=True):
            times += _block(side, numbers[start : start + BLOCK])
    return found


def _block(side: Side, numbers: range) -> list[float]:
    """Milliseconds of each message, sent in an even pace."""
    found = []
    due = time.perf_counter()
    for number in numbers:
        time.sleep(max(due - time.perf_counter(), 0.0))
        side.carry(number)
        found.append(side.seconds * 1000)
        due += INTERVAL
    return found


class Bridge:
    """The product: answers its requests as a homeserver, and is subscribed to it as an agent."""

    def __init__(self, http: Requests, agent: socket.socket) -> None:
        self.seconds = 0.0
        self._http = http
        self._agent = agent
        self._frames = agent.makefile("rb")
        params = {"name": "main", "filter": {}, "from": "now"}
        self._subscription = self._call("events.subscribe", params)["subscription"]

    def carry(self, number: int) -> bytes:
        answer = sync_answer(number)
        began = time.perf_counter()
        self._http.connection.sendall(answer)
        frame = self._frames.readline()
        self.seconds = time.perf_counter() - began
        event = json.loads(frame)["params"]
        assert event["event_id"] == _event_id(number), frame
        self._call("events.ack", {"subscription": self._subscription, "seq": event["seq"]})
        assert "timeout=30000" in self._http.next()
        return frame

    def _call(self, method: str, params: dict[str, Any]) -> Any:
        request = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        self._agent.sendall(json.dumps(request).encode() + b"\n")
        return json.loads(self._frames.readline())["result"]


class Floor:
    """The same bytes in, the same bytes out."""

    def __init__(self, tcp: socket.socket, agent: socket.socket, frame: bytes) -> None:
        self.seconds = 0.0
        self._tcp = tcp
        self._frames = agent.makefile("rb")
        agent.sendall(frame)

    def carry(self, number: int) -> bytes:
        answer = sync_answer(number)
        began = time.perf_counter()
        self._tcp.sendall(answer)
        frame = self._frames.readline()
        self.seconds = time.perf_counter() - began
        return frame


class Passing:
    """From one connection to another. With a `frame` and an `answer`, the floor is told to write those."""

    def __init__(self, publisher: socket.socket, subscriber: socket.socket, frame: bytes, answer: bytes) -> None:
        self.seconds = 0.0
        self.answer = answer
        self._publisher = publisher
        self._answers, self._frames = publisher.makefile("rb"), subscriber.makefile("rb")
        if frame:
            subscriber.sendall(answer + frame)
        else:
            params = {"filter": {"types": ["app.message"]}}
            request = {"jsonrpc": "2.0", "id": 1, "method": "events.subscribe", "params": params}
            subscriber.sendall(json.dumps(request).encode() + b"\n")
            assert b"result" in self._frames.readline()

    def carry(self, number: int) -> bytes:
        content = {"msgtype": "m.text", "body": f"message {number}: the quick brown fox jumps over the lazy dog"}
        params = {"type": "app.message", "content": content, "ephemeral": True}
        request = (
            json.dumps({"jsonrpc": "2.0", "id": 1, "method": "events.publish", "params": params}).encode() + b"\n"
        )
        began = time.perf_counter()
        self._publisher.sendall(request)
        frame = self._frames.readline()
        self.seconds = time.perf_counter() - began
        self.answer = self._answers.readline()
        assert b"app.message" in frame, frame
        return frame


class Requests:
    """The HTTP requests of one connection, none of which has a body."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._file = connection.makefile("rb")

    def next(self) -> str:
        """The target of the next request."""
        target = self._file.readline().decode().split(" ")[1]
        while self._file.readline() not in (b"\r\n", b""):
            pass
        return target

    def until_polled(self) -> None:
        """Answer what a session asks at its start, up to its first long poll, which is left open."""
        while "timeout=30000" not in (target := self.next()):
            if "/whoami" in target:
                self.connection.sendall(_response({"user_id": USER, "device_id": "DEVICE"}))
            elif "since=" not in target:
                self.connection.sendall(sync_answer(-1))
            else:
                self.connection.sendall(_response({"next_batch": "s0"}))


@contextmanager
def product() -> Iterator[Bridge]:
    """The bridge, polling, and with the agent's connection open."""
    with folder() as home, _listening() as listener, _side("product", listener, home) as process:
        http = Requests(_accept(listener))
        http.until_polled()
        with http.connection, _agent(process, home) as agent:
            yield Bridge(http, agent)


@contextmanager
def floor(kind: str, frame: bytes) -> Iterator[Floor]:
    """The floor, which answers everything with `frame`; `kind` is that of `_push_sides`."""
    with folder() as home, _listening() as listener, _side(kind, listener, home) as process:
        with _accept(listener) as tcp, _agent(process, home) as agent:
            yield Floor(tcp, agent, frame)


@contextmanager
def passing(frame: bytes = b"", answer: bytes = b"") -> Iterator[Passing]:
    """The bridge, or the floor that writes `frame` and `answer`."""
    kind = "bare" if frame else "passing"
    with folder() as home, _listening() as unused, _side(kind, unused, home) as process:
        with _agent(process, home) as publisher, _agent_at(home) as subscriber:
            yield Passing(publisher, subscriber, frame, answer)


def _listening() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(PATIENCE)
    return listener


def _accept(listener: socket.socket) -> socket.socket:
    connection, _ = listener.accept()
    connection.settimeout(PATIENCE)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


@contextmanager
def _side(name: str, listener: socket.socket, home: Path) -> Iterator[subprocess.Popen[bytes]]:
    port = listener.getsockname()[1]
    command = [sys.executable, "-m", "tests.bench._push_sides", name, str(port), str(home)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def _agent(process: subprocess.Popen[bytes], home: Path) -> socket.socket:
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return _agent_at(home)


def _agent_at(home: Path) -> socket.socket:
    agent = socket.socket(socket.AF_UNIX)
    agent.settimeout(PATIENCE)
    agent.connect(str(home / "agent.sock"))
    return agent


def sync_answer(number: int) -> bytes:
    """An answer to /sync as Synapse gives it, with one message in it; none in that of number -1."""
    event = {
        "type": "m.room.message",
        "sender": "@person:stand-in",
        "content": {"msgtype": "m.text", "body": f"message {number}: the quick brown fox jumps over the lazy dog"},
        "origin_server_ts": 1_700_000_000_000 + number,
        "unsigned": {"membership": "join", "age": 12},
        "event_id": _event_id(number),
    }
    room = {
        "timeline": {"events": [] if number < 0 else [event], "prev_batch": f"s{number}", "limited": False},
        "state": {"events": []},
        "account_data": {"events": []},
        "ephemeral": {"events": []},
        "unread_notifications": {"notification_count": 1, "highlight_count": 0},
        "summary": {},
    }
    return _response(
        {
            "next_batch": f"s{number + 1}_1_0_1_1_1_1_1_0_1",
            "device_one_time_keys_count": {"signed_curve25519": 0},
            "device_unused_fallback_key_types": [],
            "rooms": {"join": {ROOM: room}},
        }
    )


def _event_id(number: int) -> str:
    return f"$message-{number:08}-of-the-stand-in-homeserver"


def _response(value: dict[str, Any]) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode() + b"\n"  # the floor finds the end by the newline
    head = (
        "HTTP/1.1 200 OK\r\nServer: stand-in\r\nContent-Type: application/json\r\n"
        "Cache-Control: no-cache, no-store, must-revalidate\r\nAccess-Control-Allow-Origin: *\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body
