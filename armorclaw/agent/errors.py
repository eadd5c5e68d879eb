"""What the bridge refused, or what became of a call that never reached it."""

from __future__ import annotations

from typing import Any, Optional


class AgentError(Exception):
    """A call was answered with an error, or could not be answered.

    `name` and `code` are a row of the bridge's table of errors (docs/protocol.md), `message` says what failed,
    `hint` what to do about it, and `retryable` whether the same call may succeed later.
    """

    def __init__(self, code: int, name: str, message: str, hint: str = "", retryable: bool = False) -> None:
        self.code = code
        self.name = name
        self.message = message
        self.hint = hint
        self.retryable = retryable
        super().__init__(code, name, message, hint, retryable)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @classmethod
    def from_reply(cls, error: Any) -> AgentError:
        """From the `error` member of a reply; members that are missing or odd become empty."""
        error = error if isinstance(error, dict) else {}
        data = error.get("data")
        data = data if isinstance(data, dict) else {}
        code = error.get("code")
        return cls(
            code if isinstance(code, int) else -32603,
            str(data.get("name", "")),
            str(error.get("message", "the bridge gave no reason")),
            str(data.get("hint", "")),
            data.get("retryable") is True,
        )


def connection_lost(method: str) -> AgentError:
    """The bridge went away with a call on the wire: nobody knows whether it was carried out."""
    return AgentError(
        -32002, "unavailable", f"{method}: the connection ended before the answer", "try again in a moment", True
    )


def timed_out(method: str, seconds: float) -> AgentError:
    return AgentError(
        -32003, "timed_out", f"{method}: no answer within {seconds:g} s", "is the bridge running?", True
    )


def too_large(method: str, size: int, limit: int) -> AgentError:
    return AgentError(-32006, "too_large", f"{method}: {size} bytes, more than the {limit} a request may have")


def not_json(method: str, why: Exception) -> AgentError:
    return AgentError(-32602, "invalid_params", f"{method}: the parameters are no JSON: {why}")


def path_too_long(path: str, why: Optional[str] = None) -> AgentError:
    return AgentError(-32048, "path_too_long", f"{path}: {why or 'too long for a Unix socket'}")


def stopped() -> AgentError:
    return AgentError(-32002, "unavailable", "the agent is stopping")
