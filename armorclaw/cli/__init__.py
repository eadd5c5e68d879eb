"""The command line: stdout is data, stderr is talk; exit statuses are those of the table in errors.py."""

from __future__ import annotations

import gc
import os
import sys
from typing import NoReturn


def main(arguments: list[str] | None = None) -> NoReturn:
    """The process: run the command line, and end with its status. What it does here is for start-up alone."""
    gc.disable()  # imports make much and drop nothing: looking through it all took a tenth of the time
    from armorclaw.cli.root import execute

    status = execute(sys.argv[1:] if arguments is None else arguments)
    if "trio" in sys.modules:
        sys.exit(status)
    # a verb that only asked leaves nothing behind, and the interpreter takes a fifth of the time to take itself apart
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
