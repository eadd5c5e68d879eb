"""An agent inside the program that embeds the bridge: the names of `armorclaw.agent`, without container or socket."""

from __future__ import annotations

import json
from collections import defaultdict, deque
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import trio

from armorclaw.agent.base import BaseAgent, retry_ms, send_params
from armorclaw.agent.messages import AsyncMessage, Delivery
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.subscription import Subscription
from armorclaw.events.subscriptions import MAIN, Subscriptions

SINK_BYTES = 256 * 1024
"""Events waiting for their handlers; beyond it they wait in the journal. The subscription's window bounds them too."""


class Call(Protocol):
    """Calls a method of the wire as this agent."""

    async def __call__(self, method: str, params: dict[str, Any]) -> Any: ...


class AttachedAgent(BaseAgent):
    """Handlers are `async def` functions on Trio; in order in each room, side by side across rooms.

    `run` serves them until cancelled. Returning acknowledges an event; raising has it come again, later.
    """

    def __init__(
        self,
        name: str,
        subscriptions: Subscriptions,
        *,
        allowed: Callable[[Event], bool],
        granted: Callable[[], AbstractAsyncContextManager[None]],
        call: Call,
    ) -> None:
        super().__init__(socket="")
        self._name = name
        self._subscriptions = subscriptions
        self._allowed = allowed
        self._granted = granted
        self._call = call
        self._rooms: defaultdict[str, deque[AsyncMessage]] = defaultdict(deque)

    @property
    def name(self) -> str:
        return self._name

    async def send(
        self,
        room_id: str,
        text: str,
        msgtype: str = "m.text",
        *,
        content: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Delivery:
        """Send a message of one's own accord. Raises ArmorclawError when the bridge refuses it."""
        return await self.send_params(send_params(room_id, text, msgtype, content, idempotency_key))

    async def send_params(self, params: dict[str, Any]) -> Delivery:
        return Delivery.from_result(await self._call("matrix.send", params))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the rooms granted, and handle what comes, until cancelled; started when nothing can be missed."""
        sink = _Sink()
        async with self._granted(), trio.open_nursery() as nursery:
            subscription = self._subscriptions.open(self._name, MAIN, None, "now", self._allowed, sink)
            await nursery.start(subscription.run)
            task_status.started()
            async for wire in sink:
                message = AsyncMessage(wire, self)
                queue = self._rooms[message.room_id]
                queue.append(message)
                if len(queue) == 1:
                    nursery.start_soon(self._work, message.room_id, subscription)

    async def _work(self, room: str, subscription: Subscription) -> None:
        """One room's messages, one after the other; the task ends when there is nothing more to do."""
        queue = self._rooms[room]
        while queue:
            message = queue[0]
            try:
                if handler := self._handlers.get(message.type):
                    await handler(message)
            except Exception as error:  # noqa: BLE001 - a handler's fault is its own: the event comes again
                self._failed(message, error)
                await subscription.nack(message.seq, retry_ms(message.redelivered))
            else:
                await subscription.ack(message.seq)
            queue.popleft()
        del self._rooms[room]


class _Sink:
    """Frames from the subscription to the agent, in one task: nothing is encoded for a wire that is not there."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._changed = trio.Event()

    def push(self, frame: bytes) -> None:
        self._frames.append(frame)
        self._bytes += len(frame)
        self._wake()

    def room(self) -> int:
        return SINK_BYTES - self._bytes

    async def wait_room(self) -> None:
        while self.room() <= 0:
            await self._changed.wait()

    def __aiter__(self) -> _Sink:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while not self._frames:
            await self._changed.wait()
        frame = self._frames.popleft()
        self._bytes -= len(frame)
        self._wake()
        message: dict[str, Any] = json.loads(frame)
        if message["method"] == "events.closed":
            raise ArmorclawError("conflict", "the attached agent's events went elsewhere", why=str(message["params"]))
        params: dict[str, Any] = message["params"]
        return params

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()
