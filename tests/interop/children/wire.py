"""The side of the child: a program that is several Matrix devices, told what to do by lines of JSON.

In comes `{"id": 1, "device": 3, "do": "send", "with": {…}}`, out go `{"id": 1, "result": …}` or
`{"id": 1, "error": "…"}` and, whenever a device sees something, `{"device": 3, "seen": "timeline", …}`. It ends with
its stdin.
"""

from __future__ import annotations

import asyncio
import json
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

LIMIT = 100
"""Events in one answer of a homeserver: what Synapse gives at most. More is paged for, else it would be lost."""

SYNC_MS = 10_000
PAUSE = 0.2
"""Seconds between attempts while the homeserver is away."""

FILTER = {
    "presence": {"not_types": ["*"]},
    "room": {"timeline": {"limit": LIMIT}, "ephemeral": {"not_types": ["*"]}},
}


class Device(ABC):
    """One logged-in device: what both kinds of peers can be told, by methods named `do_…`."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self.tell = tell
        self._syncing: asyncio.Task[None] | None = None
        self._synced = asyncio.Event()
        self._is_waiting = False
        self._ending = False
        self.joins = True

    @abstractmethod
    async def do_open(self, homeserver: str, user: str, password: str, store: str, name: str) -> dict[str, str]:
        """Log in, or go on as the device that is in the folder `store`; who that is."""

    @abstractmethod
    async def sync_once(self, timeout_ms: int) -> None:
        """One answer of the homeserver, handled in order."""

    @abstractmethod
    async def shut(self) -> None:
        """Let go of connections and files."""

    async def do_sync(self) -> None:
        """Begin to follow; returns after the first answer."""
        self._syncing = asyncio.create_task(self._follow())
        await self._synced.wait()

    async def do_pause(self) -> None:
        """Go offline: nothing is received any more."""
        await self._stop()

    async def do_close(self) -> None:
        await self._stop()
        await self.shut()

    @contextmanager
    def waiting_for_answer(self) -> Iterator[None]:
        """While this waits for the homeserver it may be cut off: nothing is lost, it is asked the same again."""
        self._is_waiting = True
        try:
            yield
        finally:
            self._is_waiting = False

    def answered(self) -> None:
        """From here on it is not cut off: the rest would be lost."""
        self._is_waiting = False

    async def _follow(self) -> None:
        timeout = 0
        while not self._ending:
            try:
                await self.sync_once(timeout)
            except Exception as error:  # noqa: BLE001 - told to the test
                print(f"sync: {type(error).__name__}: {error}", file=sys.stderr)
                if not is_passing(error):
                    traceback.print_exc()
                    self.tell("broken", why=repr(error))
                await asyncio.sleep(PAUSE)
                continue
            timeout = SYNC_MS
            self._synced.set()

    async def _stop(self) -> None:
        task, self._syncing = self._syncing, None
        if task is not None:
            self._ending = True
            if self._is_waiting:
                task.cancel()
            await asyncio.wait([task])
            self._ending = False
        self._synced.clear()


def is_passing(error: Exception) -> bool:
    """Whether a homeserver that was away explains it."""
    from aiohttp import ClientError
    from mautrix.errors import MatrixConnectionError, MatrixRequestError

    gone = isinstance(error, ClientError | MatrixConnectionError | OSError | TimeoutError)
    return gone or (isinstance(error, MatrixRequestError) and (error.http_status or 0) >= 500)


async def serve(make: Callable[[Callable[..., None]], Device]) -> None:
    """Do what stdin says until it ends."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=2**24)
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    devices: dict[int, Device] = {}
    running: set[asyncio.Task[None]] = set()

    def teller(number: int) -> Callable[..., None]:
        return lambda seen, **more: _write({"device": number, "seen": seen, **more})

    async def carry_out(order: dict[str, Any]) -> None:
        number = order["device"]
        try:
            if number not in devices:
                devices[number] = make(teller(number))
            method: Callable[..., Awaitable[Any]] = getattr(devices[number], f"do_{order['do']}")
            result = await method(**order["with"])
            if order["do"] == "close":
                del devices[number]
            _write({"id": order["id"], "result": result})
        except Exception as error:  # noqa: BLE001 - told to the test
            traceback.print_exc()
            _write({"id": order["id"], "error": f"{type(error).__name__}: {error}"})

    _write({"ready": True})
    while line := await reader.readline():
        task = asyncio.create_task(carry_out(json.loads(line)))
        running.add(task)
        task.add_done_callback(running.discard)


def _write(value: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()
