"""What goes to stdout."""

from __future__ import annotations

import pytest

from armorclaw.cli import show


@pytest.mark.parametrize(
    "words, wide",
    [("plain", 5), ("näher", 5), ("na\u0308her", 5), ("読書中", 6), ("a\u0301\u0302\u0303b", 2), ("🙂", 2), ("", 0)],
)
def test_columns_of_a_terminal(words: str, wide: int) -> None:
    assert show.columns(words) == wide


@pytest.mark.parametrize(
    "words, width, cut",
    [
        ("abcdef", 6, "abcdef"),
        ("abcdefg", 6, "abcde…"),
        ("読書中です", 6, "読書…"),
        ("読書中", 6, "読書中"),
        ("a\u0301b\u0301c\u0301d\u0301", 3, "a\u0301b\u0301…"),
        ("読書", 1, "…"),
    ],
)
def test_cut_to_columns(words: str, width: int, cut: str) -> None:
    assert show.cut(words, width) == cut
    assert show.columns(cut) <= width


@pytest.mark.parametrize("words", ["w" * 300, "読" * 300, "e\u0301" * 300, "🙂x" * 300])
def test_a_table_keeps_to_its_width(capsys: pytest.CaptureFixture[str], words: str) -> None:
    show.table(["NAME", "STATUS", "END"], [["a", words, words], ["読書", "x", "y"]], gives=["STATUS", "END"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(show.columns, lines)) <= show.WIDTH
    starts = {show.columns(line[: line.index(last)]) for line, last in ((lines[0], "END"), (lines[2], "y"))}
    assert len(starts) == 1, "columns begin below their heads"


@pytest.mark.parametrize("number, words", [(0, "0 events"), (1, "1 event"), (2, "2 events")])
def test_so_many(number: int, words: str) -> None:
    assert show.count(number, "event") == words
