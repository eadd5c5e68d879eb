"""An image for agents: a base that the engine has, with libraries copied in.

Nothing is run to build it and nothing in it is downloaded by a container: the wheels are fetched on this host, and
copied into a container that is never started. The only thing that runs, before, is the Python of the base, without
network, to say which one it is.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import attrs
import trio

from armorclaw.containers.engines.http import EngineFault
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.image import chunks, python_image, split_tag
from armorclaw.containers.images.interpreter import Interpreter, interpreter_of
from armorclaw.containers.images.wheels import Libraries, fetch_libraries
from armorclaw.errors import ArmorclawError

TAG = "armorclaw-agent:latest"
"""What it is called unless somebody says otherwise."""

BASE_TAG = "armorclaw-python:latest"
"""Of the base that is made from this host's own Python when none is named."""

LABEL_DIGEST = "armorclaw.image-digest"
LABEL_BASE = "armorclaw.image-base"
LABEL_PACKAGES = "armorclaw.image-packages"

_DIGITS = 12
REMOVE_SECONDS = 30.0
_MAX_LABEL = 16_000  # characters; engines and their tools were not made for labels without end


@attrs.frozen
class BuiltImage:
    """What was made, or was there already. `pinned` is the tag that means just this content."""

    tag: str
    pinned: str
    id: str
    digest: str
    base: str
    python: str
    packages: tuple[str, ...]
    size: int  # bytes that were added to the base
    made: bool


async def build_image(
    runtime: EngineRuntime,
    *,
    requirements: list[Path],
    base: str | None = None,
    tag: str = TAG,
    tell: Callable[[str], None] = lambda text: None,
) -> BuiltImage:
    """Make the image and name it `tag`, and also by its content. `tell` gets a line for a person at each step.

    The same base and the same wheels give the same content and, while the engine has it, the same image. Raises
    `image_missing`, `engine_refused`, `config_invalid`, `invalid_params`, and what `fetch_libraries` raises.
    """
    repository, _ = split_tag(tag)
    engine = runtime.engine
    if base is None:
        base_id = await python_image(engine, tag=BASE_TAG)
        base = BASE_TAG
    else:
        base_id = await runtime.check_image(base)
    python = await interpreter_of(runtime, base_id)
    tell(f"base {base}: {python.text}")
    with tempfile.TemporaryDirectory(prefix="armorclaw-image-") as folder:
        libraries = await fetch_libraries(requirements, python, Path(folder))
        for package in libraries.packages:
            tell(f"with {package}")
        digest = await trio.to_thread.run_sync(_digest, base_id, libraries)
        pinned = f"{repository}:{digest[:_DIGITS]}"
        with _refusals(f"the engine does not make the image {tag}"):
            made = not await _is_there(runtime, pinned, digest)
            if made:
                await _make(runtime, base_id, pinned, libraries, _labels(base, digest, libraries))
            await engine.tag_image(pinned, *split_tag(tag))
            image = str((await engine.image(pinned))["Id"])
    return BuiltImage(tag, pinned, image, digest, base, _version(python), libraries.packages, libraries.size, made)


def _version(python: Interpreter) -> str:
    return python.markers["python_full_version"]


def _digest(base_id: str, libraries: Libraries) -> str:
    return hashlib.sha256(f"{base_id}\n{libraries.digest()}".encode()).hexdigest()


def _labels(base: str, digest: str, libraries: Libraries) -> dict[str, str]:
    packages = " ".join(libraries.packages)
    return {LABEL_DIGEST: digest, LABEL_BASE: base, LABEL_PACKAGES: packages[:_MAX_LABEL]}


async def _is_there(runtime: EngineRuntime, pinned: str, digest: str) -> bool:
    try:
        config: dict[str, Any] = (await runtime.engine.image(pinned)).get("Config") or {}
    except EngineFault:
        return False
    return (config.get("Labels") or {}).get(LABEL_DIGEST) == digest


async def _make(
    runtime: EngineRuntime, base_id: str, pinned: str, libraries: Libraries, labels: dict[str, str]
) -> None:
    engine = runtime.engine
    facts = (await engine.image(base_id)).get("Config") or {}
    config: dict[str, Any] = {"Image": base_id, "Labels": labels, "HostConfig": {"NetworkMode": "none"}}
    if not (facts.get("Cmd") or facts.get("Entrypoint")):
        config["Cmd"] = ["python3"]  # an engine creates nothing without a command
    name = f"armorclaw-image-{labels[LABEL_DIGEST][:_DIGITS]}"
    with suppress(EngineFault):
        await engine.remove(name)  # what a build that was killed has left
    container = ""
    try:
        container, _ = await engine.create(name, config)
        if libraries.files:
            with tempfile.TemporaryFile() as file:
                await trio.to_thread.run_sync(libraries.write_tar, file)
                file.seek(0)
                await engine.put_archive(container, "/", chunks(file))
        repository, version = split_tag(pinned)
        await engine.commit(container, repository=repository, tag=version)
    finally:
        if container:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_SECONDS):
                await engine.remove(container)


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Name what an engine refuses."""
    try:
        yield
    except EngineFault as fault:
        raise ArmorclawError("engine_refused", what, why=fault.message) from fault
