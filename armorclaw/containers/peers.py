"""Who is at the other end of an agent's socket, as far as /proc tells.

An agent is known by three things: the listener it reached (whose directory is in one container only), the uid that
the kernel noted at connect, and the container its process is in. The last is what `Running.owns` answers; the local
runtimes do by what is here. The bridge must see the agents' pids, so it must not itself be in a pid namespace below
theirs; and /proc must not hide other users' processes (hidepid=, ProtectProc=invisible).
"""

from __future__ import annotations

import os
from collections.abc import Callable

from armorclaw.containers.runtime import Running
from armorclaw.rpc.unix import PeerCredentials

_MAX_ANCESTORS = 64
"""Deeper process trees than this are not an agent's."""


def only_from(running: Running) -> Callable[[PeerCredentials], bool]:
    """The `allow` of an agent's listener: processes of its container, and none that took over the pid of one."""
    return lambda peer: running.owns(peer) and peer.alive()


def pid_namespace(pid: int) -> int | None:
    """The number of that process's pid namespace; None if it is gone or may not be looked at.

    The kernel shows it to root, and to the same user unless the process made itself undumpable.
    """
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino
    except OSError:
        return None


def session(pid: int) -> int | None:
    """The session that process is in: the pid of its leader; None if it is gone."""
    fields = _stat(pid)
    return None if fields is None else int(fields[3])


def descends_from(pid: int, ancestor: int) -> bool:
    """Whether that process is `ancestor` or below it. Everybody may know this; nobody can choose his parents.

    An orphan counts as a child of whoever took it over: of the first process of its pid namespace, at the latest.
    """
    for _ in range(_MAX_ANCESTORS):
        if pid == ancestor:
            return True
        fields = _stat(pid)
        if fields is None or pid <= 1:
            return False
        pid = int(fields[1])
    return False


def children_of(pid: int) -> list[int]:
    """The children of that process's main thread, oldest first; [] if it is gone or the kernel does not tell."""
    try:
        with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]
    except OSError:
        return []


def _stat(pid: int) -> list[str] | None:
    """/proc/PID/stat from its third field on (state, ppid, pgrp, session …; proc(5)); None if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()  # the second field is a name of the process's own choosing
