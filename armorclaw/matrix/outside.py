"""How connections to homeservers are made; for names that others give us, to the Internet only."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Awaitable, Callable, Iterable, Sequence
from ipaddress import ip_address
from typing import Any

import httpcore
import trio

from armorclaw.hosts import is_special

MAX_ADDRESSES = 4
"""Of one name, that are tried."""

_CLOSE_TIMEOUT = 0.02  # seconds

Resolve = Callable[[str, int], Awaitable[Sequence[tuple[str, int]]]]
"""The addresses and ports of a name and a port. Raises OSError when there are none."""


async def resolve(host: str, port: int) -> list[tuple[str, int]]:
    """As the system does it, in a thread that nobody waits for once nobody wants the answer any more."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys((str(each[4][0]), int(each[4][1])) for each in found))


class Network(httpcore.AsyncNetworkBackend):
    """httpcore's own, but for a TLS handshake that is cancelled: it would leave its socket open."""

    def __init__(self) -> None:
        self._network = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """`timeout` is in seconds."""
        return _Unsecured(await self._network.connect_tcp(host, port, timeout, local_address, socket_options))

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)


class _Unsecured(httpcore.AsyncNetworkStream):
    """A connection that TLS is about to be spoken on."""

    def __init__(self, stream: httpcore.AsyncNetworkStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return await self._stream.read(max_bytes, timeout)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._stream.write(buffer, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            return await self._stream.start_tls(ssl_context, server_hostname, timeout)
        except BaseException:
            with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                await self._stream.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class Outside(Network):
    """Looks names up itself, and connects to the very address it has checked.

    So a name that means something else a moment later (DNS rebinding) gains nothing. `check` says whether an address
    must be left alone.
    """

    def __init__(self, resolve: Resolve = resolve, *, check: Callable[[str], bool] | None = None) -> None:
        super().__init__()
        self._resolve = resolve
        self._is_inside = check or (lambda address: is_special(ip_address(address.partition("%")[0])))

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that lets us; `timeout` is in seconds, for all of it."""
        with trio.move_on_after(float("inf") if timeout is None else timeout):
            try:
                found = await self._resolve(host, port)
            except OSError as error:
                raise httpcore.ConnectError(f"{host} has no address: {error}") from error
            allowed = [each for each in found if not self._is_inside(each[0])]
            if not allowed:
                raise httpcore.ConnectError(f"{host} has no address of the Internet; see allow_private")
            for at, (address, at_port) in enumerate(allowed[:MAX_ADDRESSES], 1):
                try:
                    return await super().connect_tcp(address, at_port, None, local_address, socket_options)
                except httpcore.ConnectError:
                    if at == min(len(allowed), MAX_ADDRESSES):
                        raise
        raise httpcore.ConnectTimeout(f"{host} takes too long")
