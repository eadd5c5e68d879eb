"""One call to a bridge, blocking, with the standard library alone: for the command line, where start-up is felt."""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any, NoReturn

MAX_REPLY = 64 * 1024 * 1024
"""Bytes."""


def call(path: str | os.PathLike[str], method: str, params: Any = None, *, timeout: float = 5.0) -> Any:
    """Call `method` of the bridge at the Unix socket `path`; its result.

    Raises ArmorclawError: what the bridge answers; `daemon_unreachable` when nothing listens there; `socket_denied`
    when this user may not connect; `timed_out` when there is no whole answer after `timeout` seconds; `unavailable`
    when the bridge ends in the middle.
    """
    request: dict[str, Any] = {"jsonrpc": "2.0", "id": 1, "method": method}
    if params is not None:
        request["params"] = params
    name = os.fspath(path)
    until = time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(name)
        except OSError as error:
            _unreachable(name, error)
        try:
            sock.sendall(json.dumps(request).encode("ascii") + b"\n")
        except TimeoutError:
            _fail("timed_out", f"{method} could not be sent within {timeout:g} s")
        except OSError:
            pass  # the bridge may have said why
        while True:
            reply = json.loads(_line(sock, method, until, timeout))
            if "method" not in reply:
                break
    if reply.get("error") is not None:
        from armorclaw.rpc.failure import error_from_wire  # only now: it takes imports

        raise error_from_wire(reply["error"], cut=False)
    return reply["result"]


def _line(sock: socket.socket, method: str, until: float, timeout: float) -> bytes:
    """The next line; a bridge ends every message with a newline, and nothing follows the answer to a single call."""
    received = bytearray()
    while not received.endswith(b"\n"):
        left = until - time.monotonic()
        try:
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
            data = sock.recv(256 * 1024)
        except TimeoutError:
            _fail("timed_out", f"{method} was not answered within {timeout:g} s")
        except OSError:
            data = b""
        if not data or len(received) > MAX_REPLY:
            _fail("unavailable", f"{method} got no whole answer", "the bridge closed the connection")
        received += data
    return bytes(received)


def _unreachable(path: str, error: OSError) -> NoReturn:
    if isinstance(error, PermissionError):
        _fail("socket_denied", f"cannot connect to {path}", "this user may not open it")
    if isinstance(error, TimeoutError | BlockingIOError):
        _fail("timed_out", f"the bridge at {path} accepts no connection", "it is too busy")
    if isinstance(error, FileNotFoundError):
        _fail("daemon_unreachable", f"no bridge listens at {path}", "there is no such socket")
    if isinstance(error, ConnectionRefusedError):
        _fail("daemon_unreachable", f"no bridge listens at {path}", "the socket is left from one that has ended")
    why = error.strerror or str(error)
    _fail("path_too_long" if "too long" in why else "daemon_unreachable", f"cannot connect to {path}", why)


def _fail(name: str, what: str, why: str = "") -> NoReturn:
    from armorclaw.errors import ArmorclawError  # only now: the table of errors takes imports

    raise ArmorclawError(name, what, why=why) from None
