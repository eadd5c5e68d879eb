"""`armorclaw run`: the daemon."""

from __future__ import annotations

from pathlib import Path

import click

from armorclaw.cli.options import CONFIG, SETTINGS


@click.command("run")
@CONFIG
@SETTINGS
@click.option("--verbose", is_flag=True, help="Log more.")
def command(config: str | None, settings: tuple[str, ...], verbose: bool) -> None:
    """Run the bridge until SIGTERM or Ctrl-C; a second one ends it at once."""
    from armorclaw.config_layers import effective  # only now: `run --help` needs neither this nor the bridge

    found = effective(None if config is None else Path(config), flags=settings)
    from armorclaw.cli.daemon import run

    run(found.config, verbose=verbose)
