"""armorclaw: run AI agents you need not trust, behind a bridge to Matrix.

The names below are what a program may rely on; each is loaded when it is first used. That keeps the command line
quick, and it must: inside a container this package is a copy with only `armorclaw.agent` and the JSON-RPC core in
it, on a Python that may be 3.9 and has no other package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from armorclaw._version import __version__

if TYPE_CHECKING:
    from armorclaw.agent import Agent, Message
    from armorclaw.bridge import Bridge, open_bridge
    from armorclaw.client import Client, connect
    from armorclaw.config import Config
    from armorclaw.errors import ArmorclawError
    from armorclaw.threaded import run_in_thread

__all__ = [
    "Agent",
    "ArmorclawError",
    "Bridge",
    "Client",
    "Config",
    "Message",
    "__version__",
    "connect",
    "open_bridge",
    "run_in_thread",
]

_HOMES = {
    "Agent": "agent",
    "ArmorclawError": "errors",
    "Bridge": "bridge",
    "Client": "client",
    "Config": "config",
    "Message": "agent",
    "connect": "client",
    "open_bridge": "bridge",
    "run_in_thread": "threaded",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value  # found once, it is an ordinary global from here on
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
