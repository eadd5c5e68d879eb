"""Libraries for another Python than the one that fetches them: real pip, an index in a folder."""

from __future__ import annotations

import io
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.containers.images import wheels
from armorclaw.containers.images.interpreter import Interpreter
from armorclaw.containers.images.wheels import Libraries, fetch_libraries
from armorclaw.errors import ArmorclawError

from .wheelhouse import Wheelhouse


def interpreter(
    version: str = "3.12.4", machine: str = "aarch64", libc: tuple[str, int, int] = ("glibc", 2, 28)
) -> Any:
    short = ".".join(version.split(".")[:2])
    return Interpreter(
        executable="/usr/local/bin/python3",
        folder=f"/usr/local/lib/python{short}/site-packages",
        scripts="/usr/local/bin",
        libc=libc,
        free_threaded=False,
        markers={
            "implementation_name": "cpython",
            "implementation_version": version,
            "os_name": "posix",
            "platform_machine": machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": version,
            "python_version": short,
            "sys_platform": "linux",
        },
    )


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheelhouse:
    for name in [name for name in os.environ if name.startswith("PIP_")]:  # the host's own index and constraints
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Wheelhouse(tmp_path / "wheels")


@pytest.fixture
def into(tmp_path: Path) -> Path:
    (tmp_path / "installed").mkdir()
    return tmp_path / "installed"


async def fetch(house: Wheelhouse, into: Path, *lines: str, python: Interpreter | None = None) -> Libraries:
    return await fetch_libraries([house.requirements(*lines)], python or interpreter(), into)


async def refusal(house: Wheelhouse, into: Path, *lines: str, python: Interpreter | None = None) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as raised:
        await fetch(house, into, *lines, python=python)
    return raised.value


def test_what_wheels_fit() -> None:
    glibc, musl = interpreter(), interpreter("3.9.1", "x86_64", ("musl", 1, 2))
    assert glibc.platforms[0] == "manylinux_2_28_aarch64"
    assert {"manylinux2014_aarch64", "manylinux_2_17_aarch64", "linux_aarch64"} < set(glibc.platforms)
    assert "manylinux_2_29_aarch64" not in glibc.platforms
    assert musl.platforms == ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64", "musllinux_1_0_x86_64", "linux_x86_64"]
    assert "manylinux2014_x86_64" not in interpreter(libc=("glibc", 2, 12)).platforms
    assert (glibc.abi, musl.abi) == ("cp312", "cp39")


async def test_those_of_the_image_not_of_this_host(house: Wheelhouse, into: Path) -> None:
    for tag, text in {
        "cp312-cp312-manylinux_2_17_aarch64": "right",
        "cp312-cp312-manylinux_2_39_aarch64": "too new a libc",
        "cp312-cp312-musllinux_1_2_aarch64": "another libc",
        "cp312-cp312-manylinux_2_17_x86_64": "another machine",
        "cp311-cp311-manylinux_2_17_aarch64": "another Python",
    }.items():
        house.wheel("ada", tag=tag, files={"ada.py": text})
    found = await fetch(house, into, "ada")
    assert found.packages == ("ada==1.0",)
    assert found.files["usr/local/lib/python3.12/site-packages/ada.py"].read_text() == "right"


@pytest.mark.parametrize(("version", "wanted"), [("3.9.2", {"old", "ada"}), ("3.13.0", {"new", "ada"})])
async def test_conditions_are_those_of_the_image(
    house: Wheelhouse, into: Path, version: str, wanted: set[str]
) -> None:
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    house.wheel(
        "ada",
        requires=[
            'old; python_version < "3.10"',
            'new; python_version >= "3.13"',
            f'here; python_version == "{here}"',
            'machine; platform_machine != "aarch64"',
        ],
    )
    for name in ("old", "new", "here", "machine"):
        house.wheel(name)
    found = await fetch(house, into, "ada", python=interpreter(version))
    assert {package.partition("==")[0] for package in found.packages} == wanted


async def test_what_has_no_wheel_is_named_and_not_built(house: Wheelhouse, into: Path) -> None:
    house.source("unbuilt")
    house.wheel("other", tag="cp312-cp312-win_amd64")
    for name in ("unbuilt", "other", "nowhere"):
        error = await refusal(house, into, name)
        assert error.name == "config_invalid"
        assert error.what == f"there is no wheel of {name} for Python 3.12 on aarch64, glibc 2.28"
        assert "it was run" not in str(error.lines())


async def test_what_pip_would_build_for_this_host_is_refused(house: Wheelhouse, into: Path, tmp_path: Path) -> None:
    wheel = house.wheel("local", tag=f"cp312-cp312-linux_{os.uname().machine}x")
    renamed = wheel.rename(
        wheel.with_name("local-1.0-py3-none-any.whl")
    )  # its name fits, what it says inside does not
    error = await refusal(house, into, str(renamed))
    assert error.what == "local==1.0 does not fit Python 3.12 on aarch64, glibc 2.28"


async def test_requirements_that_make_no_sense(house: Wheelhouse, into: Path) -> None:
    assert (await refusal(house, into, "a b c")).what == "pip refuses the requirements"
    house.wheel("ada", requires=["bob>=2"])
    house.wheel("bob", "1.0")
    house.wheel("bob", "2.0")
    error = await refusal(house, into, "ada", "bob==1.0")
    assert error.what == "pip refuses the requirements"
    assert "bob" in error.why


async def test_a_file_that_is_not_there(into: Path, tmp_path: Path) -> None:
    with pytest.raises(ArmorclawError) as raised:
        await fetch_libraries([tmp_path / "gone.txt"], interpreter(), into)
    assert raised.value.name == "not_found"


async def test_no_pip(house: Wheelhouse, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "_HAS_PIP", "raise SystemExit(1)")
    error = await refusal(house, into, "ada")
    assert error.name == "runtime_missing"
    assert "python3-pip" in error.hint


async def test_nothing_tells_where_it_came_from(
    house: Wheelhouse, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "canary-5f3a"
    wheel = house.wheel("ada", scripts={"ada": "ada:main"})
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", f"https://user:{canary}@localhost:1/simple?token={canary}")
    found = await fetch(house, into, f"ada @ file://{wheel}?token={canary}")
    assert not [place for place in found.files if place.endswith(("direct_url.json", "REQUESTED"))]
    whole = b"".join(path.read_bytes() for path in found.files.values())
    assert canary.encode() not in whole
    assert str(house.folder).encode() not in whole
    assert str(into).encode() not in whole
    assert sys.executable.encode() not in whole
    error = await refusal(house, into, f"--index-url https://user:{canary}@localhost:1/s?token={canary}", "a b c")
    assert canary not in "".join(error.lines())
    wheel.unlink()
    error = await refusal(house, into, f"ada @ file://{wheel}?token={canary}")
    assert canary not in "".join(error.lines())


async def test_programs_run_the_python_of_the_image(house: Wheelhouse, into: Path) -> None:
    house.wheel("ada", scripts={"ada": "ada:main"})
    found = await fetch(house, into, "ada")
    program = found.files["usr/local/bin/ada"]
    assert program.read_text().startswith("#!/usr/local/bin/python3\n")
    assert "sys.exit(main())" in program.read_text()
    assert "bin/ada" not in found.files["usr/local/lib/python3.12/site-packages/ada-1.0.dist-info/RECORD"].read_text()


def test_programs_with_a_long_path_too(tmp_path: Path) -> None:
    program = tmp_path / "ada"
    program.write_text("#!/bin/sh\n'''exec' /a/long/python3 \"$0\" \"$@\"\n' '''\nimport sys\n")
    wheels._run_by(program, "/usr/bin/python3")
    assert program.read_text() == "#!/usr/bin/python3\nimport sys\n"
    program.write_text("#!/bin/sh\necho\n")
    wheels._run_by(program, "/usr/bin/python3")
    assert program.read_text() == "#!/bin/sh\necho\n"


async def test_the_same_bytes_each_time(house: Wheelhouse, tmp_path: Path) -> None:
    house.wheel("ada", scripts={"ada": "ada:main"})
    house.wheel("bob")
    found = []
    for name in ("first", "a-second-folder"):
        (tmp_path / name).mkdir()
        found.append(await fetch(house, tmp_path / name, "ada", "bob"))
    assert found[0].digest() == found[1].digest()
    tars = []
    for each in found:
        tars.append(io.BytesIO())
        each.write_tar(tars[-1])
    assert tars[0].getvalue() == tars[1].getvalue()
    with tarfile.open(fileobj=io.BytesIO(tars[0].getvalue())) as tar:
        for entry in tar:
            assert (entry.uid, entry.gid, entry.mtime, entry.isfile()) == (0, 0, 0, True)
            assert entry.mode == (0o755 if entry.name == "usr/local/bin/ada" else 0o644)
    house.wheel("bob", "1.1")
    (tmp_path / "third").mkdir()
    assert (await fetch(house, tmp_path / "third", "ada", "bob")).digest() != found[0].digest()


async def test_pip_ends_with_whoever_wanted_it(
    house: Wheelhouse, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheels, "_PIP", "import time; time.sleep(60)")
    began = trio.current_time()
    with trio.move_on_after(0.5):
        await fetch(house, into, "ada")
    assert trio.current_time() - began < 10
    monkeypatch.setattr(wheels, "FETCH_SECONDS", 0.5)
    assert (await refusal(house, into, "ada")).name == "timed_out"


async def test_too_much(house: Wheelhouse, into: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wheels, "MAX_BYTES", 10)
    house.wheel("ada")
    assert (await refusal(house, into, "ada")).name == "too_large"
