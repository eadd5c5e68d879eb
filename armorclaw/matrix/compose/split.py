"""Long texts in parts, each of which fits: cut where a reader would pause, blocks of code closed and opened again."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator

import attrs

_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)")
_JOINER = "\u200d"
_BACK = 64  # characters that a cut within a word is moved back at most, so as not to take a letter from its accents


@attrs.frozen
class Part:
    """A part of a text. `text` is that part as it is, so that all of them together are the whole.

    `opening` and `closing` go around it where a block of code was cut.
    """

    text: str
    opening: str = ""
    closing: str = ""

    @property
    def markdown(self) -> str:
        return f"{self.opening}{self.text}{self.closing}"


def split(text: str, measure: Callable[[Part], int], limit: int, *, longest: int | None = None) -> Iterator[Part]:
    """The parts in order, each of which measures `limit` at most; one for an empty text.

    `longest` is how many characters are tried at first, by default `limit`. Raises ValueError when not even one
    character fits.
    """
    start, fence = 0, ""
    while True:
        size = min(longest or limit, len(text) - start)
        while True:
            end = _cut(text, start, start + size)
            slice_ = text[start:end]
            after = _fence_after(slice_, fence)
            part = Part(slice_, f"{fence}\n" if fence else "", _close(slice_, after) if end < len(text) else "")
            measured = measure(part)
            if measured <= limit:
                break
            if end - start <= 1:
                raise ValueError("not even one character fits")
            size = max(min((end - start) * limit * 19 // (measured * 20), end - start - 1), 1)
        yield part
        if end == len(text):
            return
        start, fence = end, after


def _cut(text: str, start: int, end: int) -> int:
    """A good place to cut at or before `end`, and behind `start`."""
    if end >= len(text):
        return len(text)
    middle = start + (end - start) // 2
    for mark in ("\n\n", "\n", " "):
        place = text.rfind(mark, middle, end)
        if place >= 0:
            return place + len(mark)
    for place in range(end, max(start, end - _BACK), -1):
        if not _belongs(text[place - 1], text[place]):
            return place
    return end


def _belongs(before: str, char: str) -> bool:
    """Whether a character is one with that before it, to a reader."""
    joined = _JOINER in (before, char) or "\U0001f3fb" <= char <= "\U0001f3ff"  # families, the colour of a skin
    return joined or unicodedata.category(char) in ("Mn", "Me", "Mc") or (before, char) == ("\r", "\n")


def _fence_after(text: str, fence: str) -> str:
    """The line that opened the block of code which a text ends in, or ""; `fence` is that of the one it begins in."""
    for line in text.splitlines():
        found = _FENCE.fullmatch(line)
        if found is None:
            continue
        marks, info = found.groups()
        if not fence:
            if marks[0] == "~" or "`" not in info:
                fence = line
        elif not info.strip() and marks.startswith(_marks(fence)):
            fence = ""
    return fence


def _close(text: str, fence: str) -> str:
    if not fence:
        return ""
    return ("" if text.endswith("\n") else "\n") + _marks(fence)


def _marks(fence: str) -> str:
    found = _FENCE.fullmatch(fence)
    assert found is not None
    return found[1]
