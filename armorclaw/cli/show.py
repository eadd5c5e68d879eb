"""What goes to stdout: JSON for programs, columns for people.

Much of what is shown was written by agents and by servers of others: a terminal gets no control characters of theirs.
"""

from __future__ import annotations

import json
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

import click

WIDTH = 100
"""Columns that a table has, if it may be cut."""

_GAP = "  "
_NARROWEST = 8
_COLOURS = {
    **dict.fromkeys(("ready", "running", "yes", "delivered", "read"), "green"),
    **dict.fromkeys(("starting", "restarting", "stopping", "suspect", "stalled", "unknown"), "yellow"),
    **dict.fromkeys(("failed", "hung", "oom", "exited", "NO"), "red"),
    **dict.fromkeys(("stopped", "sleeping"), "dim"),
}


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


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]], *, gives: Sequence[str] = ()) -> None:
    """Columns below their heads; None is shown as nothing. The words in a column STATE or HOLDS have their colours.

    The columns `gives` are cut for all to fit into WIDTH, if need be.
    """
    texts = [["" if cell is None else plain(str(cell)) for cell in row] for row in rows]
    widths = [max(columns(row[column]) for row in [heads, *texts]) for column in range(len(heads))]
    if gives:
        _narrow(widths, [heads.index(head) for head in gives])
        texts = [[cut(cell, width) for cell, width in zip(row, widths, strict=True)] for row in texts]
    if sys.stdout.isatty():
        _rich_table(heads, texts)
        return
    for row in [heads, *texts]:
        padded = [cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True)]
        text(_GAP.join(padded).rstrip())


def columns(words: str) -> int:
    """How many columns of a terminal that takes: two for each wide character, none for what combines with another."""
    if words.isascii():
        return len(words)
    return sum(
        0 if unicodedata.category(each) in ("Mn", "Me") else 2 if unicodedata.east_asian_width(each) in "WF" else 1
        for each in words
    )


def _narrow(widths: list[int], giving: Sequence[int]) -> None:
    """Take from the widest of those that give, until all fit or nothing is left to give."""
    over = sum(widths) + len(_GAP) * (len(widths) - 1) - WIDTH
    while over > 0 and max(widths[column] for column in giving) > _NARROWEST:
        widths[max(giving, key=widths.__getitem__)] -= 1
        over -= 1


def cut(words: str, width: int) -> str:
    """The words, or as much of them as there is room for in so many columns."""
    if columns(words) <= width:
        return words
    end = taken = 0
    while (taken := taken + columns(words[end])) < width:
        end += 1
    return words[:end] + "…"


def count(number: int, what: str) -> str:
    """As in "1 event", "2 events"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _rich_table(heads: Sequence[str], rows: list[list[str]]) -> None:
    from rich.console import Console  # only now: who reads a pipe would wait for it in vain
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        shown.add_column(head, overflow="fold")
    for row in rows:
        styles = [
            _COLOURS.get(cell, "") if head in ("STATE", "HOLDS") else ""
            for head, cell in zip(heads, row, strict=True)
        ]
        shown.add_row(*map(Text, row, styles))
    Console(highlight=False).print(shown)


def seconds(at: float | None) -> str:
    """Local time of day and date, from seconds since the epoch; "" for none."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at)) if at else ""


def ago(at_ms: float | None) -> str:
    """How long ago that was; "" for never."""
    return span(max(time.time() - at_ms / 1000, 0)) if at_ms else ""


def span(seconds: float | None) -> str:
    """A length of time in one unit, as in 5s, 3m, 2h, 4d; "" for none."""
    if seconds is None:
        return ""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    for unit, length, most in (("s", 1, 120), ("m", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / length:.0f}{unit}"
    return f"{seconds / 86_400:.0f}d"


def size(count: float | None) -> str:
    """Bytes as people read them."""
    if count is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
