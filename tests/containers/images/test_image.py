from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.image import HostFiles, _place, python_image
from armorclaw.errors import ArmorclawError
from armorclaw.testing.engines import IMAGE


@pytest.fixture(scope="module")
def host() -> HostFiles:
    return HostFiles.of_python()


def written(host: HostFiles) -> bytes:
    buffer = io.BytesIO()
    host.write_tar(buffer)
    return buffer.getvalue()


def test_the_tar_is_a_root_file_system(host: HostFiles) -> None:
    with tarfile.open(fileobj=io.BytesIO(written(host))) as tar:
        members = {member.name: member for member in tar.getmembers()}
        names = list(members)
    assert len(names) == len(set(names))
    assert members["usr/bin/python3"].linkname in {Path(name).name for name in names if name.startswith("usr/bin/")}
    assert members["lib"].linkname == "usr/lib"
    assert members["tmp"].mode == 0o1777
    assert any(Path(name).name == "libgcc_s.so.1" for name in names)
    assert any(Path(name).name == "libstdc++.so.6" for name in names)
    assert any(Path(name).name.startswith("ld-linux") for name in names)
    for member in members.values():
        assert (member.uid, member.gid, member.mtime) == (0, 0, 0)
        assert not member.mode & 0o7000 or member.name == "tmp"
        assert not member.name.startswith("/")
        parent = str(Path(member.name).parent)
        assert parent == "." or members[parent].isdir(), f"{member.name} has no folder"
    assert not [name for name in names if "__pycache__" in name or name.endswith(".a") or "/test/" in name]
    assert [name for name in names if name.endswith(("/sh", "/bash"))] == []


def test_the_tar_is_the_same_each_time(host: HostFiles) -> None:
    assert written(host) == written(host)
    assert host.digest() == HostFiles.of_python().digest()


def test_the_digest_follows_the_files(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("x")
    first = HostFiles({"usr/a": file}, {}).digest()
    assert HostFiles({"usr/b": file}, {}).digest() != first
    os.utime(file, ns=(1, 1))
    assert HostFiles({"usr/a": file}, {}).digest() != first


@pytest.mark.parametrize(
    "path, place",
    [
        ("/usr/bin/python3.11", "usr/bin/python3.11"),
        ("/lib/aarch64-linux-gnu/libc.so.6", "usr/lib/aarch64-linux-gnu/libc.so.6"),
        ("/lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"),
    ],
)
def test_places(path: str, place: str) -> None:
    assert _place(Path(path)) == place


@pytest.mark.parametrize("python", ["/no/such/python3", "/usr/bin/true"])
def test_a_host_without_python(python: str) -> None:
    with pytest.raises(ArmorclawError) as raised:
        HostFiles.of_python(python)
    assert raised.value.name == "runtime_missing"
    assert len(raised.value.lines()) == 3


def test_one_program_and_its_libraries() -> None:
    host = HostFiles.of_program(Path("/usr/bin/socat"))
    assert host.files["usr/bin/socat"] == Path("/usr/bin/socat")
    assert {"libc.so.6"} < {Path(place).name for place in host.files}
    assert host.links["lib"] == "usr/lib"


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArmorclawError) as raised:
        HostFiles.of_program(tmp_path / "node")
    assert raised.value.name == "runtime_missing"


@pytest.mark.parametrize("runtime_kind", ["docker", "podman"], indirect=True)
async def test_it_is_made_once(engine_runtime: EngineRuntime) -> None:
    engine = engine_runtime.engine
    first = await python_image(engine, tag=IMAGE)
    assert await python_image(engine, tag=IMAGE) == first
    assert (await engine.image(IMAGE))["Id"].removeprefix("sha256:") == first.removeprefix("sha256:")


@pytest.mark.parametrize("runtime_kind", ["docker", "podman"], indirect=True)
async def test_its_python_is_whole(engine_runtime: EngineRuntime, make_spec: object, door: object) -> None:
    assert callable(make_spec)
    assert callable(door)
    modules = "asyncio, ctypes, decimal, hashlib, lzma, multiprocessing, sqlite3, ssl, uuid, venv, zlib"
    script = f"""
    import {modules}
    ctypes.CDLL("libgcc_s.so.1"), ctypes.CDLL("libstdc++.so.6")
    door.sendall(json.dumps([sys.version_info[:2], ssl.OPENSSL_VERSION, sqlite3.sqlite_version]).encode())
    """
    spec = make_spec(script)
    async with door(spec) as listener, engine_runtime.launch(spec) as running:
        await running.start()
        version, openssl, _ = await listener.report()
    assert version[0] == 3
    assert openssl.startswith("OpenSSL")
