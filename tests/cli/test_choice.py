"""Which runtime the demo takes, and what it says of those it passes over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.cli import choice
from armorclaw.cli.choice import BUILT_IMAGE, PULLED_IMAGE, choose
from armorclaw.containers.engines.detect import Candidate
from armorclaw.containers.engines.http import EngineFault
from armorclaw.errors import ArmorclawError


@attrs.define
class Engines:
    """What is found on the host, and what was asked of it."""

    found: list[Candidate]
    images: set[str] = attrs.field(factory=set)
    pulled: list[str] = attrs.field(factory=list)
    built: list[str] = attrs.field(factory=list)
    broken: ArmorclawError | None = None
    offline: bool = False

    async def candidates(self) -> list[Candidate]:
        return self.found

    @asynccontextmanager
    async def open(self, path: str) -> AsyncIterator[Engines]:
        if self.broken:
            raise self.broken
        yield self

    @property
    def engine(self) -> Engines:
        return self

    async def check_image(self, image: str) -> str:
        if image not in self.images:
            raise ArmorclawError("image_missing", image)
        return "sha256:0"

    async def pull(self, image: str) -> None:
        if self.offline:
            raise EngineFault(500, "no route to host", "POST", "/images/create")
        self.pulled.append(image)

    async def python_image(self, engine: Any, *, tag: str) -> str:
        self.built.append(tag)
        return "sha256:1"


class Sandbox:
    """Bubblewrap that always works."""

    def __init__(self, logs: Path) -> None:
        pass

    async def check(self) -> str:
        return "sandbox: facts"


DOCKER = Candidate("docker", "/var/run/docker.sock", "", True, "Docker 1")
PODMAN = Candidate("podman", "/run/podman/podman.sock", "", True, "Podman 1")
NO_DOCKER = attrs.evolve(DOCKER, usable=False, text="there is no such socket", hint="apt-get install docker.io")


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    made = Engines([DOCKER, PODMAN])
    monkeypatch.setattr(choice, "candidates", made.candidates)
    monkeypatch.setattr(choice, "EngineRuntime", made)
    monkeypatch.setattr(choice, "SandboxRuntime", Sandbox)
    monkeypatch.setattr(choice, "python_image", made.python_image)
    return made


async def chosen(wanted: str | None = None, *, pull: bool = False) -> choice.Choice:
    return await choose(wanted, pull=pull, logs=Path("logs"))


async def test_an_image_that_is_there_is_taken_even_if_one_could_be_pulled(engines: Engines) -> None:
    engines.images = {"python:3"}
    made = await chosen(pull=True)
    assert (made.runtime, made.image, made.engine_socket) == ("docker", "python:3", Path(DOCKER.socket_path))
    assert engines.pulled == engines.built == []


async def test_nothing_is_pulled_unless_asked(engines: Engines) -> None:
    made = await chosen()
    assert (made.image, engines.pulled, engines.built) == ("sha256:1", [], [BUILT_IMAGE])
    made = await chosen(pull=True)
    assert (made.image, engines.pulled) == (PULLED_IMAGE, [PULLED_IMAGE])


async def test_the_next_best_says_why_not_the_best(engines: Engines) -> None:
    engines.found = [NO_DOCKER, PODMAN]
    made = await chosen()
    assert made.runtime == "podman"
    assert made.passed_over == ("docker at /var/run/docker.sock: there is no such socket",)
    engines.broken = ArmorclawError("runtime_missing", "no image can be made", why="no ldd")
    made = await chosen()
    assert (made.runtime, made.image) == ("sandbox", None)
    assert made.passed_over[1] == "podman at /run/podman/podman.sock: no image can be made: no ldd"


async def test_what_is_asked_for_or_nothing(engines: Engines) -> None:
    assert (await chosen("sandbox")).runtime == "sandbox"
    assert (await chosen("podman")).runtime == "podman"
    engines.found = [NO_DOCKER, PODMAN]
    with pytest.raises(ArmorclawError) as caught:
        await chosen("docker")
    assert caught.value.name == "engine_unreachable"
    assert caught.value.lines() == [
        "docker cannot be used",
        "why: docker at /var/run/docker.sock: there is no such socket",
        "hint: apt-get install docker.io",
    ]


async def test_a_plain_process_only_when_asked_for(engines: Engines) -> None:
    engines.found = []
    assert (await chosen()).runtime == "sandbox"
    assert (await chosen("process")).runtime == "process"


async def test_a_pull_that_fails(engines: Engines) -> None:
    engines.offline = True
    with pytest.raises(ArmorclawError) as caught:
        await chosen("docker", pull=True)
    assert "docker cannot pull python:3.12-slim: no route to host" in caught.value.why
    assert caught.value.hint == "leave --pull out"
