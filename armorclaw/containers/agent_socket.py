"""Where an agent meets the bridge: one socket in one directory, which is all of the bridge that it sees.

On the host::

    RUNTIME_DIR/mounts/NAME/NAME.sock      the socket; this directory is mounted, read-only, into that agent alone
    RUNTIME_DIR/mounts/NAME/OTHER.sock     what else it may reach, such as egress.sock
    RUNTIME_DIR/containers/NAME.sock       a link to the first, so that one path holds for people and on both sides

and inside, at /run/armorclaw/containers/NAME.sock. The directory is mounted and not the socket, because a mounted
file would stay the old one when the bridge starts again and makes a new one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import trio

from armorclaw.containers.spec import SOCKET_DIR, check_name
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.unix import MAX_PATH, bind_unix

_NEW = ".new"
"""A socket is bound under its name and this, then renamed."""


class AgentSocket:
    """The place of one agent's socket, over all its generations.

    Who gets in is decided by who connects, not by file modes alone. A bridge run by root gives directory and socket
    to the agent's group. Any other cannot: its sockets are open to all, in directories that only it can pass, except
    to an agent that has the directory mounted; or, where agents run as its own uid, they are its own.
    """

    def __init__(self, runtime_dir: Path, name: str, uid: int) -> None:
        """Nothing is made yet. `uid` is the agent's on the host. Raises `path_too_long`, `invalid_params`."""
        check_name("agent", name)
        runtime_dir = runtime_dir.absolute()
        self.name = name
        self.uid = uid
        self.directory = runtime_dir / "mounts" / name
        self.path = self.directory / f"{name}.sock"
        self.link = runtime_dir / "containers" / f"{name}.sock"
        self.inside = f"{SOCKET_DIR}/{name}.sock"
        self._runtime_dir = runtime_dir
        for path in (f"{self.path}{_NEW}", self.inside):
            self._check_length(path)

    def __repr__(self) -> str:
        return f"<AgentSocket {self.path}>"

    def listen(self) -> trio.SocketListener:
        """Make what is missing and listen, in place of the socket of an earlier generation or bridge.

        The directory stays the same one, as a container may have it mounted. The caller closes the listener. Raises
        `storage_failed` and what `bind_unix` raises.
        """
        owners, own = self._owners()
        try:
            for folder in (self._runtime_dir, self.directory.parent, self.link.parent):
                folder.mkdir(mode=0o700, exist_ok=True)
            # A sandbox makes its mounts as the agent's uid, which must find the way, but list nothing.
            self.directory.parent.chmod(0o711 if owners else 0o700)
            self.directory.mkdir(mode=0o700, exist_ok=True)
            if owners:
                os.chown(self.directory, *owners)
            self.directory.chmod(0o710 if owners else 0o700 if own else 0o711)
            listener = self._bind(self.path)
            self._make_link()
        except OSError as error:
            raise ArmorclawError(
                "storage_failed", f"agent {self.name!r} cannot have a socket", why=f"{self.path}: {error.strerror}"
            ) from error
        return listener

    def listen_also(self, name: str) -> trio.SocketListener:
        """Listen at NAME.sock beside its own, which is there already, as open and as closed as that one.

        The caller closes the listener; `remove` removes the socket. Raises `conflict`, `path_too_long`,
        `storage_failed` and what `bind_unix` raises.
        """
        if name == self.name:
            what, hint = f"agent {name!r} cannot have a socket {name}.sock beside its own", "give it another name"
            raise ArmorclawError("conflict", what, hint=hint)
        path = self.directory / f"{name}.sock"
        self._check_length(f"{path}{_NEW}")
        try:
            return self._bind(path)
        except OSError as error:
            raise ArmorclawError(
                "storage_failed", f"agent {self.name!r} cannot have a socket {name}.sock", why=error.strerror or ""
            ) from error

    def remove(self) -> None:
        """Leave nothing behind; for when no container has the directory mounted any more. What is gone is fine."""
        self.link.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            for path in self.directory.iterdir():
                if path.is_socket():  # also those that an earlier life of the bridge left
                    path.unlink(missing_ok=True)
        try:
            self.directory.rmdir()
        except OSError:
            pass  # gone already, or somebody keeps something in it

    def _owners(self) -> tuple[tuple[int, int] | None, bool]:
        """To whom files are given, if they can be, and whether the agent runs as this very user."""
        uid = os.geteuid()
        return (uid, self.uid) if uid == 0 else None, self.uid == uid

    def _bind(self, path: Path) -> trio.SocketListener:
        owners, own = self._owners()
        return bind_unix(
            path,
            mode=0o660 if owners else 0o600 if own else 0o666,
            uid=owners[0] if owners else None,
            gid=owners[1] if owners else None,
        )

    def _check_length(self, path: str) -> None:
        if len(os.fsencode(path)) > MAX_PATH:
            raise ArmorclawError(
                "path_too_long",
                f"agent {self.name!r} cannot have a socket",
                why=f"{path} is {len(os.fsencode(path))} bytes long, and a socket's path at most {MAX_PATH}",
                hint="choose a shorter runtime_dir, or a shorter name",
            )

    def _make_link(self) -> None:
        new = self.link.with_name(self.link.name + _NEW)
        new.unlink(missing_ok=True)
        new.symlink_to(self.path)
        new.replace(self.link)
