"""Bridges that can be killed at a numbered point, forked from one process that has everything imported.

`python -m tests.faults.zygote` reads lines of JSON from its standard input, one bridge each, and writes two lines for
it: its pid, then how it ended. A bridge here is the product unchanged, with the agent's socket of a container put at
`a.sock` for a program that stands for the agent. What is watched is watched from outside: each commit of the store,
each request to a homeserver, each write to a socket, before and after. The names of the points that are passed go to
the file `points`; at the one called `crash` the process kills itself, as `kill -9` would.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import json
import logging
import os
import re
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.cli import daemon
from armorclaw.cli.process import set_up_logging
from armorclaw.config import Config
from armorclaw.matrix import markers
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from armorclaw.rpc.wire import SocketWire
from armorclaw.store.lane import Job, Writing
from tests.faults.town import Town
from tests.matrix.fake_homeserver import Asked

AGENT = "echo"

_PR_SET_PDEATHSIG = 1


class Points:
    """Counts what is passed, by name: the third commit of one kind is the same point in every run."""

    def __init__(self, file: Path, crash: str | None) -> None:
        self._file = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._crash = crash
        self._passed: Counter[str] = Counter()

    def pass_(self, *names: str) -> None:
        """One write for each call: what is in the file was passed, whenever the process ends."""
        numbered = []
        for name in names:
            self._passed[name] += 1
            numbered.append(f"{name} #{self._passed[name]}")
        os.write(self._file, "".join(f"{name}\n" for name in numbered).encode())
        if self._crash in numbered:
            os.kill(os.getpid(), signal.SIGKILL)

    def watch(self) -> None:
        """From here on, in this process."""
        self._watch_commits()
        self._watch_keys()
        self._watch_requests()
        self._watch_writes()

    def _watch_commits(self) -> None:
        serve_group = Writing.serve_group
        points = self

        def watched(lane: Writing, group: list[Job]) -> Any:
            names = sorted({_name(job.work) for job in group})
            connection = lane._connection
            lane._connection = _Connection(connection, points, names)  # type: ignore[assignment]
            try:
                return serve_group(lane, group)
            finally:
                lane._connection = connection

        Writing.serve_group = watched  # type: ignore[method-assign, assignment]

    def _watch_keys(self) -> None:
        """What is committed to the crypto files, be it one statement."""
        run = CryptoDatabase.run

        def watched(db: CryptoDatabase, sql: str, *args: Any) -> Any:
            writes = sql.startswith(("INSERT", "UPDATE", "DELETE")) and not db.connection.in_transaction
            if sql != "COMMIT" and not writes:
                return run(db, sql, *args)
            self.pass_("before commit of keys")
            done = run(db, sql, *args)
            self.pass_("after commit of keys")
            return done

        CryptoDatabase.run = watched  # type: ignore[method-assign, assignment]

    def _watch_requests(self) -> None:
        handle = httpx.AsyncHTTPTransport.handle_async_request

        async def watched(transport: httpx.AsyncHTTPTransport, request: httpx.Request) -> httpx.Response:
            kind = Town.kind(Asked(request.method, request.url.raw_path.decode(), {}, b""))
            self.pass_(f"before {kind}")
            response = await handle(transport, request)
            self.pass_(f"after {kind}")
            return response

        httpx.AsyncHTTPTransport.handle_async_request = watched  # type: ignore[method-assign, assignment]

    def _watch_writes(self) -> None:
        send_now = SocketWire.send_now

        def watched(wire: SocketWire, data: bytes, fds: Sequence[int] = ()) -> int:
            kind = "event" if b'"method":"event"' in data[:4096] else "answer"
            self.pass_(f"before write of {kind}")
            sent = send_now(wire, data, fds)
            self.pass_(f"after write of {kind}")
            return sent

        SocketWire.send_now = watched  # type: ignore[method-assign, assignment]


class _Connection:
    """A connection of the store whose commits are points."""

    def __init__(self, connection: Any, points: Points, names: list[str]) -> None:
        self._connection = connection
        self._points = points
        self._names = names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(self, sql: str, *parameters: Any) -> Any:
        if sql != "COMMIT":
            return self._connection.execute(sql, *parameters)
        self._points.pass_(*(f"before commit of {name}" for name in self._names))
        done = self._connection.execute(sql)
        self._points.pass_(*(f"after commit of {name}" for name in self._names))
        return done


def _name(work: Callable[..., Any]) -> str:
    """Who wants the commit: `Outbox.enqueue`, say."""
    while isinstance(work, functools.partial):
        work = work.func
    name = getattr(work, "__qualname__", type(work).__name__)
    return re.sub(r"\.<locals>(\..*)?", "", name)


async def _bridge(order: dict[str, Any]) -> None:
    folder = Path(order["folder"])
    async with open_bridge(Config.parse(order["config"])) as bridge, trio.open_nursery() as nursery:
        await nursery.start(_agents_socket, bridge, folder / "a.sock")
        await trio.sleep_forever()


async def _daemon(order: dict[str, Any]) -> None:
    """The same as `armorclaw run` has it: a signal ends it in order."""

    @asynccontextmanager
    async def open_with_socket(config: Config) -> AsyncIterator[Bridge]:
        async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
            await nursery.start(_agents_socket, bridge, Path(order["folder"]) / "a.sock")
            yield bridge
            nursery.cancel_scope.cancel(reason="the bridge ends")

    daemon.open_bridge = open_with_socket  # type: ignore[attr-defined, assignment]
    await daemon.daemon(Config.parse(order["config"]))


async def _agents_socket(bridge: Bridge, path: Path, *, task_status: trio.TaskStatus[None]) -> None:
    await serve_unix(
        bind_unix(path),
        bridge.registry,
        role=Role.AGENT,
        agent=AGENT,
        around=bridge.around,
        admission=bridge.limits.listener(Role.AGENT, agent=AGENT),
        path=path,
        task_status=task_status,
    )


def _child(order: dict[str, Any]) -> None:
    folder = Path(order["folder"])
    die_with_parent()
    log = os.open(folder / "bridge.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    set_up_logging(logging.INFO)
    if order["watched"]:
        Points(folder / "points", order["crash"]).watch()
        markers.GATHER = 0.0  # or the trial would be over before the receipts
    trio.run(_daemon if order.get("daemon") else _bridge, order)


def die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> None:
    die_with_parent()
    gc.freeze()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                _child(json.loads(line))
                status = 0
            finally:
                os._exit(status)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
