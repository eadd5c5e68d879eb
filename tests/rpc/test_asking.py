"""Calls of ours: when they are sent, and what becomes of answers that are not as expected."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import WINDOW
from armorclaw.rpc.jsonrpc import Response
from armorclaw.rpc.peer import SOFT_LIMIT, Peer
from armorclaw.rpc.registry import Registry
from tests.rpc.conftest import House, Raw
from tests.rpc.streaming_house import StreamingHouse
from tests.rpc.test_peer import serving
from tests.rpc.test_streaming import note

Streams = tuple[trio.SocketStream, trio.SocketStream]
LARGE = "x" * 700_000


@pytest.fixture
async def caller(socket_pair: Streams, house: House) -> AsyncIterator[Peer]:
    async with serving(socket_pair[1], house.registry), serving(socket_pair[0], Registry()) as peer:
        yield peer


def answer(number: int, result: Any = None) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": result}


async def test_many_large_calls_at_once(caller: Peer) -> None:
    """Together far more than may wait for a reader that is slow, and their answers as large."""
    sizes: list[int] = []

    async def ask() -> None:
        sizes.append(len((await caller.request("echo", {"text": LARGE}, timeout=20))["text"]))

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(ask)
    assert sizes == [len(LARGE)] * 16


async def test_many_large_streams_at_once(caller: Peer) -> None:
    sizes: list[int] = []

    async def ask() -> None:
        async with caller.stream("echo", {"text": LARGE}) as stream:
            sizes.append(len((await stream.result())["text"]))

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(16):
                nursery.start_soon(ask)
    assert sizes == [len(LARGE)] * 16


async def request(peer: Peer, numbers: list[int], number: int) -> None:
    await peer.request("x", {"number": number, "text": LARGE}, timeout=30)
    numbers.append(number)


async def stream(peer: Peer, numbers: list[int], number: int) -> None:
    async with peer.stream("x", {"number": number, "text": LARGE}) as made:
        await made.result()
    numbers.append(number)


@pytest.mark.parametrize("ask", [request, stream])
async def test_one_at_a_time_in_their_order(socket_pair: Streams, ask: Callable[..., Any]) -> None:
    """While the other side reads slowly, each waits until there is room: for one, which may be larger than that."""
    asked: list[int] = []
    answered: list[int] = []
    async with serving(socket_pair[0], Registry()) as peer, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(ask, peer, answered, number)
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert peer._out.buffered < SOFT_LIMIT + len(LARGE) + 100
        raw = Raw(socket_pair[1])
        while len(asked) < 10:
            made = await raw.line()
            asked.append(made["params"]["number"])
            await raw.send(answer(made["id"]))
            await trio.testing.wait_all_tasks_blocked(0.001)
            assert peer._out.buffered < SOFT_LIMIT + len(LARGE) + 100
    assert asked == sorted(answered) == list(range(10))


async def test_waiting_for_room_is_part_of_the_time(socket_pair: Streams) -> None:
    """And what was never asked is not cancelled either."""
    async with serving(socket_pair[0], Registry()) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(request, peer, [], 0)
        await trio.testing.wait_all_tasks_blocked(0.001)
        with pytest.raises(ArmorclawError) as late:
            await peer.request("y", timeout=0.05)
        assert late.value.name == "timed_out"
        raw = Raw(socket_pair[1])
        await raw.send(answer((await raw.line())["id"]))
        await trio.testing.wait_all_tasks_blocked(0.001)
        peer.notify("z")
        assert (await raw.line())["method"] == "z"


async def test_the_end_while_waiting_for_room(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as peer, trio.open_nursery() as nursery:
        told: list[str] = []

        async def ask() -> None:
            with pytest.raises(ArmorclawError) as gone:
                await request(peer, [], 0)
            told.append(gone.value.name)

        for _ in range(3):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked(0.001)
        await socket_pair[1].aclose()
    assert told == ["unavailable"] * 3


async def test_a_call_of_what_streams(socket_pair: Streams) -> None:
    """Its pieces are dropped, and all of them come."""
    house = StreamingHouse()
    async with serving(socket_pair[1], house.registry), serving(socket_pair[0], Registry()) as peer:
        assert (await peer.request("count", {"count": 100}, timeout=20))["count"] == 100


async def test_pieces_that_break_the_rules_are_granted_nothing(socket_pair: Streams) -> None:
    async with serving(socket_pair[0], Registry()) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(lambda: peer.request("x", timeout=20))
        raw = Raw(socket_pair[1])
        number = (await raw.line())["id"]
        odd = [note("chunk", number, seq=5, data=1), note("chunk", "no", seq=0, data=1), note("chunk", number)]
        right = [note("chunk", number, seq=seq, data=1) for seq in range(WINDOW // 2)]
        await raw.send(*odd, *right, answer(number))
        assert await raw.line() == note("credit", number, chunks=WINDOW // 2)
        await trio.testing.wait_all_tasks_blocked(0.001)
        peer.notify("z")
        assert (await raw.line())["method"] == "z"


async def test_a_result_that_comes_late_is_told(socket_pair: Streams) -> None:
    told: list[Any] = []
    async with serving(socket_pair[0], Registry()) as peer:
        raw = Raw(socket_pair[1])
        for _ in range(2):
            with trio.move_on_after(0.02):
                await peer.request("x", timeout=20, late=told.append)
        with pytest.raises(ArmorclawError):
            await peer.request("x", timeout=0.02, late=told.append)
        lines = [await raw.line() for _ in range(6)]
        first, second, third = [line["id"] for line in lines if line["method"] == "x"]
        error = {"jsonrpc": "2.0", "id": second, "error": {"code": -32800, "message": "cancelled"}}
        await raw.send(answer(first, 5), error, answer(third, 7))
        await trio.testing.wait_all_tasks_blocked(0.001)
        assert told == [5, 7]
        assert not peer._asking


async def test_a_result_that_comes_as_its_caller_leaves(socket_pair: Streams) -> None:
    """Whichever is first, in one turn of the event loop."""
    async with serving(socket_pair[0], Registry()) as peer:
        raw = Raw(socket_pair[1])
        for leave_first in (True, False):
            told: list[Any] = []
            async with trio.open_nursery() as nursery:

                async def ask(told: list[Any] = told) -> None:
                    told.append(await peer.request("x", timeout=20, late=told.append))

                nursery.start_soon(ask)
                number = (await raw.line())["id"]
                if leave_first:
                    nursery.cancel_scope.cancel()
                assert peer._asking.take(Response(number, msgspec.Raw(b"5"), None))
                nursery.cancel_scope.cancel()
            assert told == [5]
