"""Connections to homeservers, shared by all accounts that are on the same one."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpcore
import httpx
import trio

from armorclaw.matrix.outside import Network, Outside

PER_ACCOUNT = 28
"""Connections that one account may use at a time: 16 sends (delivery.sender), 4 files under way (matrix.media), the
sync, and a few calls."""

_IDLE = 8  # kept open by one account that has nothing to ask
_IDLE_SECONDS = 30.0
_CLOSE_TIMEOUT = 0.02  # seconds; TLS says good-bye, and whoever does not read it is left without


class Pools:
    """One pool for each homeserver, made for the first that needs it and closed with the last.

    `accounts` is how many may be on one homeserver, so that the long polls of many leave connections for their sends.
    `outside` makes the connections of guarded pools.
    """

    def __init__(self, accounts: int = 1, outside: Outside | None = None) -> None:
        self._accounts = max(accounts, 1)
        self._outside = outside or Outside()
        self._pools: dict[tuple[str, bool], httpx.AsyncHTTPTransport] = {}
        self._users: dict[tuple[str, bool], int] = {}

    @property
    def open_count(self) -> int:
        return len(self._pools)

    @asynccontextmanager
    async def pool(self, homeserver: str, *, guarded: bool = False) -> AsyncIterator[httpx.AsyncBaseTransport]:
        """The pool of a homeserver, for the length of a block; a guarded one connects to the Internet only.

        TLS as in `open_pool`.
        """
        origin = httpx.URL(homeserver)
        key = f"{origin.scheme}://{origin.netloc.decode()}".lower(), guarded
        if key not in self._pools:
            self._pools[key] = open_pool(homeserver, self._accounts, self._outside if guarded else None)
        pool = self._pools[key]
        self._users[key] = self._users.get(key, 0) + 1
        try:
            yield pool
        finally:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key], self._pools[key]
                with trio.move_on_after(_CLOSE_TIMEOUT, shield=True):
                    await pool.aclose()


def open_pool(homeserver: str, accounts: int = 1, network: Outside | None = None) -> httpx.AsyncHTTPTransport:
    """Connections to one homeserver; whoever opens them closes them. `network` makes them, if it is given.

    TLS trusts the authorities httpx brings, or those of SSL_CERT_FILE and SSL_CERT_DIR.
    """
    if homeserver.startswith("https:"):
        context = httpx.create_ssl_context()
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # loading authorities takes 20 ms and 2 MiB
    limits = httpx.Limits(
        max_connections=PER_ACCOUNT * accounts,
        max_keepalive_connections=_IDLE + 2 * (accounts - 1),
        keepalive_expiry=_IDLE_SECONDS,
    )
    transport = httpx.AsyncHTTPTransport(verify=context, trust_env=False, limits=limits)
    if network is not None or homeserver.startswith("https:"):  # httpx has no argument for this
        transport._pool = httpcore.AsyncConnectionPool(
            ssl_context=context,
            max_connections=limits.max_connections,
            max_keepalive_connections=limits.max_keepalive_connections,
            keepalive_expiry=limits.keepalive_expiry,
            network_backend=network or Network(),
        )
    return transport
