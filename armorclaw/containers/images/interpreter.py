"""The Python of an image: asked of itself, in a container as confined as an agent's, and what wheels it can use."""

from __future__ import annotations

import re
import secrets
import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec
import trio

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.printed import LogWanted
from armorclaw.containers.recipe import PATH
from armorclaw.containers.spec import ContainerSpec
from armorclaw.containers.virtualenv import OLDEST
from armorclaw.errors import ArmorclawError

ANSWER_SECONDS = 60.0
ANSWER_BYTES = 64 * 1024
_INSTANCE = "image-build"
_NOBODY = 65534
_OLDEST_GLIBC = 5  # manylinux_2_5 is manylinux1, the first there was
_NEWEST_LIBC = 999  # of its second number: each one up to it becomes a word of pip's command
_VERSION = re.compile(r"[0-9]{1,3}\.[0-9]{1,3}")
_FULL_VERSION = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){2}[A-Za-z0-9.+-]{0,32}")
_WORD = re.compile(r"[A-Za-z0-9_]{1,32}")
_PLACE = re.compile(r"/[^\s\0]{1,255}")

# Whatever image it is, it may print more at its start: the answer is the line that begins so.
_MARK = "armorclaw-interpreter "
_ASK = """
import glob, json, os, platform, re, site, subprocess, sys, sysconfig
libc = ["", 0, 0]
try:
    name, version = os.confstr("CS_GNU_LIBC_VERSION").split()
    libc = [name, *map(int, version.split(".")[:2])]
except (AttributeError, OSError, ValueError):
    for loader in glob.glob("/lib/ld-musl-*"):
        said = subprocess.run([loader], stderr=subprocess.PIPE).stderr.decode(errors="replace")
        found = re.search(r"Version (\\d+)\\.(\\d+)", said)
        if found:
            libc = ["musl", int(found[1]), int(found[2])]
folders, pure = site.getsitepackages(), sysconfig.get_path("purelib")
whole = "{}.{}.{}".format(*sys.version_info[:3])
print("armorclaw-interpreter " + json.dumps({
    "executable": sys.executable, "folder": os.path.realpath(pure if pure in folders else folders[0]),
    "scripts": os.path.realpath(sysconfig.get_path("scripts")),
    "libc": libc, "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "markers": {
        "implementation_name": sys.implementation.name, "implementation_version": whole, "os_name": os.name,
        "platform_machine": platform.machine(), "platform_python_implementation": platform.python_implementation(),
        "platform_release": "", "platform_system": platform.system(), "platform_version": "",
        "python_full_version": platform.python_version(),
        "python_version": ".".join(platform.python_version_tuple()[:2]), "sys_platform": sys.platform}}))
"""


class Interpreter(msgspec.Struct, frozen=True):
    """The Python of an image. `folder` is where its libraries belong, `scripts` where programs of theirs do."""

    executable: str
    folder: str
    scripts: str
    libc: tuple[str, int, int]
    free_threaded: bool
    markers: dict[str, str]
    """As in requirements that depend on the environment (PEP 508)."""

    @property
    def version(self) -> str:
        """ "3.12" """
        return self.markers["python_version"]

    @property
    def abi(self) -> str:
        """Of its compiled modules, as in the names of wheels: cp312, cp313t."""
        return f"cp{self.version.replace('.', '')}{'t' if self.free_threaded else ''}"

    @property
    def platforms(self) -> list[str]:
        """As in the names of wheels, best first (PEP 600, PEP 656)."""
        machine = self.markers["platform_machine"]
        libc, major, minor = self.libc
        if libc == "musl":
            return [f"musllinux_{major}_{each}_{machine}" for each in range(minor, -1, -1)] + [f"linux_{machine}"]
        found = [f"manylinux_2_{each}_{machine}" for each in range(minor, _OLDEST_GLIBC - 1, -1)]
        old = {"manylinux2014": 17, "manylinux2010": 12, "manylinux1": 5}
        return [*found, *(f"{name}_{machine}" for name, least in old.items() if minor >= least), f"linux_{machine}"]

    @property
    def text(self) -> str:
        """For people."""
        libc, major, minor = self.libc
        return (
            f"Python {self.version} on {self.markers['platform_machine']}, {libc or 'unknown libc'} {major}.{minor}"
        )


async def interpreter_of(runtime: EngineRuntime, image: str) -> Interpreter:
    """Ask the Python of an image, in a container without network that is gone afterwards.

    Raises `image_missing`, `engine_refused`, and `config_invalid` for an image without a Python that agents can use.
    """
    with tempfile.TemporaryDirectory(prefix="armorclaw-") as nothing:
        spec = ContainerSpec(
            instance=_INSTANCE,
            name=f"python-{secrets.token_hex(4)}",
            image=image,
            command=("python3", "-I", "-c", _ASK),
            env={"PATH": PATH, "HOME": "/tmp"},  # noqa: S108 - its own
            uid=_NOBODY,
            gid=_NOBODY,
            socket_dir=Path(nothing),
        )
        said, why = await _answer(runtime, spec, image)
    lines = [line for line in said.splitlines() if line.startswith(_MARK)]
    try:
        found = msgspec.json.decode(lines[-1].removeprefix(_MARK), type=Interpreter)
    except (IndexError, msgspec.MsgspecError):
        raise _unusable(image, why or "it does not say which Python it has") from None
    check_interpreter(found, image)
    return found


async def _answer(runtime: EngineRuntime, spec: ContainerSpec, image: str) -> tuple[str, str]:
    """What it printed, and, should that be of no use, why."""
    texts: Mapping[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
    with trio.move_on_after(ANSWER_SECONDS) as patience:
        async with runtime.launch(spec) as running:
            try:
                await running.start()
            except ArmorclawError as error:
                if error.name != "start_failed":
                    raise
                raise _unusable(image, error.why) from error
            end = await running.wait()
            async with runtime.logs(spec.name, running.id, LogWanted(tail=None)) as reader:
                async for piece in reader:
                    text = texts.get(piece.stream)
                    if text is not None and len(text) < ANSWER_BYTES:
                        text += piece.data
    if patience.cancelled_caught:
        return "", f"its Python does not answer within {ANSWER_SECONDS:g} s"
    complaint = texts["stderr"].decode(errors="replace").strip().splitlines()
    why = "" if end.code == 0 else ": ".join(part for part in (end.text, *complaint[-1:]) if part)
    return texts["stdout"].decode(errors="replace"), why


def check_interpreter(found: Interpreter, image: str) -> None:
    """Raises `config_invalid`. An image may say anything of itself, and pip's command is made of it."""
    said, (libc, *libc_version) = found.markers, found.libc
    is_sound = (
        _VERSION.fullmatch(said.get("python_version", ""))
        and _FULL_VERSION.fullmatch(said.get("python_full_version", ""))
        and _WORD.fullmatch(said.get("platform_machine", ""))
        and all(0 <= each <= _NEWEST_LIBC for each in libc_version)
    )
    if not is_sound:
        raise _unusable(image, "what it says of its Python makes no sense")
    version = tuple(int(part) for part in found.version.split("."))
    if version < OLDEST:
        raise _unusable(image, f"it has Python {found.version}, agents need {OLDEST[0]}.{OLDEST[1]}")
    if said.get("implementation_name") != "cpython" or not libc:
        raise _unusable(image, f"its Python is {said.get('platform_python_implementation')}, not CPython on Linux")
    places = (found.executable, found.folder, found.scripts)
    if not all(_PLACE.fullmatch(place) and ".." not in place.split("/") for place in places):
        raise _unusable(image, "its Python does not know where it is installed")


def _unusable(image: str, why: str) -> ArmorclawError:
    return ArmorclawError(
        "config_invalid",
        f"the image {image} cannot be the base of agents",
        why=why,
        hint="take one with python3 in /usr/local/bin or /usr/bin, such as python:3.12-slim, or leave --base out",
    )
