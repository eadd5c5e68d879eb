"""`armorclaw version`."""

from __future__ import annotations

import click

from armorclaw._version import __version__
from armorclaw.cli import show
from armorclaw.cli.options import JSON


@click.command("version")
@JSON
def command(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        show.as_json({"version": __version__})
    else:
        show.text(f"armorclaw {__version__}")
