"""Calls of ours on one connection: those that wait for an answer, and those that stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.failure import error_from_wire
from armorclaw.rpc.flow import FlowError, Inflow
from armorclaw.rpc.framing import MAX_FRAME
from armorclaw.rpc.pieces import Note, head_of
from armorclaw.rpc.stream import Stream

if TYPE_CHECKING:
    from armorclaw.rpc.caller import OnProgress
    from armorclaw.rpc.jsonrpc import Core, Notification, Response
    from armorclaw.rpc.peer import Peer

_CODEC = MsgspecCodec()
_note = msgspec.json.Decoder(Note).decode
Late = Callable[[Any], object]


class _Waiting:
    """A call without its answer yet."""

    __slots__ = ("event", "flow", "response")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.response: Response | None = None
        self.flow: Inflow | None = None  # of pieces that nobody asked for

    def settle(self, response: Response | None) -> None:
        """The answer, or None when there will be none."""
        self.response = response
        self.event.set()


class _Late:
    """A call that was given up, whose result is still to be told when it was carried out all the same."""

    __slots__ = ("_tell",)

    def __init__(self, tell: Late) -> None:
        self._tell = tell

    def settle(self, response: Response | None) -> None:
        if response is not None and response.error is None:
            with suppress(ValueError):  # it is no JSON
                self._tell(_CODEC.value(response.result))


class Asking:
    """What the other side owes an answer to.

    `gone` says that a method has none because the connection has ended, `room` is what a stream leaves of the
    connection's, and `cut` whether errors of the other side are shortened: it is a stranger.
    """

    def __init__(
        self, peer: Peer, core: Core, gone: Callable[[str], ArmorclawError], *, room: int, cut: bool
    ) -> None:
        self.streams: dict[int, Stream] = {}
        """By number, until their block is left."""
        self._peer = peer
        self._core = core
        self._gone = gone
        self._room = room
        self._cut = cut
        self._waiting: dict[int, _Waiting | _Late | Stream] = {}
        self._turn = trio.Lock()  # of calls that wait for room, in the order in which they came
        self.is_open = False
        """Whether the other side can still answer."""

    def __len__(self) -> int:
        return len(self._waiting)

    def open(self) -> None:
        """The other side can answer from now on."""
        self.is_open = True

    def close(self) -> None:
        """No answer will come any more."""
        self.is_open = False
        for waiting in self._waiting.values():
            waiting.settle(None)

    def take(self, response: Response) -> bool:
        """An answer came; whether anybody waited for it."""
        waiting = self._waiting.pop(response.id, None) if type(response.id) is int else None
        if waiting is None:
            return False
        waiting.settle(response)
        return True

    def drop(self, message: Notification) -> None:
        """Pieces of an answer of which the result alone is wanted: have the other side send the next, too."""
        if message.method != "$/chunk" or message.params is None:
            return
        try:
            note = message.params if type(message.params) is Note else _note(message.params)
            waiting = self._waiting.get(note.id) if type(note.id) is int else None
            if type(waiting) is not _Waiting:
                return
            if waiting.flow is None:
                waiting.flow = Inflow()
            waiting.flow.received(note.seq)
        except (FlowError, ValueError):  # then it gets no credit
            return
        if granted := waiting.flow.consumed():
            self._peer.push(b'%s,"chunks":%d}}\n' % (head_of("$/credit", b"%d" % note.id), granted))

    async def request(self, method: str, params: Any, timeout: float, late: Late | None) -> Any:
        """See `Peer.request`."""
        number, data = self._written(method, params)
        waiting = _Waiting()
        try:
            with trio.move_on_after(timeout):
                await self._have_room(method)
                self._waiting[number] = waiting
                self._peer.push(data)
                await waiting.event.wait()
        except trio.Cancelled:
            if late is not None and waiting.event.is_set():  # in the same instant
                _Late(late).settle(waiting.response)
            raise
        finally:
            if self._waiting.pop(number, None) is not None and self.is_open:
                self._give_up(number)
                if late is not None:
                    self._waiting[number] = _Late(late)
        if not waiting.event.is_set():
            raise ArmorclawError("timed_out", f"{method} was not answered within {timeout:g} s")
        return self.outcome(method, waiting.response)

    @asynccontextmanager
    async def stream(
        self, method: str, params: Any, on_progress: OnProgress | None, chunk: Any
    ) -> AsyncIterator[Stream]:
        """See `Peer.stream`."""
        number, data = self._written(method, params)
        stream = Stream(self._peer, method, b"%d" % number, self._room, chunk, on_progress, self.outcome)
        await self._have_room(method)
        self._waiting[number] = self.streams[number] = stream
        self._peer.widen()
        try:
            self._peer.push(data)
            yield stream
        finally:
            self._waiting.pop(number, None)
            del self.streams[number]
            if not stream.answered:
                self._give_up(number)

    def _written(self, method: str, params: Any) -> tuple[int, bytes]:
        """The number of a new call, and what is to be sent."""
        number, data = self._core.request(method, params)
        if len(data) > MAX_FRAME:
            raise ArmorclawError(
                "too_large", f"the params of {method} are larger than a message may be", limit=MAX_FRAME
            )
        if not self.is_open:
            raise self._gone(method)
        return number, data

    async def _have_room(self, method: str) -> None:
        """Until one call may be sent, however large; it has to be before anything else is awaited."""
        if self._peer.room() > 0 and not self._turn.locked():
            return
        async with self._turn:
            while self._peer.room() <= 0 and self.is_open:
                await self._peer.wait_room()
        if not self.is_open:
            raise self._gone(method)

    def _give_up(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._peer.notify("$/cancelRequest", {"id": number})

    def outcome(self, method: str, response: Response | None) -> Any:
        """The result that this answer holds, decoded. Raises the error in it; None: the connection has ended."""
        if response is None:
            raise self._gone(method)
        if response.error is not None:
            raise error_from_wire(response.error, cut=self._cut)
        try:
            return _CODEC.value(response.result)
        except ValueError as error:
            raise ArmorclawError("remote_failed", f"the answer to {method} is not JSON") from error
