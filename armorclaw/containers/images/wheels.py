"""Libraries for the Python of an image, put together on this host by pip: wheels only, so nothing is built.

pip has its own configuration, and with it the indexes and tokens of whoever calls. None of that gets into what is
made: only what is in the wheels, without the records of where they came from.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import attrs
import trio

from armorclaw.containers.images.interpreter import Interpreter
from armorclaw.errors import ArmorclawError

FETCH_SECONDS = 900.0
"""For pip; some libraries are gigabytes."""

MAX_BYTES = 8 * 1024 * 1024 * 1024
"""Of all libraries of one image."""

_HAS_PIP = "import pip, sys; sys.exit(sys.version_info < (3, 9))"

# pip asks the Python that it runs in which requirements apply ("; python_version < '3.11'"). It is told
# of the image's.
_PIP = """
import json, runpy, sys
facts = json.loads(sys.argv.pop(1))
import pip._vendor.packaging.markers as markers
if not callable(getattr(markers, "default_environment", None)):
    sys.exit("ERROR: this pip cannot be told which Python it works for; another version of pip is needed")
markers.default_environment = lambda: dict(facts)
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""
_SETTINGS = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_NO_COLOR": "1",
    "PIP_USER": "0",
    "PIP_REQUIRE_VIRTUALENV": "0",
}
_UNSATISFIED = re.compile(r"(?:No matching distribution found for|satisfies the requirement) ([^\s(]+)")
_CREDENTIALS = re.compile(r"(://)[^/\s@]*@|(?<=[?&])[^=&\s]*=[^&\s]+")
_LEFT_OUT = ("direct_url.json", "REQUESTED")  # where it came from may name a private index, or be a secret itself


@attrs.frozen
class Libraries:
    """What is installed in a folder of this host: each file with its place in the image."""

    files: dict[str, Path]  # place without leading slash → file
    packages: tuple[str, ...]  # "name==version"
    size: int

    def digest(self) -> str:
        """SHA-256 over places, contents and whether they are programs."""
        sha = hashlib.sha256()
        for place, path in sorted(self.files.items()):
            sha.update(f"{place}\0{_mode(path):o}\0{path.stat().st_size}\n".encode(errors="surrogateescape"))
            with path.open("rb") as file:
                while chunk := file.read(1 << 20):
                    sha.update(chunk)
        return sha.hexdigest()

    def write_tar(self, into: IO[bytes]) -> None:
        """Root's files, no dates, the same bytes each time. Folders are left to whoever unpacks it."""
        with tarfile.open(fileobj=into, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for place, path in sorted(self.files.items()):
                with path.open("rb") as file:
                    entry = tarfile.TarInfo(place)
                    entry.size, entry.mode = os.fstat(file.fileno()).st_size, _mode(path)
                    tar.addfile(entry, file)


async def fetch_libraries(requirements: list[Path], python: Interpreter, into: Path) -> Libraries:
    """Install what the files name, and all that needs, into an empty folder, for `python` and not for this host's.

    Takes as long as the downloads do. Raises `not_found` for a file that is not there, `runtime_missing` without pip,
    `config_invalid` with the package there is no wheel of, or with pip's reason; `timed_out`, `too_large`.
    """
    for file in requirements:
        if not await trio.Path(file).is_file():
            raise ArmorclawError("not_found", f"{file} does not exist")
    if not requirements:
        return Libraries({}, (), 0)
    pip = await trio.to_thread.run_sync(_python_with_pip)
    wanted = [word for file in requirements for word in ("-r", str(file))]
    platforms = [word for name in python.platforms for word in ("--platform", name)]
    command = [
        *(pip, "-I", "-c", _PIP, json.dumps(python.markers)),
        *("install", "--target", str(into), "--no-compile", "--only-binary", ":all:"),
        *("--python-version", python.markers["python_full_version"].rstrip("+"), "--implementation", "cp"),
        *("--abi", python.abi, *platforms, *wanted),
    ]
    with trio.move_on_after(FETCH_SECONDS) as patience:
        done = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False, env={**os.environ, **_SETTINGS}
        )
    if patience.cancelled_caught:
        raise ArmorclawError("timed_out", "the libraries cannot be fetched", why=f"pip took over {FETCH_SECONDS:g} s")
    if done.returncode:
        raise _refused((done.stderr + b"\n" + done.stdout).decode(errors="replace"), python)
    return await trio.to_thread.run_sync(_look, into, python)


def _python_with_pip() -> str:
    for python in dict.fromkeys((sys.executable, "python3", "/usr/bin/python3")):
        try:
            done = subprocess.run([python, "-I", "-c", _HAS_PIP], capture_output=True, timeout=30, check=False)
        except (OSError, subprocess.SubprocessError):
            continue
        if done.returncode == 0:
            return python
    raise ArmorclawError(
        "runtime_missing",
        "the libraries cannot be fetched",
        why="there is no pip on this host",
        hint=f"apt-get install python3-pip, or: {sys.executable} -m ensurepip",
    )


def _refused(said: str, python: Interpreter) -> ArmorclawError:
    said = _CREDENTIALS.sub(lambda match: match[1] or "…", said)
    reasons = [line.removeprefix("ERROR: ").strip() for line in said.splitlines() if line.startswith("ERROR: ")]
    if found := _UNSATISFIED.search(said):
        return ArmorclawError(
            "config_invalid",
            f"there is no wheel of {found[1]} for {python.text}",
            why=reasons[0] if reasons else "",
            hint="name a version that has one, or take another base: nothing is built here",
        )
    _, cause, conflict = said.partition("The conflict is caused by:")
    why = "; ".join(reasons[:3]) or (said.strip().splitlines() or ["it does not say why"])[-1]
    if cause:
        why = "; ".join(line.strip() for line in conflict.strip().split("\n\n")[0].splitlines())
    return ArmorclawError("config_invalid", "pip refuses the requirements", why=why[:1000])


def _look(folder: Path, python: Interpreter) -> Libraries:
    """Find out what has been installed, and put right what is the host's."""
    packages = []
    for facts in sorted(folder.glob("*.dist-info")):
        packages.append(_identity(facts))
        _check_fits(facts, python)
        _forget_origin(facts)
    files: dict[str, Path] = {}
    size = 0
    for path in _files_below(folder):
        inside = path.relative_to(folder)
        home = PurePosixPath(python.folder)
        if inside.parts[0] == "bin":
            home, inside = PurePosixPath(python.scripts), inside.relative_to("bin")
            _run_by(path, python.executable)
        files[str(home / inside).lstrip("/")] = path
        size += path.stat().st_size
    if size > MAX_BYTES:
        raise ArmorclawError("too_large", f"the libraries have more than {MAX_BYTES // 1024**3} GiB together")
    return Libraries(files, tuple(packages), size)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if "__pycache__" not in path.parts and stat.S_ISREG(path.lstat().st_mode):
            yield path


def _identity(facts: Path) -> str:
    name, _, version = facts.name.removesuffix(".dist-info").rpartition("-")
    return f"{name.replace('_', '-').lower()}=={version}"


def _check_fits(facts: Path, python: Interpreter) -> None:
    """pip builds what is named by a folder or a repository, and that it builds for this host."""
    try:
        lines = (facts / "WHEEL").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    tags = [line.partition(":")[2].strip() for line in lines if line.lower().startswith("tag:")]
    fitting = {"any", *python.platforms}
    if not any(tag.rpartition("-")[2] in fitting for tag in tags):
        raise ArmorclawError(
            "config_invalid",
            f"{_identity(facts)} does not fit {python.text}",
            why=f"it was made for {', '.join(tags) or 'nothing it names'}",
            hint="name a version that has a wheel, not a folder or a repository",
        )


def _forget_origin(facts: Path) -> None:
    for name in _LEFT_OUT:
        (facts / name).unlink(missing_ok=True)
    record = facts / "RECORD"
    if record.is_file():
        forgotten = tuple(f"{facts.name}/{name}," for name in _LEFT_OUT)
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        # programs have moved, and their first line is another: they are no longer what the record says
        kept = [line for line in lines if not line.startswith((*forgotten, "../../bin/", "bin/"))]
        record.write_text("".join(sorted(kept)), encoding="utf-8")


def _run_by(program: Path, executable: str) -> None:
    """Its first line names the Python that pip ran in; inside it is another."""
    text = program.read_bytes()
    lines = text.split(b"\n", 2)
    if len(lines) < 3 or not lines[0].startswith(b"#!"):
        return
    if b"python" in lines[0]:
        program.write_bytes(b"#!" + executable.encode() + b"\n" + b"\n".join(lines[1:]))
    elif lines[1].startswith(b"'''exec'"):  # how pip writes it where the path is long
        program.write_bytes(b"#!" + executable.encode() + b"\n" + lines[2].partition(b"' '''\n")[2])


def _mode(path: Path) -> int:
    return 0o755 if path.stat().st_mode & 0o111 else 0o644
