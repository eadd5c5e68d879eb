"""One connection: it answers calls, makes calls, and takes what others push to it.

One task reads. It runs plain handlers on the spot and writes their answers together, once per read; async handlers
get a task each. A write goes straight to the socket; only what the socket does not take is kept, and then a task
drains it until nothing is left. So an ordinary call costs no task, no cancel scope and no channel.

A call that was read is carried through, even if its caller has gone; what belongs to the connection itself, such as a
subscription, ends with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from time import perf_counter
from typing import TYPE_CHECKING, Any

import trio

from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger
from armorclaw.rpc.asking import Asking
from armorclaw.rpc.call import Call, apart, known_in
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.framing import MAX_FRAME
from armorclaw.rpc.jsonrpc import Core, Event, Notification, Pause, Request, Response, Send
from armorclaw.rpc.outgoing import Outgoing, close_all
from armorclaw.rpc.quiet import Quiet
from armorclaw.rpc.registry import Role
from armorclaw.rpc.streaming import Streams
from armorclaw.rpc.wire import wire_for

if TYPE_CHECKING:
    from armorclaw.clock import Surroundings
    from armorclaw.rpc.admission import Allowance
    from armorclaw.rpc.caller import OnProgress
    from armorclaw.rpc.ears import Ears
    from armorclaw.rpc.registry import Method, Registry
    from armorclaw.rpc.stream import Stream

log = get_logger(__name__)

FRAME_DEADLINE = 10.0
"""Seconds from the first byte of a message to its last."""

CALL_DEADLINE = 3.9
"""Seconds an async handler may take, as clients in the field wait 4 to 5 for an answer. Each promises its own,
shorter time, and tells how far it got; this is for what hangs all the same."""

MAX_IN_FLIGHT = 64
"""Async handlers running for one connection; while so many run, nothing more is read."""

PARAMS_IN_FLIGHT = 1024 * 1024
"""Bytes that the params of those handlers had as JSON; while there are so many, nothing more is read. One call goes
over it at most, by as much as a frame may have."""

SOFT_LIMIT = 256 * 1024
"""Bytes kept for a reader that is slow: beyond, nothing more is read from it, `room` says none, and it is cut off
unless it takes something every `outgoing.WRITE_DEADLINE`. Far below `outgoing.HARD_LIMIT`, so that the answers of one
read and what is pushed at once fit in between."""

STREAM_ROOM = SOFT_LIMIT - 64 * 1024
"""What `room` must be before a piece of a stream is sent: a few small ones may wait here, or what is left of a large
one, so that the next is ready when the socket takes more."""

HOLD_LIMIT = 2 * SOFT_LIMIT
"""Takes the place of `SOFT_LIMIT` for reading while there are streams, and for waiting once there were some: pieces
alone never hold up the reader, which both ends may wait for that send each other pieces."""

ASK_LIMIT = HOLD_LIMIT + MAX_FRAME
"""Takes the place of `SOFT_LIMIT` for reading while we wait for answers: our own calls, which wait until there is
room and may be as large as a frame, never keep us from reading the answers, without which the other side reads no
more."""

_FAIR_SHARE = 64  # messages handled in a row before others get a turn
_TURN = 0.002  # seconds of looking at what is no message yet, before others get a turn
_LOOK = 0.25  # seconds between looks whether a half-closed peer still reads
_CODEC = MsgspecCodec()


class Peer:
    """One end of one connection, on any Trio stream; a Unix socket can also pass descriptors.

    `role` and `agent` say where the connection came in, `uid` and `pid` who made it (the pid for records only). The
    peer takes the stream over. It is a sink of events: `push`, `room`, `wait_room`. Connections that share a `quiet`
    share what they may write into the log. An `allowance` is asked before each call and after each read. Connections
    that share `ears` cost less each. `commons` is the nursery that they live in, if they have one in common.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        registry: Registry,
        *,
        role: Role,
        agent: str | None = None,
        uid: int | None = None,
        pid: int | None = None,
        around: Surroundings,
        on_close: Callable[[Peer], object] | None = None,
        quiet: Quiet | None = None,
        allowance: Allowance | None = None,
        ears: Ears | None = None,
        commons: trio.Nursery | None = None,
    ) -> None:
        self.role = role
        self.agent = agent
        self.uid = uid
        self.pid = pid
        self.commons = commons
        """What its listener's connections live in, all of them: for tasks that serve several."""
        self.closed = trio.Event()
        """Set once nothing comes in or goes out any more."""
        self.reads = 0
        """How often something came; it tells whether anything did meanwhile."""
        self._registry = registry
        self._methods = registry.table(role)
        self._random = around.random
        self._wire = wire_for(stream, ears)
        self._core = Core(_CODEC)
        self._at_close: list[Callable[[Peer], object]] = [on_close] if on_close else []
        # only what the bridge itself says to a client is taken whole
        self._asking = Asking(self, self._core, self._gone, room=STREAM_ROOM, cut=role is not Role.OPERATOR)
        self._streams = Streams(self, self._asking.streams, STREAM_ROOM)
        self._core.bulk = self._streams.bulk
        self._in_flight = 0
        self._params_in_flight = 0  # bytes
        self._quiet = quiet or Quiet()
        self._allowance = allowance  # None: nothing is counted
        self._out = Outgoing(self._wire, may_wait=self._may_wait, on_progress=self._ease, on_lost=self._lose)
        self._wide = False  # it has, or had, streams
        self._events: Iterator[Event] = iter(())  # of the last read, as far as they are not handled
        self._handled = 0  # of them
        self._pause = 0.0  # seconds to wait before they are
        self._given_up = False  # nothing more can be understood
        self._reading = False  # messages of one read are being handled: their answers go out together afterwards
        self._calls: trio.Nursery | None = None  # handlers, and the drain task
        self._nursery: trio.Nursery | None = None
        self._eased = trio.Event()  # something that held up the reader may have changed
        self._why = "the connection has ended"

    @property
    def passes_fds(self) -> bool:
        return self._wire.passes_fds

    @property
    def hears(self) -> bool:
        """Whether the other side may still answer."""
        return self._asking.is_open

    @property
    def nursery(self) -> trio.Nursery:
        """For tasks that live as long as the connection. Raises `unavailable` before and after that."""
        if self._nursery is None:
            raise ArmorclawError("unavailable", "the connection has ended")
        return self._nursery

    def at_close(self, callback: Callable[[Peer], object]) -> None:
        """Have this called when `closed` is set; exceptions are logged."""
        self._at_close.append(callback)

    def close(self, reason: str) -> None:
        """End the connection and every call in it; what the socket takes at once is still sent."""
        if self._calls is not None:
            self._why = reason
            self._calls.cancel_scope.cancel(reason=reason)

    async def serve(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read and answer until the other side has finished and has its answers, or is gone."""
        try:
            async with trio.open_nursery() as self._calls:
                self._out.open(self._calls)
                try:
                    async with trio.open_nursery() as self._nursery:
                        self._asking.open()
                        task_status.started()
                        await self._converse()
                        self._nursery.cancel_scope.cancel(reason=self._why)
                finally:
                    self._end()
        finally:
            self._calls = None
            await self._wire.aclose()

    async def _converse(self) -> None:
        try:
            understood = await self._read()
            await self._see_off(subscriptions=understood)
            if not understood:
                await self._wire.finish()
        except trio.BrokenResourceError:
            self._lose("the other side is gone")

    # calls of ours

    async def request(
        self, method: str, params: Any = None, *, timeout: float, late: Callable[[Any], object] | None = None
    ) -> Any:
        """Call a method of the other side; its result, decoded.

        Raises the error the other side answers with, as ArmorclawError (`remote_failed` if it is not one of ours),
        `timed_out` after `timeout` seconds, and `unavailable` when the connection ends first. A call nobody waits for
        any more is cancelled; should it have been carried out already, `late` is told its result. It waits its turn
        while the other side has much to read. Of a method that streams, only the result is told.
        """
        return await self._asking.request(method, params, timeout, late)

    def stream(
        self, method: str, params: Any = None, *, on_progress: OnProgress | None = None, chunk: Any = Any
    ) -> AbstractAsyncContextManager[Stream]:
        """Call a method that streams; leaving the block before it is answered cancels the call.

        Pieces are decoded as JSON; `chunk=bytes` makes bytes of base64, and `msgspec.Raw` leaves them as they came.
        """
        return self._asking.stream(method, params, on_progress, chunk)

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification; dropped when the connection has ended."""
        self._write(self._core.notification(method, params))

    # a sink of events

    def push(self, frame: bytes) -> None:
        """Send a whole message, newline included. Never waits; ask `room` first."""
        (self._out.add if self._reading else self._out.send)(frame)

    def push_all(self, frames: Sequence[bytes]) -> None:
        """Send some of them in one piece."""
        self.push(b"".join(frames))

    def room(self) -> int:
        """Bytes that may be pushed before this reader counts as slow; 0 or less: wait."""
        return SOFT_LIMIT - self._out.buffered

    async def wait_room(self, least: int = 1) -> None:
        """Until there is room again for so many bytes, or the connection has ended."""
        while self.room() < least and self._nursery is not None:
            await self._eased.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    def widen(self) -> None:
        """Prepare the connection for streams."""
        self._wide = True
        self._wire.widen()

    # reading

    async def _read(self) -> bool:
        """Until the other side sends no more (True), or sent what cannot be understood (False)."""
        core = self._core
        deadline = 0.0
        while not self._given_up:
            was_pending = core.pending
            if was_pending:
                with trio.move_on_at(deadline) as scope:
                    data = await self._wire.read()
                if scope.cancelled_caught:
                    self._events = core.expire()
                    await self._handle()
                    return False
                self._begin(data)
            else:
                data = await self._wire.listen(self._hear, self._out.flush)
            if not data:
                self._asking.close()
                self._events = core.eof()
                await self._handle()
                self._streams.half_closed()
                return True
            if self._pause:
                await trio.sleep(self._pause)
                deadline += self._pause  # of what it was kept from sending it is not guilty
            await self._handle()
            if core.pending and (self._handled or not was_pending):
                deadline = trio.current_time() + FRAME_DEADLINE
        return False

    def _begin(self, data: bytes) -> None:
        """Start on what was read."""
        self.reads += 1
        self._pause = 0.0 if self._allowance is None else self._allowance.pause(len(data))
        self._events = self._core.feed(data)
        self._handled = 0

    def _hear(self, data: bytes) -> bool:
        """Deal with what was read as far as that takes no waiting; whether nothing is left to `_read`.

        What there is to say is sent a little later: see `Wire.listen`.
        """
        self._begin(data)
        return not self._pause and self._go_on() and not (self._core.pending or self._given_up)

    async def _handle(self) -> None:
        """Act on what is left of the messages of one read."""
        while True:
            while self._is_full():
                await self._eased.wait()
            done = self._go_on()
            self._out.flush()
            if done:
                return
            await trio.sleep(0 if self._allowance is None else self._allowance.pause(0))

    def _go_on(self) -> bool:
        """Act on messages: True when there are no more, False when it is the turn of others first.

        Afterwards all that is to be written has to be flushed.
        """
        began = perf_counter()
        self._reading = True
        try:
            for event in self._events:
                if type(event) is Pause:
                    if perf_counter() - began < _TURN:
                        continue
                    return False
                self._handled += 1
                if type(event) is Request or type(event) is Notification:
                    self._call(event)
                elif type(event) is Response:
                    self._take(event)
                elif type(event) is Send:
                    self._count()
                    self._write(event.data)
                    if event.fatal:
                        self._given_up = True
                        return True
                if not self._handled % _FAIR_SHARE or self._is_full():
                    return False
        finally:
            self._reading = False
        return True

    def _is_full(self) -> bool:
        """Whether to read no more for now."""
        return (
            self._in_flight >= MAX_IN_FLIGHT
            or self._params_in_flight >= PARAMS_IN_FLIGHT
            or (self._out.buffered > SOFT_LIMIT and self._out.buffered > self._held_at())
        )

    def _held_at(self) -> int:
        """Bytes that may wait to be read by the other side before nothing more is read from it."""
        if self._asking:
            return ASK_LIMIT
        return HOLD_LIMIT if self._streams else SOFT_LIMIT

    def _take(self, response: Response) -> None:
        if not self._asking.take(response):
            self._count()
            self._quiet(log.debug, "answer to no question", agent=self.agent, pid=self.pid)

    def _count(self) -> None:
        """What is no call, but costs as much: it is not refused, yet too much of it is read more slowly."""
        if self._allowance is not None:
            self._allowance.admit(None)

    # calls of the other side

    def _call(self, message: Request | Notification) -> None:
        call = Call(self, message.method, alone=not message.in_batch)
        try:
            method = self._methods.get(message.method)
            if method is None and type(message) is Notification and message.method.startswith("$/"):
                if not self._streams.take(message):  # else its credit bounds what it costs
                    self._asking.drop(message)
                    self._count()
                return
            if self._allowance is not None and (refused := self._allowance.admit(method)) is not None:
                raise refused
            if method is None:
                raise self._refusal(message.method)
            if self._streams.calls and type(message) is Request and message.id in self._streams.calls:
                raise ArmorclawError("invalid_request", "a stream that has not ended yet has the same id")
            text, message.params = message.params, None  # read once: a handler that waits must not keep it
            params = method.read_text(text)
            if not method.is_async:
                value = method.handler(call, params)
            elif method.quick is None or (value := method.quick(call, params)) is None:
                self._start(method, call, message, params, len(text or b""))
                return
            answer = self._answer(message, method, value)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the caller's answer
            answer = self._failure(call, message, error)
        self._write(answer, call.take_fds())

    def _start(self, method: Method, call: Call, message: Request | Notification, params: Any, size: int) -> None:
        """Run an async handler in a task of its own."""
        nursery, deadline = self._calls, CALL_DEADLINE
        if method.streams:  # it belongs to the connection; what it was given must not keep us from reading its credit
            call = self._streams.open(method, message)
            nursery, deadline, size = self._nursery, math.inf, 0
        assert nursery is not None
        self._in_flight += 1
        self._registry.answering[method.name] += 1
        self._params_in_flight += size
        scope = self._streams.scope(message, deadline)
        nursery.start_soon(self._run, method, call, message, params, size, scope, name=f"call {method.name}")

    async def _run(
        self,
        method: Method,
        call: Call,
        message: Request | Notification,
        params: Any,
        size: int,
        scope: trio.CancelScope,
    ) -> None:
        answer = b""
        try:
            with scope:
                answer = self._answer(message, method, await method.handler(call, params))
            if scope.cancelled_caught:
                late = ArmorclawError("timed_out", f"{method.name} took longer than {CALL_DEADLINE:g} s")
                answer = self._failure(call, message, self._streams.fault(message) or late)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the caller's answer
            answer = self._failure(call, message, error)
        except BaseException as error:  # noqa: BLE001 - what is no answer is raised again
            ending = ArmorclawError("unavailable", f"{method.name} was cut short: the connection is being closed")
            cancellation, failure = apart(error)
            answer = self._failure(call, message, failure or ending)
            raise cancellation from error.__cause__
        finally:
            self._in_flight -= 1
            self._registry.answering[method.name] -= 1
            self._params_in_flight -= size
            self._streams.close(message)
            self._write(answer, call.take_fds())
            self._ease()

    def _answer(self, message: Request | Notification, method: Method, value: Any) -> bytes:
        if type(message) is Notification:
            return b""
        assert type(message) is Request
        return self._core.result_text(message, method.write_text(value))

    def _failure(self, call: Call, message: Request | Notification, error: BaseException) -> bytes:
        """The answer to a call that failed; details of what nobody foresaw go to the log alone."""
        close_all(call.take_fds())
        known = known_in(error)
        if known is None:
            number = f"{self._random.getrandbits(48):012x}"
            method = message.method
            self._quiet(log.error, "handler failed", kind=method, method=method, error_id=number, trace=trace(error))
            known = ArmorclawError("internal", "something went wrong inside the bridge", error_id=number)
        if type(message) is Request:
            try:
                return self._core.error(message, known.payload())
            except (ValueError, TypeError):  # data that is no JSON: then without
                return self._core.error(message, {"code": known.kind.code, "message": ascii(str(known))})
        known_method = message.method if message.method in self._methods else None  # no text of strangers in the log
        self._quiet(log.info, "notification failed", method=known_method, error=known.name, agent=self.agent)
        return b""

    def _refusal(self, name: str) -> ArmorclawError:
        if self._registry.get(name) is None:
            return ArmorclawError("method_not_found", f"there is no method {name!r}")
        return ArmorclawError("denied", f"{name} is not for the role {self.role}")

    # writing

    def _write(self, data: bytes, fds: Sequence[int] = ()) -> None:
        self._out.add(data, fds)
        if not self._reading:
            self._out.flush()

    def _may_wait(self) -> bool:
        """Whether what is not read yet is little enough for the other side to take its time."""
        return not self._given_up and self._out.buffered <= (HOLD_LIMIT if self._wide else SOFT_LIMIT)

    def _ease(self) -> None:
        self._streams.eased()
        self._eased.set()
        self._eased = trio.Event()

    # the end

    async def _see_off(self, *, subscriptions: bool) -> None:
        """Nothing more is read, but the other side may still read: answers, and what it subscribed to."""
        assert self._nursery is not None
        if not subscriptions:
            self._streams.abandon()
        while self._in_flight or self._out.draining or (subscriptions and self._nursery.child_tasks):
            if self._wire.gone():
                self._why = "the other side is gone"
                return
            with trio.move_on_after(_LOOK):
                await self._eased.wait()

    def _lose(self, reason: str) -> None:
        """Nothing more can be written."""
        self._quiet(log.info, "connection lost", reason=reason, agent=self.agent, uid=self.uid)
        self._why = reason
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel(reason=reason)

    def _gone(self, method: str) -> ArmorclawError:
        return ArmorclawError("unavailable", f"{method} got no answer", why=self._why)

    def _end(self) -> None:
        self._out.close()  # not without the answers of handlers that were cut short
        self._nursery = None
        self._asking.close()
        self._ease()
        self.closed.set()
        for callback in self._at_close:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - one owner's slip must not keep the end from the others
                log.error("at_close failed", agent=self.agent, trace=trace(error))
