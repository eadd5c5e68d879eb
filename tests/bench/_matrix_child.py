"""What the children of `matrix` share: lines of JSON in and out."""

from __future__ import annotations

import json
import os
import resource
import sys
from typing import Any


def settings() -> dict[str, Any]:
    """The first line of stdin. Read byte by byte, lest a buffer swallow orders behind it."""
    line = b""
    while not line.endswith(b"\n"):
        line += os.read(0, 1)
    found: dict[str, Any] = json.loads(line)
    return found


def say(**value: Any) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def cpu() -> float:
    """Seconds of processor time that this process has used."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
