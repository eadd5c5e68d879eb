"""The proxy that one agent reaches: CONNECT to what its list names, and nothing else."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import trio

from armorclaw.egress.addresses import Resolve, is_allowed
from armorclaw.egress.ledger import Ledger, Record, Refusals
from armorclaw.egress.tunnel import Passed, Tunnel
from armorclaw.errors import ArmorclawError
from armorclaw.hosts import Address, HostPattern, Target
from armorclaw.structure import FaultError
from armorclaw.web.exchange import Exchange
from armorclaw.web.messages import Request, Response

CONNECT_PATIENCE = 15.0
"""Seconds until a host must be resolved and reached: all its addresses together."""

ADDRESS_PATIENCE = 5.0
"""Seconds for one of several addresses."""

LOOKUPS_EACH = 4
"""Names of one agent that are being resolved at once; more wait, and their CONNECT_PATIENCE runs."""

MAX_TUNNELS = 256
"""Connections of all agents to hosts at once; each takes two descriptors of the bridge."""


class RefusedError(Exception):
    """Why a connection is not made: `verdict` is for programs, `text` a sentence that is safe for the agent."""

    def __init__(self, status: int, verdict: str, text: str, address: Address | None = None) -> None:
        self.status = status
        self.verdict = verdict
        self.text = text
        self.address = address
        super().__init__(text)


class Proxy:
    """For the generation of one agent that its list was read for. `handle` is the handler of its listener."""

    def __init__(
        self,
        agent: str,
        patterns: Sequence[HostPattern],
        ledger: Ledger,
        refusals: Refusals,
        resolve: Resolve,
        tunnels: trio.Semaphore,
        worked: Callable[[str], object] | None = None,
    ) -> None:
        """`tunnels` is shared by all agents; `worked` is told the agent's name at each sign of its work."""
        self._agent = agent
        self._patterns = tuple(patterns)
        self._ledger = ledger
        self._counts = ledger.of(agent)
        self._refusals = refusals
        self._resolve = resolve
        self._lookups = trio.CapacityLimiter(LOOKUPS_EACH)
        self._tunnels = tunnels
        self._worked = worked

    async def handle(self, exchange: Exchange) -> Response | None:
        """A tunnel for as long as both sides have something to say, or a refusal that ends the connection."""
        target: Target | str = _asked(exchange.request)
        try:
            target = self._allowed(exchange.request)
            with self._slot():
                async with self._connected(target) as (host, address):
                    await self._relay(exchange, target, host, address)
            return None
        except RefusedError as refusal:
            if refusal.status < 500:
                self._counts.refused += 1
            else:
                self._counts.failed += 1
            await self._refusals.add(target, refusal.verdict, refusal.text, refusal.address)
            # most clients show the words beside the status and nothing else
            text = f"armorclaw: {refusal.text}"
            return Response.plain(refusal.status, f"{text}\n", reason=text, close=True)

    def _allowed(self, request: Request) -> Target:
        """What is asked for, if the list names it."""
        if request.method != "CONNECT":
            text = "only https:// leads out of here: this proxy knows CONNECT and no other method"
            raise RefusedError(405, "method", text)
        try:
            target = Target.parse(request.target)
        except FaultError as fault:
            raise RefusedError(400, "target", f"{fault.why}; {fault.fix}") from None
        if not any(pattern.matches(target) for pattern in self._patterns):
            text = f'{target} is not allowed; add "{target}" to egress in [agents.{self._agent}]'
            raise RefusedError(403, "not allowed", text)
        return target

    @contextmanager
    def _slot(self) -> Iterator[None]:
        try:
            self._tunnels.acquire_nowait()
        except trio.WouldBlock:
            raise RefusedError(503, "full", f"agents have {MAX_TUNNELS} connections already") from None
        try:
            yield
        finally:
            self._tunnels.release()

    @asynccontextmanager
    async def _connected(self, target: Target) -> AsyncIterator[tuple[trio.SocketStream, Address]]:
        """A connection to an address that was checked. Raises RefusedError."""
        stream = None
        with trio.move_on_after(CONNECT_PATIENCE):
            stream, address = await self._connect(target, await self._checked(target))
        if stream is None:
            raise RefusedError(504, "timeout", f"{target} did not answer within {CONNECT_PATIENCE:g} s")
        try:
            yield stream, address
        finally:
            stream.socket.close()

    async def _checked(self, target: Target) -> list[Address]:
        """The addresses of the target that may be connected to, at least one."""
        if isinstance(target.host, str):
            try:
                found = await self._resolve(target.host, target.port, self._lookups)
            except (OSError, UnicodeError) as error:
                raise RefusedError(502, "unresolved", f"{target.host} has no address") from error
        else:
            found = [target.host]
        allowed = [each for each in found if is_allowed(each, target.port, self._patterns)]
        if not found:
            raise RefusedError(502, "unresolved", f"{target.host} has no address")
        if not allowed:
            text = f"{target} is at an address that is not public; if it is meant, add that address to egress, too"
            raise RefusedError(403, "address", f"{text}, in [agents.{self._agent}]", found[0])
        return allowed

    async def _connect(self, target: Target, addresses: Sequence[Address]) -> tuple[trio.SocketStream, Address]:
        why, address = "", addresses[0]
        for address in addresses:
            with trio.move_on_after(ADDRESS_PATIENCE) as patience:
                try:
                    return await _dial(address, target.port), address
                except OSError as error:
                    why = os.strerror(error.errno) if error.errno else "it refused"
            if patience.cancelled_caught:
                why = ""
        if why:
            raise RefusedError(502, "unreachable", f"{target} cannot be reached: {why}", address)
        raise RefusedError(504, "timeout", f"{target} did not answer within {ADDRESS_PATIENCE:g} s", address)

    async def _relay(self, exchange: Exchange, target: Target, host: trio.SocketStream, address: Address) -> None:
        def record(kind: str, **facts: object) -> Record:
            return Record(kind, self._agent, str(target), {"address": str(address), **facts})

        try:
            await self._ledger.record(record("egress.opened"))
        except ArmorclawError as error:
            raise RefusedError(503, "not recorded", "no connection is made that cannot be recorded") from error
        began, passed = self._ledger.clock.monotonic(), Passed(why="the agent left")
        self._counts.opened += 1
        self._counts.open += 1
        try:
            stream, early = await exchange.take_over(200, reason="Connection established")
            assert isinstance(stream, trio.abc.HalfCloseableStream), "agents come by sockets"
            tunnel = Tunnel(stream, host, self._on_bytes)
            passed = tunnel.passed
            await tunnel.run(early)
        finally:
            self._counts.open -= 1
            ms = round((self._ledger.clock.monotonic() - began) * 1000)
            last = record("egress.closed", up=passed.up, down=passed.down, ms=ms, why=passed.why)
            await self._ledger.record_last(last)

    def _on_bytes(self, up: int, down: int) -> None:
        self._counts.bytes += up + down
        if self._worked is not None:
            self._worked(self._agent)


async def _dial(address: Address, port: int) -> trio.SocketStream:
    sock = trio.socket.socket(socket.AF_INET if address.version == 4 else socket.AF_INET6, socket.SOCK_STREAM)
    try:
        await sock.connect((str(address), port))
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


_HOST = re.compile(r"(?:https?://)?([A-Za-z0-9._-]{1,255}|\[[0-9A-Fa-f:.]{2,64}\])(:[0-9]{1,5})?(?:[/?].*)?")


def _asked(request: Request) -> str:
    """What of a request's target may be recorded: the host and the port. Paths may hold secrets."""
    match = _HOST.fullmatch(request.target)
    return f"{match[1].lower()}{match[2] or ''}" if match else "nothing"
