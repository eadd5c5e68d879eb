"""The event loop is watched: what holds it up is told, named, and told apart from a process that was stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from armorclaw import lag as module
from armorclaw.errors import ArmorclawError
from armorclaw.lag import LoopLag

ALARM = 0.25
"""Seconds; a shared machine holds up a test for a little less than that now and then."""

STILL = 0.5
"""Seconds for which tests have the loop stand still."""

NEVER = 30.0
"""Seconds for which no machine holds up a test."""


class Told:
    """What was told, as it comes."""

    def __init__(self) -> None:
        self.send, self.receive = trio.open_memory_channel[Mapping[str, Any]](100)
        self.error: ArmorclawError | None = None

    async def __call__(self, facts: Mapping[str, object]) -> None:
        if self.error is not None:
            raise self.error
        self.send.send_nowait(facts)

    async def next(self) -> Mapping[str, Any]:
        with trio.fail_after(NEVER):
            return await self.receive.receive()


@pytest.fixture
def told() -> Told:
    return Told()


@asynccontextmanager
async def watching(told: Told, alarm: float = ALARM) -> AsyncIterator[LoopLag]:
    lag = LoopLag(alarm, told)
    async with trio.open_nursery() as nursery:
        await nursery.start(lag.run)
        yield lag
        nursery.cancel_scope.cancel()


def compute(seconds: float) -> None:
    """For at least so long, and until most of the time that went by was this thread's own."""
    began, cpu = time.perf_counter(), time.thread_time()
    while (took := time.perf_counter() - began) < seconds or time.thread_time() - cpu < took * 0.6:
        pass


def instruments() -> list[object]:
    """All of this run of Trio."""
    return list(trio._core._run.GLOBAL_RUN_CONTEXT.runner.instruments["_all"])


async def test_a_step_that_computes(told: Told) -> None:
    async with watching(told) as lag:
        compute(STILL)
        facts = await told.next()
        assert facts["cause"] == "busy"
        assert facts["ms"] >= STILL * 1000
        assert facts["count"] >= 1
        assert lag.alarms["busy"] >= 1
        assert lag.turns.longest >= STILL
        assert sum(lag.turns.over[bisect_left(module.BUCKETS, STILL) :]) >= 1


async def test_a_step_that_waits_without_letting_others_run(told: Told) -> None:
    async with watching(told):
        time.sleep(STILL)  # noqa: ASYNC251 - the fault itself
        facts = await told.next()
        assert facts["cause"] in ("blocked", "starved")
        assert facts["task"] is None, "steps are not timed before there is a reason to"


async def test_the_task_is_named_from_the_second_time_on(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.05)

    async def innocent() -> None:
        while True:  # noqa: ASYNC110
            await trio.sleep(0.001)

    async def guilty() -> None:
        while True:
            await trio.sleep(0.1)
            time.sleep(STILL)  # noqa: ASYNC251

    async with watching(told), trio.open_nursery() as nursery:
        nursery.start_soon(innocent)
        nursery.start_soon(guilty)
        assert (await told.next())["task"] is None
        while not ((await told.next())["task"] or "").endswith("guilty"):
            pass  # a shared machine held up another
        nursery.cancel_scope.cancel()


async def test_many_are_told_as_one(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 4.0)
    async with watching(told):
        time.sleep(0.3)  # noqa: ASYNC251
        assert (await told.next())["count"] >= 1
        for seconds in (0.3, STILL, 0.3):
            await trio.sleep(0.001)
            time.sleep(seconds)  # noqa: ASYNC251
        facts = await told.next()
        assert facts["count"] >= 3
        assert facts["ms"] >= STILL * 1000


async def test_a_quiet_loop_is_not_told_of(told: Told) -> None:
    async with watching(told, alarm=NEVER) as lag:
        for _ in range(20):
            await trio.sleep(0.005)
        assert lag.turns.count >= 20
        assert lag.alarms == {}


async def test_no_alarm_at_all(told: Told) -> None:
    async with watching(told, alarm=0) as lag:
        time.sleep(STILL)  # noqa: ASYNC251
        await trio.sleep(0.01)
        assert lag.alarms == {}
        assert lag.turns.longest >= STILL, "it is measured all the same"


@pytest.mark.parametrize("alarmed", [False, True])
async def test_nothing_is_left_in_the_loop(told: Told, alarmed: bool) -> None:
    """Neither when it is cancelled while all is quiet, nor while single steps are timed."""
    before = instruments()
    async with watching(told, ALARM if alarmed else NEVER):
        if alarmed:
            time.sleep(STILL)  # noqa: ASYNC251
            await told.next()
        assert len(instruments()) == len(before) + 1 + alarmed
    assert instruments() == before


async def test_single_steps_are_timed_for_a_while_only(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.01)
    monkeypatch.setattr(module, "NAMING", 2.0)
    before = len(instruments())
    async with watching(told):
        time.sleep(STILL)  # noqa: ASYNC251
        await told.next()
        assert len(instruments()) == before + 2
        with trio.fail_after(NEVER):
            while len(instruments()) > before + 1:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.02)


async def test_a_store_that_fails_does_not_end_it(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET", 0.01)
    told.error = ArmorclawError("storage_failed", "no room")
    async with watching(told) as lag:
        time.sleep(STILL)  # noqa: ASYNC251
        await trio.sleep(0.05)
        told.error = None
        time.sleep(STILL)  # noqa: ASYNC251
        await told.next()
        assert sum(lag.alarms.values()) >= 2


_STOPPED = """
import sys, trio
from armorclaw.lag import LoopLag
async def tell(facts):
    print(facts["cause"], round(facts["ms"]), flush=True)
async def main():
    lag = LoopLag(0.2, tell)
    async with trio.open_nursery() as nursery:
        await nursery.start(lag.run)
        print("up", flush=True)
        while True:
            await trio.sleep(0.05)
trio.run(main)
"""


def test_a_process_that_was_stopped_is_told_apart() -> None:
    """It waits for its next deadline nearly all the time: there SIGSTOP finds it."""
    with subprocess.Popen([sys.executable, "-c", _STOPPED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        told: list[str] = []
        try:
            while len(told) < 10 and "away" not in told:
                time.sleep(1.0)  # else it is found in the step that printed
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(1.0)
                os.kill(process.pid, signal.SIGCONT)
                while True:  # a shared machine holds it up, too, but not for as long
                    cause, ms = process.stdout.readline().split()
                    if int(ms) >= 700:
                        break
                told.append(cause)
        finally:
            process.kill()
    assert "away" in told, "whoever waits nearly all the time is found waiting sooner or later"
