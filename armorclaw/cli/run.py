"""`armorclaw run`: the daemon."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from armorclaw.cli.options import CONFIG, SETTINGS


@click.command("run")
@CONFIG
@SETTINGS
@click.option("--verbose", is_flag=True, help="Log more.")
def command(config: str | None, settings: tuple[str, ...], verbose: bool) -> None:
    """Run the bridge until SIGTERM or Ctrl-C; it finishes what it has, and a second one ends it at once."""
    load_lean()
    from armorclaw.config_layers import effective  # only now: `run --help` needs neither this nor the bridge

    found = effective(None if config is None else Path(config), flags=settings)
    from armorclaw.cli.daemon import run

    run(found.config, verbose=verbose)


def load_lean() -> None:
    """structlog and httpx take along what they find for terminals and for Twisted: 6 MB that no daemon needs."""
    hidden = [name for name in ("pygments", "rich", "twisted") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: it cannot be imported
    try:
        import httpx  # noqa: F401
        import structlog  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
