"""Answers to orders: as a person in a chat may see them. Pure.

A room has other people in it, and a homeserver that may keep what is said for ever. So an answer is short, has no
folder of this host in it, and nothing that a client would take for more than text.
"""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import attrs

from armorclaw.errors import ArmorclawError, without_folders
from armorclaw.events.event import Event
from armorclaw.matrix.compose.content import Draft, messages

TEXT_LIMIT = 3_000
"""Characters of an answer."""

LINE_LIMIT = 300
"""Characters of one line, such as what an agent says of itself."""

_SHORTEST_SECRET = 4  # characters; what is shorter is in every other word


@attrs.frozen
class Answer:
    """`text` is ours; `verbatim` is what somebody else wrote, shown as it is behind it."""

    text: str
    verbatim: str = ""

    def content(self, asked: Event, thread: str | None) -> dict[str, Any]:
        """The notice that answers the message `asked`."""
        text, code = shown(self.text), shown(self.verbatim)
        if len(text) > TEXT_LIMIT:
            text = text[: TEXT_LIMIT - 1] + "…"
        room = TEXT_LIMIT - len(text)
        if len(code) > room:
            code = "…" + code[-room:] if room else "…"
        extra: dict[str, Any] = {}
        if code:
            as_html = f"{html.escape(text)}<pre><code>{html.escape(code)}</code></pre>"
            extra = {"format": "org.matrix.custom.html", "formatted_body": as_html}
        body = f"{text}\n{code}" if code else text
        draft = Draft(body, "m.notice", reply_to=asked.event_id, thread=thread, extra=extra)
        # no words in it call anybody
        return {**messages(draft)[0], "m.mentions": {}}


def of_error(error: ArmorclawError) -> Answer:
    """What went wrong, and what to do."""
    payload = error.payload()
    hint = payload["data"]["hint"]
    return Answer(f"That did not work: {payload['message']}" + (f"\nhint: {hint}" if hint else ""))


def listed(head: str, lines: Iterable[str], most: int = 50) -> str:
    """A heading and lines below it."""
    given = list(lines)
    left = len(given) - most
    return "\n".join([head, *(f"• {line(each)}" for each in given[:most]), *([f"… {left} more"] if left > 0 else [])])


def line(text: str) -> str:
    """On one line, and not long."""
    flat = " ".join(text.split())
    return flat if len(flat) <= LINE_LIMIT else flat[: LINE_LIMIT - 1] + "…"


def shown(text: str) -> str:
    """Text that is nothing but text, without folders."""
    return without_folders("".join(c if c.isprintable() or c == "\n" else " " for c in text))


def without_secrets(text: str, secrets: Iterable[str]) -> str:
    """The same with each of these left out, the longest first: one may be part of another."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _SHORTEST_SECRET:
            text = text.replace(secret, "[secret]")
    return text


def span(seconds: float) -> str:
    """How long, as people say it."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
