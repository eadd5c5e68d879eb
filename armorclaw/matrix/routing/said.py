"""What the content of an event says, as far as the policy wants it. Pure; whatever has not the expected shape says
nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote

import attrs

from armorclaw.events.event import Event
from armorclaw.guard.policy import Said

MARK = "armorclaw.agent"
"""The key in the content of whatever an agent sends: its name. Bridges know each other's agents by it."""

_QUOTE = re.compile(r"\A(?:>[^\n]*(?:\n|\Z))+\n?")
_QUOTED_HTML = re.compile(r"<mx-reply>.*?</mx-reply>", re.DOTALL)
_PILL = re.compile(r"https://matrix\.to/#/(@[^\"'<>?/\s]{1,400}|%40[^\"'<>?/\s]{1,400})")


@attrs.frozen
class Relation:
    """The events that another one relates to. It answers those of `answers`, stands in the conversation that began
    with `thread`, and changes or removes `changes`."""

    answers: tuple[str, ...] = ()
    thread: str | None = None
    changes: str | None = None

    def __bool__(self) -> bool:
        return bool(self.answers or self.thread or self.changes)


def read_said(event: Event) -> tuple[Said, Relation]:
    """What was said, without what only the store knows of its relation, and that relation."""
    content = _table(json.loads(event.content))
    if event.event_id is None:  # a word of the bridge; who it is about stands inside
        sender = content.get("sender")
        return Said(sender if isinstance(sender, str) else None, is_own_word=True), Relation()
    new = _table(content.get("m.new_content"))
    relation = _relation(event.type, content)
    is_message = event.type == "m.room.message"
    is_edit = relation.changes is not None
    shown = new if is_edit and new else content
    mark = content.get(MARK, new.get(MARK))
    said = Said(
        event.sender,
        is_text=is_message and content.get("msgtype") == "m.text" and not is_edit,
        is_reaction=event.type == "m.reaction",
        body=_body(shown, quotes=bool(relation.answers)) if is_message else "",
        mentions=_mentions(content, shown),
        is_notice=is_message and "m.notice" in (content.get("msgtype"), new.get("msgtype")),
        speaker=None if mark is None else mark if isinstance(mark, str) else "",
    )
    return said, relation


def _relation(type_: str, content: Mapping[str, Any]) -> Relation:
    if type_ == "m.room.redaction":
        return Relation(changes=_id(content.get("redacts")))
    about = _table(content.get("m.relates_to"))
    kind, target = about.get("rel_type"), _id(about.get("event_id"))
    replied = _id(_table(about.get("m.in_reply_to")).get("event_id"))
    if kind == "m.replace":
        return Relation(changes=target)
    if kind == "m.thread":
        return Relation(_some(target, replied), target)
    return Relation(_some(target, replied))


def _body(content: Mapping[str, Any], *, quotes: bool) -> str:
    body = content.get("body")
    text = body if isinstance(body, str) else ""
    return _QUOTE.sub("", text, count=1) if quotes else text


def _mentions(content: Mapping[str, Any], shown: Mapping[str, Any]) -> frozenset[str] | None:
    """As the message says it; else as it links to users, as clients did before there was a place to say it."""
    mentions = content.get("m.mentions")
    if isinstance(mentions, dict):
        users = mentions.get("user_ids")
        return frozenset(each for each in users if isinstance(each, str)) if isinstance(users, list) else frozenset()
    html = shown.get("formatted_body")
    if not isinstance(html, str):
        return None
    linked = _PILL.findall(_QUOTED_HTML.sub("", html))
    return frozenset(map(unquote, linked)) or None


def _some(*ids: str | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(each for each in ids if each is not None))


def _id(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= 255 else None


def _table(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
