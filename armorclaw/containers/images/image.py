"""An image made from a program of this host, without network, root's tools or a build step.

For a first look and for tests, where nothing may be pulled: /usr/bin/python3, its standard library and the shared
libraries they need become one image layer; or any one program and its libraries do. There is no shell in it. It fits
this host's architecture and holds no secret: everything comes from packages.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import subprocess
import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import IO

import attrs
import trio

from armorclaw.containers.engines.http import Engine, EngineFault
from armorclaw.errors import ArmorclawError

LABEL = "armorclaw.made_from"  # on the image: what it was made from, so that it is made again only after an upgrade
CHUNK = 1024 * 1024

_FACTS = """
import json, sys, sysconfig
print(json.dumps([sys.executable, sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]))
"""
_LEAVE_OUT = re.compile(
    r"(^|/)(__pycache__|test|idlelib|turtledemo|lib2to3|ensurepip|dist-packages|site-packages|config-[^/]*)(/|$)|\.a$"
)
_EXTRA_LIBRARIES = (  # wheels with compiled parts need them; the last are empty since glibc 2.34, and still asked for
    *("libgcc_s.so.1", "libstdc++.so.6", "libm.so.6"),
    *("libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"),
)
_LINKS = {name: f"usr/{name}" for name in ("bin", "sbin", "lib", "lib64")}
_PASSWD = b"root:x:0:0::/:/none\nagent:x:10001:10001::/tmp:/none\n"
_GROUP = b"root:x:0:\nagent:x:10001:\n"


async def python_image(engine: Engine, *, tag: str, python: str = "/usr/bin/python3") -> str:
    """Put the image on `engine` under `tag` ("name:tag") unless it is there and current; its id.

    Takes about 2 s and 40 MB once. Raises `runtime_missing` where the host's Python cannot be taken along
    (`python` is no system Python, no ldd), `engine_refused`, `engine_unreachable`.
    """
    return await _image(engine, tag, await trio.to_thread.run_sync(HostFiles.of_python, python))


async def program_image(engine: Engine, *, tag: str, program: Path) -> str:
    """The same with one program of the host, which becomes /usr/bin/NAME, such as the node of a wheel."""
    return await _image(engine, tag, await trio.to_thread.run_sync(HostFiles.of_program, program))


async def _image(engine: Engine, tag: str, host: HostFiles) -> str:
    try:
        present = await engine.image(tag)
        if ((present.get("Config") or {}).get("Labels") or {}).get(LABEL) == host.digest():
            return str(present["Id"])
    except EngineFault:
        pass
    repository, version = split_tag(tag)
    changes = [f"LABEL {LABEL}={host.digest()}", "ENV PATH=/usr/bin"]
    with tempfile.TemporaryFile() as file:
        await trio.to_thread.run_sync(host.write_tar, file)
        file.seek(0)
        try:
            made = await engine.import_image(chunks(file), repository=repository, tag=version, changes=changes)
            await engine.tag_image(made, repository, version)  # Podman's import looks at neither (seen with 4.3)
            return made
        except EngineFault as fault:
            what = f"the engine does not take the image {tag}"
            raise ArmorclawError("engine_refused", what, why=fault.message) from fault


def split_tag(name: str) -> tuple[str, str]:
    """The repository and the version of an image's name; "latest" without one."""
    repository, colon, version = name.rpartition(":")
    if not colon or "/" in version:  # the colon of a registry's port
        return name, "latest"
    return repository, version


async def chunks(file: IO[bytes]) -> AsyncIterator[bytes]:
    """The rest of a file, as an engine takes it."""
    while chunk := await trio.to_thread.run_sync(file.read, CHUNK):
        yield chunk


@attrs.frozen
class HostFiles:
    """A program of the host and every file it needs, by its place in the image."""

    files: dict[str, Path]  # place in the image, without leading slash → file of the host
    links: dict[str, str]  # place → target

    @classmethod
    def of_program(cls, program: Path) -> HostFiles:
        """An executable that needs nothing but shared libraries. Blocks shortly. Raises `runtime_missing`."""
        try:
            libraries = set(_linked([program]))
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ArmorclawError(
                "runtime_missing", f"no image can be made from {program}", why=str(error), hint="is it installed?"
            ) from error
        return cls({f"usr/bin/{program.name}": program, **{_place(path): path for path in libraries}}, dict(_LINKS))

    @classmethod
    def of_python(cls, python: str = "/usr/bin/python3") -> HostFiles:
        """Look around; blocks for about 0.3 s. Raises `runtime_missing`."""
        try:
            executable, stdlib, platform = json.loads(_output([python, "-I", "-c", _FACTS]))
            binary = Path(executable).resolve()
            files = {_place(binary): binary}
            for folder in {stdlib, platform}:
                files |= {_place(path): path for path in _library_files(Path(folder))}
            objects = [binary, *(path for path in files.values() if ".so" in path.suffixes)]
            libraries = set(_linked(objects))
            folders = {library.parent for library in libraries}
            libraries |= {
                folder / name for folder in folders for name in _EXTRA_LIBRARIES if (folder / name).exists()
            }
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            raise ArmorclawError(
                "runtime_missing",
                f"no image can be made from {python}",
                why=str(error),
                hint="apt-get install python3 libc-bin, or name an image and pull it",
            ) from error
        files |= {_place(library): library for library in libraries}
        links = {"usr/bin/python3": binary.name, "usr/bin/python": binary.name, **_LINKS}
        return cls(files, {place: target for place, target in links.items() if place not in files})

    def digest(self) -> str:
        """Changes when a file is added, removed or replaced."""
        sha = hashlib.sha256(_PASSWD + _GROUP)
        for place, path in sorted(self.files.items()):
            facts = path.stat()
            sha.update(f"{place}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode())
        return sha.hexdigest()

    def write_tar(self, into: IO[bytes]) -> None:
        """The root file system: root's files, no dates, the same bytes each time."""
        with tarfile.open(fileobj=into, mode="w") as tar:
            folders = {str(parent) for place in self.files for parent in Path(place).parents}
            folders |= {"etc", "tmp", "run", "proc", "sys", "dev", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64"}
            for folder in sorted(folders - {"."}):
                entry = tarfile.TarInfo(folder)
                entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
                tar.addfile(entry)
            for place, target in sorted(self.links.items()):
                entry = tarfile.TarInfo(place)
                entry.type, entry.linkname = tarfile.SYMTYPE, target
                tar.addfile(entry)
            for place, content in (("etc/passwd", _PASSWD), ("etc/group", _GROUP)):
                entry = tarfile.TarInfo(place)
                entry.size, entry.mode = len(content), 0o644
                tar.addfile(entry, io.BytesIO(content))
            for place, path in sorted(self.files.items()):
                with path.open("rb") as file:
                    facts = os.fstat(file.fileno())
                    entry = tarfile.TarInfo(place)
                    entry.size, entry.mode = facts.st_size, 0o755 if facts.st_mode & 0o111 else 0o644
                    tar.addfile(entry, file)


def _library_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if not _LEAVE_OUT.search(str(path.relative_to(folder))) and path.is_file():
            yield path


def _linked(objects: list[Path]) -> Iterator[Path]:
    """The shared libraries and the loader that `objects` need, under the names they are asked for."""
    for line in _output(["ldd", *map(str, objects)]).splitlines():
        if line.startswith("\t"):  # else the name of the object
            if "not found" in line:
                continue  # of an optional module, such as tkinter
            if match := re.search(r"(/\S+) \(0x", line):
                yield Path(match[1])


def _place(path: Path) -> str:
    """Everything lives under usr; /lib and its like are links to there, on hosts that do not do so yet too."""
    place = str(path).lstrip("/")
    return place if place.startswith("usr/") else f"usr/{place}"


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    if not done.stdout:
        raise ValueError(f"{command[0]} says nothing: {done.stderr.strip()[:200]}")
    return done.stdout
