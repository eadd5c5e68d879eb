"""The real parts that benchmarks share: a Synapse of one's own, a daemon, an echo agent in a sandbox."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from armorclaw.testing.handles import READY_SECONDS, AgentHandle, BridgeProcess
from armorclaw.testing.homeserver import Homeserver

ROOT = Path(__file__).parents[2]
ECHO = ROOT / "examples" / "echo"
"""The example agent; what is measured is what is shown to people."""


@contextmanager
def folder() -> Iterator[Path]:
    """A folder with a short name, since sockets are made in it."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp", ignore_cleanup_errors=True) as name:
        path = Path(name)
        path.chmod(0o711)  # agents pass through to their own sockets, as uids of their own
        yield path


@contextmanager
def homeserver() -> Iterator[Homeserver]:
    """A Synapse that ends with the block."""
    with folder() as home, Homeserver(home / "synapse") as server:
        yield server


@contextmanager
def daemon(server: Homeserver | None) -> Iterator[BridgeProcess]:
    """`armorclaw run` with one Matrix account, or none without a `server`."""
    with folder() as home:
        bridge = BridgeProcess.for_homeserver(server, home) if server is not None else BridgeProcess(home, {})
        with bridge:
            yield bridge


def start_echo(bridge: BridgeProcess, rooms: list[str]) -> AgentHandle:
    """The example agent in bubblewrap, ready."""
    asked: dict[str, Any] = {"name": "echo", "runtime": "sandbox", "code": str(ECHO), "rooms": rooms}
    bridge.call("start", **asked)
    handle = AgentHandle("echo", bridge)
    handle.wait_ready(seconds=READY_SECONDS)
    return handle
