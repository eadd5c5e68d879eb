"""What a connection has to send, while the other side does not take it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Sequence

import trio

from armorclaw.rpc.wire import Wire

WRITE_DEADLINE = 10.0
"""Seconds in which the other side must take something, while too much waits for it."""

HARD_LIMIT = 4 * 1024 * 1024
"""Bytes kept for a reader that is slow; beyond, it is given up."""


class Outgoing:
    """A queue in front of a wire that is empty nearly always.

    What is added goes out with the next `flush`, straight to the socket. Only when the socket does not take all of it
    does a task come to be, in the nursery given to `open`, which drains the queue and ends. `on_progress` is called
    whenever the queue became shorter, `on_lost` with the reason when the other side cannot or does not read. What
    waits may do so for as long as `may_wait` says.
    """

    def __init__(
        self,
        wire: Wire,
        *,
        may_wait: Callable[[], bool],
        on_progress: Callable[[], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.buffered = 0
        """Bytes not yet taken."""
        self.draining = False
        self._wire = wire
        self._may_wait = may_wait
        self._on_progress = on_progress
        self._on_lost = on_lost
        self._nursery: trio.Nursery | None = None
        self._scope = trio.CancelScope()  # of the task that drains
        self._fresh: list[bytes] = []  # added since the last flush, without descriptors; behind the queue
        self._queue: deque[tuple[bytes, Sequence[int]]] = deque()

    def open(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def add(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Queue whole messages. The descriptors go with the first byte, are ours from now on and closed after."""
        if self._nursery is None or not data:
            close_all(fds)
            return
        if fds:
            self._gather()
            self._queue.append((data, fds))
        else:
            self._fresh.append(data)
        self.buffered += len(data)

    def send(self, data: bytes) -> None:
        """`add` and `flush` of one message without descriptors. While nothing waits, that is one system call."""
        if self.buffered or self._nursery is None:
            self.add(data)
            self.flush()
            return
        try:
            sent = self._wire.send_now(data)
        except trio.BrokenResourceError:
            self._lose("the other side is gone")
            return
        if sent < len(data):
            self._fresh.append(data[sent:] if sent else data)
            self.buffered = len(data) - sent
            self._start_draining()

    def flush(self) -> None:
        """Send what the socket takes; a task sees to the rest."""
        if self.draining:
            if self.buffered > HARD_LIMIT:
                self._lose("the other side does not read")
            return
        if not self.buffered:
            return
        try:
            if not self._send_now():
                self._start_draining()
        except trio.BrokenResourceError:
            self._lose("the other side is gone")

    def close(self) -> None:
        """Send what the socket still takes at once, and drop the rest."""
        try:
            if not self.draining:
                self._send_now()
        except trio.BrokenResourceError:
            pass
        self._discard()

    def _start_draining(self) -> None:
        if self._nursery is not None and not self.draining:
            self.draining = True
            self._nursery.start_soon(self._drain, name="drain")

    async def _drain(self) -> None:
        try:
            with self._scope:
                while self._gather():
                    data, fds = self._queue[0]
                    with trio.move_on_after(WRITE_DEADLINE) as deadline:
                        sent = await self._wire.send(data, fds)
                        if self._queue:  # not discarded meanwhile
                            self._sent(data, fds, sent)
                    if deadline.cancelled_caught and not self._may_wait():
                        self._lose("the other side does not read")
                    self._on_progress()
        except trio.BrokenResourceError:
            self._lose("the other side is gone")
        finally:
            self.draining = False
            self._scope = trio.CancelScope()
            self._on_progress()

    def _send_now(self) -> bool:
        """Whether the queue is empty now."""
        while self._gather():
            data, fds = self._queue[0]
            if not self._sent(data, fds, self._wire.send_now(data, fds)):
                return False
        return True

    def _gather(self) -> bool:
        """Make one piece of what is fresh; whether there is anything to send."""
        fresh = self._fresh
        if fresh:
            self._queue.append((fresh[0] if len(fresh) == 1 else b"".join(fresh), ()))
            fresh.clear()
        return bool(self._queue)

    def _sent(self, data: bytes, fds: Sequence[int], count: int) -> bool:
        """Take `count` bytes from the head of the queue, which `data` is; whether it is gone whole."""
        if not count:
            return False
        self.buffered -= count
        if fds:
            close_all(fds)
        if count == len(data):
            self._queue.popleft()
            return True
        self._queue[0] = (data[count:], ())
        return False

    def _lose(self, reason: str) -> None:
        self._discard()
        self._on_lost(reason)

    def _discard(self) -> None:
        self._nursery = None
        self._scope.cancel(reason="nothing is to be sent any more")
        for _, fds in self._queue:
            close_all(fds)
        self._queue.clear()
        self._fresh.clear()
        self.buffered = 0


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
