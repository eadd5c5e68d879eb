"""The command line: `armorclaw status`, cold, beside a bare interpreter that imports socket and json.

Each is a process of its own, started as a shell would start it; they take turns. The bridge is a real one. `status`
is asked as in the field, with a configuration file to find the socket in, and once more with `--socket`.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from armorclaw.testing.handles import BridgeProcess
from tests.bench import Figure

ROUNDS = 60
QUICK_ROUNDS = 20

# the console script that pip makes, without the interpreter's way to it
_SCRIPT = "import sys; from armorclaw.cli import main; sys.exit(main())"
_BARE = ["-I", "-S", "-c", "import socket, json"]


def _commands(bridge: BridgeProcess) -> dict[str, list[str]]:
    script = Path(sys.executable).with_name("armorclaw")
    armorclaw = [str(script)] if script.exists() else [sys.executable, "-c", _SCRIPT]
    return {
        "bare": [sys.executable, *_BARE],
        "config": [*armorclaw, "status", "--config", str(bridge.folder / "armorclaw.toml")],
        "socket": [*armorclaw, "status", "--socket", str(bridge.socket)],
        "click": [sys.executable, "-c", "import click"],
    }


def run(quick: bool) -> list[Figure]:
    """About 8 s when quick, 20 s otherwise."""
    took: dict[str, list[float]] = {}
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ARMORCLAW_")}
    with tempfile.TemporaryDirectory(prefix="ac", dir="/tmp") as folder:
        Path(folder).chmod(0o711)
        with BridgeProcess(Path(folder), {}) as bridge:
            commands = _commands(bridge)
            for number in range((QUICK_ROUNDS if quick else ROUNDS) + 1):
                for name, words in commands.items():
                    began = time.perf_counter()
                    subprocess.run(words, stdout=subprocess.DEVNULL, check=True, env=environ)
                    if number:  # the first writes what Python compiled
                        took.setdefault(name, []).append((time.perf_counter() - began) * 1000)
    middle = {name: statistics.median(times) for name, times in took.items()}
    return [
        Figure("python -I -S -c 'import socket, json', wall p50", middle["bare"], "ms"),
        Figure("import click, wall p50", middle["click"], "ms"),
        Figure("armorclaw status --socket, wall p50", middle["socket"], "ms"),
        Figure("armorclaw status --config, wall p50", middle["config"], "ms"),
        Figure("status --socket / bare, wall p50", middle["socket"] / middle["bare"], "x", 3.0),
        Figure("status --config / bare, wall p50", middle["config"] / middle["bare"], "x", 3.0),
    ]
