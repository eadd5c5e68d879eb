"""Where the agent of the demo runs: the strongest runtime that works here, and why no stronger one."""

from __future__ import annotations

from pathlib import Path

import attrs

from armorclaw.config import RuntimeName
from armorclaw.containers.engines.detect import Candidate, candidates
from armorclaw.containers.engines.http import EngineFault
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.image import python_image
from armorclaw.containers.local.sandbox import SandboxRuntime
from armorclaw.errors import ArmorclawError

PULLED_IMAGE = "python:3.12-slim"
"""What `--pull` pulls."""

PRESENT_IMAGES = (PULLED_IMAGE, "python:3-slim", "python:3")
"""Taken if the engine has one of them."""

BUILT_IMAGE = "armorclaw-demo-python:latest"
"""Else made from this host's own Python, without network; it stays in the engine for the next time."""


@attrs.frozen
class Choice:
    """A runtime that works here. `text` is for people; `passed_over` says of each stronger one why not."""

    runtime: RuntimeName
    text: str
    image: str | None = None
    engine_socket: Path | None = None
    passed_over: tuple[str, ...] = ()


async def choose(wanted: str | None, *, pull: bool, logs: Path) -> Choice:
    """`wanted` is docker, podman, sandbox, process or None for the strongest; never a plain process unless asked.

    Raises engine_unreachable or runtime_missing when what is wanted, or everything, does not work.
    """
    if wanted == "process":
        return Choice("process", "a plain process, as asked")
    passed_over: list[str] = []
    if wanted != "sandbox":
        hint = ""
        for engine in await candidates():
            if wanted not in (None, engine.kind):
                continue
            if engine.usable:
                try:
                    choice = await _in_engine(engine, pull=pull)
                except ArmorclawError as error:
                    reason, hint = str(error), error.hint
                else:
                    return attrs.evolve(choice, passed_over=tuple(passed_over))
            else:
                reason, hint = engine.text, hint or engine.hint
            passed_over.append(f"{engine.kind} at {engine.socket_path}: {reason}")
        if wanted is not None:
            why = "; ".join(passed_over) or f"no place where {wanted} could be is known"
            raise ArmorclawError("engine_unreachable", f"{wanted} cannot be used", why=why, hint=hint)
    return Choice("sandbox", await SandboxRuntime(logs).check(), passed_over=tuple(passed_over))


async def _in_engine(engine: Candidate, *, pull: bool) -> Choice:
    """An engine with an image that has Python. Raises what keeps it from having one."""
    runtime: RuntimeName = "podman" if engine.kind == "podman" else "docker"

    def chosen(image: str, text: str) -> Choice:
        return Choice(runtime, f"{runtime}, {text}", image, Path(engine.socket_path))

    async with EngineRuntime.open(engine.socket_path) as opened:
        for image in PRESENT_IMAGES:
            try:
                await opened.check_image(image)
            except ArmorclawError as error:
                if error.name != "image_missing":
                    raise
            else:
                return chosen(image, f"image {image}")
        if pull:
            try:
                await opened.engine.pull(PULLED_IMAGE)
            except EngineFault as fault:
                what = f"{runtime} cannot pull {PULLED_IMAGE}"
                raise ArmorclawError("image_missing", what, why=fault.message, hint="leave --pull out") from fault
            return chosen(PULLED_IMAGE, f"image {PULLED_IMAGE}, pulled")
        image = await python_image(opened.engine, tag=BUILT_IMAGE)
    return chosen(image, f"image made from this host's own Python (--pull takes {PULLED_IMAGE})")
