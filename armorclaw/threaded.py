"""A bridge for programs that do not run on Trio: in a thread of its own, with calls that block."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import trio

from armorclaw.agent.messages import AsyncMessage, Delivery, Message
from armorclaw.attached import AttachedAgent
from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config


class ThreadedAgent:
    """An attached agent whose handlers are plain functions, each called on a worker thread, never two of one room at
    once. Registering a handler before `start` misses nothing.
    """

    def __init__(self, bridge: ThreadedBridge, agent: AttachedAgent) -> None:
        self._bridge = bridge
        self._agent = agent

    @property
    def name(self) -> str:
        return self._agent.name

    def on_message(self, handler: Callable[[Message], object]) -> Callable[[Message], object]:
        """Decorator: call the function with each message; returning acknowledges it, raising has it come again."""

        async def on_thread(message: AsyncMessage) -> None:
            # abandoned when the bridge closes: the message was not acknowledged, so it comes again
            await trio.to_thread.run_sync(handler, _blocking(message, self), abandon_on_cancel=True)

        self._agent.on_message(on_thread)
        return handler

    def send(self, room_id: str, text: str, msgtype: str = "m.text") -> Delivery:
        """Send a message of one's own accord. Raises ArmorclawError when the bridge refuses it."""
        sent: Delivery = self._bridge.run(partial(self._agent.send, room_id, text, msgtype))
        return sent

    def send_params(self, params: dict[str, Any]) -> Delivery:
        sent: Delivery = self._bridge.run(partial(self._agent.send_params, params))
        return sent

    def start(self) -> None:
        """Begin to hear; returns when nothing can be missed any more."""
        self._bridge.start(self._agent.run)


def _blocking(message: AsyncMessage, agent: ThreadedAgent) -> Message:
    """The same event, with a `reply` that blocks."""
    made = Message.__new__(Message)
    made.__dict__.update(message.__dict__, _agent=agent)
    return made


class ThreadedBridge:
    """What `run_in_thread` gives. Its methods may be called from any thread but the bridge's own."""

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, token: trio.lowlevel.TrioToken) -> None:
        self.config = bridge.config
        self._bridge = bridge
        self._nursery = nursery
        self._token = token

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the wire as the operator. Raises what the method raises."""
        return self.run(partial(self._bridge.call, method, **params))

    def attach(self, name: str, *, rooms: Sequence[str], account: str = "main") -> ThreadedAgent:
        """An agent inside this program; give it handlers, then `start` it."""
        return ThreadedAgent(self, self._bridge.attach(name, rooms=rooms, account=account))

    def run(self, function: Callable[[], Any]) -> Any:
        """Await `function()` on the bridge's loop. Raises what it raises, RunFinishedError after the end."""
        return trio.from_thread.run(function, trio_token=self._token)

    def start(self, run: Callable[..., Any]) -> None:
        """Start a child of the bridge's own nursery and return when it has started."""
        self.run(partial(self._nursery.start, run))


@contextmanager
def run_in_thread(config: Config) -> Iterator[ThreadedBridge]:
    """A bridge in a thread, for the length of a block: for asyncio and for programs without a loop.

    Raises what keeps it from starting. Leaving stops everything in order and waits for that.
    """
    started = threading.Event()
    handles: list[ThreadedBridge] = []
    stops: list[Callable[[], None]] = []
    errors: list[BaseException] = []

    async def main() -> None:
        stop = trio.Event()
        token = trio.lowlevel.current_trio_token()
        async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
            handles.append(ThreadedBridge(bridge, nursery, token))
            stops.append(lambda: token.run_sync_soon(stop.set))
            started.set()
            await stop.wait()
            nursery.cancel_scope.cancel(reason="the bridge is closed")

    def thread() -> None:
        try:
            trio.run(main)
        except BaseException as error:  # noqa: BLE001 - raised again where the bridge was asked for
            errors.append(error)
        finally:
            started.set()

    runner = threading.Thread(target=thread, name="armorclaw bridge")
    runner.start()
    started.wait()
    try:
        if handles:
            yield handles[0]
    finally:
        for stop in stops:
            try:
                stop()
            except trio.RunFinishedError:
                pass
        runner.join()
    if errors:
        raise errors[0]
