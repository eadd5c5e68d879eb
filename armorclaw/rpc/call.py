"""A call as its handler sees it: who makes it, and what can be sent to them beside the result."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import trio

from armorclaw.errors import ArmorclawError

if TYPE_CHECKING:
    from armorclaw.rpc.peer import Peer
    from armorclaw.rpc.registry import Role


class Call:
    """What a handler may know of its caller, and how it sends more than JSON back.

    `send`, `progress` and `uploads` are for the handlers of streaming methods; anybody else gets a RuntimeError.
    """

    __slots__ = ("_alone", "_fds", "method", "peer")

    def __init__(self, peer: Peer, method: str, *, alone: bool = True) -> None:
        self.peer = peer
        self.method = method
        self._alone = alone
        self._fds: list[int] = []

    @property
    def role(self) -> Role:
        return self.peer.role

    @property
    def agent(self) -> str | None:
        """Whose socket the call came in by, if it was an agent's."""
        return self.peer.agent

    @property
    def uid(self) -> int | None:
        return self.peer.uid

    @property
    def pid(self) -> int | None:
        return self.peer.pid

    def attach_fd(self, fd: int) -> None:
        """Send this descriptor with the answer. It is ours from now on, and is closed in any case.

        Raises `invalid_request` where none can go: on a stream that is no Unix socket, in a batch.
        """
        self._fds.append(fd)
        if not (self.peer.passes_fds and self._alone):
            raise ArmorclawError(
                "invalid_request", "no descriptor can come with this answer", hint="call it alone, on the socket"
            )

    def take_fds(self) -> tuple[int, ...]:
        """The descriptors, which are the taker's to close."""
        if not self._fds:
            return ()
        fds, self._fds = tuple(self._fds), []
        return fds

    async def send(self, chunk: Any) -> None:
        """Send one piece of the result; waits until the caller may be sent one and the connection has room.

        A piece of a method with `chunk=bytes` is at most `flow.BYTES_MAX` bytes, any other `flow.CHUNK_MAX` bytes of
        JSON. Raises `too_large` beyond. One task of a handler sends at a time.
        """
        raise RuntimeError(f"{self.method} was registered without chunk=")

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        """Tell the caller how far this is. Never waits: what could not be sent yet is replaced by the newest."""
        raise RuntimeError(f"{self.method} was registered as a method that does not stream")

    def uploads(self) -> AsyncIterator[Any]:
        """The pieces that the caller sends, decoded, up to its last.

        Raises `invalid_params` for a piece that does not fit the method, or when the upload was cut short.
        """
        raise RuntimeError(f"{self.method} was registered without upload=")


def known_in(error: BaseException) -> ArmorclawError | None:
    """The error of ours in what a handler raised: alone, or the only kind in a group that its nursery made."""
    if isinstance(error, ArmorclawError):
        return error
    if isinstance(error, trio.TooSlowError):
        return ArmorclawError("timed_out", "it took too long")
    if isinstance(error, ExceptionGroup):
        inner = [known_in(each) for each in error.exceptions]
        if None not in inner:
            return inner[0]
    return None


def apart(error: BaseException) -> tuple[BaseException, Exception | None]:
    """What a handler raised that is being cancelled: what has to go on up, and what is only its caller's answer.

    A nursery of its own may have both: a task that was cancelled, and one that failed as its caller had gone.
    """
    if isinstance(error, BaseExceptionGroup):
        cancelled, rest = error.split(trio.Cancelled)
        if cancelled is not None and isinstance(rest, ExceptionGroup):
            return cancelled, rest
    return error, None
