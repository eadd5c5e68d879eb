"""Calls that the bridge makes to the agent (`agent.call`), from their arrival until their handlers have ended.

Accounting alone, as in the session that keeps them: no socket, no thread, no event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any, Optional

from armorclaw.agent.errors import (
    AgentError,
    CallCancelledError,
    call_id_in_use,
    handler_failed,
    no_such_call,
    stopped,
    too_large,
    too_many_calls,
    wrong_call,
)
from armorclaw.agent.streams import Progress, encode, notification
from armorclaw.rpc.flow import FlowError, Outflow
from armorclaw.rpc.jsoncodec import JsonCodec
from armorclaw.rpc.jsonrpc import MAX_RESULT, Core, Request

MAX_CALLS = 8
"""Calls of the bridge whose handlers run at once; one more is answered with `queue_full`."""


class Callback:
    """One of them."""

    def __init__(self, request: Request, method: str, params: Any) -> None:
        self.request: Optional[Request] = request
        """None once no answer is wanted any more."""
        self.id = request.id
        self.method = method
        self.params = params
        self.outflow = Outflow()
        self.progress: Optional[Progress] = None
        """What could not be sent yet."""
        self.cancelled: Optional[str] = None
        """Why its caller wants no answer any more."""
        self.on_cancel: Callable[[], object] = lambda: None

    @property
    def may_send(self) -> bool:
        """Whether a chunk may go out now."""
        return self.request is not None and self.outflow.credit > 0

    def check(self) -> None:
        """Raises CallCancelledError when it is over."""
        if self.request is None:
            raise CallCancelledError(self.cancelled or "it is answered")


class Callbacks:
    """All of them: `names` are those that there is a handler for, to `out` is added what is to be sent."""

    def __init__(self, names: Container[str], out: bytearray, say: Callable[[str], None]) -> None:
        self.running: set[Callback] = set()
        self._names = names
        self._out = out
        self._say = say
        self._core = Core(JsonCodec())
        self._stopping = False
        self._new: list[Callback] = []  # not begun
        self._here: dict[Any, Callback] = {}  # those of this connection, by id

    # what comes

    def connected(self, core: Core) -> None:
        """A new connection is there."""
        self._core = core

    def asked(self, request: Request) -> None:
        """The bridge calls; it is refused at once when nobody can handle it, or when it is too late."""
        try:
            callback = self._admit(request)
        except AgentError as error:
            self._out += self._core.error(request, error.payload())
            return
        self.running.add(callback)
        self._here[callback.id] = callback
        self._new.append(callback)

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """A notification about a call; what is known of none is left alone, as the call may just have ended."""
        number = params.get("id")
        callback = self._here.get(number) if type(number) in (int, str) else None
        if callback is None or callback.request is None:
            return
        if method == "$/cancelRequest":
            self._cancel(callback, CallCancelledError(), "its caller cancelled it")
        elif method == "$/credit":
            try:
                callback.outflow.grant(params.get("chunks"))
            except FlowError as wrong:
                self._cancel(callback, wrong_call(str(wrong)), str(wrong))

    def disconnected(self) -> None:
        """Nobody waits for the answers any more."""
        for callback in tuple(self._here.values()):
            self._cancel(callback, None, "the connection to its caller has ended")
        self._here.clear()

    # what the agent does

    def take(self) -> list[Callback]:
        """Those to begin with. Each wants `answer`, once, when its handler is through."""
        new, self._new = self._new, []
        return new

    def stop(self) -> None:
        """Begin with no other: those that nobody took are refused, as are all that come."""
        self._stopping = True
        for callback in tuple(self._new):
            self._cancel(callback, stopped(), "the agent is stopping")

    def send_chunk(self, callback: Callback, text: bytes) -> None:
        """A piece of the result, while it `may_send`. Raises CallCancelledError."""
        callback.check()
        self._tell_progress(callback)
        self._out += notification("$/chunk", callback.id, seq=callback.outflow.take(), data=text)

    def progress(self, callback: Callback, progress: Progress) -> None:
        """How far it is; the newest counts. Raises CallCancelledError."""
        callback.check()
        callback.progress = progress

    def answer(self, callback: Callback, result: Any, error: Optional[AgentError] = None) -> None:
        """Its handler is through. Whoever wants no answer any more gets none."""
        if callback.request is not None:
            self._tell_progress(callback)
            self._out += self._answer(callback.request, result, error)
        callback.request = None
        self._leave(callback)

    def tell_progress(self) -> None:
        """There is room to send it."""
        for callback in self.running:
            self._tell_progress(callback)

    def _admit(self, request: Request) -> Callback:
        params = request.params
        if not isinstance(params, dict) or not isinstance(params.get("method"), str):
            raise wrong_call("agent.call wants a method, by name, and its params")
        if params["method"] not in self._names:
            raise no_such_call(params["method"])
        if self._stopping:
            raise stopped()
        if request.id in self._here:
            raise call_id_in_use()
        if len(self.running) >= MAX_CALLS:
            raise too_many_calls(MAX_CALLS)
        return Callback(request, params["method"], params.get("params"))

    def _cancel(self, callback: Callback, error: Optional[AgentError], why: str) -> None:
        """The handler is told; its place is free when it has ended, at once when it has not begun."""
        if callback.request is None:
            return
        if error is not None:
            self._out += self._core.error(callback.request, error.payload())
        callback.request, callback.progress, callback.cancelled = None, None, why
        if callback in self._new:
            self._new.remove(callback)
            self._leave(callback)
        callback.on_cancel()

    def _leave(self, callback: Callback) -> None:
        self.running.discard(callback)
        if self._here.get(callback.id) is callback:
            del self._here[callback.id]

    def _answer(self, request: Request, result: Any, error: Optional[AgentError]) -> bytes:
        if error is None:
            try:
                text = encode(result)
                if len(text) <= MAX_RESULT:
                    return self._core.result_text(request, text)
                error = too_large("the result", len(text), MAX_RESULT)
            except (TypeError, ValueError, RecursionError) as wrong:
                error = handler_failed(wrong)
            self._say(f"a handler's result is no answer: {error}")
        return self._core.error(request, error.payload())

    def _tell_progress(self, callback: Callback) -> None:
        progress, callback.progress = callback.progress, None
        if progress is not None:
            self._out += notification("$/progress", callback.id, **progress.params())
