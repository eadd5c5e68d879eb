"""HTML as a careful client reads it: it fails at anything that Matrix does not allow in a message."""

from __future__ import annotations

from html.parser import HTMLParser

from armorclaw.matrix.compose.markdown import ATTRIBUTES, TAGS

ALLOWED_SCHEMES = ("https:", "http:", "ftp:", "mailto:", "magnet:")  # client-server API, "m.room.message msgtypes"
VOID = {"br", "hr", "img"}


class Reader(HTMLParser):
    """Fails at anything that must not be there; collects what people read."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES[tag], (tag, name)
            if name == "href":
                assert (value or "").lower().startswith(ALLOWED_SCHEMES), value
            if name == "src":
                assert (value or "").startswith("mxc://"), value
            if name == "class":
                assert (value or "").startswith("language-"), value
        if tag not in VOID:
            self.open.append(tag)
        assert not (tag == "a" and self.open.count("a") > 1), "a link in a link"

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError("a declaration")

    def handle_pi(self, data: str) -> None:
        raise AssertionError("an instruction")


def read(html: str) -> str:
    """What people see of it."""
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert reader.open == []
    return reader.text
