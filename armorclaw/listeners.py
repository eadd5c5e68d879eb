"""The sockets of people on this host: who may connect to which, and as what."""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
from collections.abc import Callable
from functools import partial
from pathlib import Path

import trio

from armorclaw.clock import Surroundings
from armorclaw.config import Config
from armorclaw.errors import ArmorclawError
from armorclaw.guard.limits import Limits
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.unix import PeerCredentials, bind_unix, same_user, serve_unix
from armorclaw.supervision import ChildSpec

LOOKUPS = 8
"""Callers about whom the system's user database is asked at once: it may be a server that does not answer."""


class Listeners:
    """The operators' socket, and one for observers if there is a group of them."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        limits: Limits,
        around: Surroundings,
        *,
        admit: Callable[[], object] = lambda: None,
    ) -> None:
        """`admit` is asked at each connection; it raises what is to be told to those that come too late."""
        self._config = config
        self._registry = registry
        self._limits = limits
        self._around = around
        self._admit = admit

    def children(self) -> list[ChildSpec]:
        """One for each socket; its start raises config_invalid, storage_failed and what `bind_unix` raises."""
        where, who = self._config.bridge, self._config.server
        children = [ChildSpec("socket", partial(self._listen, where.socket, Role.OPERATOR, who.group))]
        if who.observer_group:
            observers = partial(self._listen, where.observer_socket, Role.OBSERVER, who.observer_group)
            children.append(ChildSpec("observers", observers))
        return children

    async def _listen(self, path: Path, role: Role, group: str, *, task_status: trio.TaskStatus[None]) -> None:
        gid = _gid(group) if group else None
        members = None if gid is None else Members(group, gid)

        async def member(peer: PeerCredentials) -> None:
            self._admit()
            if members is not None:
                await members.have(peer)

        await serve_unix(
            _bind(path, group, gid),
            self._registry,
            role=role,
            allow=same_user if gid is None else anybody,
            member=member,
            around=self._around,
            admission=self._limits.listener(role),
            path=path,
            task_status=task_status,
        )


def anybody(peer: PeerCredentials) -> bool:
    """The `allow` of a group's socket, where `Members` decides."""
    return True


class Members:
    """Who may use a group's socket: the bridge's user, root, who runs as that group, and its members.

    The kernel lets in whoever had the group when he logged in; the system's records tell whether he still has it.
    """

    def __init__(self, group: str, gid: int) -> None:
        self._group = group
        self._gid = gid
        self._lookups = trio.CapacityLimiter(LOOKUPS)

    async def have(self, peer: PeerCredentials) -> None:
        """Raises denied. The database is asked in a thread: only this caller waits for it."""
        if same_user(peer) or peer.gid == self._gid:
            return
        groups = await trio.to_thread.run_sync(groups_of, peer, abandon_on_cancel=True, limiter=self._lookups)
        if self._gid not in groups:
            hint = (
                f"sudo usermod -aG {self._group} USER, and connect anew; a unit's SupplementaryGroups= does not count"
            )
            raise ArmorclawError("denied", "this socket is not for your user", hint=hint)


def groups_of(peer: PeerCredentials) -> list[int]:
    """The groups that the system's records give a user, and the one he runs as. Blocks; none without a name."""
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        return []
    libc = ctypes.CDLL(None)  # os.getgrouplist would stop all threads meanwhile: it keeps the interpreter's lock
    size = 64
    while size <= 65_536:  # NGROUPS_MAX
        groups, count = (ctypes.c_uint * size)(), ctypes.c_int(size)
        if libc.getgrouplist(os.fsencode(name), ctypes.c_uint(peer.gid), groups, ctypes.byref(count)) >= 0:
            return groups[: count.value]
        size *= 4
    return []


def _gid(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        raise ArmorclawError(
            "config_invalid", f"there is no group {group!r}", hint=f"make it: sudo groupadd --system {group}"
        ) from None


def _bind(path: Path, group: str, gid: int | None) -> trio.SocketListener:
    """At no moment is the socket open to more than it should be."""
    try:
        if gid is None:
            return bind_unix(path)
        return bind_unix(path, mode=0o660, gid=gid)
    except PermissionError as error:
        if gid is not None and os.access(path.parent, os.W_OK):  # so it was the change of group
            hint = f"make the bridge's user a member: sudo usermod -aG {group} USER, and start it anew"
            raise ArmorclawError(
                "config_invalid", f"cannot give {path} to the group {group}", why="the bridge is not in it", hint=hint
            ) from error
        raise _cannot_listen(path, error) from error
    except OSError as error:
        raise _cannot_listen(path, error) from error


def _cannot_listen(path: Path, error: OSError) -> ArmorclawError:
    hint = "choose another [bridge] socket, or make its folder writable to this user"
    return ArmorclawError("storage_failed", f"cannot listen at {path}", why=error.strerror or "", hint=hint)
