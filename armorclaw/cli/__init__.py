"""The command line: `armorclaw run | status | version | demo`.

stdout is data, stderr is talk; exit statuses are those of the table in errors.py. Each verb is a module that is
imported when it is used.
"""

from __future__ import annotations

import importlib
import sys
from typing import NoReturn

import click

from armorclaw._version import __version__

_VERBS = {
    "demo": "armorclaw.cli.demo",
    "run": "armorclaw.cli.run",
    "status": "armorclaw.cli.status",
}

USAGE = 2
"""Exit status of a command line that is not understood."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of the signal."""


class _Verbs(click.Group):
    """Imports a verb's module when it is asked for, so that `status` does not pay for what `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_VERBS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if module := _VERBS.get(cmd_name):
            command: click.Command = importlib.import_module(module).command
            return command
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.pass_context
def armorclaw(context: click.Context) -> None:
    """Run AI agents you need not trust: each in a container whose only door is the bridge."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


@armorclaw.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def version(as_json: bool) -> None:
    """Print the version."""
    click.echo(f'{{"version":"{__version__}"}}' if as_json else f"armorclaw {__version__}")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run the command line and exit with its status; an error that the table knows is three lines on stderr."""
    # imported here: `--help` and `version` need no table
    from armorclaw.errors import ArmorclawError

    try:
        status = armorclaw.main(arguments, prog_name="armorclaw", standalone_mode=False)
    except click.Abort:
        sys.exit(INTERRUPTED)
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        _complain([error.format_message(), f"hint: {context.command_path if context else 'armorclaw'} --help"])
        sys.exit(USAGE)
    except ArmorclawError as error:
        _complain(error.lines())
        sys.exit(error.kind.exit_status)
    sys.exit(status)  # None, or what a command passed to click's `exit`


def _complain(lines: list[str]) -> None:
    click.echo("armorclaw: " + "\n".join(lines), err=True)
