"""Records in order, whatever becomes of single ones, and the last of them too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers.chronicle import LAST_PATIENCE, WAITING_LIMIT, Chronicle

pytestmark = pytest.mark.mission("P0.2")


class Book:
    def __init__(self, takes: float = 0.0) -> None:
        self.written: list[object] = []
        self._takes = takes

    def entry(self, what: object) -> Callable[[], Awaitable[object]]:
        async def write() -> None:
            await trio.sleep(self._takes)
            if isinstance(what, Exception):
                raise what
            self.written.append(what)

        return write


async def test_in_order_and_a_failure_stops_nobody(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book(takes=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(chronicle.run)
        for what in (1, 2, ZeroDivisionError("odd"), 3):
            chronicle.add(book.entry(what))
        await trio.sleep(1)
        assert book.written == [1, 2, 3]
        chronicle.add(book.entry(4))
        await trio.sleep(1)
        assert book.written == [1, 2, 3, 4]
        chronicle.close()


async def test_how_things_end_is_recorded_though_all_is_cancelled(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book(takes=0.1)
    async with trio.open_nursery() as nursery:
        await nursery.start(chronicle.run)
        nursery.cancel_scope.cancel(reason="the end")
        with trio.CancelScope(shield=True):
            await trio.sleep(0.5)
            chronicle.add(book.entry("ended"))
            await trio.sleep(0.5)
            chronicle.add(book.entry("last"))
            chronicle.close()
    assert book.written == ["ended", "last"]


async def test_a_store_that_hangs_holds_up_no_end(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book(takes=100.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(chronicle.run)
        for what in (1, 2):
            chronicle.add(book.entry(what))
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        chronicle.close()
    assert trio.current_time() - began == pytest.approx(LAST_PATIENCE)
    assert book.written == []


async def test_it_is_bounded() -> None:
    chronicle, book = Chronicle(), Book()
    for number in range(WAITING_LIMIT + 3):
        chronicle.add(book.entry(number))
    assert chronicle.left_out == 3
    async with trio.open_nursery() as nursery:
        await nursery.start(chronicle.run)
        chronicle.close()
    assert book.written == list(range(WAITING_LIMIT))


async def test_it_may_run_again(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book()
    for turn in range(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(chronicle.run)
            chronicle.add(book.entry(turn))
            await trio.testing.wait_all_tasks_blocked()
            chronicle.close()
    assert book.written == [0, 1, 2]
