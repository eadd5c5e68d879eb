"""Images with libraries in them, in real engines; the libraries are of the tests' own making."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from armorclaw.containers.engines.runtime import EngineRuntime, pull_hint
from armorclaw.containers.images.build import LABEL_DIGEST, LABEL_PACKAGES, BuiltImage, build_image
from armorclaw.containers.images.image import python_image, split_tag
from armorclaw.containers.images.interpreter import interpreter_of
from armorclaw.errors import ArmorclawError

from .wheelhouse import Wheelhouse

pytestmark = pytest.mark.parametrize("runtime_kind", ["docker", "podman"], indirect=True)

TAG = "armorclaw-agent:test"


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheelhouse:
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    house = Wheelhouse(tmp_path / "wheels")
    house.wheel(
        "greeting",
        files={"greeting.py": "TEXT = 'good morning'\ndef main(): print(TEXT)\n"},
        scripts={"greet": "greeting:main"},
    )
    return house


async def build(runtime: EngineRuntime, house: Wheelhouse, *lines: str, **more: Any) -> BuiltImage:
    requirements = [house.requirements(*lines)] if lines else []
    return await build_image(runtime, requirements=requirements, **{"tag": TAG, **more})


async def refusal(runtime: EngineRuntime, house: Wheelhouse, *lines: str, **more: Any) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as raised:
        await build(runtime, house, *lines, **more)
    return raised.value


async def all_containers(runtime: EngineRuntime) -> list[Any]:
    return await runtime.engine.containers()


async def test_an_agent_finds_its_libraries(
    engine_runtime: EngineRuntime, house: Wheelhouse, make_spec: Any, door: Any
) -> None:
    told: list[str] = []
    built = await build(engine_runtime, house, "greeting", tell=told.append)
    assert (built.tag, built.packages, built.made) == (TAG, ("greeting==1.0",), True)
    assert built.pinned == f"armorclaw-agent:{built.digest[:12]}"
    assert "with greeting==1.0" in told
    assert await all_containers(engine_runtime) == []
    facts = await engine_runtime.engine.image(TAG)
    assert facts["Config"]["Labels"][LABEL_DIGEST] == built.digest
    assert facts["Config"]["Labels"][LABEL_PACKAGES] == "greeting==1.0"
    script = """
    import greeting, subprocess
    said = subprocess.run(["greet"], capture_output=True, text=True).stdout
    writable = [folder for folder in sys.path if folder and os.access(folder, os.W_OK)]
    door.sendall(json.dumps([greeting.TEXT, said, writable]).encode())
    """
    template = make_spec(script)
    spec = make_spec(
        script, image=TAG, command=("python3", "-c", template.command[-1]), env={"PATH": "/usr/local/bin:/usr/bin"}
    )
    async with door(spec) as listener, engine_runtime.launch(spec) as running:
        await running.start()
        assert await listener.report() == ["good morning", "good morning\n", []]


async def test_the_same_is_made_once(engine_runtime: EngineRuntime, house: Wheelhouse) -> None:
    first = await build(engine_runtime, house, "greeting")
    again = await build(engine_runtime, house, "greeting", tag="armorclaw-agent:other")
    assert (again.made, again.id, again.digest) == (False, first.id, first.digest)
    assert (await engine_runtime.engine.image("armorclaw-agent:other"))["Id"] == first.id
    house.wheel("greeting", "2.0", files={"greeting.py": "TEXT = 'good night'\n"})
    other = await build(engine_runtime, house, "greeting")
    assert other.made
    assert other.digest != first.digest
    assert (await engine_runtime.engine.image(TAG))["Id"].removeprefix("sha256:") == other.id.removeprefix("sha256:")
    assert (await engine_runtime.engine.image(first.pinned))["Id"] == first.id  # what was pinned stays


async def test_on_a_base_that_the_user_has(engine_runtime: EngineRuntime, house: Wheelhouse) -> None:
    await python_image(engine_runtime.engine, tag="someones/python:3")
    built = await build(engine_runtime, house, base="someones/python:3")
    assert (built.base, built.packages, built.size) == ("someones/python:3", (), 0)
    assert built.python.startswith("3.")


async def test_a_base_that_is_not_there(engine_runtime: EngineRuntime, house: Wheelhouse) -> None:
    error = await refusal(engine_runtime, house, base="python:3.12-none")
    assert error.name == "image_missing"
    name = "docker.io/library/python:3.12-none" if engine_runtime.kind == "podman" else "python:3.12-none"
    assert error.hint == f"{engine_runtime.kind} pull {name}"


async def test_a_base_without_python(engine_runtime: EngineRuntime, house: Wheelhouse) -> None:
    from armorclaw.containers.images.image import program_image

    await program_image(engine_runtime.engine, tag="no-python:1", program=Path("/usr/bin/socat"))
    error = await refusal(engine_runtime, house, "greeting", base="no-python:1")
    assert error.name == "config_invalid"
    assert "cannot be the base of agents" in error.what
    assert await all_containers(engine_runtime) == []


async def test_nothing_is_left_of_what_fails(engine_runtime: EngineRuntime, house: Wheelhouse) -> None:
    error = await refusal(engine_runtime, house, "greeting", tag="Not A Name")
    assert error.name == "engine_refused"
    assert await all_containers(engine_runtime) == []
    error = await refusal(engine_runtime, house, "nowhere")
    assert error.what.startswith("there is no wheel of nowhere for Python 3.")
    assert await all_containers(engine_runtime) == []


async def test_the_interpreter_is_asked_without_network(
    engine_runtime: EngineRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    real = engine_runtime.engine.create

    async def create(name: str, config: Any) -> Any:
        made.append(config)
        return await real(name, config)

    monkeypatch.setattr(engine_runtime.engine, "create", create)
    image = await python_image(engine_runtime.engine, tag="armorclaw-python:latest")
    found = await interpreter_of(engine_runtime, image)
    assert found.markers["python_version"] == found.version
    assert found.libc[0] == "glibc"
    [config] = made
    assert config["HostConfig"]["NetworkMode"] == "none"
    assert config["HostConfig"]["CapDrop"] == ["ALL"]
    assert json.dumps(config["HostConfig"]["Mounts"]).count('"Source"') == 1
    assert await all_containers(engine_runtime) == []


def test_what_gets_an_image_that_is_missing(runtime_kind: str) -> None:
    assert pull_hint(runtime_kind, TAG) == f"armorclaw image build -r requirements.txt --tag {TAG}"
    assert " pull " in pull_hint(runtime_kind, "example.org/armorclaw-agent:1")


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("a:1", ("a", "1")),
        ("a", ("a", "latest")),
        ("h:5000/a", ("h:5000/a", "latest")),
        ("h:5000/a:1", ("h:5000/a", "1")),
    ],
)
def test_names(name: str, parts: tuple[str, str], runtime_kind: str) -> None:
    assert split_tag(name) == parts
