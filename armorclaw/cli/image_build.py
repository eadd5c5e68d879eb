"""What `armorclaw image build` runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click
import trio

from armorclaw.cli import show
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.build import TAG, BuiltImage, build_image
from armorclaw.containers.runtimes import Runtimes
from armorclaw.errors import one_error


async def build_for(
    engine: str | None, engine_socket: Path | None, *, requirements: list[Path], base: str | None, tag: str | None
) -> BuiltImage:
    """Build with the engine that agents would get, and talk on stderr. Raises what `build_image` raises."""
    with tempfile.TemporaryDirectory() as logs, one_error():
        runtimes = Runtimes(engine_socket, Path(logs))
        async with trio.open_nursery() as nursery:
            await nursery.start(runtimes.run)
            try:
                runtime = await runtimes.get(engine or "engine")
                assert isinstance(runtime, EngineRuntime)
                built = await build_image(runtime, requirements=requirements, base=base, tag=tag or TAG, tell=_tell)
            finally:
                runtimes.close()
    made = "made" if built.made else "it is there already"
    _tell(f"{built.tag} and {built.pinned}: {built.id}, {show.size(built.size)} of libraries, {made}")
    return built


def _tell(text: str) -> None:
    click.echo(show.plain(text), err=True)
