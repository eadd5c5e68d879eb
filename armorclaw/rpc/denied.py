"""Why a socket cannot be opened by this user, for whoever was told no more than that it cannot."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Sequence
from typing import Any


def why_denied(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The reason and the next step, for the error `socket_denied`, after connecting to `path` was not permitted."""
    name = os.path.abspath(os.fspath(path))
    for folder in _folders(name):
        if not os.access(folder, os.X_OK):
            return f"this user may not pass {folder}", _as_owner(folder)
    try:
        found = os.stat(name)
    except OSError:
        return "this user may not open it", ""
    if found.st_mode & stat.S_IWGRP:
        group = _name(grp.getgrgid, found.st_gid)
        if _is_member(found.st_gid):
            return f"it is for the group {group}, which you joined after you logged in", "log out and in again"
        me = _name(pwd.getpwuid, os.geteuid())
        return f"it is for the group {group}", f"join it: sudo usermod -aG {group} {me}, then log out and in again"
    return "it is for its owner alone", _as_owner(name)


def _folders(path: str) -> list[str]:
    """Those on the way to `path`, the outermost first."""
    parts = path.split(os.sep)[1:-1]
    return [os.sep, *(os.sep + os.sep.join(parts[: count + 1]) for count in range(len(parts)))]


def _as_owner(path: str) -> str:
    owner = _name(pwd.getpwuid, os.stat(path).st_uid)
    return f"run as the user that owns the bridge: sudo -u {owner} …; or have [server] group set to a group of yours"


def _is_member(gid: int) -> bool:
    """Whether this user is in the group, by the system's records; the process may not know yet."""
    try:
        me = pwd.getpwuid(os.geteuid())
    except KeyError:
        return False
    return gid in os.getgrouplist(me.pw_name, me.pw_gid)


def _name(look_up: Callable[[int], Sequence[Any]], number: int) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
