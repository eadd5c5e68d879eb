"""What happens to agents, recorded in the order in which it happened, by one task that holds up nobody."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import trio

from armorclaw.errors import trace
from armorclaw.log import get_logger

log = get_logger(__name__)

WAITING_LIMIT = 4096
"""Records that wait for a slow store: some 40 of each of 100 agents. Beyond it new ones are left out; the log has
them."""

LAST_PATIENCE = 1.0
"""Seconds for what is left when everything is being stopped."""


class Chronicle:
    """A queue of things to record. Each deals with its own failures; what it raises all the same is logged."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], Awaitable[object]]] = deque()
        self._bell = trio.Event()
        self._scope = trio.CancelScope()
        self._closed = False
        self.left_out = 0
        """How many found the queue full."""

    def add(self, record: Callable[[], Awaitable[object]]) -> None:
        """Have this awaited after all that was added before. Never waits."""
        if len(self._waiting) >= WAITING_LIMIT:
            self.left_out += 1
            log.error("a change of an agent is not recorded: too many wait for the store", left_out=self.left_out)
            return
        self._waiting.append(record)
        self._bell.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `close`, whoever cancels it: how agents end while all is being stopped is recorded, too.

        What is left then is recorded within LAST_PATIENCE.
        """
        self._closed = False
        with trio.CancelScope(shield=True) as self._scope:
            task_status.started()
            while True:
                self._bell = trio.Event()
                await self._record()
                if self._closed:
                    break
                await self._bell.wait()
        left_out = len(self._waiting) + self._scope.cancelled_caught  # one was on its way
        if left_out:
            log.error("changes of agents are not recorded: the store took too long", left_out=left_out)
            self._waiting.clear()

    def close(self) -> None:
        """Nothing more will happen to agents."""
        self._closed = True
        self._bell.set()
        self._scope.deadline = trio.current_time() + LAST_PATIENCE

    async def _record(self) -> None:
        while self._waiting:
            record = self._waiting.popleft()  # first: a write that was handed over is carried out, cancelled or not
            try:
                await record()
            except Exception as error:  # noqa: BLE001 - whatever it is, the next may fare better
                log.error("cannot record a change of an agent", trace=trace(error))
