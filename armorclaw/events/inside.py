"""Following the journal from within this program: what a connection is to others."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from armorclaw.errors import ArmorclawError, one_error
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.log import get_logger

log = get_logger(__name__)

INBOX_BYTES = 256 * 1024
"""Of events that wait to be taken; more wait in the journal. The subscription's window bounds them too."""


RETRY_SECONDS = (1.0, 30.0)
"""Between attempts while the store or the outbox takes nothing: the first, the most."""


async def listen_on(
    listen: Callable[[Callable[[], object]], Awaitable[None]], waits: str, task_status: trio.TaskStatus[None]
) -> None:
    """Have `listen` follow the journal until cancelled, anew when it raises what may pass; `waits` is logged then.

    It calls what it is given once nothing can be missed, which is when this has started; whatever it raises before
    that is raised.
    """
    pause, longest = RETRY_SECONDS
    started = False

    def when_started() -> None:
        nonlocal started, pause
        if not started:
            task_status.started()
        started, pause = True, RETRY_SECONDS[0]

    while True:
        try:
            with one_error():
                await listen(when_started)
        except ArmorclawError as error:
            if not started or not error.kind.retryable:
                raise
            log.warning(waits, why=str(error))
            await trio.sleep(pause)
            pause = min(2 * pause, longest)


class Inbox:
    """The sink of a subscription, read by one task: `async for` gives the params of each `event` notification.

    `what` names what comes, as in "the events of an agent". Reading raises unavailable when `follow` has ended and
    nothing is left, conflict when somebody else took the subscription over.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._changed = trio.Event()
        self._closed = ""

    async def follow(self, subscription: Subscription, *, task_status: trio.TaskStatus[None]) -> None:
        """Have `subscription`, whose sink this is, push until it ends; started when nothing can be missed."""
        await subscription.run(task_status=task_status)
        self._closed = subscription.closed_because or "it ended"  # told behind what has come
        self._wake()

    def push_all(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.push(frame)

    def push(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        self._wake()

    def room(self) -> int:
        return INBOX_BYTES - self._bytes

    async def wait_room(self) -> None:
        while self.room() <= 0:
            await self._changed.wait()

    def __aiter__(self) -> Inbox:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._frames:
            if self._closed:
                raise ArmorclawError("unavailable", f"{self._what} ended", why=self._closed)
            await self._changed.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        self._wake()
        message: dict[str, Any] = json.loads(frame)
        params: dict[str, Any] = message["params"]
        if message["method"] == "events.closed":
            raise ArmorclawError("conflict", f"{self._what} went elsewhere", why=str(params["reason"]))
        return params

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()
