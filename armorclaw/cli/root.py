"""The command `armorclaw` with all its verbs, and what each way to end means to the shell.

Each verb, or group of verbs, is a module that is imported when it is used; those that ask a running bridge import
nothing of the bridge.
"""

from __future__ import annotations

import errno
import gc
import importlib
import os
from typing import TYPE_CHECKING

import click

from armorclaw._version import __version__
from armorclaw.cli import show

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_VERBS = {
    "call": "Call a method of the bridge.",
    "completion": "Print what makes a shell complete armorclaw's commands.",
    "config": "See what the configuration is, and what is wrong with it.",
    "containers": "Agents and their containers.",
    "demo": "Start a real homeserver, the bridge and an agent; show that a person gets an answer.",
    "events": "What happened, what happens, and who follows it.",
    "explain": "Show which rule decides who hears what is said in a room.",
    "health": "Say whether all is well.",
    "image": "Images for agents.",
    "keys": "The keys that agents may be granted.",
    "matrix": "Accounts and messages.",
    "metrics": "Print all figures for monitoring, in the text format of Prometheus.",
    "outbox": "Messages on their way out.",
    "run": "Run the bridge until SIGTERM or Ctrl-C; it finishes what it has, and a second one ends it at once.",
    "status": "Show how the bridge, its Matrix sessions and its agents are.",
    "version": "Print the version.",
}
"""Each has a module of its name. The lines are here so that the list of verbs needs none of them."""

USAGE = 2
"""Exit status of a command line that is not understood."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the number of the signal."""

NO_READER = 141
"""Exit status when nobody reads our stdout any more, as that of a program which SIGPIPE ended."""

COMPLETE = "_ARMORCLAW_COMPLETE"
"""Set by a shell that asks what may come next."""


class _Verbs(click.Group):
    """Imports a verb's module when it is asked for, so that `status` does not pay for what `run` needs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _VERBS:
            return None
        command: click.Command = importlib.import_module(f"armorclaw.cli.{cmd_name}").command
        gc.enable()  # the start is over
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(_VERBS.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        verbs = [CompletionItem(name, help=about) for name, about in _VERBS.items() if name.startswith(incomplete)]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=_Verbs, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="armorclaw %(version)s")
@click.pass_context
def armorclaw(context: click.Context) -> None:
    """Run AI agents you need not trust: each in a container whose only door is the bridge."""
    if context.invoked_subcommand is None:
        show.text(context.get_help())


def execute(arguments: list[str]) -> int:
    """Run the command line; its exit status. An error that the table knows is three lines on stderr."""
    if instruction := os.environ.get(COMPLETE):
        from click.shell_completion import shell_complete

        return shell_complete(armorclaw, {}, "armorclaw", COMPLETE, instruction)
    try:
        with armorclaw.make_context("armorclaw", arguments) as context:
            armorclaw.invoke(context)
        return 0
    except click.exceptions.Exit as end:
        return end.exit_code
    except (click.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except click.ClickException as error:
        where = getattr(error, "ctx", None)
        _complain([error.format_message(), f"hint: {where.command_path if where else 'armorclaw'} --help"])
        return USAGE
    except show.Unwritable as error:
        _forget_stdout()
        if error.errno == errno.EPIPE:
            return NO_READER
        _complain(["cannot write to stdout", f"why: {error.strerror}"])
        return 1
    except BrokenPipeError:  # from click's own --help
        if not _reader_is_gone():
            raise
        _forget_stdout()
        return NO_READER
    except Exception as error:
        # not by its class: knowing that takes imports, and whoever raised it has paid for them
        from armorclaw.errors import ArmorclawError

        if not isinstance(error, ArmorclawError):
            raise
        _complain(error.lines())
        return error.kind.exit_status


def _reader_is_gone() -> bool:
    import select  # only now: hardly ever

    poll = select.poll()
    poll.register(1, 0)
    return bool(poll.poll(0))


def _forget_stdout() -> None:
    """Or the interpreter would try once more at its end, and complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _complain(lines: list[str]) -> None:
    text = "armorclaw: " + "\n".join(lines)
    # words that were no UTF-8 are quoted, and not every stream takes what Python made of them
    click.echo(text.encode("utf-8", "backslashreplace").decode("utf-8"), err=True)
