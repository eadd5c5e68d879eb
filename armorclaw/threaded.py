"""A bridge for programs that do not run on Trio: in a thread of its own, with calls that block."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any, TypeVar, overload

import trio

from armorclaw.agent.base import of_receipts, while_typing
from armorclaw.agent.events import Delivery, Key, Keys
from armorclaw.agent.files import File, Path, Source
from armorclaw.agent.messages import Message
from armorclaw.agent.rooms import Room
from armorclaw.agent.secrets import Secret, Secrets
from armorclaw.agent.session import CALL_TIMEOUT
from armorclaw.attached import AttachedAgent
from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config
from armorclaw.errors import ArmorclawError

HANDLER_THREADS = 16
"""Handlers of one agent that run at once; as many rooms are served side by side."""

T = TypeVar("T")
Handler = TypeVar("Handler", bound=Callable[[Any], object])


class ThreadedAgent:
    """An attached agent whose handlers are plain functions, each called on a worker thread, never two of one room at
    once. Give it its handlers first, then `start` it: so it misses nothing.
    """

    def __init__(self, bridge: ThreadedBridge, agent: AttachedAgent) -> None:
        self._bridge = bridge
        self._agent = agent
        self._threads = trio.CapacityLimiter(HANDLER_THREADS)
        agent.make_event = lambda wire: Message(wire, self)

    @property
    def name(self) -> str:
        return self._agent.name

    @property
    def room(self) -> str:
        """The first room it is granted by its id."""
        return self._agent.room

    @property
    def secrets(self) -> Secrets:
        """The keys of its declaration, by id. There once it has started; raises AgentError before."""
        return self._agent.secrets

    def secret(self, id: str) -> Secret:  # noqa: A002 - as in a container
        """One key. Raises KeyError, naming those there are, when it was not given."""
        return self._agent.secret(id)

    def call(self, method: str, /, **params: Any) -> Any:
        """Any method that agents may call. Raises AgentError for an error."""
        return self._bridge.run(partial(self._agent.call, method, **params))

    def stop(self) -> None:
        """Hear no more; what is in hand is not acknowledged, so it comes again."""

        async def stop() -> None:
            self._agent.stop()

        self._bridge.run(stop)

    @overload
    def on_message(self, handler: Handler, /) -> Handler: ...
    @overload
    def on_message(self, /, *, typing: bool = ...) -> Callable[[Handler], Handler]: ...
    def on_message(self, handler: Any = None, /, *, typing: bool = False) -> Any:
        """Decorator: call the function with each message of the rooms granted.

        Returning acknowledges the message; raising has it come again, later. With `typing` people see that the agent
        is typing as long as its handler runs.
        """

        def register(handler: Handler) -> Handler:
            self.on_event("m.room.message")(while_typing(handler) if typing else handler)
            return handler

        return register if handler is None else register(handler)

    def on_event(self, event_type: str) -> Callable[[Handler], Handler]:
        """Decorator: call the function with each event of a type."""

        def register(handler: Handler) -> Handler:
            async def on_thread(message: Message) -> None:
                # abandoned when the bridge closes: the event was not acknowledged, so it comes again
                await trio.to_thread.run_sync(
                    handler,
                    message,
                    thread_name="armorclaw handler",
                    abandon_on_cancel=True,
                    limiter=self._threads,
                )

            self._agent.on_event(event_type)(on_thread)
            return handler

        return register

    def on_delivery(self, handler: Handler) -> Handler:
        """Decorator: call the function with a `Receipt` whenever a message that this agent sent gets further."""
        self.on_event("delivery")(of_receipts(handler))
        return handler

    def send(
        self,
        room_id: str,
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: str | None = None,
        reply_to: str | None = None,
        thread: str | None = None,
        mentions: Sequence[str] = (),
        content: dict[str, Any] | None = None,
        idempotency_key: str | None = None,
    ) -> Delivery:
        """Send a message of one's own accord. Raises AgentError when the bridge refuses it."""
        send = Room(self, room_id, Keys()).send
        return send(
            text,
            msgtype,
            markdown=markdown,
            reply_to=reply_to,
            thread=thread,
            mentions=mentions,
            content=content,
            idempotency_key=idempotency_key,
        )

    def in_room(self, room_id: str = "") -> Room:
        """A room to act in, of one's own accord: by default the first that is granted by its id."""
        return Room(self, room_id or self.room, Keys())

    def deliver(self, method: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT) -> Delivery:
        """Call a method that answers as matrix.send does."""
        return self._bridge.run(partial(self._agent.deliver, method, params, timeout=timeout))

    def upload(self, room_id: str, source: Source, **more: Any) -> dict[str, Any]:
        """As `Agent.upload` of armorclaw.agent."""
        return self._bridge.run(partial(self._agent.upload, room_id, source, **more))

    def download(self, room_id: str, event_id: str, to: Path | None = None, *, part: str = "file") -> File:
        """As `Agent.download` of armorclaw.agent."""
        return self._bridge.run(partial(self._agent.download, room_id, event_id, to, part=part))

    def post(self, method: str, params: dict[str, Any]) -> None:
        """Make a call whose answer nobody waits for; left out when the bridge has ended."""

        async def post() -> None:
            self._agent.post(method, params)

        with suppress(ArmorclawError):
            self._bridge.run(post)

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def working(self, key: Key) -> None:
        """For messages, whose handlers take their time."""
        self._bridge.run(partial(self._agent.working, key))

    def start(self) -> None:
        """Begin to hear; returns when nothing can be missed any more. Raises conflict when the name is taken."""
        self._bridge.start(self._agent.run)


class ThreadedBridge:
    """What `run_in_thread` gives. Its methods block, and may be called from any thread but the bridge's own.

    All raise unavailable once the bridge has ended; why it did comes out of the block of `run_in_thread`.
    """

    def __init__(self, bridge: Bridge, nursery: trio.Nursery, token: trio.lowlevel.TrioToken) -> None:
        self.config = bridge.config
        self._bridge = bridge
        self._nursery = nursery
        self._token = token

    def __repr__(self) -> str:
        return f"<ThreadedBridge at {self.config.bridge.socket}>"

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the wire as the operator. Raises what the method raises."""
        return self.run(partial(self._bridge.call, method, **params))

    def attach(self, name: str, *, rooms: Sequence[str] = (), account: str = "main") -> ThreadedAgent:
        """An agent inside this program; give it handlers, then `start` it. Raises invalid_params for an odd name."""
        return ThreadedAgent(self, self._bridge.attach(name, rooms=rooms, account=account))

    def drain(self, seconds: float | None = None) -> bool:
        """Accept nothing more and finish what was accepted; see `Bridge.drain`."""
        return self.run(partial(self._bridge.drain, seconds))

    def until_connected(self) -> None:
        """Until every Matrix account is connected."""
        self.run(self._bridge.until_connected)

    def until_joined(self, rooms: Sequence[str], *, account: str = "main") -> None:
        """Until the account is in these rooms: what was said there before is not for its agents."""
        self.run(partial(self._bridge.until_joined, rooms, account=account))

    def run(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await `function()` on the bridge's loop. Raises what it raises."""
        try:
            return trio.from_thread.run(function, trio_token=self._token)
        except (trio.RunFinishedError, trio.Cancelled) as error:
            raise ArmorclawError("unavailable", "the bridge has ended") from error

    def start(self, run: Callable[..., Any]) -> None:
        """Start a child of the bridge's own nursery and return when it has started."""
        self.run(partial(self._nursery.start, run))


class _Runner:
    """The thread, and the word that ends it, which may be said at any time."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._thread = threading.Thread(target=self._run, name="armorclaw bridge")
        self._decided = threading.Event()
        self._scope = trio.CancelScope()
        self._token: trio.lowlevel.TrioToken | None = None
        self._stopping = False
        self.bridge: ThreadedBridge | None = None
        self.error: BaseException | None = None

    def start(self) -> None:
        """Returns when the bridge is up, or has failed."""
        self._thread.start()
        self._decided.wait()

    def stop(self) -> None:
        """Stop the bridge in order, however far it is; returns when its thread has ended."""
        self._stopping = True  # for a thread that has no token yet
        if self._token is not None:
            try:
                self._token.run_sync_soon(partial(self._scope.cancel, reason="the bridge is closed"))
            except trio.RunFinishedError:
                pass
        self._thread.join()

    def _run(self) -> None:
        try:
            trio.run(self._hold)
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked for the bridge
            self.error = error
        finally:
            self._decided.set()

    async def _hold(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        with self._scope:
            if self._stopping:
                return
            async with open_bridge(self._config) as bridge, trio.open_nursery() as nursery:
                self.bridge = ThreadedBridge(bridge, nursery, self._token)
                self._decided.set()
                await trio.sleep_forever()


@contextmanager
def run_in_thread(config: Config) -> Iterator[ThreadedBridge]:
    """A bridge in a thread, for the length of a block: for asyncio and for programs without a loop.

    Raises what keeps it from starting, and at the end of the block what made it end by itself. Leaving stops
    everything in order and waits for that.
    """
    runner = _Runner(config)
    try:
        runner.start()
        if runner.bridge is not None:
            yield runner.bridge
    except ArmorclawError as error:
        runner.stop()
        if runner.error is not None and error.name == "unavailable":
            raise runner.error from error  # why there is nobody to answer
        raise
    except BaseException:
        runner.stop()
        raise
    runner.stop()
    if runner.error is not None:
        raise runner.error
