"""Memory of an idle daemon with one agent: with a Matrix session, without, and of its imports alone.

What counts is VmRSS of the daemon's process, shared libraries included. Synapse and the agent are processes of their
own, whose memory is not the bridge's.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from armorclaw.testing.handles import BridgeProcess, new_person
from tests.bench import Figure
from tests.bench._real import ROOT, daemon, homeserver, start_echo

SETTLE = 5.0
QUICK_SETTLE = 2.0
"""Seconds between the last start and the look: what the start itself needed is freed or not by then."""

RUN_IMPORTS = (
    "from armorclaw.cli.run import load_lean; load_lean(); import armorclaw.cli.daemon, armorclaw.config_layers"
)
SESSION_IMPORTS = RUN_IMPORTS + ", armorclaw.matrix.session"

_IMPORT = """\
{imports}
print([line for line in open("/proc/self/status") if line.startswith("VmRSS")][0])
"""


def run(quick: bool) -> list[Figure]:
    """About 15 s."""
    settle = QUICK_SETTLE if quick else SETTLE
    with daemon(None) as bridge:
        start_echo(bridge, [])
        alone = _settled(bridge, settle)
    with homeserver() as server, new_person(server, "person") as person, daemon(server) as bridge:
        start_echo(bridge, [person.create_room("memory", invite=[bridge.user_id])])
        with_matrix = _settled(bridge, settle)
    return [
        Figure("a bare interpreter", _imports("pass"), "MB"),
        Figure("imports alone, without Matrix", _imports(RUN_IMPORTS), "MB"),
        Figure("imports alone, with Matrix", _imports(SESSION_IMPORTS), "MB"),
        Figure("idle daemon, one agent, without Matrix", alone, "MB", 60.0),
        Figure("idle daemon, one agent, one Matrix session", with_matrix, "MB", 85.0),
    ]


def _settled(bridge: BridgeProcess, seconds: float) -> float:
    assert bridge.process is not None
    time.sleep(seconds)
    return _resident(Path(f"/proc/{bridge.process.pid}/status").read_text())


def _imports(imports: str) -> float:
    command = [sys.executable, "-c", _IMPORT.format(imports=imports)]
    return _resident(subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout)


def _resident(status: str) -> float:
    """Megabytes, of 1,000,000 bytes."""
    line = next(line for line in status.splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024 / 1e6
