"""Unix sockets to listen on: who may open them, and who is at the other end."""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger
from armorclaw.rpc.admission import Admission
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.ears import Ears
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.quiet import Quiet
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.wire import SocketWire

log = get_logger(__name__)

MAX_PATH = 107
"""Bytes of a socket's path that fit into struct sockaddr_un (unix(7)), its final NUL left out."""

BACKLOG = 128

_SO_PEERPIDFD = 77  # Linux 6.5; Python 3.11 has no name for it
_NO_RESOURCES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
_RETRY = 0.1  # seconds to wait for descriptors to become free


def bind_unix(
    path: str | os.PathLike[str], *, mode: int = 0o600, uid: int | None = None, gid: int | None = None
) -> trio.SocketListener:
    """Listen at `path`; at no moment is the socket open to more than `mode` allows.

    A socket that nobody listens at is replaced. Raises `path_too_long`, `already_running` if somebody does listen,
    `conflict` if something else is there, and OSError from the file system.
    """
    plain = mode == 0o600 and uid is None and gid is None
    final = os.fspath(path)
    name = final if plain else final + ".new"  # takes its place only when mode and owner are right
    if len(os.fsencode(name)) > MAX_PATH:
        raise ArmorclawError("path_too_long", f"the socket path {final} has more than {MAX_PATH} bytes")
    remove_stale(final)
    if not plain:
        with suppress(FileNotFoundError):
            os.unlink(name)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(sock.fileno(), 0o600)  # bind makes the file with the mode the socket has, umask aside
        sock.bind(name)
        sock.listen(BACKLOG)
        if not plain:
            os.chmod(name, mode)
            os.chown(name, -1 if uid is None else uid, -1 if gid is None else gid)
            os.rename(name, final)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ArmorclawError("already_running", f"another bridge has just taken {final}") from error
        raise
    sock.setblocking(False)
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def remove_stale(path: str | os.PathLike[str]) -> None:
    """Remove the socket at `path` if nobody listens there; see `bind_unix` for what it raises."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    name = os.fspath(path)
    if not stat.S_ISSOCK(kind):
        raise ArmorclawError("conflict", f"{name} is in the way", why="it is not a socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except FileNotFoundError:
            return
        except (BlockingIOError, PermissionError):
            pass  # full, or another user's: somebody listens
    raise ArmorclawError("already_running", f"another bridge listens at {name}")


@attrs.frozen
class PeerCredentials:
    """Who connected, as the kernel noted it then.

    `pid` may have been given to another process since; while `pidfd` is open, `alive` tells whether it still is the
    one that connected. Use it in a `with` block, which closes the pidfd.
    """

    pid: int
    uid: int
    gid: int
    pidfd: int | None = None

    def alive(self) -> bool:
        """Whether the process that connected still runs; always true on a kernel that cannot tell."""
        if self.pidfd is None:
            return True
        poll = select.poll()  # select() takes no descriptor above 1023
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        if self.pidfd is not None:
            os.close(self.pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def peer_of(sock: socket.socket | trio.socket.SocketType) -> PeerCredentials:
    """The credentials of the other end of a connected Unix socket."""
    pid, uid, gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    pidfd = None
    with suppress(OSError):
        pidfd = struct.unpack("i", sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD, 4))[0]
    return PeerCredentials(pid, uid, gid, pidfd)


@attrs.define
class Gate:
    """How many connections there may be; one gate can stand before several listeners."""

    per_uid: int = 64
    total: int = 1024
    _open: Counter[int] = attrs.field(factory=Counter, init=False, repr=False)

    def enter(self, uid: int) -> bool:
        """Count a connection; False if there are too many. Each True needs a `leave`."""
        if self._open.total() >= self.total or self._open[uid] >= self.per_uid:
            return False
        self._open[uid] += 1
        return True

    def leave(self, uid: int) -> None:
        self._open[uid] -= 1
        if not self._open[uid]:
            del self._open[uid]


AGENT_CONNECTIONS = 8
"""Connections to one agent's socket. The library uses one; what an agent can make the bridge hold grows with them."""

TURN_AWAYS = 8
"""Callers of one listener that are told why they cannot come in and have time to read it, even if they write first;
any more are told and closed at once."""


def gate_for(role: Role) -> Gate:
    """The gate of a listener that was given none."""
    return Gate(AGENT_CONNECTIONS, AGENT_CONNECTIONS) if role is Role.AGENT else Gate()


def same_user(peer: PeerCredentials) -> bool:
    """The usual `allow`: the user the bridge runs as, and root."""
    return peer.uid in (0, os.geteuid())


async def serve_unix(
    listener: trio.SocketListener,
    registry: Registry,
    *,
    role: Role,
    allow: Callable[[PeerCredentials], bool] = same_user,
    member: Callable[[PeerCredentials], Awaitable[None]] | None = None,
    around: Surroundings,
    agent: str | None = None,
    gate: Gate | None = None,
    admission: Admission | None = None,
    path: str | os.PathLike[str] | None = None,
    on_refused: Callable[[PeerCredentials], object] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every connection of this listener until cancelled.

    `allow` is asked before a byte is read; those it refuses are told so, reported to `on_refused`, and closed.
    `member` is asked next, in the connection's own task, and may take its time; it raises what is to be told. `path`
    is removed at the end. One connection's fault never reaches another. Without a `gate` the listener has its own:
    see `gate_for`. `admission` says how fast connections are accepted and what each may ask for; without it nothing
    is counted.
    """
    gate = gate or gate_for(role)
    quiet = Quiet()
    turning_away = 0

    async def serve_one(stream: trio.SocketStream, credentials: PeerCredentials) -> None:
        try:
            if member is not None:
                try:
                    await member(credentials)
                except ArmorclawError as error:
                    quiet(log.warning, "caller refused", uid=credentials.uid, pid=credentials.pid, agent=agent)
                    await _turn_away(stream, error)
                    return
                except BaseException:
                    stream.socket.close()
                    raise
            with nullcontext() if admission is None else admission.enter(credentials.uid) as allowance:
                peer = Peer(
                    stream,
                    registry,
                    role=role,
                    agent=agent,
                    uid=credentials.uid,
                    pid=credentials.pid,
                    around=around,
                    quiet=quiet,
                    allowance=allowance,
                    ears=ears,
                    commons=nursery,
                )
                await peer.serve()
        except Exception as error:  # noqa: BLE001 - it is this connection's own
            quiet(log.error, "connection failed", agent=agent, uid=credentials.uid, trace=trace(error))
        finally:
            gate.leave(credentials.uid)

    async def turn_away(stream: trio.SocketStream, why: ArmorclawError) -> None:
        nonlocal turning_away
        try:
            await _turn_away(stream, why)
        finally:
            turning_away -= 1

    ears = Ears()
    async with listener:
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ears.run, name="ears")
                task_status.started()
                while True:
                    if admission is not None and (pause := admission.pause()):
                        await trio.sleep(pause)
                    stream = await accept_one(listener, quiet)
                    if stream is None:
                        continue
                    with peer_of(stream.socket) as credentials:
                        allowed = allow(credentials)
                    if allowed and gate.enter(credentials.uid):
                        caller = attrs.evolve(credentials, pidfd=None)
                        nursery.start_soon(serve_one, stream, caller, name=f"peer {caller.pid}")
                        continue
                    if allowed:
                        quiet(log.warning, "too many connections", uid=credentials.uid, agent=agent)
                        refusal = ArmorclawError("unavailable", "too many connections")
                    else:
                        quiet(log.warning, "caller refused", uid=credentials.uid, pid=credentials.pid, agent=agent)
                        refusal = ArmorclawError("denied", "this socket is not for your user")
                        if on_refused is not None:
                            on_refused(credentials)
                    if turning_away < TURN_AWAYS:
                        turning_away += 1
                        nursery.start_soon(turn_away, stream, refusal, name="turn away")
                    else:
                        await _turn_away(stream, refusal, linger=False)
        finally:
            ears.close()
            if path is not None:
                listener.socket.close()
                with suppress(ArmorclawError, OSError):
                    remove_stale(Path(path))


async def accept_one(listener: trio.SocketListener, quiet: Quiet) -> trio.SocketStream | None:
    """The next connection; None, perhaps after a pause, when there was none to be had. Raises OSError for good."""
    try:
        return await listener.accept()
    except OSError as error:
        if error.errno in _NO_RESOURCES:
            quiet(log.error, "cannot accept", error=os.strerror(error.errno))
            await trio.sleep(_RETRY)
            return None
        if error.errno in (errno.ECONNABORTED, errno.EINTR):
            return None
        raise


async def _turn_away(stream: trio.SocketStream, why: ArmorclawError, *, linger: bool = True) -> None:
    """Say why, let the other side read it if we `linger`, and close. What it sends is not looked at."""
    payload = {"jsonrpc": "2.0", "id": None, "error": why.payload()}
    wire = SocketWire(stream)
    try:
        wire.send_now(MsgspecCodec().encode(payload) + b"\n")
        if linger:
            await wire.finish()
    except trio.BrokenResourceError:
        pass
    finally:
        await wire.aclose()
