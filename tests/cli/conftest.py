"""A command line in this process, and a bridge that answers as told."""

from __future__ import annotations

import io
import json
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.cli.root import execute
from armorclaw.errors import ArmorclawError


@attrs.frozen
class Done:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run("keys", "add", stdin="…")`: one command line; nothing is a terminal."""

    def call(*words: str, stdin: str | bytes = "") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data)))
        status = execute(list(words))
        return Done(status, *capsys.readouterr())

    return call


@attrs.frozen
class Stream:
    """An answer in pieces; each a value of a chunk, or a whole notification."""

    pieces: list[Any]
    result: Any = None
    ends: bool = True


@attrs.define(slots=False)
class FakeBridge:
    """Answers what `answers` has for a method: a value, an error, a stream, or a function of the params."""

    path: str
    answers: dict[str, Any] = attrs.field(factory=dict)
    asked: list[tuple[str, Any]] = attrs.field(factory=list)
    events: list[dict[str, Any]] = attrs.field(factory=list)
    """Follow the answer to `events.subscribe` from a number."""

    def serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as lines:
            for line in lines:
                request = json.loads(line)
                self.asked.append((request["method"], request.get("params")))
                if "id" in request:
                    try:
                        for message in self.reply(request):
                            connection.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
                    except OSError:
                        return

    def reply(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        number, params = request["id"], request.get("params", {})
        answer = self.answers[request["method"]]
        if callable(answer):
            answer = answer(params)
        if isinstance(answer, ArmorclawError):
            yield {"id": number, "error": answer.payload()}
        elif isinstance(answer, Stream):
            for seq, piece in enumerate(answer.pieces):
                if isinstance(piece, dict) and "method" in piece:
                    yield {"method": piece["method"], "params": {"id": number, **piece["params"]}}
                else:
                    yield {"method": "$/chunk", "params": {"id": number, "seq": seq, "data": piece}}
            if answer.ends:
                yield {"id": number, "result": answer.result}
        else:
            yield {"id": number, "result": answer}
            if request["method"] == "events.subscribe" and params["from"] != "now":
                for event in self.events:
                    yield {"method": "event", "params": {"subscription": answer["subscription"], **event}}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeBridge]:
    """Client verbs find it."""
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder, socket.socket(socket.AF_UNIX) as listener:
        bridge = FakeBridge(str(Path(folder) / "s"))
        listener.bind(bridge.path)
        listener.listen()
        monkeypatch.setenv("ARMORCLAW_SOCKET", bridge.path)
        connections: list[socket.socket] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                connections.append(connection)
                threading.Thread(target=bridge.serve, args=(connection,), daemon=True).start()

        thread = threading.Thread(target=accept)
        thread.start()
        yield bridge
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
