"""An agent inside the program that embeds the bridge: the names of `armorclaw.agent`, without container or socket."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, Protocol

import trio

from armorclaw.agent.base import call_params, retry_ms
from armorclaw.agent.callbacks import MAX_CALLS
from armorclaw.agent.calls import AsyncCall
from armorclaw.agent.errors import (
    AgentError,
    chunk_not_json,
    handler_failed,
    no_such_call,
    stopped,
    stream_closed,
    timed_out,
    too_many_calls,
)
from armorclaw.agent.events import Delivery, Event, Key, Keys
from armorclaw.agent.files import AsyncFiling
from armorclaw.agent.messages import AsyncMessage
from armorclaw.agent.reports import AsyncReporting
from armorclaw.agent.rooms import AsyncRoom
from armorclaw.agent.secrets import Secrets
from armorclaw.agent.session import CALL_TIMEOUT
from armorclaw.agent.streams import Progress
from armorclaw.errors import ArmorclawError, one_error, trace
from armorclaw.events.event import Event as JournalEvent
from armorclaw.events.inside import Inbox
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import MAIN, Subscriptions
from armorclaw.log import get_logger
from armorclaw.rpc import call as rpc
from armorclaw.rpc.caller import OnProgress, RawStream
from armorclaw.rpc.failure import error_from_wire

log = get_logger(__name__)

RETRY_SECONDS = (0.5, 10.0)
"""Between attempts while the store does not answer: the first, the most."""


class Call(Protocol):
    """Calls a method of the wire as this agent."""

    async def __call__(self, method: str, params: dict[str, Any]) -> Any: ...


class OpenStream(Protocol):
    """Calls a streaming method of the wire as this agent."""

    def __call__(
        self, method: str, params: dict[str, Any], *, on_progress: OnProgress | None = None
    ) -> AbstractAsyncContextManager[RawStream]: ...


class AttachedAgent(AsyncReporting, AsyncFiling):
    """Handlers are `async def` functions on Trio, or plain and quick; in order in a room, side by side across rooms.

    `run` serves them until cancelled. Returning acknowledges an event; raising has it come again, later.
    """

    def __init__(
        self,
        name: str,
        rooms: Sequence[str],
        subscriptions: Subscriptions,
        *,
        allowed: Callable[[JournalEvent], bool],
        granted: Callable[[], AbstractAsyncContextManager[None]],
        take_secrets: Callable[[], Awaitable[bytes]],
        call: Call,
        stream: OpenStream,
    ) -> None:
        super().__init__(socket="")
        self._name = name
        self._granted_rooms = tuple(rooms)
        self._subscriptions = subscriptions
        self._allowed = allowed
        self._granted = granted
        self._take_secrets = take_secrets
        self._call = call
        self._stream = stream
        self._secrets: Secrets | None = None
        self._scope = trio.CancelScope()
        self._stop_asked = False
        self._running = False
        self._answering: set[trio.CancelScope] = set()
        self._nursery: trio.Nursery | None = None  # while it listens, by
        self._subscription: Subscription | None = None
        self.make_event: Callable[[dict[str, Any]], Event] = lambda wire: AsyncMessage(wire, self)
        """What handlers get, from an event as on the wire."""

    def __repr__(self) -> str:
        return f"<AttachedAgent {self._name}>"

    @property
    def name(self) -> str:
        return self._name

    @property
    def room(self) -> str:
        return next((room for room in self._granted_rooms if room.startswith("!")), "")

    @property
    def secrets(self) -> Secrets:
        """The keys of its declaration, by id. There once it runs; raises AgentError before."""
        if self._secrets is None:
            raise AgentError(-32002, "unavailable", "secrets come when the agent runs", "use them in a handler")
        return self._secrets

    async def call(self, method: str, /, *, timeout: float = CALL_TIMEOUT, **params: Any) -> Any:
        """Any method that agents may call. Raises AgentError for an error, `timed_out` after `timeout` seconds."""
        with _as_agents_know_it(), trio.move_on_after(timeout):
            return await self._call(method, call_params(params))
        raise timed_out(method, timeout)

    @asynccontextmanager
    async def stream(
        self, method: str, /, *, on_progress: OnProgress | None = None, **params: Any
    ) -> AsyncIterator[AttachedStream]:
        """A streaming method that agents may call, for the length of the block; leaving early cancels it."""
        async with AsyncExitStack() as stack:
            with _as_agents_know_it():
                opened = self._stream(method, call_params(params), on_progress=on_progress)
                stream = await stack.enter_async_context(opened)
            attached = AttachedStream(method, stream)
            stack.callback(attached.close)
            yield attached

    async def answer(self, call: rpc.Call, method: str, params: Any) -> Any:
        """Have the handler of `on_call` answer a call that somebody makes to this agent.

        Raises ArmorclawError: what the handler raises, method_not_found, queue_full, and unavailable when the agent
        does not run, or ends meanwhile.
        """
        try:
            return await self._answer(call, method, params)
        except AgentError as error:
            raise error_from_wire(error.payload(), cut=False) from None

    async def _answer(self, call: rpc.Call, method: str, params: Any) -> Any:
        handler = self._answers.get(method)
        if handler is None:
            raise no_such_call(method)
        if not self._running:
            raise stopped()
        if len(self._answering) >= MAX_CALLS:
            raise too_many_calls(MAX_CALLS)
        with trio.CancelScope() as scope:
            self._answering.add(scope)
            try:
                result = handler(AsyncCall(method, params, _Line(call)))
                return await result if inspect.isawaitable(result) else result
            except AgentError:
                raise
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller must learn of it
                log.error("handler of a call failed", agent=self._name, method=method, trace=trace(error))
                self._report(f"the handler of the call {method} failed", "warning", error)
                raise handler_failed(error) from None
            finally:
                self._answering.discard(scope)
        raise stopped()

    def stop(self) -> None:
        """Ask `run` to end, or not to begin; what is in hand is not acknowledged, so it comes again."""
        self._stop_asked = True
        self._scope.cancel(reason="asked to stop")

    async def send(
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
        send = AsyncRoom(self, room_id, Keys()).send
        return await send(
            text,
            msgtype,
            markdown=markdown,
            reply_to=reply_to,
            thread=thread,
            mentions=mentions,
            content=content,
            idempotency_key=idempotency_key,
        )

    def in_room(self, room_id: str = "") -> AsyncRoom:
        """A room to act in, of one's own accord: by default the first that is granted by its id."""
        return AsyncRoom(self, room_id or self.room, Keys())

    async def deliver(self, method: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT) -> Delivery:
        """Call a method that answers as matrix.send does."""
        return Delivery.from_result(await self.call(method, timeout=timeout, **params))

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what may take a while, such as a disk."""
        return await trio.to_thread.run_sync(function, *arguments)

    def now(self) -> float:
        """Seconds of Trio's clock."""
        return trio.current_time()

    async def working(self, key: Key) -> None:
        """For messages, whose handlers take their time."""
        await trio.lowlevel.checkpoint()
        if self._subscription is not None:
            with suppress(ArmorclawError):  # it is settled, or comes again anyhow: no reason for its handler to fail
                await self._subscription.working(key[0])

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hear the rooms granted, and handle what comes, until cancelled; started when nothing can be missed.

        What is in hand when it is cancelled is not acknowledged, so it comes again. While the store restarts it
        waits. Raises conflict when an agent of this name is there already, or takes its events, and key_not_found.
        """
        hears = False

        def started() -> None:
            nonlocal hears
            if not hears:
                task_status.started()
            hears = True

        with trio.CancelScope() as self._scope:
            if self._stop_asked:
                self.stop()  # it was asked before there was anything to cancel
            self._secrets = Secrets(await self._take_secrets())
            async with self._granted():
                self._running = True
                try:
                    await self._keep_listening(started)
                finally:
                    self._running, self._nursery, self._subscription = False, None, None
                    for scope in self._answering:
                        scope.cancel(reason="the agent has ended")
        started()  # when it was stopped before: nobody waits for more

    async def _keep_listening(self, started: Callable[[], None]) -> None:
        while True:
            try:
                with one_error():
                    await self._listen(started)
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("attached agent listens again", agent=self._name, why=str(error))
                await trio.sleep(RETRY_SECONDS[0])

    async def _listen(self, started: Callable[[], None]) -> None:
        """Until the subscription ends by an error; what is in hand then comes again with the next."""
        sink = Inbox("the events of an attached agent")
        lanes: defaultdict[str, deque[Event]] = defaultdict(deque)
        in_hand: set[Key] = set()
        async with trio.open_nursery() as nursery:
            subscription = self._subscriptions.open(self._name, MAIN, None, "now", self._allowed, sink)
            await nursery.start(sink.follow, subscription)
            self._nursery, self._subscription = nursery, subscription
            started()
            async for wire in sink:
                made = self.make_event(wire)
                if made.key in in_hand:
                    continue  # it comes again because its handler takes so long
                in_hand.add(made.key)
                lane = lanes[made.room_id]
                lane.append(made)
                if len(lane) == 1:
                    nursery.start_soon(self._work, lane, subscription, in_hand)

    async def _work(self, lane: deque[Event], subscription: Subscription, in_hand: set[Key]) -> None:
        """One room's events, one after the other; the task ends when there is nothing more to do."""
        while lane:
            made = lane[0]
            try:
                if handler := self._handlers.get(made.type):
                    result = handler(made)
                    if inspect.isawaitable(result):
                        await result
            except Exception as error:  # noqa: BLE001 - a handler's fault is its own: the event comes again
                log.error(
                    "handler failed, the event will come again", agent=self._name, of=repr(made), trace=trace(error)
                )
                self._report_failed(made, error)
                settle = partial(subscription.nack, made.seq, retry_ms(made.redelivered))
            else:
                settle = partial(subscription.ack, made.seq)
            await self._settle(settle)
            in_hand.discard(made.key)
            lane.popleft()

    def post(self, method: str, params: dict[str, Any]) -> None:
        """Make a call whose answer nobody waits for; left out while it does not listen."""
        if self._nursery is not None:
            self._nursery.start_soon(self._say, method, params)

    async def _say(self, method: str, params: dict[str, Any]) -> None:
        try:
            await self._call(method, params)
        except ArmorclawError as error:
            log.warning("not reported", agent=self._name, method=method, why=str(error))

    async def _settle(self, settle: Callable[[], Awaitable[None]]) -> None:
        """Have the bridge know, however long the store takes: to handle the event again would cost more."""
        pause, longest = RETRY_SECONDS
        while True:
            try:
                await settle()
            except ArmorclawError as error:
                if error.name == "not_found":
                    return  # it is settled already
                if not error.kind.retryable:
                    raise
                log.warning("attached agent waits for the store", agent=self._name, why=str(error))
                await trio.sleep(pause)
                pause = min(pause * 2, longest)
            else:
                return


class AttachedStream:
    """A streaming call, as `armorclaw.agent.AsyncStream`."""

    def __init__(self, method: str, stream: RawStream) -> None:
        self._method = method
        self._stream = stream
        self._over = False  # its outcome is known
        self._closed = False

    def __aiter__(self) -> AttachedStream:
        return self

    async def __anext__(self) -> Any:
        return await self._ended(self._stream.__anext__)

    async def result(self) -> Any:
        """What is answered last; pieces that nobody took are dropped. Raises the error answered."""
        result = await self._ended(self._stream.result)
        self._over = True
        return result

    async def send(self, value: Any) -> None:
        """Send a piece of the params: any JSON, or up to 192 KiB of bytes."""
        await self._open(partial(self._stream.send, value))

    async def end(self) -> None:
        """Say that the params are complete."""
        await self._stream.end()

    def close(self) -> None:
        """The block is left: whoever waits in it, or uses it later, gets `cancelled`."""
        self._closed = True

    async def _ended(self, step: Callable[[], Awaitable[Any]]) -> Any:
        try:
            return await self._open(step)
        except (StopAsyncIteration, AgentError):
            self._over = self._over or not self._closed
            raise

    async def _open(self, step: Callable[[], Awaitable[Any]]) -> Any:
        self._check()
        try:
            with _as_agents_know_it():
                value = await step()
        except (StopAsyncIteration, AgentError):
            self._check()
            raise
        self._check()
        return value

    def _check(self) -> None:
        """The end of the block is no outcome."""
        if self._closed and not self._over:
            raise stream_closed(self._method)


class _Line:
    """To the caller of the agent, for one call; its handler is cancelled when nobody wants the answer any more."""

    def __init__(self, call: rpc.Call) -> None:
        self._call = call

    @property
    def cancelled(self) -> bool:
        return trio.current_effective_deadline() == -math.inf

    def progress(self, progress: Progress) -> None:
        self._call.progress(*progress)

    async def send(self, chunk: Any) -> None:
        with _as_agents_know_it():
            try:
                await self._call.send(chunk)
            except (TypeError, ValueError) as wrong:
                raise chunk_not_json(wrong) from None


@contextmanager
def _as_agents_know_it() -> Iterator[None]:
    """Errors of ours as they would come out of a socket."""
    try:
        yield
    except ArmorclawError as error:
        raise AgentError.from_reply(error.payload()) from error
