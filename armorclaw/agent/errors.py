"""What the bridge refused, or what became of a call that never reached it."""

from __future__ import annotations

from typing import Any, Optional

_TEXT = 200  # characters of a reason that another program is told


class AgentError(Exception):
    """A call was answered with an error, or could not be answered.

    `name` and `code` are a row of the bridge's table of errors (docs/protocol.md), `message` says what failed,
    `hint` what to do about it, and `retryable` whether the same call may succeed later: after `retry_after` seconds,
    where the bridge says so. A handler of `on_call` that raises one answers its caller with just that.
    """

    def __init__(
        self,
        code: int,
        name: str,
        message: str,
        hint: str = "",
        retryable: bool = False,
        retry_after: Optional[float] = None,
    ) -> None:
        self.code = code
        self.name = name
        self.message = message
        self.hint = hint
        self.retryable = retryable
        self.retry_after = retry_after
        super().__init__(code, name, message, hint, retryable, retry_after)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    @classmethod
    def from_reply(cls, error: Any) -> AgentError:
        """From the `error` member of a reply; members that are missing or odd become empty."""
        error = error if isinstance(error, dict) else {}
        data = error.get("data")
        data = data if isinstance(data, dict) else {}
        code = error.get("code")
        after = data.get("retry_after")
        return cls(
            code if isinstance(code, int) else -32603,
            str(data.get("name", "")),
            str(error.get("message", "the bridge gave no reason")),
            str(data.get("hint", "")),
            data.get("retryable") is True,
            float(after) if isinstance(after, (int, float)) and 0 <= after < 86_400 else None,
        )

    def payload(self) -> dict[str, Any]:
        """The `error` member of an answer of ours."""
        data: dict[str, Any] = {"name": self.name, "hint": self.hint, "retryable": self.retryable}
        if self.retry_after is not None:
            data["retry_after"] = self.retry_after
        return {"code": self.code, "message": self.message, "data": data}


class CallCancelledError(AgentError):
    """Whoever made the call that a handler of `on_call` works on wants no answer any more."""

    def __init__(self, why: str = "its caller cancelled it") -> None:
        super().__init__(-32800, "cancelled", f"the call is over: {why}")


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


def chunk_too_large() -> AgentError:
    hint = "send it in several: bytes of 192 KiB, or JSON of 256 KiB each"
    return AgentError(-32006, "too_large", "a chunk of a stream is too large", hint)


def not_json(method: str, why: Exception) -> AgentError:
    return AgentError(-32602, "invalid_params", f"{method}: the parameters are no JSON: {why}")


def chunk_not_json(why: Exception) -> AgentError:
    return AgentError(-32602, "invalid_params", f"a chunk that is no JSON: {why}")


def broken_stream(method: str, why: Exception) -> AgentError:
    """The bridge broke the rules of a stream."""
    return AgentError(-32031, "remote_failed", f"{method}: the bridge broke off the stream: {why}")


def stream_closed(method: str) -> AgentError:
    """Whoever reads or sends on after they wanted no more of it."""
    return AgentError(-32800, "cancelled", f"{method}: the stream was closed", "use it within its block")


def no_such_call(name: str) -> AgentError:
    return AgentError(-32601, "method_not_found", f"this agent has no method {name[:_TEXT]!r}")


def wrong_call(why: str) -> AgentError:
    return AgentError(-32602, "invalid_params", why)


def call_id_in_use() -> AgentError:
    return AgentError(-32600, "invalid_request", "a call with this id is under way")


def too_many_calls(limit: int) -> AgentError:
    return AgentError(-32030, "queue_full", f"the agent is busy with {limit} calls", "try again in a moment", True)


def handler_failed(error: BaseException) -> AgentError:
    """What its caller is told of a handler that raised: the kind and the first line, not where."""
    lines = str(error).splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return AgentError(-32031, "remote_failed", text[:_TEXT])


def path_too_long(path: str, why: Optional[str] = None) -> AgentError:
    return AgentError(-32048, "path_too_long", f"{path}: {why or 'too long for a Unix socket'}")


def stopped() -> AgentError:
    return AgentError(-32002, "unavailable", "the agent is stopping")
