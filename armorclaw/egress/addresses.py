"""Which addresses may be connected to, and how names become addresses.

The bridge resolves names itself, and connects to the very address it has checked: a name that means something else a
moment later (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address
from typing import cast

import attrs
import trio

from armorclaw.hosts import SPECIAL, Address, HostPattern, is_special

MAX_ADDRESSES = 8
"""Of one name, that are tried; more are not looked at."""

LOOKUPS = 16
"""Names of all agents that are being resolved at once: each takes a thread, for as long as the resolver takes."""

Resolve = Callable[[str, int, trio.CapacityLimiter], Awaitable[Sequence[Address]]]
"""All addresses of a name. The limiter is the agent's: a lookup has one of its places until it ends, and that may be
long after nobody waits for it any more. Raises OSError when there are none."""


def is_allowed(address: Address, port: int, patterns: Sequence[HostPattern]) -> bool:
    """Whether a name may lead there: any ordinary address, and of the others those that the list itself names.

    A network names special addresses only if it is part of theirs: 10.0.0.0/8 does, 0.0.0.0/0 does not.
    """
    return not is_special(address) or any(_names(pattern, address) for pattern in patterns if pattern.port == port)


def _names(pattern: HostPattern, address: Address) -> bool:
    place = pattern.place
    if isinstance(place, str) or address not in place:
        return False
    # of the same version, or the address would not be in it
    return any(special.version == place.version and place.subnet_of(special) for special in SPECIAL)  # type: ignore[arg-type]


class Resolver:
    """The system's resolver, in threads of its own number. One for the bridge."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(LOOKUPS)

    async def __call__(self, host: str, port: int, places: trio.CapacityLimiter) -> list[Address]:
        limiter = cast(trio.CapacityLimiter, _Both(places, self._threads))  # Trio asks for these two methods only
        found = await trio.to_thread.run_sync(_look_up, host, port, abandon_on_cancel=True, limiter=limiter)
        return list(dict.fromkeys(ip_address(each[4][0]) for each in found))[:MAX_ADDRESSES]


@attrs.frozen
class _Both:
    """A place of the agent's and one of all, until the thread ends: else an agent that gives up one lookup after the
    other would soon have all of them."""

    agents: trio.CapacityLimiter
    threads: trio.CapacityLimiter

    async def acquire_on_behalf_of(self, borrower: object) -> None:
        await self.agents.acquire_on_behalf_of(borrower)
        try:
            await self.threads.acquire_on_behalf_of(borrower)
        except BaseException:
            self.agents.release_on_behalf_of(borrower)
            raise

    def release_on_behalf_of(self, borrower: object) -> None:
        self.threads.release_on_behalf_of(borrower)
        self.agents.release_on_behalf_of(borrower)


def _look_up(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int] | tuple[str, int, int, int]]]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)  # type: ignore[return-value]
