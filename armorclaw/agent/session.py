"""What is said between an agent and the bridge, without a socket, a thread or an event loop.

A session outlives its connections. On each it takes the secrets (once), says that the agent is ready, and
subscribes; then it hands out events, acknowledges what was handled and carries calls. What a lost connection leaves
open is put right on the next one: an event that is still in hand is not handed out a second time, one that was
handled but not yet acknowledged is acknowledged when it comes again, and calls that may be repeated are.

A driver feeds it (`connected`, `received`, `disconnected`, `tick`) and carries away what it produces (`take_bytes`,
`take_events`, `callbacks.take`). It does no locking; one thread at a time.
"""

from __future__ import annotations

import enum
import os
import time
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import Any, Optional, Protocol

from armorclaw._version import __version__
from armorclaw.agent.callbacks import Callbacks
from armorclaw.agent.errors import AgentError, broken_stream, connection_lost, not_json, too_large
from armorclaw.agent.events import Key
from armorclaw.agent.secrets import Secrets, close_all, read_secrets
from armorclaw.agent.streams import Streaming, encode, notification
from armorclaw.rpc.flow import FlowError
from armorclaw.rpc.framing import MAX_FRAME
from armorclaw.rpc.jsoncodec import JsonCodec
from armorclaw.rpc.jsonrpc import Core, Event, Notification, Request, Response, Send

PROTOCOL = 1
CALL_TIMEOUT = 30.0  # seconds a call may take, waiting for a bridge that restarts included
TICK = 1.0  # seconds after which to ask again what the bridge could not do just then, unless it says when
_MAX_HANDLED = 1_024  # events handled but not acknowledged that are remembered; the bridge allows 64 in flight
_SECRETS_TAKEN = -32007
_TO_CALLER = ("$/chunk", "$/progress", "$/uploadCredit")

Then = Callable[[Any, Optional[AgentError]], None]


class Phase(enum.Enum):
    AWAY = "no connection"
    GREETING = "secrets, ready, subscription"
    SERVING = "events and calls"


class Waiter(Protocol):
    """Who waits for an answer: an asyncio.Future is one."""

    def set_result(self, result: Any) -> None: ...
    def set_exception(self, error: AgentError) -> None: ...


class _Call:
    """A request of ours: to be sent, or waiting for its answer."""

    __slots__ = ("method", "number", "params", "resend", "then", "waiter")

    def __init__(
        self, method: str, params: dict[str, Any], then: Then, waiter: Optional[Waiter] = None, resend: bool = False
    ) -> None:
        self.method = method
        self.params = params
        self.then = then
        self.waiter = waiter
        self.resend = resend
        self.number: Optional[int] = None  # its id, while it is on the wire


class Session:
    """The agent's end of the conversation.

    `subscribe` says whether it wants events, `answers` which calls of the bridge it has handlers for; `say` is called
    with lines for a person, `clock` gives seconds. `secrets` is None until the bridge has answered. `stopping`
    becomes true when the bridge asks the agent to end, or by `stop`.
    """

    def __init__(
        self,
        *,
        subscribe: bool = True,
        answers: Container[str] = (),
        say: Callable[[str], None] = lambda text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.secrets: Optional[Secrets] = None
        self.stopping = False
        self.say = say
        self._subscribe = subscribe
        self._clock = clock
        self._phase = Phase.AWAY
        self._subscription: Any = None
        self._core = Core(JsonCodec())
        self._out = bytearray()
        self.callbacks = Callbacks(answers, self._out, say)
        self._fds: list[int] = []
        self._events: list[dict[str, Any]] = []
        self._asked: dict[Any, _Call] = {}  # on the wire, by id
        self._parked: list[_Call] = []  # until we are serving
        self._later: list[tuple[float, _Call]] = []  # and when: the bridge could not just then
        self._in_hand: dict[Key, bool] = {}  # handed out; whether this connection knows it is with us
        self._over: Optional[AgentError] = None
        self._handled: dict[Key, None] = {}  # acknowledgement not confirmed yet, oldest first

    # what the driver feeds in

    def connected(self) -> None:
        """A new connection is there."""
        self._core = Core(JsonCodec())
        self.callbacks.connected(self._core)
        self._phase = Phase.GREETING
        if self.secrets is None:
            self._take_secrets("fd")
        else:
            self._say_ready()

    def received(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Bytes came, and descriptors with them; the session owns those now.

        Raises ConnectionError when the bytes make no sense, AgentError when the bridge refuses this agent for good.
        """
        self._fds += fds
        for message in self._core.feed(data):
            self._take(message)
        if self.secrets is not None:
            close_all(self._fds)  # nobody asked for these

    def disconnected(self) -> None:
        """The connection is gone. What may be repeated waits for the next one, the rest fails."""
        self._phase = Phase.AWAY
        self._out.clear()
        close_all(self._fds)
        open_calls = [*self._asked.values(), *(call for _, call in self._later)]
        self._asked.clear()
        self._later.clear()
        self._in_hand = dict.fromkeys(self._in_hand, False)
        repeated = [call for call in open_calls if call.resend]
        self._parked = repeated + self._parked
        for call in open_calls:
            if call.waiter is not None and not call.resend:
                call.waiter.set_exception(connection_lost(call.method))
        self.callbacks.disconnected()

    def tick(self) -> None:
        """Ask again what the bridge could not do just then and is due; see `due`."""
        now = self._clock()
        calls = [call for due, call in self._later if due <= now]
        self._later = [(due, call) for due, call in self._later if due > now]
        for call in calls:
            self._ask(call)

    # what the agent does

    def call(self, method: str, params: dict[str, Any], waiter: Waiter, *, resend: bool = False) -> None:
        """Ask the bridge; `waiter` gets the result or an AgentError. `resend`: may be sent twice without harm."""
        call = _Call(method, params, partial(_settle, waiter), waiter, resend)
        if self._over is not None:
            waiter.set_exception(self._over)
        elif self._phase is Phase.SERVING:
            self._ask(call)
        else:
            self._parked.append(call)

    def stream(self, method: str, params: dict[str, Any]) -> Streaming:
        """Call a streaming method. `forget` it when there is no more use for it."""
        stream = Streaming(method)
        self.call(method, params, stream)
        return stream

    def take_chunk(self, stream: Streaming) -> Any:
        """The next chunk, of those that are there; the bridge may send more then."""
        chunk = stream.chunks.popleft()
        granted = stream.inflow.consumed()
        if granted and stream.number is not None:
            self._out += notification("$/credit", stream.number, chunks=granted)
        return chunk

    def upload(self, stream: Streaming, text: bytes) -> None:
        """Send a piece, while it `may_send`; dropped once it is over."""
        if stream.number is not None:
            self._out += notification("$/upload", stream.number, seq=stream.outflow.take(), data=text)

    def end_upload(self, stream: Streaming) -> None:
        """Say, when it is on the wire, that no more pieces will come."""
        if stream.number is not None:
            self._out += notification("$/upload", stream.number, seq=stream.outflow.seq, end=True)

    def forget(self, waiter: Waiter) -> None:
        """Nobody wants this answer any more: the bridge need not go on with it, and a stream is over."""
        self._parked = [call for call in self._parked if call.waiter is not waiter]
        self._later = [(due, call) for due, call in self._later if call.waiter is not waiter]
        for call in self._asked.values():
            if call.waiter is waiter:
                call.waiter, call.then, call.resend = None, _ignore, False
                self._out += notification("$/cancelRequest", call.number)
        if isinstance(waiter, Streaming):
            waiter.close()

    def stop(self) -> None:
        """The agent is to end: what was not begun is the bridge's again, and calls are refused from now on."""
        self.stopping = True
        self.callbacks.stop()

    def finished(self, key: Key, *, retry_ms: Optional[int] = None) -> None:
        """An event that was handed out is dealt with, or, with `retry_ms`, is to come again after that time."""
        known = self._in_hand.pop(key, False)
        if retry_ms is None:
            self._handled[key] = None
            if len(self._handled) > _MAX_HANDLED:
                del self._handled[next(iter(self._handled))]
        if known and self._phase is not Phase.AWAY:
            self._acknowledge(key, retry_ms)
        # else it comes again on the next connection, and is acknowledged or handed out then

    def working(self, key: Key) -> None:
        """The handler of an event is still at it: have the bridge wait for it anew. Not said while it is away."""
        if self._in_hand.get(key) and self.serving:
            params = {"subscription": self._subscription, "seq": key[0], "working": True}
            self._ask(_Call("events.ack", params, _ignore))

    def abandon(self, error: AgentError) -> None:
        """It is over: every call that still waits fails, and every later one."""
        for call in self._parked:
            if call.waiter is not None:
                call.waiter.set_exception(error)
        self._parked.clear()
        self._over = error

    # what the driver carries away

    @property
    def serving(self) -> bool:
        """Whether the bridge knows us and calls go through."""
        return self._phase is Phase.SERVING

    @property
    def due(self) -> Optional[float]:
        """When `tick` has something to do, by the clock; None for never."""
        return min((due for due, _ in self._later), default=None)

    @property
    def quiet(self) -> bool:
        """Whether the bridge has confirmed everything, or is away and cannot, and no call of its is under way.

        A stream that the author left open keeps nobody from going.
        """
        asked = any(not isinstance(call.waiter, Streaming) for call in self._asked.values())
        return not (asked or self._later or self.callbacks.running)

    def take_bytes(self, *, room: bool = True) -> bytes:
        """What is to be sent now. Without `room` for more than must be, progress waits for a newer one."""
        if room:
            self.callbacks.tell_progress()
        data = bytes(self._out)
        self._out.clear()
        return data

    def take_events(self) -> list[dict[str, Any]]:
        """Events to handle: the parameters of the notification, `seq` and `subscription` among them."""
        events, self._events = self._events, []
        return events

    # the greeting

    def _take_secrets(self, via: str) -> None:
        self._ask(_Call("secrets.take", {"via": via}, partial(self._secrets_answered, via)))

    def _secrets_answered(self, via: str, result: Any, error: Optional[AgentError]) -> None:
        descriptor_lost = error is None and via == "fd" and not self._fds
        if error is None and not descriptor_lost:
            try:
                self.secrets = Secrets(self._payload(via, result))
            except (KeyError, TypeError, ValueError, AttributeError, OSError):
                # "from None": what went wrong may carry a part of them
                raise AgentError(-32603, "internal", "secrets.take: the answer has no secrets in it") from None
        elif error is not None and error.code == _SECRETS_TAKEN:
            self.say("the secrets of this start were taken before; going on without them")
            self.secrets = Secrets()
        elif via == "fd":
            self._take_secrets("inline")
            return
        elif error is not None:
            raise error
        self._say_ready()

    def _payload(self, via: str, result: Any) -> bytes:
        if via == "inline":
            payload: bytes = result["secrets"].encode("ascii")
            return payload
        fd = self._fds.pop(0)
        try:
            return read_secrets(fd, result["size"])
        finally:
            os.close(fd)

    def _say_ready(self) -> None:
        assert self.secrets is not None
        params = {"protocol": PROTOCOL, "library": __version__, "fingerprint": self.secrets.fingerprint}
        self._ask(_Call("agent.ready", params, self._ready_answered))

    def _ready_answered(self, result: Any, error: Optional[AgentError]) -> None:
        if error is not None:
            raise error
        if self._subscribe:
            self._ask(self._subscribing())
        else:
            self._open()

    def _subscribing(self) -> _Call:
        params = {"name": "main", "filter": {}, "from": "now"}  # "now" is for the first time; later it goes on
        return _Call("events.subscribe", params, self._subscribed)

    def _subscribed(self, result: Any, error: Optional[AgentError]) -> None:
        if error is not None:
            raise error
        self._subscription = result.get("subscription") if isinstance(result, dict) else None
        self._open()

    def _open(self) -> None:
        self._phase = Phase.SERVING
        parked, self._parked = self._parked, []
        for call in parked:
            self._ask(call)

    # the wire

    def _ask(self, call: _Call) -> None:
        try:
            number, data = self._core.request(call.method, call.params)
            if b"\\ud" in data:  # half of a surrogate pair is no text, and the bridge would not even know whose it is
                encode(call.params)
        except (TypeError, ValueError) as wrong:
            call.then(None, not_json(call.method, wrong))
            return
        if len(data) > MAX_FRAME:
            call.then(None, too_large(call.method, len(data), MAX_FRAME))
            return
        self._asked[number] = call
        call.number = number
        if isinstance(call.waiter, Streaming):
            call.waiter.number = number
        self._out += data

    def _take(self, message: Event) -> None:
        if isinstance(message, Response):
            self._answered(message)
        elif isinstance(message, Request):
            self._serve(message)
        elif isinstance(message, Send):
            self._out += message.data
            if message.fatal:
                raise ConnectionAbortedError("the bridge does not speak JSON-RPC")
        elif not isinstance(message, Notification):
            pass  # a pause, for those who serve others
        elif message.method == "event":
            self._event(message.params)
        elif message.method.startswith("$/"):
            if isinstance(message.params, dict):
                self._streamed(message.method, message.params)
        elif message.method == "events.closed":
            self._unsubscribed(message.params)
        elif message.method == "agent.shutdown":
            self.stop()

    def _answered(self, response: Response) -> None:
        call = self._asked.pop(response.id, None)
        if call is None:
            if response.id is None:
                self.say(f"the bridge complains: {AgentError.from_reply(response.error)}")
            return
        error = None if response.error is None else AgentError.from_reply(response.error)
        if error is not None and _again(call, error):
            self._later.append((self._clock() + (error.retry_after or TICK), call))
        else:
            call.then(response.result, error)

    def _serve(self, request: Request) -> None:
        if request.method == "agent.ping":
            self._out += self._core.result(request, {"pong": True})
        elif request.method == "agent.shutdown":
            self.stop()
            self._out += self._core.result(request, {})
        elif request.method == "agent.call":
            self.callbacks.asked(request)
        else:
            refusal = {"code": -32601, "message": f"an agent has no method {request.method}"}
            self._out += self._core.error(request, refusal)

    def _streamed(self, method: str, params: dict[str, Any]) -> None:
        """A notification about a call; what is known of none is left alone, as the call may just have ended."""
        if method not in _TO_CALLER:
            self.callbacks.heard(method, params)
            return
        number = params.get("id")
        call = self._asked.get(number) if type(number) is int else None
        stream = None if call is None else call.waiter
        if isinstance(stream, Streaming):
            try:
                stream.heard(method, params)
            except FlowError as wrong:
                stream.set_exception(broken_stream(stream.method, wrong))
                self.forget(stream)

    def _event(self, wire: Any) -> None:
        if not (isinstance(wire, dict) and type(wire.get("seq")) is int):
            return
        key = wire["seq"], str(wire.get("id", ""))
        self._subscription = wire.get("subscription", self._subscription)
        if key in self._handled:
            self._acknowledge(key, None)
        elif key in self._in_hand:
            self._in_hand[key] = True
        else:
            self._in_hand[key] = True
            self._events.append(wire)

    def _unsubscribed(self, params: Any) -> None:
        """Somebody else subscribed under our name, or the bridge had another reason: never stay deaf."""
        if isinstance(params, dict) and params.get("subscription") == self._subscription:
            self.say(f"the bridge closed the subscription: {params.get('reason')}; subscribing again")
            self._in_hand = dict.fromkeys(self._in_hand, False)
            self._later.append((self._clock() + TICK, self._subscribing()))

    def _acknowledge(self, key: Key, retry_ms: Optional[int]) -> None:
        params = {"subscription": self._subscription, "seq": key[0]}
        if retry_ms is not None:
            params["nack_ms"] = retry_ms
        self._ask(_Call("events.ack", params, partial(self._acknowledged, key, retry_ms is None)))

    def _acknowledged(self, key: Key, settled: bool, result: Any, error: Optional[AgentError]) -> None:
        if settled:  # not by the answer to an earlier wish to have it again, behind which it may come once more
            self._handled.pop(key, None)
        if error is not None:
            self.say(f"events.ack of {key[0]}: {error}")


def _settle(waiter: Waiter, result: Any, error: Optional[AgentError]) -> None:
    if error is None:
        waiter.set_result(result)
    else:
        waiter.set_exception(error)


def _again(call: _Call, error: AgentError) -> bool:
    """Whether to ask again: what is ours and no handler's must get through, and what may be sent twice can wait."""
    if call.waiter is None:
        return error.retryable and call.then is not _ignore
    return call.resend and error.name == "rate_limited"


def _ignore(result: Any, error: Optional[AgentError]) -> None:
    """For an answer that came too late for whoever asked, or that nobody waits for."""
