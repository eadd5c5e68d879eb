"""What an agent says of itself: agent.status, .error, .event and .progress; and what it says without being asked to.

A handler that raises is reported by the library. That never waits and never raises: a report that does not get
through is in the log of the container all the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Optional

from armorclaw.agent.base import BaseAgent, say
from armorclaw.agent.errors import AgentError

PER_MINUTE = 10
"""Failures of handlers that are reported in a minute; the next report says how many were not."""

OFTEN = 5
"""Times an event comes again before its failure is an error, no longer a warning."""

MESSAGE_LIMIT = 4 * 1024  # bytes, as the bridge has it
TRACEBACK_LIMIT = 32 * 1024  # bytes, likewise
_HIDDEN = "[secret]"


class Unheeded:
    """Nobody waits for the answer."""

    def set_result(self, result: Any) -> None:
        pass

    def set_exception(self, error: AgentError) -> None:
        pass


class _Reports(BaseAgent):
    def __init__(self, socket: Optional[str] = None) -> None:
        super().__init__(socket)
        self._reported: deque[float] = deque(maxlen=PER_MINUTE)
        self._unreported = 0

    def _failed(self, event: Any, error: BaseException) -> None:
        super()._failed(event, error)
        self._report_failed(event, error)

    def _call_failed(self, method: str, error: BaseException) -> AgentError:
        if not isinstance(error, AgentError):
            self._report(f"the handler of the call {method} failed", "warning", error)
        return super()._call_failed(method, error)

    def _report_failed(self, event: Any, error: BaseException) -> None:
        """Report that an event could not be handled."""
        severity = "error" if getattr(event, "redelivered", 0) >= OFTEN else "warning"
        self._report(f"the handler of {event!r} failed: {in_one_line(error)}", severity, error)

    def _report(self, message: str, severity: str, error: BaseException) -> None:
        try:
            now = time.monotonic()
            if len(self._reported) == PER_MINUTE and now - self._reported[0] < 60:
                self._unreported += 1
                return
            self._reported.append(now)
            unreported, self._unreported = self._unreported, 0
            if unreported:
                message = f"{message} (and {unreported} more failures since the last report)"
            message = _beginning(message, MESSAGE_LIMIT)
            self.post("agent.error", self._error_params(message, severity, error))
        except Exception as wrong:  # noqa: BLE001 - to report is a courtesy: no handler must fail for it
            say(f"a failure could not be reported: {type(wrong).__name__}")

    def post(self, method: str, params: dict[str, Any]) -> None:
        """Send a call whose answer nobody waits for; left out while there is no bridge."""
        raise NotImplementedError

    def _error_params(self, message: str, severity: str, error: Optional[BaseException]) -> dict[str, Any]:
        """Those of agent.error, with the keys of this agent taken out: such texts often quote a URL or a header."""
        tokens = self._tokens()
        params = {"message": _without(tokens, message), "severity": severity}
        if error is not None:
            params["traceback"] = _end(_without(tokens, _traceback(error)), TRACEBACK_LIMIT)
        return params

    def _tokens(self) -> list[str]:
        try:
            return [secret.token for secret in self.secrets.values() if secret.token]
        except AgentError:
            return []


class Reporting(_Reports):
    """The reports of a blocking agent. All raise AgentError when the bridge refuses, as `call` does."""

    call: Callable[..., Any]

    def status(self, text: str) -> None:
        """Say in a few words what this agent is at; `armorclaw containers ls` shows it. "" for nothing to say."""
        self.call("agent.status", text=text)

    def error(self, message: str, *, severity: str = "error", error: Optional[BaseException] = None) -> None:
        """Say that something went wrong; `severity` is info, warning, error or critical, `error` gives the traceback.

        From the severity on that the bridge has for alerts, people are told. Tokens of this agent are taken out.
        """
        self.call("agent.error", **self._error_params(message, severity, error))

    def event(self, name: str, data: Any = None) -> None:
        """Tell operators of something, by a name of your own (a-z, 0-9, `.`, `_`, `-`) and any JSON up to 48 KiB."""
        self.call("agent.event", name=name, data=data)

    def progress(self, done: float, total: Optional[float] = None, message: str = "", *, task: str = "") -> None:
        """Say how far a task is. As often as you like: two a second are kept of each task, and always the last."""
        self.call("agent.progress", done=done, total=total, message=message, task=task)


class AsyncReporting(_Reports):
    """The same names, to be awaited."""

    call: Callable[..., Any]

    async def status(self, text: str) -> None:
        """As `Agent.status`."""
        await self.call("agent.status", text=text)

    async def error(self, message: str, *, severity: str = "error", error: Optional[BaseException] = None) -> None:
        """As `Agent.error`."""
        await self.call("agent.error", **self._error_params(message, severity, error))

    async def event(self, name: str, data: Any = None) -> None:
        """As `Agent.event`."""
        await self.call("agent.event", name=name, data=data)

    async def progress(
        self, done: float, total: Optional[float] = None, message: str = "", *, task: str = ""
    ) -> None:
        """As `Agent.progress`."""
        await self.call("agent.progress", done=done, total=total, message=message, task=task)


def in_one_line(error: BaseException) -> str:
    """The kind of an error and its first line."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _traceback(error: BaseException) -> str:
    import traceback  # as in base: most starts need none

    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def _without(tokens: Iterable[str], text: str) -> str:
    for token in tokens:
        text = text.replace(token, _HIDDEN)
    return text


def _beginning(text: str, limit: int) -> str:
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")


def _end(text: str, limit: int) -> str:
    """The last part of a text, where a traceback says what it came to."""
    return text.encode("utf-8", "replace")[-limit:].decode("utf-8", "ignore")
