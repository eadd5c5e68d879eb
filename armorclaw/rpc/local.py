"""Calling a method from within the bridge's own program: the same params, results and errors, and no connection."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, cast

import msgspec
import trio

from armorclaw.errors import ArmorclawError, one_error
from armorclaw.rpc.call import Call
from armorclaw.rpc.pieces import Piece, text_of
from armorclaw.rpc.registry import Method, Registry, Role
from armorclaw.rpc.streaming import Uploads

if TYPE_CHECKING:
    from armorclaw.rpc.caller import OnProgress
    from armorclaw.rpc.peer import Peer


class _Here:
    """Stands where a connection would: the caller is this very process."""

    passes_fds = False

    def __init__(self, role: Role, agent: str | None) -> None:
        self.role = role
        self.agent = agent
        self.uid = os.geteuid()
        self.pid = os.getpid()


async def call_local(
    registry: Registry, method: str, params: dict[str, Any], *, role: Role, agent: str | None = None
) -> Any:
    """The result as its JSON would decode. Raises method_not_found, denied, invalid_params, what the method raises.

    Methods that need a connection, such as events.subscribe, refuse. Of one that streams, only the result is told.
    """
    found = _find(registry, method, role)
    if found.streams:
        async with stream_local(registry, method, params, role=role, agent=agent) as stream:
            await stream.end()
            return await stream.result()
    call = Call(cast("Peer", _Here(role, agent)), method)
    value = found.handler(call, found.read(params))
    if found.is_async:
        registry.answering[method] += 1
        try:
            value = await value
        finally:
            registry.answering[method] -= 1
    result = found.write(value)
    return msgspec.json.decode(result) if type(result) is msgspec.Raw else result


@asynccontextmanager
async def stream_local(
    registry: Registry,
    method: str,
    params: dict[str, Any],
    *,
    role: Role,
    agent: str | None = None,
    on_progress: OnProgress | None = None,
) -> AsyncIterator[LocalStream]:
    """What `Peer.stream` is to a connection. Progress is told at once, by the handler itself.

    Pieces are decoded from their JSON, so bytes come as base64. Raises as `call_local` does.
    """
    found = _find(registry, method, role)
    given = found.read(params)
    stream = LocalStream(found, cast("Peer", _Here(role, agent)), on_progress)
    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run, given, name=f"call {method}")
            registry.answering[method] += 1
            try:
                yield stream
            finally:
                registry.answering[method] -= 1
            nursery.cancel_scope.cancel(reason=f"the caller of {method} has left")


def _find(registry: Registry, method: str, role: Role) -> Method:
    found = registry.table(role).get(method)
    if found is None:
        name = "method_not_found" if registry.get(method) is None else "denied"
        raise ArmorclawError(name, f"{method} cannot be called by the role {role}")
    return found


class LocalStream:
    """The same as `armorclaw.rpc.stream.Stream`, with nothing between caller and handler: neither runs ahead."""

    def __init__(self, method: Method, here: Peer, on_progress: OnProgress | None) -> None:
        self._method = method
        self._here = here
        self._on_progress = on_progress
        self._chunks, self._taken = trio.open_memory_channel[bytes](0)
        self._uploads, self._given = trio.open_memory_channel[bytes](0)
        self._value: Any = None
        self._error: Exception | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            return msgspec.json.decode(await self._taken.receive())
        except trio.EndOfChannel:
            self._outcome()
            raise StopAsyncIteration from None

    async def send(self, value: Any) -> None:
        try:
            await self._uploads.send(text_of(value))
        except trio.BrokenResourceError:  # the handler has ended, and wanted no more
            self._outcome()

    async def end(self) -> None:
        self._uploads.close()

    async def result(self) -> Any:
        async for _ in self._taken:
            pass
        return self._outcome()

    async def run(self, params: Any) -> None:
        """Have the method answer."""
        method = self._method
        call = _LocalCall(self._here, method, self._chunks, self._given, self._on_progress)
        with self._chunks, self._given:
            try:
                self._value = method.write(await method.handler(call, params))
            except Exception as error:  # noqa: BLE001 - the caller gets it, where it looks for the result
                self._error = error

    def _outcome(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value


class _LocalCall(Call):
    __slots__ = ("_chunks", "_given", "_on_progress", "_row")

    def __init__(
        self,
        here: Peer,
        method: Method,
        chunks: trio.MemorySendChannel[bytes],
        given: trio.MemoryReceiveChannel[bytes],
        on_progress: OnProgress | None,
    ) -> None:
        super().__init__(here, method.name)
        self._row = method
        self._chunks = chunks
        self._given = given
        self._on_progress = on_progress

    async def send(self, chunk: Any) -> None:
        if self._row.chunk is None:
            await super().send(chunk)
        await self._chunks.send(text_of(self._row.write_chunk(chunk)))

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        if self._on_progress is not None:
            self._on_progress(done, total, message)

    def uploads(self) -> Uploads:
        if self._row.upload is None:
            super().uploads()
        return Uploads(self._row, self._next_upload)

    async def _next_upload(self) -> Piece | None:
        try:
            return msgspec.Raw(await self._given.receive())
        except trio.EndOfChannel:
            return None
