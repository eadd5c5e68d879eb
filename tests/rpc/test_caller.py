"""Calls with a type: what is sent for what was given, and what becomes of the answers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.caller import NOTHING, Caller, OnProgress, RawStream, Stream, ask, given, open_stream


@attrs.frozen
class Inner:
    a: int
    b: int | None = None


@attrs.frozen
class Ask:
    name: str
    from_: Literal["now"] | int = "now"
    size: int = 1
    flag: bool = False
    note: str | None = None
    rooms: list[str] = attrs.field(factory=list)
    env: dict[str, str] = attrs.field(factory=dict)
    inner: Inner | None = None


DEFAULTS: dict[str, Any] = {
    "from_": "now",
    "size": 1,
    "flag": False,
    "note": None,
    "rooms": (),
    "env": NOTHING,
    "inner": None,
}


class FakeStream:
    def __init__(self, chunks: Sequence[Any], answer: Any) -> None:
        self.sent: list[Any] = []
        self._chunks = iter(chunks)
        self._answer = answer

    async def send(self, value: Any) -> None:
        self.sent.append(value)

    async def end(self) -> None:
        self.sent.append("the end")

    async def __anext__(self) -> Any:
        for chunk in self._chunks:
            return chunk
        raise StopAsyncIteration

    async def result(self) -> Any:
        return self._answer


class Fake:
    """A caller that answers what it was made with."""

    def __init__(self, answer: Any = None, chunks: Sequence[Any] = ()) -> None:
        self.answer = answer
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.opened = FakeStream(chunks, answer)
        self.left = False

    async def call(self, method: str, /, **params: Any) -> Any:
        self.calls.append((method, params))
        return self.answer

    @asynccontextmanager
    async def stream(
        self, method: str, /, *, on_progress: OnProgress | None = None, **params: Any
    ) -> AsyncIterator[RawStream]:
        self.calls.append((method, params))
        yield self.opened
        self.left = True


def test_only_what_differs_from_the_defaults_is_sent() -> None:
    assert given(Ask, {"name": "", **DEFAULTS}) == {"name": ""}, "what has no default is always sent"
    assert given(Ask, {"name": "x", **DEFAULTS, "size": True}) == {"name": "x", "size": True}, "no number"
    assert given(Ask, {"name": "x", **DEFAULTS, "from_": 5, "rooms": ("!a",), "inner": Inner(1)}) == {
        "name": "x",
        "from": 5,
        "rooms": ["!a"],
        "inner": {"a": 1, "b": None},
    }


async def test_an_answer_has_its_shape() -> None:
    caller: Caller = Fake({"a": 1, "b": 2, "of a newer version": 3})
    assert await ask(caller, "m", Inner, {"x": 1}) == Inner(1, 2)
    assert await ask(Fake([{"a": 1}]), "m", list[Inner], {}) == [Inner(1)]
    assert await ask(Fake({"any": []}), "m", dict[str, Any], {}) == {"any": []}
    assert await ask(Fake({}), "m", None, {}) is None


async def test_an_answer_of_another_shape_is_refused_without_repeating_it() -> None:
    with pytest.raises(ArmorclawError) as caught:
        await ask(Fake({"a": "secret"}), "get_it", Inner, {})
    assert caught.value.name == "remote_failed"
    assert str(caught.value) == "the answer to get_it has not its shape: a must be a whole number, not text"


async def test_streams_give_chunks_their_shape_and_take_pieces() -> None:
    fake = Fake({"a": 9}, chunks=[{"a": 1}, {"a": 2}])
    async with open_stream(fake, "m", {"x": 1}, None, chunk=Inner, result=Inner) as opened:
        stream: Stream[Inner, Inner, Inner] = opened
        await stream.send(Inner(7))
        await stream.end()
        assert [chunk async for chunk in stream] == [Inner(1), Inner(2)]
        assert await stream.result() == Inner(9)
    assert fake.opened.sent == [{"a": 7, "b": None}, "the end"]
    assert fake.calls == [("m", {"x": 1})]
    assert fake.left


async def test_bytes_are_bytes_on_both_ways() -> None:
    fake = Fake({}, chunks=["aGVsbG8="])
    async with open_stream(fake, "m", {}, None, chunk=bytes, result=None) as stream:
        await stream.send(b"raw")
        assert [chunk async for chunk in stream] == [b"hello"]
        assert await stream.result() is None
    assert fake.opened.sent == [b"raw"], "whoever writes it makes base64 of it"
