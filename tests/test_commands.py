"""docs/cli.md says what the commands say."""

from tests.commands import PAGE, page


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.commands"
