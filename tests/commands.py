"""docs/cli.md, from the commands themselves.

`python -m tests.commands` writes it; a test fails when it is stale.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from armorclaw.cli.root import armorclaw

PAGE = Path(__file__).parent.parent / "docs" / "cli.md"

HEAD = """\
# Command line

Generated from the commands by `python -m tests.commands`; do not edit.

stdout is data, stderr is talk. With `--json` everything on stdout is JSON, one value per line; a stream has a line
for each piece. On a terminal tables are drawn for it, and control characters that agents or servers wrote are
replaced. Whoever is not at a terminal is asked nothing. Keys and passwords are typed without echo, or are the first
line of stdin; they are never arguments.

```sh
armorclaw keys add openai < key            # or typed, without echo
armorclaw containers logs echo -f --json | jq -r .text
armorclaw events tail --since 10m --follow
armorclaw call matrix.send --params '{"room_id":"!opaque:your.org","message":"good morning"}'
eval "$(armorclaw completion bash)"
```

A command that asks a running bridge finds its socket by `--socket`, else by `--config`, else by the variable
`ARMORCLAW_SOCKET`, else where the [layers of configuration](configuration.md#layers) put it.

An error is up to three lines on stderr (what, why, hint), and an exit status
([operations.md](operations.md#exit-statuses)). Ctrl-C ends a command with 130, and cancels what it had asked for;
`run` it stops in order, with 0. Who says no when asked ends it with 1.
"""


def page() -> str:
    """docs/cli.md as it should be."""
    return HEAD + "".join(_all(armorclaw, "armorclaw", None))


def _all(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    with click.Context(command, parent=parent, info_name=name.rpartition(" ")[2]) as context:
        if isinstance(command, click.Group):
            if parent is not None:
                yield f"\n## {name}\n\n{_about(command)}\n"
            for verb in command.list_commands(context):
                found = command.get_command(context, verb)
                assert found is not None
                yield from _all(found, f"{name} {verb}", context)
        else:
            level = "##" if parent is None or parent.parent is None else "###"
            pieces = " ".join(command.collect_usage_pieces(context))
            yield f"\n{level} {name}\n\n    {name} {pieces}\n\n{_about(command)}\n{_options(command, context)}"


def _about(command: click.Command) -> str:
    return inspect.cleandoc(command.help or "").replace("\b\n", "")


def _options(command: click.Command, context: click.Context) -> str:
    rows = []
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if isinstance(option, click.Option) and record is not None and "--help" not in option.opts:
            rows.append(f"| `{record[0].replace('|', '/')}` | {record[1]} |")
    return "\n| option | meaning |\n|---|---|\n" + "\n".join(rows) + "\n" if rows else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
