"""The command line: `armorclaw run | status | version | demo`.

stdout is data, stderr is talk; exit statuses are those of the table in errors.py. Each group of verbs is a module that
is imported when its verb is used.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

from armorclaw._version import __version__

_VERBS = {
    "demo": "armorclaw.cli.demo",
    "run": "armorclaw.cli.run",
    "status": "armorclaw.cli.status",
}


class _Verbs(click.Group):
    """Imports a verb's module when it is asked for, so that `status` does not pay for what `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := _VERBS.get(cmd_name):
            command: click.Command = importlib.import_module(module).command
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
def armorclaw() -> None:
    """Run AI agents you need not trust: each in a container whose only door is the bridge."""


@armorclaw.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print the version."""
    click.echo(f'{{"version":"{__version__}"}}' if as_json else f"armorclaw {__version__}")


def main(arguments: list[str] | None = None) -> Any:
    """Run the command line and exit with its status; an error the table knows is three lines on stderr."""
    # imported here: `--help` and `version` need no table
    from armorclaw.errors import ArmorclawError

    try:
        armorclaw.main(arguments, prog_name="armorclaw", standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(2)
    except ArmorclawError as error:
        click.echo("armorclaw: " + "\n".join(error.lines()), err=True)
        sys.exit(error.kind.exit_status)
    sys.exit(0)
