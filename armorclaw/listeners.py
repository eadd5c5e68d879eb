"""The sockets of people on this host: who may connect to which, and as what."""

from __future__ import annotations

import grp
import os
import pwd
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


class Listeners:
    """The operators' socket, and one for observers if there is a group of them."""

    def __init__(self, config: Config, registry: Registry, limits: Limits, around: Surroundings) -> None:
        self._config = config
        self._registry = registry
        self._limits = limits
        self._around = around

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
        await serve_unix(
            _bind(path, group, gid),
            self._registry,
            role=role,
            allow=same_user if gid is None else partial(user_or_member, gid=gid),
            around=self._around,
            admission=self._limits.listener(role),
            path=path,
            task_status=task_status,
        )


def user_or_member(peer: PeerCredentials, *, gid: int) -> bool:
    """The `allow` of a group's socket: the bridge's user, root, who runs as that group, and its members.

    The kernel lets in whoever had the group when he logged in; the system's records tell whether he still has it.
    """
    if same_user(peer) or peer.gid == gid:
        return True
    try:
        name = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        return False
    return gid in os.getgrouplist(name, peer.gid)


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
