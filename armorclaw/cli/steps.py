"""Steps with their times: rich on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape


class Steps:
    """Tells what is being done, and how long it took."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Step]:
        """One step: shown as going on where that is possible, and as done with its seconds, or as failed."""
        began = time.perf_counter()
        step = Step()
        try:
            if self.console.is_terminal:
                with self.console.status(escape(text)):
                    yield step
            else:
                yield step
        except BaseException:
            self.console.print(f"[red]✗[/red] {escape(text)}")
            raise
        seconds = time.perf_counter() - began
        more = f": {escape(step.outcome)}" if step.outcome else ""
        self.console.print(f"[green]✓[/green] {escape(text)}{more} [dim]{seconds:.2f} s[/dim]")

    def say(self, text: str, *, style: str | None = None) -> None:
        self.console.print(escape(text), style=style)


class Step:
    """What came of a step, to be shown behind it."""

    outcome: str = ""
