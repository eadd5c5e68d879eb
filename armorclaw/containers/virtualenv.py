"""A virtual environment of the host as an agent sees it: at its own path, read-only, with the Python it was made of.

It is mounted, not copied: what is installed there while an agent runs is there for the agent at its next import.
All here blocks, some 10 ms: call it in a worker thread.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from armorclaw.containers.spec import SOCKET_DIR, Mount
from armorclaw.errors import ArmorclawError

OLDEST = (3, 9)
"""Of Python: what the agent library needs."""

_SHARED = ("/usr", "/bin", "/sbin", "/lib", "/lib64")
"""Of the host, and visible in every sandbox: nothing below needs to be mounted."""

_TAKEN = (
    "/agent",
    "/config",
    "/data",
    "/dev",
    "/etc",
    "/opt/armorclaw",
    "/proc",
    "/sys",
    str(PurePosixPath(SOCKET_DIR)),
)
"""Where something else is, inside."""

# Answered by who is to read it, not by its mode: there may be access lists. "x" and "r" are what is needed of a path.
_CAN_READ = 'while [ $# -gt 0 ]; do [ "-$1" "$2" ] || { printf %s "$2"; exit 1; }; shift 2; done'
_TIMEOUT = 10.0


@attrs.frozen
class VirtualEnvironment:
    """What an agent gets of it."""

    path: Path
    mounts: tuple[Mount, ...]

    def variables(self, path: str) -> dict[str, str]:
        """What a shell's `activate` sets, `path` being PATH without it."""
        return {"PATH": f"{self.path}/bin:{path}", "VIRTUAL_ENV": str(self.path)}


def find_virtualenv(path: Path, uid: int, state_dir: Path) -> VirtualEnvironment:
    """Look at the virtual environment at `path`, for an agent of `uid`. Raises `config_invalid`: what is wrong."""
    if not path.is_absolute():
        raise _fault(path, "the path is not absolute", "write it from / on")
    path = Path(os.path.normpath(path))
    facts = _facts(path)
    interpreter = path / "bin" / "python3"
    try:
        real = interpreter.resolve(strict=True)
    except (OSError, RuntimeError):
        raise _fault(path, "its bin/python3 leads nowhere", f"make it anew: python3 -m venv --clear {path}") from None
    homes = [Path(facts["home"]).absolute()] if facts.get("home") else []
    prefixes = dict.fromkeys(_prefix(path, folder) for folder in (*homes, real.parent))
    needed = [path, *(prefix for prefix in prefixes if not _is_within(prefix, path))]
    mounts = [folder for folder in needed if not any(_is_within(folder, Path(shared)) for shared in _SHARED)]
    for folder in mounts:
        _check_place(path, folder, state_dir)
    _check_readable(path, [path / "pyvenv.cfg", interpreter, path / "lib", *needed], uid)
    return VirtualEnvironment(path, tuple(Mount(folder, str(folder)) for folder in mounts))


def _facts(path: Path) -> dict[str, str]:
    """pyvenv.cfg. Raises for what has none, or was made of a Python that is too old."""
    try:
        text = (path / "pyvenv.cfg").read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        why = "it has no pyvenv.cfg" if path.exists() else "it does not exist"
        raise _fault(path, why, f"make one: python3 -m venv {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise _fault(path, f"its pyvenv.cfg cannot be read: {reason}", "") from None
    pairs = (line.partition("=") for line in text.splitlines())
    facts = {key.strip().lower(): value.strip() for key, _, value in pairs}
    found = re.match(r"(\d+)\.(\d+)", facts.get("version") or facts.get("version_info") or "")
    if found and (int(found[1]), int(found[2])) < OLDEST:
        raise _fault(path, f"it has Python {found[0]}", f"agents need {OLDEST[0]}.{OLDEST[1]} or newer")
    return facts


def _prefix(path: Path, folder: Path) -> Path:
    """Where a Python is installed that has its program in `folder`."""
    prefix = folder.parent
    if any(_is_within(folder, Path(shared)) for shared in _SHARED):
        return Path("/usr")
    # ~/.local holds programs, and what other programs keep for this user, keyrings among it
    homes = [Path(user.pw_dir) for user in pwd.getpwall()]
    if len(prefix.parts) < 3 or any(prefix in (home, home / ".local", home / ".local/share") for home in homes):
        raise _fault(
            path,
            f"its Python is installed in {prefix}, which would be shown to the agent as a whole",
            "make it of a Python with a folder of its own, such as the system's: /usr/bin/python3 -m venv",
        )
    return prefix


def _check_place(path: Path, folder: Path, state_dir: Path) -> None:
    """Whether `folder` may be shown at its own path."""
    places = {folder, folder.resolve()}
    if any(_overlap(place, state) for place in places for state in (state_dir.absolute(), state_dir.resolve())):
        raise _fault(path, "the bridge's own state is there", "keep it elsewhere, below /srv for example")
    if any(_overlap(folder, Path(taken)) for taken in _TAKEN):
        raise _fault(
            path, f"inside, {folder} is taken by something else", "keep it elsewhere, below /srv for example"
        )


def _check_readable(path: Path, wanted: list[Path], uid: int) -> None:
    words: list[str] = []
    for folder in dict.fromkeys(parent for place in wanted for parent in reversed(place.parents)):
        words += ["x", str(folder)]
    for place in dict.fromkeys(wanted):
        words += ["r", str(place)]
    user: dict[str, Any] = {"user": uid, "group": uid, "extra_groups": []} if os.geteuid() == 0 else {}
    command = ["/bin/sh", "-c", _CAN_READ, "sh", *words]
    try:
        asked = subprocess.run(
            command, capture_output=True, text=True, env={}, cwd="/", timeout=_TIMEOUT, check=False, **user
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise _fault(path, f"whether it can be read cannot be found out: {error}", "") from error
    if asked.returncode:
        who = f"uid {uid}" if user else "this user"
        hint = f"make it somewhere else, such as below /srv, or let others in: chmod o+rx {asked.stdout}"
        raise _fault(path, f"{asked.stdout} cannot be read by {who}", hint)


def _is_within(path: Path, folder: Path) -> bool:
    return path == folder or path.is_relative_to(folder)


def _overlap(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)


def _fault(path: Path, why: str, fix: str) -> ArmorclawError:
    return ArmorclawError("config_invalid", f"python = {str(path)!r} cannot be an agent's Python", why=why, hint=fix)
