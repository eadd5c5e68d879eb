from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import BYTES_MAX
from armorclaw.rpc.local import call_local, stream_local
from armorclaw.rpc.registry import Role
from tests.rpc.streaming_house import StreamingHouse
from tests.rpc.test_stream import pour, take_all


@pytest.fixture
def streaming() -> StreamingHouse:
    return StreamingHouse()


async def test_pieces_then_a_result(streaming: StreamingHouse) -> None:
    async with stream_local(streaming.registry, "count", {"count": 3}, role=Role.OPERATOR) as stream:
        assert [number async for number in stream] == [0, 1, 2]
        assert await stream.result() == {"count": 3, "size": 0, "digest": ""}
    async with stream_local(streaming.registry, "items", {"count": 1}, role=Role.OPERATOR) as stream:
        assert [item async for item in stream] == [{"name": "é0", "size": 0}]
    async with stream_local(streaming.registry, "blob", {"count": 1, "size": 2}, role=Role.OPERATOR) as stream:
        assert [piece async for piece in stream] == ["AAA="]
        assert [piece async for piece in stream] == []


async def test_neither_runs_ahead(streaming: StreamingHouse) -> None:
    async with stream_local(streaming.registry, "forever", {}, role=Role.OPERATOR) as stream:
        await trio.testing.wait_all_tasks_blocked()
        assert streaming.sent == 0
        assert await stream.__anext__() == 0
        await trio.testing.wait_all_tasks_blocked()
        assert streaming.sent == 1
    assert (streaming.cancelled, streaming.running) == (["forever"], 0)


async def test_uploads(streaming: StreamingHouse) -> None:
    async with stream_local(streaming.registry, "sum", {}, role=Role.OPERATOR) as stream:
        for number in range(20):
            await stream.send(number)
        await stream.end()
        assert (await stream.result())["size"] == 190
    async with stream_local(streaming.registry, "keep", {}, role=Role.OPERATOR) as stream:
        await stream.send(b"abc")
        await stream.send("QUJD")
        with pytest.raises(ArmorclawError) as large:
            await stream.send(b"x" * (BYTES_MAX + 1))
        assert large.value.name == "too_large"
        await stream.end()
        assert (await stream.result())["size"] == 6
    async with stream_local(streaming.registry, "twice", {}, role=Role.OPERATOR) as stream:
        await stream.send(4)
        assert await stream.__anext__() == 8


async def test_an_upload_that_is_refused(streaming: StreamingHouse) -> None:
    async with stream_local(streaming.registry, "first", {}, role=Role.OPERATOR) as stream:
        with pytest.raises(ArmorclawError, match="not 0"), trio.fail_after(20):
            await pour(stream)
        with pytest.raises(ArmorclawError, match="not 0"):
            await stream.result()
    async with stream_local(streaming.registry, "take", {}, role=Role.OPERATOR) as stream:
        await stream.send({"nam": "x"})
        with pytest.raises(ArmorclawError) as odd:
            await stream.result()
        assert odd.value.data == {"fields": ["nam", "name"]}
    async with stream_local(streaming.registry, "enough", {}, role=Role.OPERATOR) as stream:
        for number in range(5):
            await stream.send(number)
        assert (await stream.result())["count"] == 1


async def test_errors(streaming: StreamingHouse) -> None:
    with pytest.raises(ArmorclawError) as unknown:
        async with stream_local(streaming.registry, "nothing", {}, role=Role.OPERATOR):
            raise AssertionError
    assert unknown.value.name == "method_not_found"
    with pytest.raises(ArmorclawError, match="count must be a whole number"):
        async with stream_local(streaming.registry, "count", {"count": "x"}, role=Role.OPERATOR):
            raise AssertionError
    got: list[Any] = []
    async with stream_local(streaming.registry, "refuse", {}, role=Role.OPERATOR) as stream:
        with pytest.raises(ArmorclawError) as refused:
            await take_all(stream, got)
    assert (refused.value.name, got) == ("conflict", [1])
    with pytest.raises(KeyError):
        async with stream_local(streaming.registry, "forever", {}, role=Role.OPERATOR):
            raise KeyError
    assert streaming.running == 0


async def test_progress(streaming: StreamingHouse) -> None:
    told: list[object] = []
    async with stream_local(
        streaming.registry,
        "report",
        {"count": 2},
        role=Role.OPERATOR,
        on_progress=lambda done, total, message: told.append((done, total)),
    ) as stream:
        await stream.result()
    assert told == [(0, 2), (1, 2), (2, None)]
    await call_local(streaming.registry, "report", {"count": 2}, role=Role.OPERATOR)


async def test_a_plain_call_of_a_method_that_streams(streaming: StreamingHouse) -> None:
    result = await call_local(streaming.registry, "count", {"count": 30}, role=Role.OPERATOR)
    assert result["count"] == 30
    assert (await call_local(streaming.registry, "sum", {}, role=Role.OPERATOR))["count"] == 0
    assert (await call_local(streaming.registry, "plain", {}, role=Role.OPERATOR))["count"] == 3
