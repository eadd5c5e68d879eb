"""Events of a subscription, over as many connections as it takes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Peer

MAX_WAITING = 10_000
"""Events kept for a reader that does not take them. A named subscription never comes near: its window is smaller."""

MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Bytes that those had as JSON."""

ACK_TIMEOUT = 10.0
"""Seconds; a bridge answers every call within four."""

RETRY = 0.5
"""Seconds until the bridge is asked again for what it could not do just then, unless it says when."""


class Early:
    """Events that came before their subscription was answered, as many as one takes and one more: it is to notice."""

    def __init__(self) -> None:
        self.events: list[tuple[dict[str, Any], int]] = []
        self._size = 0

    def put(self, event: dict[str, Any], size: int) -> None:
        if len(self.events) <= MAX_WAITING and self._size <= MAX_WAITING_BYTES:
            self.events.append((event, size))
            self._size += size


class Subscription:
    """Events of one subscription, to be taken with `async for`. An event is a dict as docs/protocol.md shows it.

    It goes on over a restart of the bridge, and when the bridge cut it because it was too slow: one with a name where
    its owner got to, so that nothing is lost, and what comes again is what was not acknowledged; one without behind
    the last event that came, as far as the bridge still has what happened meanwhile. Raises `unavailable` when the
    bridge ends it or is given up, and `queue_full` when events came faster than they were taken.
    """

    def __init__(self, name: str | None, wanted: Mapping[str, Any], start: str | int) -> None:
        self.scope = trio.CancelScope()
        self.name = name
        self._filter = wanted
        self._from = start
        self._id = ""
        self._peer: Peer | None = None  # where it is subscribed, by that id
        self._events: deque[tuple[dict[str, Any], int]] = deque()  # with their size
        self._size = 0  # of all of them
        self._waiting: set[tuple[int, str]] = set()  # their numbers and ids
        self._cut = trio.Event()
        self._changed = trio.Event()
        self._has_begun = False
        self._error: ArmorclawError | None = None
        self._taken: dict[str, Any] | None = None  # not acknowledged yet

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Mapping[str, Any]:
        await trio.lowlevel.checkpoint()
        if self._taken is not None and self.name is not None:
            await self._acknowledge(self._taken["seq"])
        self._taken = None
        while not self._events:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        self._taken, size = self._events.popleft()
        self._size -= size
        self._waiting.discard(_key(self._taken))
        return self._taken

    async def _acknowledge(self, seq: int) -> None:
        """However many connections it takes: an event is acknowledged before the next is given out."""
        while True:
            peer = await self._where()
            try:
                params = {"subscription": self._id, "seq": seq}
                await peer.request("events.ack", params, timeout=ACK_TIMEOUT)
            except ArmorclawError as error:
                if not error.kind.retryable or error.name == "timed_out":
                    raise
                if peer.hears:
                    await trio.sleep(retry_after(error))
            else:
                return

    async def _where(self) -> Peer:
        while self._peer is None or not self._peer.hears:
            if self._error is not None:
                raise self._error
            await self._changed.wait()
        return self._peer

    # by the client

    async def begun(self) -> None:
        """Until it is subscribed. Raises why it cannot be."""
        while not self._has_begun:
            if self._error is not None:
                raise self._error
            await self._changed.wait()

    @property
    def params(self) -> dict[str, Any]:
        """Of events.subscribe, on the next connection."""
        params = {"filter": self._filter, "from": self._from}
        return params if self.name is None else {"name": self.name, **params}

    @property
    def is_over(self) -> bool:
        """Whether nothing more will come."""
        return self._error is not None

    @property
    def open_at(self) -> tuple[Peer, str] | None:
        """The connection it is subscribed on, and its name there."""
        return None if self._peer is None else (self._peer, self._id)

    def opened(self, peer: Peer, id: str, cursor: int) -> None:  # noqa: A002 - the word of the wire
        """It is subscribed on this connection."""
        self._peer, self._id = peer, id
        self._has_begun = True
        self._cut = trio.Event()
        if isinstance(self._from, str):
            self._from = cursor
        self._wake()

    def cut(self) -> None:
        """The bridge wants it to begin anew, from where it is: it was too slow."""
        self._cut.set()

    async def until_lost(self) -> None:
        """Until it is to be opened again: its connection has ended, or it was cut."""
        assert self._peer is not None
        async with trio.open_nursery() as nursery:

            async def first(event: trio.Event) -> None:
                await event.wait()
                nursery.cancel_scope.cancel(reason="the subscription is lost")

            nursery.start_soon(first, self._peer.closed)
            nursery.start_soon(first, self._cut)
        self._peer = None
        if self.name is not None:
            self._events.clear()  # they come again, with those behind them
            self._waiting.clear()
            self._size = 0

    def put(self, event: dict[str, Any], size: int) -> None:
        """One came, of so many bytes."""
        if self._error is not None:
            return
        key = _key(event)
        if key in self._waiting or (self._taken is not None and key == _key(self._taken)):
            return  # it came before, and is about to be acknowledged
        if len(self._events) >= MAX_WAITING or self._size + size > MAX_WAITING_BYTES:
            hint = "give it a name"
            self.fail(ArmorclawError("queue_full", "events came faster than they were taken", hint=hint))
            return
        if event["seq"]:  # else it is kept nowhere
            self._from = event["seq"]
        self._events.append((event, size))
        self._waiting.add(key)
        self._size += size
        self._wake()

    def end(self, reason: str) -> None:
        """The bridge has ended it."""
        self.fail(ArmorclawError("unavailable", "the subscription has ended", why=reason))

    def fail(self, error: ArmorclawError) -> None:
        """Nothing more will come."""
        self._error = self._error or error
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


def _key(event: Mapping[str, Any]) -> tuple[int, str]:
    return event["seq"], event["id"]


def retry_after(error: ArmorclawError) -> float:
    """Seconds until the same may be asked again."""
    seconds = error.data.get("retry_after")
    return float(seconds) if isinstance(seconds, int | float) and 0 < seconds < 86_400 else RETRY
