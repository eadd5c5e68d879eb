"""Records in order, whatever becomes of single ones, and the last of them too."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import structlog
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers.chronicle import LAST_PATIENCE, LASTING_LIMIT, WAITING_LIMIT, Chronicle
from armorclaw.errors import ArmorclawError

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


async def test_one_agent_takes_no_room_of_another(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book()
    with structlog.testing.capture_logs() as logs:
        for number in range(WAITING_LIMIT + 30):
            chronicle.add(book.entry(number), agent="evil")
        for number in range(LASTING_LIMIT + 2):
            chronicle.add(book.entry(f"alert {number}"), agent="evil", lasting=True)
        chronicle.add(book.entry("ended"), agent="ada")
        assert chronicle.left_out == 32
        async with trio.open_nursery() as nursery:
            await nursery.start(chronicle.run)
            chronicle.close()
    alerts = [f"alert {number}" for number in range(LASTING_LIMIT)]
    assert book.written == [*range(WAITING_LIMIT), *alerts, "ended"]
    assert [line["count"] for line in logs] == [1, 31]  # at once, and no more within a second
    assert chronicle.last("evil") is None


async def test_a_store_that_fails_is_told_once_a_second(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book(takes=0.25)
    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(chronicle.run)
            for _ in range(10):
                chronicle.add(book.entry(ArmorclawError("storage_failed", "cannot write")))
            await trio.sleep(10)
            chronicle.close()
    assert [line["count"] for line in logs] == [1, 4, 4, 1]
    assert {line["why"] for line in logs} == {"cannot write"}


async def test_what_waits_can_be_added_to(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book(takes=1.0)
    async with trio.open_nursery() as nursery:
        await nursery.start(chronicle.run)
        for number in range(2):
            chronicle.add(book.entry(number), agent="ada", facts={"number": number})
        chronicle.add(book.entry("other"), agent="bob")
        await trio.sleep(0.5)
        last = chronicle.last("ada")
        assert last is not None
        assert last.facts == {"number": 1}
        await trio.sleep(1)  # it is being written
        assert chronicle.last("ada") is None
        chronicle.close()


async def test_cancelled_before_it_starts_it_waits_for_nobody(autojump_clock: MockClock) -> None:
    chronicle = Chronicle()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.cancel_scope.cancel(reason="the end")
            await nursery.start(chronicle.run)


async def test_it_may_run_again(autojump_clock: MockClock) -> None:
    chronicle, book = Chronicle(), Book()
    for turn in range(3):
        async with trio.open_nursery() as nursery:
            await nursery.start(chronicle.run)
            chronicle.add(book.entry(turn))
            await trio.testing.wait_all_tasks_blocked()
            chronicle.close()
    assert book.written == [0, 1, 2]
