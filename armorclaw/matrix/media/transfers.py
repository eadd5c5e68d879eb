"""Files on their way between who calls and a homeserver: encrypted, counted, bounded; no file is ever held whole."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol, Self

import trio

from armorclaw.config import MIB
from armorclaw.errors import ArmorclawError
from armorclaw.guard.limits import Quota
from armorclaw.guard.quotas import Kind as QuotaKind
from armorclaw.matrix.media.attachment import FileKey, Opening, Sealing
from armorclaw.matrix.media.content import UNKNOWN_TYPE, Description, Source
from armorclaw.matrix.media.store import SMALLER, MediaStore
from armorclaw.rpc.flow import BYTES_MAX

if TYPE_CHECKING:
    from armorclaw.matrix.client import MatrixClient

PER_ACCOUNT = 4
"""Files under way at once through one account: each has one of its connections (matrix.pools)."""

PER_AGENT = 2
"""Of those, for one agent."""

PIECE_WAIT = 30.0
"""Seconds for one piece: of an upload to come from the caller, of a download to be taken. A connection to the
homeserver waits for it meanwhile."""

WHOLE = 3600.0
"""Seconds for a whole file: a homeserver that dribbles is given up."""

_PROGRESS = MIB  # bytes between two reports


class Allowance(Protocol):
    """What agents may use up (guard.quotas)."""

    def require(self, agent: str, kind: QuotaKind) -> None: ...
    def spend(self, agent: str, kind: QuotaKind, amount: int) -> None: ...


class Caller(Protocol):
    """Whoever made the call, as far as it matters: `rpc.call.Call`."""

    @property
    def agent(self) -> str | None: ...
    def progress(self, done: float, total: float | None = None, message: str = "") -> None: ...


class Transfers:
    """One per bridge. `largest` is bytes of a file, either way.

    All raise queue_full, rate_limited, too_large, timed_out, and what `MediaStore` raises.
    """

    def __init__(self, allowance: Allowance, largest: int) -> None:
        self._allowance = allowance
        self._largest = largest
        self._of_accounts = Quota("files under way", PER_ACCOUNT)
        self._of_agents = Quota("files under way", PER_AGENT)
        self._stores: dict[str, MediaStore] = {}

    async def upload(
        self,
        account: str,
        client: MatrixClient,
        what: Description,
        pieces: AsyncIterator[bytes],
        caller: Caller,
        *,
        encrypted: bool,
    ) -> tuple[str, FileKey | None]:
        """Have the homeserver keep `what.size` bytes; where, and with which key, if `encrypted`.

        Raises invalid_params if fewer bytes come, or more; what `pieces` raises; then nothing is kept.
        """
        with self._under_way(account, caller.agent):
            self._check_size(what.size)
            with _within(WHOLE, "the upload", "it is not complete"):
                store = self._store(account, client)
                most = await store.largest()
                if most is not None and what.size > most:
                    raise _too_large(f"a file of {what.size} bytes", most, "the homeserver takes", hint=SMALLER)
                body = _Counted(pieces, what.size, Sealing() if encrypted else None, self._meter(caller, what.size))
                if encrypted:  # nobody but the room's members is told what it is
                    uri = await store.upload(body, what.size, UNKNOWN_TYPE, None)
                else:
                    uri = await store.upload(body, what.size, what.mimetype, what.name)
        return uri, body.key()

    async def download(
        self,
        account: str,
        client: MatrixClient,
        source: Source,
        send: Callable[[bytes], Awaitable[object]],
        caller: Caller,
    ) -> int:
        """Give `send` a file piece by piece, decrypted; how many bytes it had.

        The last piece is given when the whole is known to be right. Raises media_damaged if it is not: what was given
        before is then not to be used.
        """
        with self._under_way(account, caller.agent):
            if source.size is not None:
                self._check_size(source.size)
            with _within(WHOLE, "the download", "it is not complete"):
                async with self._store(account, client).download(*source.place) as incoming:
                    if incoming.is_packed:
                        why = "the homeserver sent it packed, which was not asked for"
                        hint = "switch that off for media, at the homeserver or the proxy before it"
                        raise ArmorclawError("matrix_refused", f"the file {source.uri}", why=why, hint=hint)
                    if incoming.length is not None:
                        self._check_size(incoming.length)
                    opening = None if source.key is None else Opening(source.key)
                    meter = self._meter(caller, incoming.length)
                    held = bytearray()
                    while (piece := await incoming.next()) is not None:
                        meter(len(piece))
                        held += piece if opening is None else opening.open(piece)
                        while len(held) > BYTES_MAX:  # not when as many: what may be the last is held back
                            await _give(send, bytes(held[:BYTES_MAX]))
                            del held[:BYTES_MAX]
                    if opening is not None and not opening.is_whole():
                        why = "it is not what its sender encrypted"
                        raise ArmorclawError("media_damaged", f"the file {source.uri}", why=why)
                    if held:
                        await _give(send, bytes(held))
        return meter.done

    def _store(self, account: str, client: MatrixClient) -> MediaStore:
        store = self._stores.get(account)
        if store is None or store.client is not client:  # another session
            store = self._stores[account] = MediaStore(client)
        return store

    @contextmanager
    def _under_way(self, account: str, agent: str | None) -> Iterator[None]:
        if agent is None:
            with self._of_accounts.hold(account, f"the account {account}"):
                yield
            return
        self._allowance.require(agent, "media")
        with self._of_agents.hold(agent, f"agent {agent}"), self._of_accounts.hold(account, f"the account {account}"):
            yield

    def _check_size(self, size: int) -> None:
        if size > self._largest:
            raise _too_large(f"a file of {size} bytes", self._largest, "this bridge takes")

    def _meter(self, caller: Caller, total: int | None) -> _Meter:
        return _Meter(self._allowance, caller, total, self._largest)


class _Meter:
    """Counts the bytes of one file, tells of them, and says when they are too many."""

    def __init__(self, allowance: Allowance, caller: Caller, total: int | None, most: int) -> None:
        self.done = 0
        self._allowance = allowance
        self._caller = caller
        self._total = total
        self._most = most
        self._tell_at = _PROGRESS

    def __call__(self, size: int) -> None:
        self.done += size
        if self.done > self._most:
            raise _too_large("the file", self._most, "this bridge takes")
        if self._caller.agent is not None:
            self._allowance.spend(self._caller.agent, "media", size)
        if self.done >= self._tell_at:
            self._caller.progress(self.done, self._total)
            self._tell_at = self.done + _PROGRESS


class _Counted:
    """The pieces of an upload, encrypted if they are to be, exactly as many bytes as were announced.

    The last is given when the caller has said that it is the last: until then the homeserver has no whole file.
    """

    def __init__(self, pieces: AsyncIterator[bytes], size: int, sealing: Sealing | None, meter: _Meter) -> None:
        self._pieces = pieces
        self._size = size
        self._sealing = sealing
        self._meter = meter
        self._last: bytes | None = None

    def key(self) -> FileKey | None:
        return None if self._sealing is None else self._sealing.key()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        ready = None
        while ready is None:
            piece = await self._next()
            if piece is None:
                return self._end()
            if self._meter.done + len(piece) > self._size:
                raise _wrong_size(f"more than the {self._size} bytes came that were announced")
            if piece:
                self._meter(len(piece))
                ready, self._last = self._last, piece if self._sealing is None else self._sealing.seal(piece)
        return ready

    def _end(self) -> bytes:
        if self._meter.done < self._size:
            raise _wrong_size(f"only {self._meter.done} of {self._size} bytes came")
        last, self._last = self._last, None
        if last is None:
            raise StopAsyncIteration
        return last

    async def _next(self) -> bytes | None:
        with _within(PIECE_WAIT, "the upload", "no piece of it came"):
            return await anext(self._pieces, None)


async def _give(send: Callable[[bytes], Awaitable[object]], piece: bytes) -> None:
    with _within(PIECE_WAIT, "the download", "a piece of it was not taken"):
        await send(piece)


@contextmanager
def _within(seconds: float, what: str, why: str) -> Iterator[None]:
    with trio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        raise ArmorclawError("timed_out", what, why=f"{why} after {seconds:g} s")


def _too_large(
    what: str, most: int, who: str, *, hint: str = "its operator may raise media.max_size"
) -> ArmorclawError:
    return ArmorclawError("too_large", what, why=f"{who} {most} at most", hint=hint, limit=most)


def _wrong_size(why: str) -> ArmorclawError:
    return ArmorclawError("invalid_params", "the upload does not fit its size", why=why, fields=["size"])
