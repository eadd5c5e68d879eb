"""`armorclaw metrics`: figures for monitoring."""

from __future__ import annotations

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, client


@click.command("metrics")
@client
def command(bridge: Bridge) -> None:
    """Print all figures for monitoring, in the text format of Prometheus.

    docs/operations.md has what each means.
    """
    answer = bridge.call("metrics")
    if bridge.as_json:
        show.as_json(answer)
    else:
        show.text(answer["text"], end="")
