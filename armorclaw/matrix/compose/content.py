"""The contents of events: new messages with their relations, edits, reactions, redactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix.compose.markdown import to_html
from armorclaw.matrix.compose.split import Part, split
from armorclaw.matrix.routing.said import MARK

EVENT_BYTES = 44_000
"""Of one event's content, as it is in the outbox. Encrypted it takes a third more, and an event may have 65,536 bytes
with its envelope: client-server API, "Size limits"."""

PLAIN_BYTES = 60_000
"""The same for a room that is not encrypted, where it cannot be split."""

MAX_PARTS = 32

FALLBACK = 500
"""Characters of an edit that are there for clients which know no edits."""

Content = dict[str, Any]

_SPLIT_TYPES = frozenset({"m.text", "m.notice", "m.emote"})


@attrs.frozen
class Draft:
    """A message as its sender gives it. `extra` adds to the content, or replaces what is in it.

    `mentions` are user ids, or "@room" for all. `agent` is who is marked as its sender.
    """

    text: str
    msgtype: str = "m.text"
    markdown: bool = False
    mentions: Sequence[str] = ()
    reply_to: str | None = None
    thread: str | None = None
    extra: Mapping[str, Any] = attrs.field(factory=dict)
    agent: str | None = None

    @property
    def divisible(self) -> bool:
        """Whether it may become several messages: not where the sender has a say in what exactly is in it."""
        relation = self.extra.get("m.relates_to")
        fixed = isinstance(relation, dict) and "rel_type" in relation and relation["rel_type"] != "m.thread"
        return (
            self.msgtype in _SPLIT_TYPES
            and not fixed
            and self.extra.keys().isdisjoint({"msgtype", "body", "format", "formatted_body", "m.new_content"})
        )


def messages(draft: Draft, *, encrypted: bool = True) -> list[Content]:
    """The contents of a new message: of several, in order, where it is too long for one. Raises too_large.

    The first carries the reply and the mentions, all are in the thread. `encrypted`: whether the room may be.
    """
    if not draft.divisible:
        return [_checked(_message(draft, Part(draft.text)), EVENT_BYTES if encrypted else PLAIN_BYTES)]
    made: list[Content] = []
    for _ in _parts(draft, made, lambda part: _message(draft, part, first=not made)):
        pass
    return made


def edits(draft: Draft, event_id: str, *, cut: bool = False) -> list[Content]:
    """The contents that make a message another one: the edit, and new messages behind it for what it cannot hold.

    With `cut` it ends where the edit is full. Raises too_large.
    """
    if not draft.divisible:
        return [_checked(_edit(draft, Part(draft.text), event_id), EVENT_BYTES)]
    made: list[Content] = []

    def content(part: Part) -> Content:
        if made:
            return _message(draft, part, first=False)
        if cut and len(part.text) < len(draft.text):
            part = attrs.evolve(part, text=part.text.rstrip() + "…")
        return _edit(draft, part, event_id)

    for _ in _parts(draft, made, content):
        if cut:
            break
    return made


def reaction(event_id: str, key: str, agent: str | None) -> Content:
    """The content of an m.reaction."""
    relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
    return _marked({"m.relates_to": relation}, agent)


def redaction(event_id: str, reason: str | None) -> Content:
    """What the outbox has for an m.room.redaction."""
    return {"redacts": event_id, **({} if reason is None else {"reason": reason})}


def _message(draft: Draft, part: Part, *, first: bool = True) -> Content:
    extra = dict(draft.extra)
    relation = extra.pop("m.relates_to", None) or _relation(draft.reply_to, draft.thread)
    mentions = extra.pop("m.mentions", None) or _mentions(draft.mentions)
    if not first:
        mentions = None
        relation = _relation(None, relation.get("event_id")) if isinstance(relation, dict) else None
    content = _body(draft, part) | extra
    if mentions is not None:
        content["m.mentions"] = mentions
    if relation:
        content["m.relates_to"] = relation
    return _marked(content, draft.agent)


def _edit(draft: Draft, part: Part, event_id: str) -> Content:
    short = part.text if len(part.text) <= FALLBACK else part.text[:FALLBACK] + "…"
    new = _body(draft, part) | {name: value for name, value in draft.extra.items() if name != "m.relates_to"}
    content: Content = {"msgtype": draft.msgtype, "body": f"* {short}"}
    mentions = _mentions(draft.mentions)
    if mentions is not None:
        content["m.mentions"] = new["m.mentions"] = mentions
    content["m.new_content"] = _marked(new, draft.agent)
    content["m.relates_to"] = {"rel_type": "m.replace", "event_id": event_id}
    return _marked(content, draft.agent)


def _body(draft: Draft, part: Part) -> Content:
    content: Content = {"msgtype": draft.msgtype, "body": part.text}
    html = to_html(part.markdown, draft.mentions) if draft.markdown else None
    if html is not None:
        content |= {"format": "org.matrix.custom.html", "formatted_body": html}
    return content


def _relation(reply_to: str | None, thread: str | None) -> Content | None:
    if thread is None:
        return None if reply_to is None else {"m.in_reply_to": {"event_id": reply_to}}
    # a client that knows no threads shows it as a reply
    answered = {"event_id": thread if reply_to is None else reply_to}
    return {
        "rel_type": "m.thread",
        "event_id": thread,
        "is_falling_back": reply_to is None,
        "m.in_reply_to": answered,
    }


def _mentions(mentions: Sequence[str]) -> Content | None:
    if not mentions:
        return None
    users = list(dict.fromkeys(each for each in mentions if each != "@room"))
    return {**({"user_ids": users} if users else {}), **({"room": True} if "@room" in mentions else {})}


def _marked(content: Content, agent: str | None) -> Content:
    return content if agent is None else {**content, MARK: agent}


def _parts(draft: Draft, made: list[Content], content: Callable[[Part], Content]) -> Iterator[None]:
    """Adds the contents to `made`, one at a time."""
    fitting: Content = {}

    def measure(part: Part) -> int:
        nonlocal fitting
        fitting = content(part)
        return len(ascii_json(fitting))

    try:
        for _ in split(draft.text, measure, EVENT_BYTES, longest=EVENT_BYTES // (2 if draft.markdown else 1)):
            if len(made) == MAX_PARTS:
                raise _too_large(f"it would be more than {MAX_PARTS} messages")
            made.append(fitting)
            yield
    except ValueError:
        raise _too_large(f"beside its text it has more than {EVENT_BYTES} bytes") from None


def _checked(content: Content, limit: int) -> Content:
    if (size := len(ascii_json(content))) > limit:
        raise _too_large(f"it has {size} bytes, and cannot be split")
    return content


def _too_large(why: str) -> ArmorclawError:
    hint = f"at most {EVENT_BYTES} bytes fit into one event; send what is longer as a file"
    return ArmorclawError("too_large", "the message", why=why, hint=hint)
