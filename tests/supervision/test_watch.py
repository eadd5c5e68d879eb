from __future__ import annotations

import math

import trio
from trio.testing import MockClock

from armorclaw.supervision.watch import Watch


async def test_each_deadline_expires_once_and_in_time(autojump_clock: MockClock) -> None:
    expired: list[tuple[str, float]] = []
    watch: Watch[str] = Watch(trio.current_time, lambda thing: expired.append((thing, trio.current_time())))
    start = trio.current_time()
    watch.allow("late", start + 9.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.until, lambda: False)
        await trio.testing.wait_all_tasks_blocked()
        watch.allow("sooner than the sleep under way", start + 2.0)
        watch.allow("never", math.inf)
        watch.allow("dropped", start + 3.0)
        await trio.sleep(2.5)
        watch.drop("dropped")
        await trio.sleep(100.0)
        nursery.cancel_scope.cancel(reason="test over")
    assert expired == [("sooner than the sleep under way", start + 2.0), ("late", start + 9.0)]


async def test_expiry_may_drop_another_that_is_due(autojump_clock: MockClock) -> None:
    expired: list[str] = []

    def expire(thing: str) -> None:
        expired.append(thing)
        watch.drop("b")
        watch.ring()

    watch: Watch[str] = Watch(trio.current_time, expire)
    for thing in ("a", "b"):
        watch.allow(thing, trio.current_time() + 1.0)
    await watch.until(lambda: bool(expired))
    assert expired == ["a"]


async def test_until_looks_first_and_after_each_ring() -> None:
    watch: Watch[str] = Watch(trio.current_time, lambda _: None)
    await watch.until(lambda: True)
    looks = 0

    def done() -> bool:
        nonlocal looks
        looks += 1
        return looks == 3

    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch.until, done)
        for _ in range(2):
            await trio.testing.wait_all_tasks_blocked()
            watch.ring()
    assert looks == 3
