"""Streams: what goes over the wire beside requests and answers, and a streaming call of ours to the bridge.

Accounting alone, as in the session that keeps it: no socket, no thread, no event loop. (docs/protocol.md, "Streams")
"""

from __future__ import annotations

import binascii
import json
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Optional

from armorclaw.agent.errors import AgentError, chunk_not_json, chunk_too_large, stream_closed
from armorclaw.rpc.flow import CHUNK_MAX, FlowError, Inflow, Outflow
from armorclaw.rpc.jsoncodec import JsonCodec

_CODEC = JsonCodec()


OnProgress = Callable[[float, Optional[float], str], object]
"""Called with what is done, of how much (None: nobody knows), and a word for a person."""


class Progress(NamedTuple):
    """How far a call is."""

    done: float
    total: Optional[float]
    message: str

    def params(self) -> dict[str, Any]:
        """As on the wire; what is not given is left out."""
        params: dict[str, Any] = {"done": self.done}
        if self.total is not None:
            params["total"] = self.total
        if self.message:
            params["message"] = self.message
        return params

    @classmethod
    def from_params(cls, params: dict[str, Any]) -> Progress:
        total = params.get("total")
        return cls(_number(params.get("done")) or 0, _number(total), str(params.get("message") or ""))


def piece(value: Any) -> bytes:
    """The JSON text of a chunk; of bytes, their base64. Raises AgentError: too_large, invalid_params."""
    if isinstance(value, (bytes, bytearray, memoryview)):
        value = binascii.b2a_base64(value, newline=False).decode("ascii")
    try:
        text = encode(value)
    except (TypeError, ValueError, RecursionError) as wrong:
        raise chunk_not_json(wrong) from None
    if len(text) > CHUNK_MAX + 2:  # the quotation marks of a text
        raise chunk_too_large()
    return text


def encode(value: Any) -> bytes:
    """JSON text. Raises ValueError or TypeError, for half of a surrogate pair too, which is no text."""
    text = _CODEC.encode(value)
    if b"\\ud" in text:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    return text


def notification(method: str, number: Any, **members: Any) -> bytes:
    """A notification about a call, as bytes; members that are bytes are JSON text already."""
    parts = [b'"id":' + _CODEC.encode(number)]
    for name, value in members.items():
        parts.append(b'"%s":' % name.encode() + (value if isinstance(value, bytes) else _CODEC.encode(value)))
    return b'{"jsonrpc":"2.0","method":"%s","params":{%s}}\n' % (method.encode(), b",".join(parts))


class Streaming:
    """A streaming call of ours: what came and was not taken yet, at most a window of it, and what may be sent.

    It is the waiter for its own answer: `over` then, with `result` or `error`.
    """

    def __init__(self, method: str) -> None:
        self.method = method
        self.number: Optional[int] = None
        """Its id, while it is on the wire."""
        self.chunks: deque[Any] = deque()
        self.progress: Optional[Progress] = None
        """The newest, until it is taken."""
        self.inflow = Inflow()
        self.outflow = Outflow()
        self.over = False
        self.result: Any = None
        self.error: Optional[AgentError] = None

    def set_result(self, result: Any) -> None:
        self.number, self.over, self.result = None, True, result

    def set_exception(self, error: AgentError) -> None:
        self.number, self.over, self.error = None, True, error

    def close(self) -> None:
        """Nobody wants more of it: it is over, unless it was, and whoever waits for it all the same is told so."""
        if not self.over:
            self.chunks.clear()
            self.progress = None
            self.set_exception(stream_closed(self.method))

    def heard(self, method: str, params: dict[str, Any]) -> None:
        """A notification about it. Raises FlowError when it breaks the rules."""
        if method == "$/chunk":
            if "data" not in params:
                raise FlowError("a piece has no data")
            self.inflow.received(params.get("seq"))
            self.chunks.append(params["data"])
        elif method == "$/uploadCredit":
            self.outflow.grant(params.get("chunks"))
        elif method == "$/progress":
            self.progress = Progress.from_params(params)

    @property
    def may_send(self) -> bool:
        """Whether a chunk may go out now."""
        return self.number is not None and self.outflow.credit > 0


def _number(value: Any) -> Optional[float]:
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
