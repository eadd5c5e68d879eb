"""Matrix sessions, plain and encrypted, beside mautrix on asyncio with its SQLite stores: time, CPU, memory, the end.

Both are members of the same rooms, in which a third program sends; so each pair of times is of one message, from
before its sending until an agent of the bridge, or a handler of the other, has it. The bridge journals what it hears
and commits it, the other does neither. For the catch-up both are stopped, and started one after the other.
"""

from __future__ import annotations

import json
import queue
import secrets
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

from armorclaw.testing.handles import BridgeProcess, wait_until
from armorclaw.testing.homeserver import Homeserver
from tests.bench import Figure, percentile
from tests.bench._real import ROOT, daemon, folder, homeserver

MESSAGES, QUICK_MESSAGES = 300, 60
"""In each room, of those that count."""

WARM_UP = 20
PAUSE = 0.08
"""Seconds between two messages."""

MISSED, QUICK_MISSED = 1_000, 200
"""Encrypted messages that are caught up with."""

CANCELS, QUICK_CANCELS = 100, 20
IDLE_SESSIONS = 20
IDLE_SECONDS, QUICK_IDLE_SECONDS = 60.0, 30.0
"""Whole long polls, of 30 s each."""

SETTLE = 5.0
"""Seconds after the last device was signed: what sessions then hear of each other's is behind them."""

_PATIENCE = 180.0

Module = Literal["_matrix_ours", "_matrix_theirs"]


class Side:
    """A child that is one account, and what it has said."""

    def __init__(self, module: Module, server: Homeserver, user: tuple[str, str], home: Path, rooms: Sequence[str]):
        given = {"homeserver": server.url, "user": user[0], "password": user[1], "folder": str(home), "rooms": rooms}
        command = [sys.executable, "-m", f"tests.bench.{module}"]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        self.seen: dict[str, float] = {}
        self._said: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._complaints: list[bytes] = []
        self._readers = [threading.Thread(target=self._listen), threading.Thread(target=self._complain)]
        for reader in self._readers:
            reader.start()
        self._tell(given)
        self.began: float = self._answer("began")
        self._answer("ready")

    def order(self, do: str, wanted: str, **more: Any) -> Any:
        """Have it do something; what it answers."""
        self._tell({"do": do, **more})
        return self._answer(wanted)

    def until_seen(self, bodies: Sequence[str]) -> None:
        try:
            wait_until(lambda: all(body in self.seen for body in bodies), _PATIENCE, "all messages are heard")
        except BaseException:
            print(b"".join(self._complaints)[-3000:].decode(errors="replace"), file=sys.stderr)
            raise

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for reader in self._readers:
            reader.join()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()

    def _tell(self, value: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(value).encode() + b"\n")
        self.process.stdin.flush()

    def _answer(self, wanted: str) -> Any:
        try:
            said = self._said.get(timeout=_PATIENCE)
        except queue.Empty:
            print(b"".join(self._complaints)[-3000:].decode(errors="replace"), file=sys.stderr)
            raise
        return said[wanted]

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "body" in said:
                self.seen.setdefault(said["body"], said["at"])
            else:
                self._said.put(said)

    def _complain(self) -> None:
        assert self.process.stderr is not None
        self._complaints.extend(self.process.stderr)


def run(quick: bool) -> list[Figure]:
    """About 60 s when quick, 6 minutes otherwise."""
    with homeserver() as server:
        return [*_conversation(server, quick), *_sessions(server, quick)]


def _conversation(server: Homeserver, quick: bool) -> list[Figure]:
    count = QUICK_MESSAGES if quick else MESSAGES
    figures: list[Figure] = []
    with ExitStack() as stack:
        homes = [stack.enter_context(folder()) for _ in range(3)]
        users = [_register(server, name) for name in ("ours", "theirs", "sender")]
        sender = stack.enter_context(_side("_matrix_theirs", server, users[2], homes[2], []))
        invite = [user_id for user_id, _ in users[:2]]
        rooms = {
            kind: sender.order("room", "room", invite=invite, encrypted=kind == "encrypted")
            for kind in ("plain", "encrypted")
        }
        receivers: list[tuple[Module, Homeserver, tuple[str, str], Path, list[str]]] = [
            ("_matrix_ours", server, users[0], homes[0], list(rooms.values())),
            ("_matrix_theirs", server, users[1], homes[1], list(rooms.values())),
        ]
        with ExitStack() as running:
            ours, theirs = (running.enter_context(_side(*each)) for each in receivers)
            time.sleep(2)  # the other's joins are behind it, too
            for kind, room in rooms.items():
                figures += _beside(sender, ours, theirs, kind, room, count)
            took = sorted(ours.order("cancel", "cancelled", times=QUICK_CANCELS if quick else CANCELS, longest=0.4))
            figures.append(Figure("end of a session at any moment, p50", percentile(took, 0.5) * 1000, "ms"))
            figures.append(Figure("end of a session at any moment, p99", percentile(took, 0.99) * 1000, "ms", 50.0))
        missed = QUICK_MISSED if quick else MISSED
        ratios = []
        for turn in range(2):
            bodies = _send(sender, rooms["encrypted"], [f"missed {turn} {number}" for number in range(missed)], 0.0)
            seconds = {}
            for receiver in receivers if turn else receivers[::-1]:
                with _side(*receiver) as side:
                    side.until_seen(list(bodies))
                    seconds[receiver[0]] = max(side.seen[body] for body in bodies) - side.began
            ratios.append(seconds["_matrix_ours"] / seconds["_matrix_theirs"])
            figures.append(Figure(f"catch-up of {missed}, ours", seconds["_matrix_ours"], "s"))
            figures.append(Figure(f"catch-up of {missed}, mautrix", seconds["_matrix_theirs"], "s"))
        figures.append(Figure(f"catch-up of {missed} encrypted events", statistics.mean(ratios), "x", 1.3))
    return figures


def _beside(sender: Side, ours: Side, theirs: Side, kind: str, room: str, count: int) -> list[Figure]:
    _listening(sender, [ours, theirs], room, [f"{kind} warm-up {number}" for number in range(WARM_UP)])
    before = [side.order("cpu", "cpu") for side in (ours, theirs)]
    sent = _listening(sender, [ours, theirs], room, [f"{kind} {number}" for number in range(count)])
    cpu = [side.order("cpu", "cpu") - was for side, was in zip((ours, theirs), before, strict=True)]
    times = [[(side.seen[body] - at) * 1000 for body, at in sent.items()] for side in (ours, theirs)]
    figures = [
        Figure(f"{kind}: {name}, {what}", percentile(times[side], share), "ms")
        for what, share in (("p50", 0.5), ("p95", 0.95))
        for side, name in enumerate(("ours", "mautrix"))
    ]
    figures += [
        Figure(f"{kind}: end to end, {what}", percentile(times[0], share) / percentile(times[1], share), "x", 1.15)
        for what, share in (("p50", 0.5), ("p95", 0.95))
    ]
    figures += [
        Figure(f"{kind}: CPU of ours for each event", cpu[0] / count * 1000, "ms"),
        Figure(f"{kind}: CPU for each event", cpu[0] / cpu[1], "x", 1.5 if kind == "encrypted" else 2.6),
    ]
    return figures


def _listening(sender: Side, receivers: Sequence[Side], room: str, bodies: Sequence[str]) -> dict[str, float]:
    sent = _send(sender, room, bodies, PAUSE)
    for side in receivers:
        side.until_seen(list(sent))
    return sent


def _send(sender: Side, room: str, bodies: Sequence[str], pause: float) -> dict[str, float]:
    """When each was sent."""
    sent = {}
    for body in bodies:
        sent[body] = sender.order("send", "sent", room=room, body=body)
        time.sleep(pause)
    return sent


@contextmanager
def _side(
    module: Module, server: Homeserver, user: tuple[str, str], home: Path, rooms: Sequence[str]
) -> Iterator[Side]:
    side = Side(module, server, user, home, rooms)
    try:
        yield side
    finally:
        side.end()


def _sessions(server: Homeserver, quick: bool) -> list[Figure]:
    """Daemons: with one session that has encrypted, and with twenty that do nothing."""
    with daemon(server) as bridge, folder() as home:
        with _side("_matrix_theirs", server, _register(server, "sender"), home, []) as sender:
            room = sender.order("room", "room", invite=[bridge.user_id], encrypted=True)
            bridge.call("matrix.join", room=room)
            _send(sender, room, [f"message {number}" for number in range(20)], PAUSE)
            bridge.call("matrix.send", room_id=room, message="an answer")
            time.sleep(2)
        one = _resident(bridge)
    with _idle(server, 1) as bridge:
        few = _resident(bridge)
    with _idle(server, IDLE_SESSIONS) as bridge:
        before, began = _cpu(bridge), time.monotonic()
        time.sleep(QUICK_IDLE_SECONDS if quick else IDLE_SECONDS)
        share = (_cpu(bridge) - before) / (time.monotonic() - began) * 100
        many = _resident(bridge)
    return [
        Figure("daemon with one encrypted session", one, "MB", 85.0),
        Figure("each further idle session", (many - few) / (IDLE_SESSIONS - 1), "MB", 4.0),
        Figure(f"{IDLE_SESSIONS} idle sessions, of a core", share, "%", 2.0),
    ]


@contextmanager
def _idle(server: Homeserver, sessions: int) -> Iterator[BridgeProcess]:
    with folder() as home:
        accounts = {}
        for number in range(sessions):
            user_id, password = _register(server, "idle")
            file = home / f"password-{number}"
            file.write_text(password)
            accounts[f"idle{number}"] = {"homeserver": server.url, "user": user_id, "password_file": file}
        with BridgeProcess(home, {"accounts": accounts}) as bridge:

            def set_up() -> bool:
                accounts = bridge.call("status")["accounts"]
                return all(account["connected"] and account["signed"] for account in accounts)

            wait_until(set_up, 120, "all sessions are up, and their devices signed")
            time.sleep(SETTLE)
            yield bridge


def _register(server: Homeserver, name: str) -> tuple[str, str]:
    password = secrets.token_urlsafe(12)
    return server.register(f"{name}-{secrets.token_hex(4)}", password), password


def _resident(bridge: BridgeProcess) -> float:
    """Megabytes, of 1,000,000 bytes."""
    assert bridge.process is not None
    status = Path(f"/proc/{bridge.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS:")).split()[1]) * 1024 / 1e6


def _cpu(bridge: BridgeProcess) -> float:
    """Seconds of processor time used."""
    assert bridge.process is not None
    fields = Path(f"/proc/{bridge.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100
