from __future__ import annotations

import errno
import socket
from functools import partial
from pathlib import Path

import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from armorclaw.rpc.wire import SocketWire
from tests.rpc.conftest import House, Raw, call


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.ENOMEM, errno.EPERM, errno.EPIPE])
@pytest.mark.parametrize(
    "what", [call("echo", text="odd"), call("sleep", id="odd", seconds=0)], ids=["plain", "async"]
)
async def test_a_write_that_fails_ends_its_own_connection_alone(
    short: Path, house: House, monkeypatch: pytest.MonkeyPatch, number: int, what: object
) -> None:
    """Whatever it is that the system says."""
    real = socket.socket.send

    def send(sock: socket.socket, data: bytes, flags: int = 0) -> int:
        if b"result" in data and b'"odd"' in data:
            raise OSError(number, "the system is odd")
        return real(sock, data, flags)

    monkeypatch.setattr(socket.socket, "send", send)
    listener = bind_unix(short / "s")
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(serve_unix, listener, house.registry, role=Role.OPERATOR, around=Surroundings()))
        async with (
            await trio.open_unix_socket(short / "s") as ours,
            await trio.open_unix_socket(short / "s") as other,
        ):
            await Raw(ours).send(what)
            assert await Raw(ours).rest() == b""
            assert (await Raw(other).ask("echo", text="even"))["result"] == {"text": "even"}
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EPIPE])
async def test_whatever_keeps_it_from_writing_the_connection_is_broken(
    socket_pair: tuple[trio.SocketStream, trio.SocketStream], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = socket.socket.send

    def send(sock: socket.socket, data: bytes, flags: int = 0) -> int:
        if data == b"x":
            raise OSError(number, "the system is odd")
        return real(sock, data, flags)

    monkeypatch.setattr(socket.socket, "send", send)
    wire = SocketWire(socket_pair[0])
    with pytest.raises(trio.BrokenResourceError):
        wire.send_now(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await wire.send(b"x")
    await wire.aclose()
