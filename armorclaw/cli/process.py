"""What only a program of our own may do to its process; embedding the bridge never does any of it."""

from __future__ import annotations

import ctypes
import logging
import os
import resource
import socket
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from armorclaw.log import get_logger, plain_values

DESCRIPTORS = 65_536
"""More than the bridge can come to hold."""

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def harden() -> None:
    """Before the first secret: no core files, no reading of our memory by others of our user, private files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    os.umask(0o077)


def allow_connections() -> None:
    """As many descriptors as one may have: of the usual 1,024, connections alone may take all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def set_up_logging(level: int = logging.INFO) -> None:
    """Log to stderr: for people on a terminal, as JSON lines elsewhere."""
    terminal = sys.stderr.isatty()
    renderer: Any = structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _in_order,
            plain_values if terminal else structlog.processors.dict_tracebacks,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    # mautrix and httpx speak the standard library's logging: their warnings only, never their URLs
    logging.basicConfig(level=logging.ERROR, stream=sys.stderr)


def _in_order(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """What happened first, for eyes that read the JSON."""
    return {key: event.pop(key) for key in ("timestamp", "level", "event") if key in event} | dict(event)


def notify(state: str) -> None:
    """Tell systemd, if it asked to be told (sd_notify(3)): one datagram to $NOTIFY_SOCKET."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        try:
            out.sendto(state.encode(), address)
        except OSError as error:
            get_logger(__name__).warning("systemd does not listen", why=error.strerror)
