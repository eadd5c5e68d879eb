"""What the demo says, on a terminal and elsewhere."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from armorclaw.cli.steps import Steps


def steps(*, terminal: bool) -> tuple[Steps, io.StringIO]:
    out = io.StringIO()
    console = Console(
        file=out,
        force_terminal=terminal,
        color_system="standard" if terminal else None,
        highlight=False,
        soft_wrap=True,
        width=40,
    )
    return Steps(console), out


def test_plain_lines_elsewhere() -> None:
    """As long as they are: a log is not wrapped, and brackets are no markup."""
    told, out = steps(terminal=False)
    with told.step("first") as step:
        step.outcome = "[red]" + "x" * 100
    told.say("[bold]as it is[/bold]")
    first, second = out.getvalue().splitlines()
    assert re.fullmatch(r"✓ first: \[red\]x{100} 0\.\d\d s", first)
    assert second == "[bold]as it is[/bold]"


def test_a_step_that_fails() -> None:
    told, out = steps(terminal=False)
    with pytest.raises(ZeroDivisionError):
        with told.step("first"):
            _ = 1 / 0
    assert out.getvalue() == "✗ first\n"


def test_colours_on_a_terminal() -> None:
    told, out = steps(terminal=True)
    with told.step("first"):
        pass
    told.say("beware", style="bold red")
    assert "\x1b[32m✓" in out.getvalue()
    assert "\x1b[1;31mbeware" in out.getvalue()
