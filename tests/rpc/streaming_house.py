"""Streaming methods to try a peer with, and what they saw."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import EVERYONE, NoParams, Registry


@attrs.frozen
class Count:
    count: int = 3
    size: int = 0
    """Characters, or bytes, of each piece."""


@attrs.frozen
class Item:
    name: str
    size: int = 0


@attrs.frozen
class Total:
    count: int
    size: int = 0
    digest: str = ""


class StreamingHouse:
    def __init__(self) -> None:
        self.registry = Registry()
        self.sent = 0
        """Pieces that left a handler."""
        self.got: list[Any] = []
        self.running = 0
        self.cancelled: list[str] = []
        method = self.registry.method
        method("count", params=Count, result=Total, chunk=int, roles=EVERYONE)(self.count)
        method("blob", params=Count, result=Total, chunk=bytes, roles=EVERYONE)(self.blob)
        method("texts", params=Count, chunk=str, roles=EVERYONE)(self.texts)
        method("items", params=Count, chunk=Item, roles=EVERYONE)(self.items)
        method("sum", result=Total, upload=int, roles=EVERYONE)(self.sum)
        method("take", result=Total, upload=Item, roles=EVERYONE)(self.take)
        method("keep", result=Total, upload=bytes, roles=EVERYONE)(self.keep)
        method("never", upload=int, roles=EVERYONE)(self.never)
        method("twice", chunk=int, upload=int, roles=EVERYONE)(self.twice)
        method("both", chunk=int, upload=int, roles=EVERYONE)(self.both)
        method("slips", chunk=int, upload=int, roles=EVERYONE)(self.slips)
        method("mirror", result=Total, chunk=bytes, upload=bytes, roles=EVERYONE)(self.mirror)
        method("first", upload=int, roles=EVERYONE)(self.first)
        method("enough", result=Total, upload=int, roles=EVERYONE)(self.enough)
        method("report", params=Count, chunk=int, roles=EVERYONE)(self.report)
        method("forever", chunk=int, roles=EVERYONE)(self.forever)
        method("asleep", chunk=int, roles=EVERYONE)(self.asleep)
        method("stubborn", chunk=int, roles=EVERYONE)(self.stubborn)
        method("plain", params=Count, result=Total, roles=EVERYONE)(self.plain)
        method("wait", roles=EVERYONE)(self.wait)
        method("refuse", chunk=int, roles=EVERYONE)(self.refuse)
        method("boom", chunk=int, roles=EVERYONE)(self.boom)
        method("large", params=Count, chunk=str, roles=EVERYONE)(self.texts)
        method("confused", chunk=int, roles=EVERYONE)(self.confused)

    @contextmanager
    def _noted(self, call: Call) -> Iterator[None]:
        self.running += 1
        try:
            yield
        except trio.Cancelled:
            self.cancelled.append(call.method)
            raise
        finally:
            self.running -= 1

    async def count(self, call: Call, params: Count) -> Total:
        with self._noted(call):
            for number in range(params.count):
                await call.send(number)
                self.sent += 1
        return Total(params.count)

    async def blob(self, call: Call, params: Count) -> Total:
        digest = hashlib.sha256()
        with self._noted(call):
            for number in range(params.count):
                piece = bytes([number % 256]) * params.size
                digest.update(piece)
                await call.send(piece)
                self.sent += 1
        return Total(params.count, params.count * params.size, digest.hexdigest())

    async def texts(self, call: Call, params: Count) -> None:
        with self._noted(call):
            for _ in range(params.count):
                await call.send("x" * params.size)
                self.sent += 1

    async def items(self, call: Call, params: Count) -> None:
        for number in range(params.count):
            await call.send(Item(f"é{number}", number))

    async def sum(self, call: Call, params: NoParams) -> Total:
        with self._noted(call):
            async for number in call.uploads():
                self.got.append(number)
        return Total(len(self.got), sum(self.got))

    async def take(self, call: Call, params: NoParams) -> Total:
        async for item in call.uploads():
            self.got.append(item)
        return Total(len(self.got))

    async def keep(self, call: Call, params: NoParams) -> Total:
        digest = hashlib.sha256()
        count = size = 0
        with self._noted(call):
            async for piece in call.uploads():
                digest.update(piece)
                count += 1
                size += len(piece)
        return Total(count, size, digest.hexdigest())

    async def never(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            await trio.sleep_forever()

    async def twice(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            async for number in call.uploads():
                await call.send(2 * number)

    async def both(self, call: Call, params: NoParams) -> None:
        """As `matrix.verify`: one task waits for the caller, another one for something else."""
        with self._noted(call):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                self.got = [each async for each in call.uploads()]

    async def slips(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(trio.sleep_forever)
                try:
                    self.got = [each async for each in call.uploads()]
                except ArmorclawError as error:
                    raise RuntimeError("canary") from error

    async def mirror(self, call: Call, params: NoParams) -> Total:
        count = 0
        async for piece in call.uploads():
            await call.send(piece)
            count += 1
        return Total(count)

    async def first(self, call: Call, params: NoParams) -> None:
        async for number in call.uploads():
            raise ArmorclawError("conflict", f"not {number}")

    async def enough(self, call: Call, params: NoParams) -> Total:
        async for _ in call.uploads():
            break
        return Total(1)

    async def report(self, call: Call, params: Count) -> None:
        for number in range(params.count):
            call.progress(number, params.count, "x" * params.size)
        await trio.sleep(0.01)
        call.progress(params.count)
        await call.send(0)

    async def forever(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            while True:
                await call.send(self.sent)
                self.sent += 1

    async def asleep(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            await trio.sleep_forever()

    async def stubborn(self, call: Call, params: NoParams) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.05)

    async def plain(self, call: Call, params: Count) -> Total:
        return Total(params.count)

    async def wait(self, call: Call, params: NoParams) -> None:
        with self._noted(call):
            await trio.sleep(20)

    async def refuse(self, call: Call, params: NoParams) -> None:
        await call.send(1)
        raise ArmorclawError("conflict", "no", hint="do that")

    async def boom(self, call: Call, params: NoParams) -> None:
        await call.send(1)
        raise RuntimeError("canary")

    async def confused(self, call: Call, params: NoParams) -> None:
        call.uploads()
