"""What many verbs take, and the bridge that client verbs talk to.

Values are plain text here. Whether a file or a socket can be used is said by whoever uses it, with a reason, a hint
and a status of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from typing import Any

import click

from armorclaw.cli import show
from armorclaw.layers import socket_path
from armorclaw.rpc.blocking import Connection

TIMEOUT = 5.0
"""Seconds for an answer; the bridge gives each within 4."""

DECLINED = 1
"""Exit status when a person was asked, and said no."""

Verb = Callable[..., None]

CONFIG = click.option("--config", metavar="FILE", help="This file instead of the two usual ones.")
SETTINGS = click.option(
    "--set", "settings", metavar="SECTION.KEY=VALUE", multiple=True, help="Stronger than files and variables."
)
JSON = click.option("--json", "as_json", is_flag=True, help="JSON for programs, one value per line.")
_SOCKET = click.option("--socket", metavar="PATH", help="The socket of the bridge.")


class Seconds(click.FloatRange):
    """A finite number of them, as clocks take it."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if number != number:  # a range lets it pass
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return number


class Bridge:
    """The bridge as a client verb has it; nothing is looked for before it is used."""

    def __init__(self, config: str | None = None, socket: str | None = None, *, as_json: bool = False) -> None:
        self._config = config
        self._socket = socket
        self.as_json = as_json

    def connect(self, timeout: float = TIMEOUT) -> Connection:
        """A connection of its own. Raises what `Connection` raises, and config_invalid."""
        return Connection(socket_path(self._config, self._socket), timeout=timeout)

    def call(self, method: str, **params: Any) -> Any:
        """One call. Members that are None are left out."""
        with self.connect() as connection:
            return connection.call(method, {name: value for name, value in params.items() if value is not None})

    def answer(self, answer: Any, words: str) -> None:
        """Show an answer: itself, or in words for people."""
        if self.as_json:
            show.as_json(answer)
        else:
            show.line(words)

    def table(
        self, answer: Any, heads: Sequence[str], rows: Iterable[Sequence[Any]], *, gives: Sequence[str] = ()
    ) -> None:
        """Show an answer: itself, or as a table for people; see `show.table`."""
        if self.as_json:
            show.as_json(answer)
        else:
            show.table(heads, rows, gives=gives)


def client(verb: Verb) -> Verb:
    """For verbs that talk to a running bridge: they take --json, --socket and --config, and are given a `Bridge`."""

    @JSON
    @_SOCKET
    @CONFIG
    @wraps(verb)
    def run(*, config: str | None, socket: str | None, as_json: bool, **others: Any) -> None:
        try:
            verb(Bridge(config, socket, as_json=as_json), **others)
        except (KeyError, TypeError) as error:  # a verb does nothing but read answers
            from armorclaw.errors import ArmorclawError

            why = f"{type(error).__name__}: {error}"
            hint = "compare the versions: armorclaw version; armorclaw call status"
            raise ArmorclawError("remote_failed", "the answer makes no sense here", why=why, hint=hint) from error
        except Exception as error:
            _name_the_verb(error)
            raise

    return run


def _name_the_verb(error: Exception) -> None:
    """What a verb was given is explained by its help, not by that of the method behind it."""
    from armorclaw.errors import ERRORS, ArmorclawError  # only now: who raised it has paid for that

    context = click.get_current_context()
    if context.info_name == "call" or not isinstance(error, ArmorclawError) or error.name != "invalid_params":
        return
    if error.hint == ERRORS["invalid_params"].hint:
        error.hint = f"{context.command_path} --help"


def group(name: str) -> Callable[[Verb], click.Group]:
    """Of verbs; without one it complains, as about any other mistake."""
    return click.group(name, no_args_is_help=False)


YES = click.option("--yes", is_flag=True, help="Do not ask. Where there is no terminal to ask on, it is needed.")


def confirm(question: str, *, yes: bool) -> None:
    """Ask a person; a program has to give --yes. Ends with DECLINED for a no.

    Raises invalid_params where nobody can be asked.
    """
    if yes:
        return
    if _asks_a_person():
        if not click.confirm(question, err=True):
            raise click.exceptions.Exit(DECLINED)
        return
    from armorclaw.errors import ArmorclawError

    why = "a person is asked first, and there is no terminal to ask on"
    raise ArmorclawError("invalid_params", "nothing was done", why=why, hint="give --yes to have it done")


def ask(question: str) -> bool:
    """What a person says, or the next line of stdin: y or yes. No answer is a no."""
    if _asks_a_person():
        return click.confirm(question, err=True)
    line = "" if sys.stdin is None else sys.stdin.readline()
    return line.strip().lower() in ("y", "yes")


def secret(prompt: str) -> str:
    """Typed without echo, or the first line of stdin: never an argument, which others can read.

    Raises click.UsageError when there is none.
    """
    if _asks_a_person():
        text: str = click.prompt(prompt, hide_input=True, err=True).strip()
    else:
        text = stdin().partition("\n")[0].strip()
    if not text:
        raise click.UsageError(f"no {prompt.lower()} came on stdin", click.get_current_context())
    return text


def stdin() -> str:
    """All of it. Raises click.UsageError for what is no text."""
    if sys.stdin is None:  # closed by whoever started us
        return ""
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError:
        raise click.UsageError("what came on stdin is not UTF-8", click.get_current_context()) from None


def _asks_a_person() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def names_of(method: str, member: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    """For the completion of an argument: what a bridge that runs has of that kind, else nothing."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[str]:
        from armorclaw.errors import ArmorclawError

        bridge = Bridge(context.params.get("config"), context.params.get("socket"))
        try:
            rows = bridge.call(method)
            return [row[member] for row in rows if row[member].startswith(incomplete)]
        except ArmorclawError:
            return []

    return complete
