"""Long texts in parts: each fits, all together are the whole, and none is cut where it hurts."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from armorclaw.matrix.compose.split import Part, split

TEXTS = st.text() | st.lists(
    st.sampled_from(
        ["word", " ", "\n", "\n\n", "```py\n", "```\n", "~~~~\n", "`", "é", "e\u0301", "👨‍👩‍👧", "👍🏽", "\r\n"]
    )
).map("".join)


def parts_of(text: str, limit: int, guess: int | None = None) -> list[Part]:
    return list(split(text, lambda part: len(part.markdown), limit, longest=guess))


@given(TEXTS, st.integers(20, 60), st.integers(1, 100))
@example("```" + "x" * 60, 20, 50)
def test_the_parts_fit_and_are_the_whole(text: str, limit: int, guess: int) -> None:
    try:
        parts = parts_of(text, limit, guess)
    except ValueError:
        assert "```" in text or "~~~" in text  # what opens a block again may be too long itself
        return
    assert "".join(part.text for part in parts) == text
    assert all(len(part.markdown) <= limit for part in parts)
    assert len(parts) == 1 or all(part.text for part in parts)


@given(TEXTS.filter(lambda text: "```" not in text and "~~~" not in text), st.integers(1, 30))
def test_it_always_ends(text: str, limit: int) -> None:
    assert "".join(part.text for part in parts_of(text, limit)) == text


def test_not_one_character_fits() -> None:
    with pytest.raises(ValueError, match="not even one"):
        parts_of("abc", 0, 5)


@pytest.mark.parametrize(
    ("text", "limit", "parts"),
    [
        ("", 5, [""]),
        ("short", 5, ["short"]),
        ("one two three", 8, ["one two ", "three"]),
        ("one\ntwo words", 10, ["one\ntwo ", "words"]),
        ("a b c\n\nd e f", 10, ["a b c\n\n", "d e f"]),
        ("a b c d\ne f", 10, ["a b c d\n", "e f"]),
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("abce\u0301f", 4, ["abc", "e\u0301f"]),
        ("abc👨‍👩‍👧d", 5, ["abc", "👨‍👩‍👧", "d"]),
        ("abcd👍🏽", 5, ["abcd", "👍🏽"]),
    ],
)
def test_where_it_is_cut(text: str, limit: int, parts: list[str]) -> None:
    assert [part.text for part in parts_of(text, limit)] == parts


def test_a_block_of_code_goes_on_in_the_next_part() -> None:
    code = "```py\n" + "".join(f"line {number}\n" for number in range(9)) + "```\nafter *that*"
    parts = parts_of(code, 40)
    assert "".join(part.text for part in parts) == code
    assert len(parts) == 3
    assert [part.opening for part in parts] == ["", "```py\n", "```py\n"]
    assert [part.closing for part in parts] == ["```", "```", ""]
    assert parts[1].markdown.count("```") == 2


def test_what_does_not_end_a_block_of_code() -> None:
    text = "````\n```\n~~~~\n    ````\n" + "x\n" * 20 + "`````\ny"
    first, *others = parts_of(text, 40)
    assert first.closing == "````"
    assert {part.opening for part in others if "x" in part.text} == {"````\n"}
    assert others[-1].text.endswith("y")
    assert others[-1].closing == ""
