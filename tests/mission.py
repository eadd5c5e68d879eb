"""What the project was asked for, requirement by requirement, and which tests show it.

`python -m tests.mission` writes docs/mission.md; a test fails when that page is stale. A test names what it shows by
`@pytest.mark.mission("P0.1")`.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "mission.md"

REQUIREMENTS: dict[str, dict[str, str]] = {
    "Client to bridge (JSON-RPC over a Unix socket)": {
        "C.status": "`status`: bridge status",
        "C.health": "`health`: health check",
        "C.start": "`start`: start a container",
        "C.stop": "`stop`: stop a container",
        "C.list_keys": "`list_keys`: list API keys",
        "C.get_key": "`get_key`: retrieve an API key",
        "C.store_key": "`store_key`: store an API key",
        "C.attach_config": "`attach_config`: attach a config file",
        "C.list_configs": "`list_configs`: list config files",
        "C.matrix.send": "`matrix.send`: send a Matrix message",
        "C.matrix.receive": "`matrix.receive`: receive Matrix events",
        "C.matrix.status": "`matrix.status`: Matrix status",
        "C.matrix.login": "`matrix.login`: log in to Matrix",
        "C.webrtc.start": "`webrtc.start`: start a voice session",
        "C.webrtc.end": "`webrtc.end`: end a voice session",
        "C.webrtc.ice_candidate": "`webrtc.ice_candidate`: submit an ICE candidate",
        "C.webrtc.list": "`webrtc.list`: list active sessions",
        "C.webrtc.get_audit_log": "`webrtc.get_audit_log`: the audit log of calls",
        "C.streaming": "streaming and notifications for real-time updates",
    },
    "Bridge and Matrix": {
        "M.login": "authenticate",
        "M.sync": "get events",
        "M.send": "send messages",
        "M.receive": "events from Matrix reach the agent's queue",
        "M.e2ee": "end-to-end encryption",
    },
    "Bridge and container": {
        "K.start": "create a container",
        "K.secrets": "inject secrets by file descriptor",
        "K.socket": "a socket per container",
        "K.verify": "the container verifies its secrets",
        "K.stop": "terminate a container",
        "K.status": "container status for clients",
    },
    "Voice (WebRTC)": {
        "V.session": "sessions, authorised by Matrix room",
        "V.negotiate": "SDP offer and answer, ICE candidates",
        "V.turn": "ephemeral TURN credentials",
        "V.audio": "an Opus audio stream",
        "V.end": "end a session",
    },
    "Budget and security": {
        "B.track": "track use of tokens and time",
        "B.policy": "enforce security rules",
        "B.audit": "audit logging",
        "B.ttl": "sessions expire",
    },
    "P0: container health monitoring": {
        "P0.1": "container processes are monitored",
        "P0.2": "dead and zombie containers are detected",
        "P0.3": "restart or alert on failure",
        "P0.4": "resource usage is tracked",
    },
    "P1: events are pushed": {
        "P1.1": "Matrix events are pushed to containers",
        "P1.2": "containers subscribe",
        "P1.3": "delivery is real-time",
        "P1.4": "containers notify the bridge of events",
        "P1.5": "errors in containers are reported",
        "P1.6": "status updates and callbacks",
    },
    "P2: budget alerts and signaling": {
        "P2.1": "budget alerts go to the admin room, with details",
        "P2.2": "alert thresholds are configurable",
        "P2.3": "the signaling server runs, with a WebSocket endpoint",
        "P2.4": "the signaling protocol is documented and tested with browsers",
    },
    "P3: delivery and streaming": {
        "P3.1": "messages are tracked by id",
        "P3.2": "delivery receipts",
        "P3.3": "retry on failure",
        "P3.4": "streaming methods, chunked responses",
        "P3.5": "progress callbacks",
    },
    "Security": {
        "S.1": "the Unix socket is 0600",
        "S.2": "containers are isolated and hardened",
        "S.3": "secrets in memory only",
        "S.4": "rate limiting per client",
        "S.5": "access control by sender and room",
        "S.6": "resource limits against denial of service",
        "S.7": "an audit trail for events",
    },
    "Performance": {
        "R.1": "an event reaches the agent in less than 50 ms",
        "R.2": "connections are pooled",
        "R.3": "repeated operations are cached",
        "R.4": "operations are batched",
    },
}

FIGURES = {
    "R.1": "`mission`: pushed, p99; `push`",
    "R.2": "`mission`: over a pool / over a new connection",
    "R.3": "`mission`: from the cache / asked for, hit rate",
    "R.4": "`mission`: commits shared / a commit for each, receipts gathered / apart",
}
"""What a test cannot judge on any machine: the benchmark that measures it, and its rows."""

KNOWN = {key for group in REQUIREMENTS.values() for key in group}


def shown() -> dict[str, list[str]]:
    """Requirement id → the tests that carry it, as `path::name`, in order."""
    found: dict[str, list[str]] = defaultdict(list)
    for file in sorted((ROOT / "tests").rglob("test_*.py")) + sorted((ROOT / "examples").rglob("test_*.py")):
        where = file.relative_to(ROOT).as_posix()
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                for key in _marks(node.decorator_list):
                    found[key].append(f"{where}::{node.name}")
            elif isinstance(node, ast.Assign) and any(getattr(t, "id", "") == "pytestmark" for t in node.targets):
                for key in _marks([node.value]):
                    found[key].append(where)
    return found


def _marks(nodes: list[ast.expr]) -> list[str]:
    text = " ".join(ast.unparse(node) for node in nodes)
    calls = re.findall(r"mark\.mission\(([^)]*)\)", text)
    return [key for call in calls for key in re.findall(r"'([^']+)'", call)]


def page() -> str:
    """docs/mission.md as it should be."""
    tests = shown()
    lines = [
        "# What was asked for, and what shows it",
        "",
        "Generated from the marks of the tests by `python -m tests.mission`; do not edit. The requirements are",
        "those of a gap analysis of an earlier bridge, each with an id. *Not yet* means that no test shows it.",
        "Figures are measured by `python -m tests.bench NAME`; see [performance](performance.md).",
    ]
    for title, group in REQUIREMENTS.items():
        lines += ["", f"## {title}", "", "| id | requirement | shown by |", "|---|---|---|"]
        for key, text in group.items():
            shows = [f"`{test}`" for test in tests.get(key, [])]
            if shows and key in FIGURES:
                shows.append(f"measured by {FIGURES[key]}")
            where = "<br>".join(shows) or "*not yet*"
            lines.append(f"| {key} | {text} | {where} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    if unknown := set(shown()) - KNOWN:
        sys.exit(f"no such requirement: {', '.join(sorted(unknown))}")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
