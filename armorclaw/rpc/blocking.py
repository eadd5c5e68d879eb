"""Calls to a bridge, blocking, with the standard library alone: for the command line, where start-up is felt."""

from __future__ import annotations

import json
import os
import socket
import struct
import time
from collections import deque
from collections.abc import Generator
from types import TracebackType
from typing import Any, NoReturn, Self

MAX_REPLY = 64 * 1024 * 1024
"""Bytes of one message of the bridge."""

CANCEL_SECONDS = 0.2
"""What may be spent on telling the bridge that a stream is not wanted any more; it learns it from the end, too."""

Message = dict[str, Any]


def call(path: str | os.PathLike[str], method: str, params: Any = None, *, timeout: float = 5.0) -> Any:
    """Call `method` of the bridge at the Unix socket `path`; its result. See `Connection` for what it raises."""
    with Connection(path, timeout=timeout) as bridge:
        return bridge.call(method, params)


class Connection:
    """A connection to the bridge at the Unix socket `path`; close it, or use it in a `with` block.

    Raises ArmorclawError: `daemon_unreachable` when nothing listens there; `socket_denied` when this user may not
    connect; `timed_out` when a whole answer takes longer than `timeout` seconds; `unavailable` when the bridge ends
    in the middle; and what the bridge answers.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 5.0) -> None:
        self._timeout = timeout
        self._last_id = 0
        self._uploaded = 0  # pieces, to the last call
        self._received = bytearray()
        self._scanned = 0  # no newline among the first so many bytes
        self._notifications: deque[Message] = deque()  # came while an answer was awaited
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # a socket that blocks waits in the kernel's queue; others are refused at once while many want to connect
        patience = struct.pack("ll", *divmod(max(1, int(timeout * 1e6)), 1_000_000))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, patience)
        name = os.fspath(path)
        try:
            self._socket.connect(name)
            self._socket.settimeout(timeout)
        except OSError as error:
            self._socket.close()
            _unreachable(name, error)

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def call(self, method: str, params: Any = None) -> Any:
        """One call, within the time of the connection; its result."""
        until = time.monotonic() + self._timeout
        self._request(method, params)
        while "method" in (message := self._next(method, until)):
            self._notifications.append(message)
        return _result(message)

    def stream(
        self, method: str, params: Any = None, *, patience: float | None = None
    ) -> Generator[Message, None, None]:
        """A call of any kind: yields its `$/chunk` and `$/progress` as they come, and last its reply, with `result`.

        Credit is granted as chunks are taken, so the bridge is never more than a window ahead. `patience` is how many
        seconds may pass until the first message, by default without end. Closed early, as by Ctrl-C, it cancels the
        call: take it in a `with closing(…)`.
        """
        from armorclaw.rpc.flow import FlowError, Inflow  # only now: a plain call needs no accounts

        number = self._request(method, params)
        flow = Inflow()
        until = None if patience is None else time.monotonic() + patience
        answered = False
        try:
            while "method" in (message := self._next(method, until, patience)):
                until = None
                about = message.get("params")
                if not isinstance(about, dict) or about.get("id") != number:
                    self._notifications.append(message)
                    continue
                if message["method"] == "$/chunk":
                    try:
                        flow.received(about.get("seq"))
                    except FlowError as error:
                        _fail("remote_failed", f"{method} broke the rules of a stream", str(error))
                yield message
                if message["method"] == "$/chunk" and (granted := flow.consumed()):
                    self._notify("$/credit", {"id": number, "chunks": granted})
            answered = True
        finally:
            if not answered and self._socket.fileno() >= 0:
                self._socket.settimeout(CANCEL_SECONDS)
                self._notify("$/cancelRequest", {"id": number})
        _result(message)
        yield message

    def upload(self, piece: Any) -> None:
        """A piece of the upload of the call whose `stream` is being read. For a few: credit is not waited for."""
        self._notify("$/upload", {"id": self._last_id, "seq": self._uploaded, "data": piece})
        self._uploaded += 1

    def notification(self) -> Message:
        """The next notification of a subscription, waiting for it without end."""
        while not self._notifications:
            message = self._next("the subscription", None)
            if "method" in message:
                return message
        return self._notifications.popleft()

    def _request(self, method: str, params: Any) -> int:
        self._last_id += 1
        self._uploaded = 0
        request: Message = {"jsonrpc": "2.0", "id": self._last_id, "method": method}
        if params is not None:
            request["params"] = params
        self._socket.settimeout(self._timeout)
        try:
            self._send(request)
        except TimeoutError:
            _fail("timed_out", f"{method} could not be sent within {self._timeout:g} s")
        return self._last_id

    def _notify(self, method: str, params: Any) -> None:
        try:
            self._send({"jsonrpc": "2.0", "method": method, "params": params})
        except TimeoutError:
            pass  # the bridge does not read; that it does not answer either is noticed where an answer is awaited

    def _send(self, message: Message) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode("ascii") + b"\n")
        except TimeoutError:
            raise
        except OSError:
            pass  # the bridge has closed: it may have said why, and that is still to be read

    def _next(self, method: str, until: float | None, within: float | None = None) -> Message:
        """The next message: a bridge ends each with a newline."""
        within = self._timeout if within is None else within
        while (end := self._received.find(b"\n", self._scanned)) < 0:
            self._scanned = len(self._received)
            try:
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError
                self._socket.settimeout(left)
                data = self._socket.recv(256 * 1024)
            except TimeoutError:
                _fail("timed_out", f"{method} was not answered within {within:g} s")
            except OSError:
                data = b""
            if not data or len(self._received) > MAX_REPLY:
                _fail("unavailable", f"{method} got no whole answer", "the bridge closed the connection")
            self._received += data
        line = bytes(memoryview(self._received)[:end])
        del self._received[: end + 1]
        self._scanned = 0
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            _fail("unavailable", f"{method} got no answer", "what listens there is no bridge")
        return message


def _result(reply: Message) -> Any:
    error = reply.get("error")
    if error is not None:
        from armorclaw.rpc.failure import error_from_wire  # only now: it takes imports

        raise error_from_wire(error if isinstance(error, dict) else {}, cut=False)
    return reply.get("result")


def _unreachable(path: str, error: OSError) -> NoReturn:
    if isinstance(error, PermissionError):
        from armorclaw.rpc.denied import why_denied  # only now: it takes imports

        _fail("socket_denied", f"cannot connect to {path}", *why_denied(path))
    if isinstance(error, TimeoutError | BlockingIOError):
        _fail("timed_out", f"the bridge at {path} accepts no connection", "it is too busy")
    if isinstance(error, FileNotFoundError):
        _fail("daemon_unreachable", f"no bridge listens at {path}", "there is no such socket")
    if isinstance(error, ConnectionRefusedError):
        _fail("daemon_unreachable", f"no bridge listens at {path}", "the socket is left from one that has ended")
    why = error.strerror or str(error)
    _fail("path_too_long" if "too long" in why else "daemon_unreachable", f"cannot connect to {path}", why)


def _fail(name: str, what: str, why: str = "", hint: str = "") -> NoReturn:
    from armorclaw.errors import ArmorclawError  # only now: the table of errors takes imports

    raise ArmorclawError(name, what, why=why, hint=hint) from None
