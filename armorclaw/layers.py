"""Where configuration comes from, and where a client finds the socket: for programs that must start at once.

Standard library only, and little of it. The weakest layer first: defaults, /etc, the user's own file, variables,
flags. config_layers.py puts them together to a whole configuration.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from typing import Any

SYSTEM_FILE = "/etc/armorclaw/armorclaw.toml"
"""For the daemon of a host."""

PREFIX = "ARMORCLAW_"
"""Of the variables: ARMORCLAW_<SECTION>_<KEY>."""

Environ = Mapping[str, str]


def user_file(environ: Environ = os.environ) -> str:
    """Below $XDG_CONFIG_HOME, which must be absolute to count, or ~/.config."""
    home = environ.get("XDG_CONFIG_HOME", "")
    return os.path.join(home if os.path.isabs(home) else os.path.expanduser("~/.config"), "armorclaw/armorclaw.toml")


def usual_files(environ: Environ = os.environ) -> list[str]:
    """Those of the two usual files that there are, the weaker first."""
    return [path for path in (SYSTEM_FILE, user_file(environ)) if os.path.exists(path)]


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a file holds. Raises config_invalid."""
    import tomllib  # only now: where there is no file, nobody needs it

    try:
        with open(path, "rb") as file:
            return tomllib.loads(file.read().decode("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise _invalid(f"cannot read {path}", reason or "", "name an existing file: --config FILE") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise _invalid(f"{path} is not TOML", reason, "mend the line; https://toml.io shows the syntax") from None


def default_runtime_dir(environ: Environ = os.environ) -> str:
    """Where sockets are unless the configuration says otherwise.

    Raises config_invalid where the system gives this user no such folder, and what would do has been made by another.
    """
    if os.geteuid() == 0:
        return "/run/armorclaw"
    if own := environ.get("XDG_RUNTIME_DIR"):
        return os.path.join(own, "armorclaw")
    of_session = f"/run/user/{os.geteuid()}"
    if _owner_of(of_session) == os.geteuid():
        return os.path.join(of_session, "armorclaw")
    # anybody may make a folder of that name: sockets in it would be his to replace
    shared = os.path.join(environ.get("TMPDIR") or "/tmp", f"runtime-{os.geteuid()}")  # noqa: S108 - looked at
    if _owner_of(shared) not in (None, os.geteuid()):
        hint = "set XDG_RUNTIME_DIR, or ARMORCLAW_BRIDGE_RUNTIME_DIR, to a folder of your own"
        raise _invalid(f"cannot use the folder {shared}", "it is another user's, or no folder", hint)
    return os.path.join(shared, "armorclaw")


def _owner_of(folder: str) -> int | None:
    """Whose folder that is, -1 for what is no folder, None for what is not there."""
    try:
        found = os.lstat(folder)
    except OSError:
        return None
    return found.st_uid if stat.S_ISDIR(found.st_mode) else -1


def socket_path(config: str | None = None, socket: str | None = None, environ: Environ = os.environ) -> str:
    """Where a client finds the bridge: as told, else by ARMORCLAW_SOCKET, else where the layers put it.

    `config` replaces the two usual files and, being a flag, is stronger than ARMORCLAW_SOCKET. Only what says where
    the socket is gets looked at: whether all is right is for the bridge to say. Raises config_invalid.
    """
    if socket is not None:
        return socket
    if config is None and (named := environ.get("ARMORCLAW_SOCKET")):
        return named
    found: dict[str, str] = {}
    for file in usual_files(environ) if config is None else [config]:
        found.update(_paths_in(file, usual=config is None))
    for key in ("socket", "runtime_dir"):
        if given := environ.get(f"{PREFIX}BRIDGE_{key.upper()}"):
            found[key] = os.path.abspath(os.path.expanduser(given))
    return found.get("socket") or os.path.join(
        found.get("runtime_dir") or default_runtime_dir(environ), "bridge.sock"
    )


def _paths_in(file: str, *, usual: bool) -> dict[str, str]:
    """What a file says about where the socket is, relative to its folder."""
    if usual and not os.access(file, os.R_OK):
        return {}  # it is the daemon's own: whoever may use the socket need not be able to read it
    section = read_toml(file).get("bridge", {})
    found = {}
    for key in ("socket", "runtime_dir"):
        value = section.get(key, "") if isinstance(section, dict) else None
        if not isinstance(value, str) or "\0" in value:
            raise _invalid(f"{file}: bridge.{key} is not a path", "", f"armorclaw config check --config {file}")
        if value:
            found[key] = os.path.join(os.path.dirname(os.path.realpath(file)), os.path.expanduser(value))
    return found


def _invalid(what: str, why: str, hint: str) -> Exception:
    from armorclaw.errors import ArmorclawError  # only now: the table of errors takes imports

    return ArmorclawError("config_invalid", what, why=why, hint=hint)
