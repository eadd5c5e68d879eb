"""Markdown as the HTML that Matrix allows in a message, and never more than that.

The tags and attributes are those of the Matrix specification, client-server API, "m.room.message msgtypes": `TAGS`
and `ATTRIBUTES`. HTML in the text is text.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_core import StateCore
    from markdown_it.token import Token

TAGS = frozenset(
    [
        *("a", "blockquote", "br", "code", "em", "h1", "h2", "h3", "h4", "h5", "h6", "hr", "img", "li", "ol", "p"),
        *("pre", "s", "strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
    ]
)
"""All that comes out; the specification allows a few more."""

ATTRIBUTES = {"a": {"href"}, "img": {"src", "alt"}, "ol": {"start"}, "code": {"class"}}

_PEOPLE = "armorclaw.people"
_LINK = re.compile(r"(?:https?://|ftp://|mailto:|magnet:\?)[^\s\x00-\x20\x7f]+", re.IGNORECASE)
_MXC = re.compile(r"mxc://[A-Za-z0-9.:\[\]-]+/[A-Za-z0-9_-]+")
_LANGUAGE = re.compile(r"[A-Za-z0-9_+#.-]{1,32}")
_NESTING = 50
"""Blocks within each other: a list in a list is two for each. What is nested deeper has no HTML: see `to_html`."""


def to_html(text: str, people: Collection[str] = ()) -> str | None:
    """The HTML of a text, without a `<p>` where there is only one.

    None if it would say no more than the text itself, or less, as with blocks nested beyond reason. The ids of
    `people` become links to them, which clients show as names. The time it takes grows with the length: up to 1 s
    for 64 KiB of the worst.
    """
    md = _parser()
    tokens = md.parse(text, {_PEOPLE: sorted(people, key=len, reverse=True)})
    if not tokens or any(token.level >= _NESTING - 1 for token in tokens):
        return None
    if [token.type for token in tokens] == ["paragraph_open", "inline", "paragraph_close"]:
        inline = tokens[1].children or []
        if _unmarked(inline) == text.strip():
            return None
        tokens = inline
    return str(md.renderer.render(tokens, md.options, {})).rstrip("\n")


def _unmarked(inline: Sequence[Token]) -> str | None:
    """What people see of a paragraph without any marks; None if it has marks."""
    parts = ("\n" if each.type in ("softbreak", "hardbreak") else each.content for each in inline)
    return "".join(parts) if all(each.type in ("text", "softbreak") for each in inline) else None


@lru_cache(1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt  # many bridges never need it

    md = MarkdownIt("commonmark", {"html": False, "breaks": True, "xhtmlOut": False, "maxNesting": _NESTING})
    md.enable(["table", "strikethrough"])
    md.validateLink = _is_link  # type: ignore[method-assign]
    md.core.ruler.push("matrix", _for_matrix)
    md.render("*it* sets up its rules at the first use, which must not be by two threads at a time")
    return md


def is_loaded() -> bool:
    """Whether the parser is there: it takes some 50 ms to load."""
    return _parser.cache_info().currsize > 0


def _is_link(url: str) -> bool:
    return _LINK.fullmatch(url) is not None or _MXC.fullmatch(url) is not None


def _for_matrix(state: StateCore) -> None:
    """The last step before the tokens become HTML: what Matrix does not allow goes, people are linked."""
    for token in state.tokens:
        _clean(token)
        if token.type == "fence" and not _LANGUAGE.fullmatch(token.info.strip().partition(" ")[0]):
            token.info = ""
        if token.children is not None:
            children = list(_with_links(token.children))
            token.children = list(_with_people(children, state.env.get(_PEOPLE, ())))


def _clean(token: Token) -> None:
    allowed = ATTRIBUTES.get(token.tag, ())
    token.attrs = {name: value for name, value in token.attrs.items() if name in allowed}


def _with_links(inline: Sequence[Token]) -> Iterator[Token]:
    """Pictures from elsewhere are links, as clients load none of them; nor is a picture of Matrix's a link's aim."""
    opened: list[bool] = []
    for token in inline:
        _clean(token)
        if token.type == "image":
            src = str(token.attrs.get("src", ""))
            if _MXC.fullmatch(src):
                yield token
                continue
            words = token.content or src
            yield from [_text(words)] if opened else _link(src, words)
        elif token.type == "link_open":
            opened.append(_LINK.fullmatch(str(token.attrs.get("href", ""))) is not None)
            if opened[-1]:
                yield token
        elif token.type == "link_close":
            if opened.pop():
                yield token
        else:
            yield token


def _with_people(inline: Sequence[Token], people: Sequence[str]) -> Iterator[Token]:
    """The ids of people in plain text, where there is no link yet, become links to them."""
    if not people:
        yield from inline
        return
    ids = re.compile(f"({'|'.join(map(re.escape, people))})(?![\\w.:-]*\\w)")
    depth = 0
    for token in inline:
        depth += {"link_open": 1, "link_close": -1}.get(token.type, 0)
        if token.type != "text" or depth:
            yield token
            continue
        for number, part in enumerate(ids.split(token.content)):
            if number % 2:
                yield from _link(f"https://matrix.to/#/{quote(part, safe='@:')}", part)
            elif part:
                yield _text(part)


def _text(content: str) -> Token:
    from markdown_it.token import Token

    return Token("text", "", 0, content=content)


def _link(href: str, content: str) -> list[Token]:
    from markdown_it.token import Token

    return [Token("link_open", "a", 1, attrs={"href": href}), _text(content), Token("link_close", "a", -1)]
