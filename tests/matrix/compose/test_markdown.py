"""Markdown becomes the HTML that Matrix allows: what people expect, and never anything else, whatever the text is."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from armorclaw.matrix.compose.markdown import to_html

from .html_reader import read

MARKUP = st.lists(
    st.sampled_from(
        [
            *(
                "*",
                "**",
                "_",
                "`",
                "```",
                "~~",
                "#",
                "> ",
                "- ",
                "1. ",
                "\n",
                "\n\n",
                "    ",
                "|",
                "|-|",
                "---",
                "\\",
            ),
            *(
                "[",
                "](",
                ")",
                "![",
                "<",
                ">",
                "&",
                ";",
                '"',
                "'",
                "=",
                "<script>",
                "</script>",
                "<img src=x onerror=",
            ),
            *("javascript:", "data:text/html,", "vbscript:", "file:///etc", "http://a.b/", "mxc://a/b", "//x"),
            *(
                "java&#x73;cript:",
                "&lt;",
                "&#0;",
                "JaVaScRiPt:",
                "\t",
                "[x]: ",
                "<!--",
                "-->",
                "<a href=",
                "onerror=",
                "é",
            ),
            *("@ann:x.org", "@ann:x.org.au", "https://matrix.to/#/", "😀", "\u0000", "\u202e", '```html"onclick=x'),
        ]
    ),
    max_size=40,
).map("".join)


@given(MARKUP | st.text(max_size=200), st.lists(st.sampled_from(["@ann:x.org", "@b.*:x", "@room"]), max_size=2))
@example("[a](javascript:alert(1))", [])
@example("<javascript:alert(1)>", [])
@example("[a](<java\nscript:x>)", [])
@example("![a](data:image/svg+xml,x)", [])
@example('```"><script>\nx', [])
@example("|a|\n|:-:|\n|<b>|", [])
@example("[![a](mxc://a/b)](http://c/)", [])
@example("[@ann:x.org](http://c/)", ["@ann:x.org"])
@example('[a](http://x.org/"onmouseover=alert(1))', [])
def test_nothing_but_what_matrix_allows_comes_out(text: str, people: list[str]) -> None:
    html = to_html(text, people)
    if html is not None:
        read(html)


@given(st.lists(st.sampled_from(["word", "*", "**", "`", "# ", "> ", "- ", "\n", "\n\n", " ", "_", "```\n", "~~"])))
def test_no_word_is_lost(parts: list[str]) -> None:
    text = "".join(parts)
    html = to_html(text)
    # the words behind three of these on their line name the language
    assert html is None or "```" in text or "~~~" in text or read(html).count("word") == text.count("word")


@given(st.text(alphabet="ab \n>-<&", max_size=60))
def test_html_in_the_text_is_text(text: str) -> None:
    html = to_html(f"<b>{text}</b>")
    assert html is None or "<b>" not in html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", None),
        ("a < b & c", None),
        ("two\nlines", None),
        ("", None),
        ("[INFO]: started", None),  # no link's definition, which would be shown nowhere
        ("[x](javascript:alert)", None),
        ("*a* **b** ~~c~~ `d`", "<em>a</em> <strong>b</strong> <s>c</s> <code>d</code>"),
        ("*one*\ntwo", "<em>one</em><br>\ntwo"),
        ("a\n\nb", "<p>a</p>\n<p>b</p>"),
        ("# Title", "<h1>Title</h1>"),
        ("3. c\n4. d", '<ol start="3">\n<li>c</li>\n<li>d</li>\n</ol>'),
        ("```py\n1 < 2\n```", '<pre><code class="language-py">1 &lt; 2\n</code></pre>'),
        ('```py"x\n1\n```', "<pre><code>1\n</code></pre>"),
        ("[a](https://b.org/c?d=e&f)", '<a href="https://b.org/c?d=e&amp;f">a</a>'),
        ('[a](https://b.org "title")', '<a href="https://b.org">a</a>'),
        ("![cat](https://b.org/cat.png)", '<a href="https://b.org/cat.png">cat</a>'),
        ("![cat](mxc://b.org/cat)", '<img src="mxc://b.org/cat" alt="cat">'),
        ("[![cat](http://b/c)](http://d/)", '<a href="http://d/">cat</a>'),
        ("a\\*b", "a*b"),
        ("|a|b|\n|-|:-:|\n|1|2|", None),
    ],
)
def test_what_people_expect(text: str, html: str | None) -> None:
    if text.startswith("|"):
        found = to_html(text)
        assert found is not None
        assert read(found).split() == ["a", "b", "1", "2"]
        assert "style" not in found
    else:
        assert to_html(text) == html


def test_people_are_linked_by_their_whole_id_and_in_plain_text_alone() -> None:
    ann, link = "@ann:x.org", '<a href="https://matrix.to/#/@ann:x.org">@ann:x.org</a>'
    assert to_html(f"hello {ann}, *you*", [ann]) == f"hello {link}, <em>you</em>"
    assert to_html(f"{ann}.", [ann]) == f"{link}."
    assert to_html(f"{ann}.au and {ann}:8448", [ann]) is None  # somebody else
    assert to_html(f"`{ann}`", [ann]) == f"<code>{ann}</code>"
    assert to_html(f"[{ann}](http://b/)", [ann]) == f'<a href="http://b/">{ann}</a>'
    assert to_html(f"hello {ann}") is None
    assert to_html("@a:x.org/b", ["@a:x.org"]) == '<a href="https://matrix.to/#/@a:x.org">@a:x.org</a>/b'


def test_what_is_nested_beyond_reason_has_no_html_rather_than_less_than_the_text() -> None:
    assert read(to_html("> " * 20 + "word") or "").strip() == "word"
    for nested in ("> " * 200 + "word", "- " * 200 + "word"):
        assert to_html(nested) is None


@pytest.mark.parametrize("mark", ["[", "![[", "*a", "_*", "`", "> ", "- ", "<", "&", "[a](b", "|a", "~~a", "a\n-\n"])
def test_nothing_takes_the_parser_long(mark: str) -> None:
    began = time.process_time()
    to_html(mark * (22_000 // len(mark)))  # as long as a part that is tried
    assert time.process_time() - began < 3.0  # ten times what it takes
