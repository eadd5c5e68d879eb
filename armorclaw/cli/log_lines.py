"""What agents printed, line by line: with the time before each, and errors in colour."""

from __future__ import annotations

import re
import sys
import time
from typing import Any

import click

from armorclaw.cli import show

_LINES = re.compile(r"[^\n]*\n|[^\n]+")
_NO_TIME = " " * len("2026-01-01T00:00:00.000")


class LogLines:
    """Shows the pieces of a log. `times`: each line begins with when it was written, in local time."""

    def __init__(self, *, times: bool) -> None:
        self._times = times
        self._colours = sys.stdout.isatty()
        self._line_of = ""  # the stream whose line is not at its end

    def show(self, piece: dict[str, Any]) -> None:
        """A piece may end within a line; another stream then begins a line of its own, if times are shown."""
        stream, words = piece["stream"], piece["text"]
        if stream == "bridge":
            if self._line_of and self._times:
                show.raw("\n")
                self._line_of = ""
            click.echo(f"armorclaw: {words}", nl=False, err=True)
            return
        if not self._times:
            self._write(stream, words)
            return
        at = _time(piece.get("at_ms"))
        if self._line_of not in ("", stream):
            show.raw("\n")
            self._line_of = ""
        for line in _LINES.findall(words):
            if not self._line_of:
                show.raw(f"{at} ")
            self._write(stream, line)
            self._line_of = "" if line.endswith("\n") else stream

    def _write(self, stream: str, words: str) -> None:
        if stream != "stderr" or not self._colours:
            show.raw(words)
            return
        body, end = (words[:-1], "\n") if words.endswith("\n") else (words, "")
        show.text("\x1b[31m", end="")
        show.raw(body)
        show.text("\x1b[0m" + end, end="")


def _time(at_ms: int | None) -> str:
    if at_ms is None:
        return _NO_TIME
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(at_ms / 1000)) + f".{at_ms % 1000:03d}"
