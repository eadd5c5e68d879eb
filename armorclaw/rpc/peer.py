"""One connection: it answers calls, makes calls, and takes what others push to it.

One task reads. It runs plain handlers on the spot and writes their answers together, once per read; async handlers
get a task each. A write goes straight to the socket; only what the socket does not take is kept, and then a task
drains it until nothing is left. So an ordinary call costs no task, no cancel scope and no channel.

A call that was read is carried through, even if its caller has gone; what belongs to the connection itself, such as a
subscription, ends with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import trio

from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.failure import error_from_wire
from armorclaw.rpc.jsonrpc import Core, Event, Notification, Request, Response, Send
from armorclaw.rpc.outgoing import Outgoing, close_all
from armorclaw.rpc.quiet import Quiet
from armorclaw.rpc.registry import Role
from armorclaw.rpc.wire import wire_for

if TYPE_CHECKING:
    from armorclaw.clock import Surroundings
    from armorclaw.rpc.registry import Method, Registry

log = get_logger(__name__)

FRAME_DEADLINE = 10.0
"""Seconds from the first byte of a message to its last."""

CALL_DEADLINE = 30.0
"""Seconds an async handler may take; each promises its own, shorter time."""

MAX_IN_FLIGHT = 64
"""Async handlers running for one connection; while so many run, nothing more is read."""

PARAMS_IN_FLIGHT = 1024 * 1024
"""Bytes that the params of those handlers had as JSON; while there are so many, nothing more is read. One call goes
over it at most, by as much as a frame may have."""

SOFT_LIMIT = 256 * 1024
"""Bytes kept for a reader that is slow: beyond, nothing more is read from it, and `room` says none. Far below
`outgoing.HARD_LIMIT`, so that the answers of one read and what is pushed at once fit in between."""

_FAIR_SHARE = 64  # messages handled in a row before others get a turn
_LOOK = 0.25  # seconds between looks whether a half-closed peer still reads
_CODEC = MsgspecCodec()


class Call:
    """What a handler may know of its caller, and how it sends more than JSON back."""

    __slots__ = ("_alone", "_fds", "method", "peer")

    def __init__(self, peer: Peer, method: str, *, alone: bool = True) -> None:
        self.peer = peer
        self.method = method
        self._alone = alone
        self._fds: list[int] = []

    @property
    def role(self) -> Role:
        return self.peer.role

    @property
    def agent(self) -> str | None:
        """Whose socket the call came in by, if it was an agent's."""
        return self.peer.agent

    @property
    def uid(self) -> int | None:
        return self.peer.uid

    @property
    def pid(self) -> int | None:
        return self.peer.pid

    def attach_fd(self, fd: int) -> None:
        """Send this descriptor with the answer. It is ours from now on, and is closed in any case.

        Raises `invalid_request` where none can go: on a stream that is no Unix socket, in a batch.
        """
        self._fds.append(fd)
        if not (self.peer.passes_fds and self._alone):
            raise ArmorclawError(
                "invalid_request", "no descriptor can come with this answer", hint="call it alone, on the socket"
            )

    def take_fds(self) -> tuple[int, ...]:
        """The descriptors, which are the taker's to close."""
        fds, self._fds = tuple(self._fds), []
        return fds


class _Waiting:
    """A call of ours without its answer yet."""

    __slots__ = ("event", "response")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.response: Response | None = None


class Peer:
    """One end of one connection, on any Trio stream; a Unix socket can also pass descriptors.

    `role` and `agent` say where the connection came in, `uid` and `pid` who made it (the pid for records only). The
    peer takes the stream over. It is a sink of events: `push`, `room`, `wait_room`. Connections that share a `quiet`
    share what they may write into the log.
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
    ) -> None:
        self.role = role
        self.agent = agent
        self.uid = uid
        self.pid = pid
        self.closed = trio.Event()
        """Set once nothing comes in or goes out any more."""
        self._registry = registry
        self._methods = registry.table(role)
        self._random = around.random
        self._wire = wire_for(stream)
        self._core = Core(_CODEC)
        self._at_close: list[Callable[[Peer], object]] = [on_close] if on_close else []
        self._waiting: dict[int, _Waiting] = {}
        self._in_flight = 0
        self._params_in_flight = 0  # bytes
        self._quiet = quiet or Quiet()
        self._out = Outgoing(self._wire, on_progress=self._ease, on_lost=self._lose)
        self._reading = False  # messages of one read are being handled: their answers go out together afterwards
        self._calls: trio.Nursery | None = None  # handlers, and the drain task
        self._nursery: trio.Nursery | None = None
        self._hears = False  # the other side may still send
        self._eased = trio.Event()  # something that held up the reader may have changed
        self._why = "the connection has ended"

    @property
    def passes_fds(self) -> bool:
        return self._wire.passes_fds

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
                        self._hears = True
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

    async def request(self, method: str, params: Any = None, *, timeout: float) -> Any:
        """Call a method of the other side; its result, decoded.

        Raises the error the other side answers with, as ArmorclawError (`remote_failed` if it is not one of ours),
        `timed_out` after `timeout` seconds, and `unavailable` when the connection ends first.
        """
        number, data = self._core.request(method, params)
        if not self._hears:
            raise self._gone(method)
        waiting = self._waiting[number] = _Waiting()
        try:
            with trio.move_on_after(timeout):
                self._write(data)
                await waiting.event.wait()
        finally:
            self._waiting.pop(number, None)
        if waiting.response is None:
            if waiting.event.is_set():
                raise self._gone(method)
            raise ArmorclawError("timed_out", f"{method} was not answered within {timeout:g} s")
        if waiting.response.error is not None:
            # only what the bridge itself says to a client is taken whole
            raise error_from_wire(waiting.response.error, cut=self.role is not Role.OPERATOR)
        try:
            return _CODEC.value(waiting.response.result)
        except ValueError as error:
            raise ArmorclawError("remote_failed", f"the answer to {method} is not JSON") from error

    def notify(self, method: str, params: Any = None) -> None:
        """Send a notification; dropped when the connection has ended."""
        self._write(self._core.notification(method, params))

    # a sink of events

    def push(self, frame: bytes) -> None:
        """Send a whole message, newline included. Never waits; ask `room` first."""
        self._write(frame)

    def room(self) -> int:
        """Bytes that may be pushed before this reader counts as slow; 0 or less: wait."""
        return SOFT_LIMIT - self._out.buffered

    async def wait_room(self) -> None:
        """Until there is room again, or the connection has ended."""
        while self.room() <= 0 and self._nursery is not None:
            await self._eased.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    # reading

    async def _read(self) -> bool:
        """Until the other side sends no more (True), or sent what cannot be understood (False)."""
        core = self._core
        deadline = 0.0
        while True:
            was_pending = core.pending
            if was_pending:
                with trio.move_on_at(deadline) as scope:
                    data = await self._wire.read()
                if scope.cancelled_caught:
                    await self._handle(core.expire())
                    return False
            else:
                data = await self._wire.read()
            if not data:
                self._hears = False
                self._abandon()
                await self._handle(core.eof())
                return True
            handled = await self._handle(core.feed(data))
            if handled < 0:
                return False
            if core.pending and (handled or not was_pending):
                deadline = trio.current_time() + FRAME_DEADLINE

    async def _handle(self, events: Iterator[Event]) -> int:
        """Act on messages; how many there were, or -1 when the stream is to be given up."""
        count = 0
        self._reading = True
        try:
            for event in events:
                count += 1
                if type(event) is Request or type(event) is Notification:
                    self._call(event)
                elif type(event) is Response:
                    self._take(event)
                elif type(event) is Send:
                    self._write(event.data)
                    if event.fatal:
                        return -1
                if count % _FAIR_SHARE and not self._is_full():
                    continue
                self._reading = False  # what others write meanwhile goes out at once
                self._out.flush()
                await trio.lowlevel.checkpoint()
                while self._is_full():
                    await self._eased.wait()
                self._reading = True
        finally:
            self._reading = False
            self._out.flush()
        return count

    def _is_full(self) -> bool:
        """Whether to read no more for now."""
        return (
            self._in_flight >= MAX_IN_FLIGHT
            or self._params_in_flight >= PARAMS_IN_FLIGHT
            or self._out.buffered > SOFT_LIMIT
        )

    def _take(self, response: Response) -> None:
        waiting = self._waiting.pop(response.id, None) if type(response.id) is int else None
        if waiting is None:
            self._quiet(log.debug, "answer to no question", agent=self.agent, pid=self.pid)
            return
        waiting.response = response
        waiting.event.set()

    # calls of the other side

    def _call(self, message: Request | Notification) -> None:
        call = Call(self, message.method, alone=not message.in_batch)
        try:
            method = self._methods.get(message.method)
            if method is None:
                raise self._refusal(message.method)
            text, message.params = message.params, None  # read once: a handler that waits must not keep it
            params = method.read(_value(text))
            if method.is_async:
                assert self._calls is not None
                size = len(text or b"")
                self._in_flight += 1
                self._params_in_flight += size
                self._calls.start_soon(self._run, method, call, message, params, size, name=f"call {method.name}")
                return
            answer = self._answer(message, method, method.handler(call, params))
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the caller's answer
            answer = self._failure(call, message, error)
        self._write(answer, call.take_fds())

    async def _run(self, method: Method, call: Call, message: Request | Notification, params: Any, size: int) -> None:
        answer = b""
        try:
            with trio.move_on_after(CALL_DEADLINE) as scope:
                answer = self._answer(message, method, await method.handler(call, params))
            if scope.cancelled_caught:
                late = ArmorclawError("timed_out", f"{method.name} took longer than {CALL_DEADLINE:g} s")
                answer = self._failure(call, message, late)
        except Exception as error:  # noqa: BLE001 - whatever a handler raises is the caller's answer
            answer = self._failure(call, message, error)
        except BaseException:
            ending = ArmorclawError("unavailable", f"{method.name} was cut short: the connection is being closed")
            answer = self._failure(call, message, ending)
            raise
        finally:
            self._in_flight -= 1
            self._params_in_flight -= size
            self._write(answer, call.take_fds())
            self._ease()

    def _answer(self, message: Request | Notification, method: Method, value: Any) -> bytes:
        if type(message) is Notification:
            return b""
        assert type(message) is Request
        return self._core.result(message, method.write(value))

    def _failure(self, call: Call, message: Request | Notification, error: BaseException) -> bytes:
        """The answer to a call that failed; details of what nobody foresaw go to the log alone."""
        close_all(call.take_fds())
        known = _known(error)
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

    def _ease(self) -> None:
        self._eased.set()
        self._eased = trio.Event()

    # the end

    async def _see_off(self, *, subscriptions: bool) -> None:
        """Nothing more is read, but the other side may still read: answers, and what it subscribed to."""
        assert self._nursery is not None
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

    def _abandon(self) -> None:
        """No answer will come any more."""
        for waiting in self._waiting.values():
            waiting.event.set()

    def _end(self) -> None:
        self._out.close()  # not without the answers of handlers that were cut short
        self._nursery = None
        self._hears = False
        self._abandon()
        self._ease()
        self.closed.set()
        for callback in self._at_close:
            try:
                callback(self)
            except Exception as error:  # noqa: BLE001 - one owner's slip must not keep the end from the others
                log.error("at_close failed", agent=self.agent, trace=trace(error))


def _value(params: bytes | None) -> Any:
    if params is None:
        return None
    try:
        return _CODEC.value(params)
    except ValueError as error:
        raise ArmorclawError("parse_error", "the params hold a value that is out of range") from error


def _known(error: BaseException) -> ArmorclawError | None:
    """The error of ours in it: alone, or the only kind in a group that a handler's nursery made."""
    if isinstance(error, ArmorclawError):
        return error
    if isinstance(error, trio.TooSlowError):
        return ArmorclawError("timed_out", "it took too long")
    if isinstance(error, ExceptionGroup):
        inner = [_known(each) for each in error.exceptions]
        if None not in inner:
            return inner[0]
    return None
