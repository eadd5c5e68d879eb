"""What the blocking and the asyncio agent have in common: handlers, names, secrets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any, Optional, TypeVar, overload

from armorclaw.agent.errors import AgentError, handler_failed
from armorclaw.agent.events import Receipt
from armorclaw.agent.secrets import Secret, Secrets
from armorclaw.agent.session import Session

Handler = TypeVar("Handler", bound=Callable[..., Any])

STOP_GRACE = 4.0  # seconds for handlers that run when we are asked to stop; the bridge allows 5
MAX_RETRY_MS = 60_000


class BaseAgent:
    """The handlers of an agent, and what the environment and the bridge told it."""

    def __init__(self, socket: Optional[str] = None) -> None:
        self._socket = socket
        self._handlers: dict[str, Callable[[Any], Any]] = {}
        self._answers: dict[str, Callable[[Any], Any]] = {}  # handlers of calls
        self._session: Optional[Session] = None

    @property
    def name(self) -> str:
        """What the bridge calls this agent."""
        return os.environ.get("ARMORCLAW_AGENT", "")

    @property
    def room(self) -> str:
        """The first room this agent is granted; empty when it is granted none."""
        return os.environ.get("ARMORCLAW_MATRIX_ROOM", "")

    @property
    def secrets(self) -> Secrets:
        """The keys given to this agent, by id. There once the agent runs; raises AgentError before."""
        if self._session is None or self._session.secrets is None:
            raise AgentError(-32002, "unavailable", "secrets come when the agent runs", "use them in a handler")
        return self._session.secrets

    def secret(self, key_id: str) -> Secret:
        """One key. Raises KeyError, naming those there are, when it was not given."""
        return self.secrets[key_id]

    @overload
    def on_message(self, handler: Handler, /) -> Handler: ...
    @overload
    def on_message(self, /, *, typing: bool = ...) -> Callable[[Handler], Handler]: ...
    def on_message(self, handler: Any = None, /, *, typing: bool = False) -> Any:
        """Decorator: call the function with each message of the rooms granted (`m.room.message`).

        Returning acknowledges the message; raising prints the traceback and has the message come again, later. With
        `@agent.on_message(typing=True)` people see that the agent is typing as long as its handler runs.
        """

        def register(handler: Handler) -> Handler:
            self.on_event("m.room.message")(while_typing(handler) if typing else handler)
            return handler

        return register if handler is None else register(handler)

    def on_event(self, event_type: str) -> Callable[[Handler], Handler]:
        """Decorator: call the function with each event of a type. What has no handler is acknowledged."""

        def register(handler: Handler) -> Handler:
            if event_type in self._handlers:
                raise ValueError(f"{event_type} has a handler already: {self._handlers[event_type]!r}")
            self._handlers[event_type] = handler
            return handler

        return register

    def on_delivery(self, handler: Handler) -> Handler:
        """Decorator: call the function with a `Receipt` whenever a message that this agent sent gets further.

        Also for those that it sent before its last restart, or the bridge's.
        """
        self.on_event("delivery")(of_receipts(handler))
        return handler

    def on_call(self, name: str) -> Callable[[Handler], Handler]:
        """Decorator: call the function when an operator calls this agent (`agent.call`) by that name.

        It gets a `Call`. What it returns is the result; raising answers with an error of one line and prints the
        traceback here, and raising an AgentError answers with just that. At most 8 calls are handled at once, beside
        the messages; one more is refused, `queue_full`.
        """

        def register(handler: Handler) -> Handler:
            if name in self._answers:
                raise ValueError(f"{name} has a handler already: {self._answers[name]!r}")
            self._answers[name] = handler
            return handler

        return register

    def _failed(self, event: Any, error: BaseException) -> None:
        """Tell whoever reads the log of the container why an event was not handled."""
        say(f"the handler of {event!r} failed; it will come again")
        _print(error)

    def _call_failed(self, method: str, error: BaseException) -> AgentError:
        """The answer to a call whose handler raised; who reads the log is told the rest."""
        if isinstance(error, AgentError):
            return error
        say(f"the handler of the call {method} failed")
        _print(error)
        return handler_failed(error)


def of_receipts(handler: Callable[[Receipt], Any]) -> Callable[[Any], Any]:
    """The handler of `delivery` events that calls it; not for one that somebody sent to a room by that name."""
    return lambda event: None if event.event_id else handler(Receipt.of(event))


def while_typing(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same handler, plain or `async def`, with people seeing that the agent is typing while it runs."""

    def handle(message: Any) -> Any:
        typing = message.typing()
        typing.start()
        try:
            result = handler(message)
        except BaseException:
            typing.stop()
            raise
        if hasattr(result, "__await__"):
            return typing.until(result)
        typing.stop()
        return result

    return handle


def retry_ms(redelivered: int) -> int:
    """Milliseconds until an event whose handler failed should come again: 1 s, doubled each time, at most 60 s."""
    return min(MAX_RETRY_MS, 1000 << min(redelivered, 10))


def call_params(params: dict[str, Any]) -> dict[str, Any]:
    """Params as they were given by name: a trailing underscore is dropped, as Python and we keep some names."""
    return {name[:-1] if name.endswith("_") else name: value for name, value in params.items()}


def _print(error: BaseException) -> None:
    import traceback  # it costs some milliseconds of every start, and mostly is not needed

    traceback.print_exception(type(error), error, error.__traceback__, file=sys.stderr)


def socket_from_environment() -> str:
    """The path of the bridge's socket, or a word to the user and exit status 3."""
    path = os.environ.get("ARMORCLAW_SOCKET")
    if path:
        return path
    print("armorclaw: ARMORCLAW_SOCKET is not set, so there is no bridge to talk to", file=sys.stderr)
    print("hint: a bridge starts agents; declare this one in its configuration, then: armorclaw run", file=sys.stderr)
    raise SystemExit(3)


def open_way_out() -> None:
    """The proxy of an agent that may go out. Others need not even load it."""
    if os.environ.get("ARMORCLAW_EGRESS_SOCKET"):
        from armorclaw.agent.egress import open_egress

        open_egress()


def say(text: str) -> None:
    """A line for whoever reads the log of the container."""
    print(f"armorclaw: {text}", file=sys.stderr, flush=True)
