"""docs/mission.md tells the truth about which requirement is shown by which test."""

from tests.mission import FIGURES, KNOWN, PAGE, page, shown


def test_marks_name_requirements_that_exist() -> None:
    assert set(shown()) | set(FIGURES) <= KNOWN


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.mission"
