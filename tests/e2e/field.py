"""A client as there are in the field, and what it calls: a daemon that is on Matrix, in a room with a person.

Those that are known open a connection for each call, read 4,096 bytes at a time, try to parse all they have after
each read, and give up when a read takes 5 seconds.
"""

from __future__ import annotations

import functools
import json
import select
import shutil
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any, ParamSpec

import attrs

from armorclaw.testing.handles import BridgeProcess, new_person, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person

P = ParamSpec("P")

IN_TIME = 5.0
"""Seconds within which every call is answered: by a bridge that has a processor to run on."""

ATTEMPTS = 3
"""Of these one must have all answers in time, as a machine that has much else to do makes any of them late."""

PATIENCE = 30.0
"""Seconds in which anything must have happened, on such a machine, too."""

Shape = Any
"""A type, a literal value, a set of shapes (one of them), [shape] for an array, {name: shape} for exactly these."""

OPTIONAL = "?"
"""Ends the name of a member that may be absent."""

KEY = {
    "id": str,
    "provider": str,
    "display_name": str,
    "created_at": int,
    "expires_at": int,
    "tags": ([str], None),
}

STARTED = {
    "container_id": str,
    "container_name": str,
    "status": str,
    "endpoint": str,
    "name": str,
    "ready": bool,
}

ATTACHED = {
    "config_id": str,
    "name": str,
    "path": str,
    "size": int,
    "type": str,
    "encoding": str,
    "metadata?": dict,
    "agent?": str,
}


class LateError(AssertionError):
    """An answer was as it should be, but too late."""


def in_time(test: Callable[P, None]) -> Callable[P, None]:
    """Makes a test that is tried anew, with another daemon, when an answer was late and nothing else was wrong."""

    @functools.wraps(test)
    def tried(*args: P.args, **kwargs: P.kwargs) -> None:
        for left in reversed(range(ATTEMPTS)):
            try:
                test(*args, **kwargs)
            except LateError:
                if not left:
                    raise
                for each in kwargs.values():
                    if isinstance(each, Field):
                        each.renew()
            else:
                return

    return tried


@attrs.define
class FieldClient:
    """Does as the Python client in the field does, and looks closer at what comes."""

    path: Path
    number: int = 0

    def answer(self, method: str, params: Any = None) -> dict[str, Any]:
        """The whole answer: one line of compact ASCII, and nothing after it. Raises LateError."""
        self.number += 1
        request: dict[str, Any] = {"jsonrpc": "2.0", "id": self.number, "method": method}
        if params is not None:
            request["params"] = params
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(PATIENCE)
            sock.connect(str(self.path))
            began = monotonic()
            sock.sendall(json.dumps(request).encode() + b"\n")
            got = b""
            while True:
                data = sock.recv(4096)
                assert data, f"{method}: closed without an answer"
                got += data
                try:
                    answer = json.loads(got)
                except json.JSONDecodeError:
                    continue
                break
            took = monotonic() - began
            unasked, _, _ = select.select([sock], [], [], 0.1)
            assert not unasked, f"{method}: more came than the answer"
        assert got.isascii()
        assert got == json.dumps(answer, separators=(",", ":")).encode() + b"\n", f"{method}: not compact"
        assert answer["jsonrpc"] == "2.0"
        assert answer["id"] == self.number
        assert isinstance(answer, dict)
        if took >= IN_TIME:
            raise LateError(f"{method} took {took:.1f} s")
        return answer

    def call(self, method: str, **params: Any) -> Any:
        """The result; there is no `error` member, not even null."""
        answer = self.answer(method, params or None)
        assert set(answer) == {"jsonrpc", "id", "result"}, answer
        return answer["result"]

    def refusal(self, method: str, **params: Any) -> dict[str, Any]:
        """The error; there is no `result` member."""
        return error_of(self.answer(method, params or None))


def error_of(answer: dict[str, Any]) -> dict[str, Any]:
    assert set(answer) == {"jsonrpc", "id", "error"}, answer
    error: dict[str, Any] = check(answer["error"], {"code": int, "message": str, "data": dict})
    assert {"name", "hint", "retryable"} <= set(error["data"])
    return error


def fits(value: Any, shape: Shape) -> bool:
    """Whether a value has a shape, member by member."""
    if isinstance(shape, set | tuple):
        return any(fits(value, each) for each in shape)
    if isinstance(shape, dict):
        if not isinstance(value, dict):
            return False
        wanted = {name.removesuffix(OPTIONAL): each for name, each in shape.items()}
        required = {name for name in shape if not name.endswith(OPTIONAL)}
        return required <= set(value) <= set(wanted) and all(fits(value[name], wanted[name]) for name in value)
    if isinstance(shape, list):
        return isinstance(value, list) and all(fits(each, shape[0]) for each in value)
    if isinstance(shape, type):
        return type(value) is shape
    return type(value) is type(shape) and bool(value == shape)


def check(value: Any, shape: Shape) -> Any:
    assert fits(value, shape), f"{value!r} is not {shape!r}"
    return value


class Field:
    """A daemon with a Matrix account and an agent `listener`, a person in a room with it, and the client."""

    def __init__(self, homeserver: Homeserver) -> None:
        self._homeserver = homeserver
        self.begin()

    bridge: BridgeProcess
    client: FieldClient
    person: Person
    room: str

    def begin(self) -> None:
        folder = Path(tempfile.mkdtemp(prefix="armorclaw-", dir="/tmp"))
        folder.chmod(0o711)
        self.bridge = BridgeProcess.for_homeserver(self._homeserver, folder)
        self.person = new_person(self._homeserver, "ann")
        self.room = self.person.create_room("a room", invite=[self.bridge.user_id])
        agent = {"command": ["sleep", "1000"], "runtime": "process", "rooms": [self.room]}
        self.bridge.config["agents"] = {"listener": agent}
        self.client = FieldClient(self.bridge.socket)
        try:
            self.bridge.start()
            wait_until(self._is_in_the_room, PATIENCE, "the bridge is in the room")
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        self.person.close()
        try:
            if self.bridge.process is not None:
                self.bridge.stop()
        finally:
            shutil.rmtree(self.bridge.folder, ignore_errors=True)

    def renew(self) -> None:
        """Another daemon, which knows of nothing."""
        self.end()
        self.begin()

    def listener(self) -> dict[str, Any]:
        """How the agent stands."""
        rows = self.bridge.call("containers.list")
        found: dict[str, Any] = next(row for row in rows if row["name"] == "listener")
        return found

    def _is_in_the_room(self) -> bool:
        return self.room not in self.bridge.call("status")["accounts"][0]["rooms_missing"]
