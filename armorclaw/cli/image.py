"""`armorclaw image`: the images that agents run in."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import click

from armorclaw.cli import show
from armorclaw.cli.options import CONFIG, JSON, SETTINGS, group


@group("image")
def command() -> None:
    """Images for agents."""


@command.command("build")
@click.option(
    "-r", "requirements", metavar="FILE", multiple=True, help="Libraries, as pip takes them; more than once."
)
@click.option("--base", metavar="IMAGE", help="One that the engine has; by default it is made of this host's Python.")
@click.option("--tag", metavar="NAME", help="What it is called; by default armorclaw-agent:latest.")
@click.option("--engine", type=click.Choice(["docker", "podman"]), help="By default the one that agents would get.")
@CONFIG
@SETTINGS
@JSON
def build(
    requirements: tuple[str, ...],
    base: str | None,
    tag: str | None,
    engine: str | None,
    config: str | None,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make an image with libraries in it. pip fetches their wheels on this host; no container gets a network."""
    import trio  # only now: `image build --help` needs none of it

    from armorclaw.cli.image_build import build_for
    from armorclaw.config_layers import effective

    found = effective(None if config is None else Path(config), flags=settings).config.bridge
    files = [Path(name) for name in requirements]
    built = trio.run(partial(build_for, engine, found.engine_socket, requirements=files, base=base, tag=tag))
    if as_json:
        import attrs

        show.as_json(attrs.asdict(built))
    else:
        show.line(built.tag)
