"""What goes to stdout: JSON for programs, columns for people.

Much of what is shown was written by agents and by servers of others: a terminal gets no control characters of theirs.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import click


class Unwritable(Exception):  # noqa: N818 - it is stdout that is
    """stdout takes no more: its reader has gone, or its disk is full."""

    def __init__(self, error: OSError) -> None:
        super().__init__(error.strerror)
        self.errno, self.strerror = error.errno, error.strerror


def text(text: str, *, end: str = "\n") -> None:
    """As it is, and at once. Raises Unwritable."""
    try:
        click.echo(text + end, nl=False, color=True)  # it would take away what looks like colour
    except OSError as error:
        raise Unwritable(error) from None


def as_json(value: Any) -> None:
    """One line, in ASCII."""
    text(json.dumps(value, separators=(",", ":")))


def line(words: str) -> None:
    """One line for people."""
    text(plain(words))


def raw(words: str) -> None:
    """What somebody else printed: as it is for a program, without control characters for a terminal."""
    if sys.stdout.isatty():
        words = "".join(each if each.isprintable() or each in "\n\t" else "�" for each in words)
    text(words, end="")


def plain(words: str) -> str:
    """The words without what a terminal might take for a command."""
    return words if words.isprintable() else "".join(each if each.isprintable() else "�" for each in words)


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Columns below their heads; None is shown as nothing."""
    texts = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    if sys.stdout.isatty():
        _rich_table(heads, texts)
        return
    widths = [max(len(row[column]) for row in [heads, *texts]) for column in range(len(heads))]
    for row in [heads, *texts]:
        text("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _rich_table(heads: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console  # only now: who reads a pipe would wait for it in vain
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        shown.add_column(head, overflow="fold")
    for row in rows:
        shown.add_row(*map(Text, row))
    Console(highlight=False).print(shown)


def seconds(at: float | None) -> str:
    """Local time of day and date, from seconds since the epoch; "" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""


def size(count: float | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
