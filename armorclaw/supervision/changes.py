"""Who is told when a child changes: listeners at once, streams that never hold it up, and waiting tasks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger
from armorclaw.supervision.child import Child
from armorclaw.supervision.failures import root_of
from armorclaw.supervision.spec import ChildChange, ChildState

log = get_logger(__name__)


def log_crash(change: ChildChange) -> None:
    """For `on_change`: a child is started again by itself, but people want to know why it had to be.

    A known error that made it FAILED is not logged: it is raised, for whoever started the supervisor to tell. Nor is
    what is no `Exception`: that a Ctrl-C hit just this child says nothing about it.
    """
    if not isinstance(change.error, Exception):
        return
    cause = root_of(change.error)
    if not isinstance(cause, ArmorclawError):
        log.error("child crashed", supervisor=change.supervisor, child=change.child, trace=trace(change.error))
    elif change.state is not ChildState.FAILED:
        log.error("child failed", supervisor=change.supervisor, child=change.child, why=str(cause))


class Changes:
    """The receiving end of one watcher: iterate over it for changes in the order they happened.

    Bounded by count. A change that finds the buffer full is left out and counted in `missed`: a watcher too slow to
    follow learns that it has to look at a snapshot, and the supervisor never waits.

    Resource handling: made and closed by `Supervisor.changes()`.
    """

    def __init__(self, buffer: int) -> None:
        self._send, self._receive = trio.open_memory_channel[ChildChange](buffer)
        self.missed = 0
        """How many changes could not be delivered so far."""

    def put(self, change: ChildChange) -> None:
        try:
            self._send.send_nowait(change)
        except trio.WouldBlock:
            self.missed += 1

    async def receive(self) -> ChildChange:
        """The next change. Raises `trio.ClosedResourceError` once closed."""
        return await self._receive.receive()

    def __aiter__(self) -> Changes:
        return self

    async def __anext__(self) -> ChildChange:
        try:
            return await self._receive.receive()
        except trio.ClosedResourceError:
            raise StopAsyncIteration from None

    def close(self) -> None:
        """What is still buffered is dropped; a waiting iteration ends."""
        self._receive.close()
        self._send.close()


class Announcer:
    """Changes the state of children and tells everybody who wants to know."""

    def __init__(self, supervisor: str, now: Callable[[], float]) -> None:
        self._supervisor = supervisor
        self._now = now
        self._listeners: list[Callable[[ChildChange], None]] = []
        self._waiters: dict[Child, trio.Event] = {}  # set at the next change of that child

    def listen(self, listener: Callable[[ChildChange], None]) -> None:
        self._listeners.append(listener)

    @contextmanager
    def feed(self, buffer: int) -> Iterator[Changes]:
        changes = Changes(buffer)
        self._listeners.append(changes.put)
        try:
            yield changes
        finally:
            self._listeners.remove(changes.put)
            changes.close()

    def announce(self, child: Child, state: ChildState, reason: str, error: BaseException | None) -> None:
        child.state = state
        child.since = self._now()
        if self._listeners:
            self._tell(ChildChange(self._supervisor, child.spec.name, state, child.since, reason, error))
        if self._waiters and (waiter := self._waiters.pop(child, None)) is not None:
            waiter.set()

    def _tell(self, change: ChildChange) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(change)
            except Exception as error:  # noqa: BLE001 - supervision must outlive those who watch it
                log.error("listener failed", supervisor=change.supervisor, child=change.child, trace=trace(error))

    async def change_of(self, child: Child) -> None:
        """Waits until the state of `child` is set, be it to what it was."""
        waiter = self._waiters.get(child)
        if waiter is None:
            waiter = self._waiters[child] = trio.Event()
        await waiter.wait()
