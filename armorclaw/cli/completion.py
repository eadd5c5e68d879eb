"""`armorclaw completion`: for bash, zsh and fish."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from armorclaw.cli import show
from armorclaw.cli.root import COMPLETE, armorclaw


@click.command("completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print what makes a shell complete armorclaw's commands.

    \b
    bash: armorclaw completion bash > ~/.local/share/bash-completion/completions/armorclaw
    zsh:  armorclaw completion zsh > a folder of $fpath, as _armorclaw
    fish: armorclaw completion fish > ~/.config/fish/completions/armorclaw.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "click knows these shells"
    show.text(made(armorclaw, {}, "armorclaw", COMPLETE).source())
