"""Where log lines go: structlog where the program has set it up, else the standard library's logging.

A library must not write to its program's stdout, which structlog does as long as nobody configures it.
"""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

import structlog


def plain_values(logger: object, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """For structlog: no value, which may be a stranger's word, makes a line of its own or speaks to the terminal.

    A `trace` keeps its lines, indented.
    """
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            lines = value.splitlines() if key == "trace" else [value]
            event[key] = "\n    ".join(_printable(line) for line in lines)
    return event


def _printable(text: str) -> str:
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


_PROCESSORS = (
    structlog.stdlib.filter_by_level,
    plain_values,
    structlog.processors.KeyValueRenderer(key_order=["event"], repr_native_str=False),
)


class Logger:
    """Takes `log.info("what happened", key=value)` and so on, at every level."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._plain = structlog.wrap_logger(
            logging.getLogger(name), processors=_PROCESSORS, wrapper_class=structlog.stdlib.BoundLogger
        )

    def __getattr__(self, level: str) -> Any:
        # asked at each line: a program may set structlog up at any time, and a test for a while
        return getattr(structlog.get_logger(self._name) if structlog.is_configured() else self._plain, level)


def get_logger(name: str) -> Logger:
    """The logger of a module: `log = get_logger(__name__)`."""
    return Logger(name)
