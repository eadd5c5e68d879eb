"""What a handler of `on_call` works with: who called, and what can be sent to them before the result."""

from __future__ import annotations

from typing import Any, Generic, Optional, Protocol, TypeVar

from armorclaw.agent.streams import Progress


class _AnyLine(Protocol):
    """To whoever called, for one call."""

    @property
    def cancelled(self) -> bool: ...
    def progress(self, progress: Progress) -> None: ...


class Line(_AnyLine, Protocol):
    def send(self, chunk: Any) -> None: ...


class AsyncLine(_AnyLine, Protocol):
    async def send(self, chunk: Any) -> None: ...


L = TypeVar("L", bound=_AnyLine)


class _AnyCall(Generic[L]):
    def __init__(self, method: str, params: Any, line: L) -> None:
        self.method = method
        """The name it was called by."""
        self.params = params
        """As they were sent: mostly an object of JSON; None when there are none."""
        self._line = line

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method}>"

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants the answer any more: look at it in a long computation that sends nothing."""
        return self._line.cancelled

    def progress(self, done: float, total: Optional[float] = None, message: str = "") -> None:
        """Tell the caller how far this is. Never waits: of what could not be sent yet, the newest counts.

        Raises CallCancelledError when nobody wants the answer any more.
        """
        self._line.progress(Progress(done, total, message))


class Call(_AnyCall[Line]):
    """A call that an operator makes to this agent. Handlers of a blocking `Agent` get these."""

    def send(self, chunk: Any) -> None:
        """Send a piece of the result, any JSON; bytes go as base64 text. Waits until the caller can take it.

        At most 256 KiB of JSON, or 192 KiB of bytes. Raises AgentError: too_large, invalid_params for what is no
        JSON, and CallCancelledError when nobody wants the answer any more.
        """
        self._line.send(chunk)


class AsyncCall(_AnyCall[AsyncLine]):
    """A call that an operator makes to this agent. Handlers of an `AsyncAgent` get these.

    When nobody wants the answer any more, the handler is cancelled.
    """

    async def send(self, chunk: Any) -> None:
        """As `Call.send`."""
        await self._line.send(chunk)
