"""How soon an agent is back when the bridge is, in either driver and in the wrapper."""

from __future__ import annotations

import asyncio
import math
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from armorclaw.agent.connection import retry_after

from .conftest import AsyncKit, FakeBridge, Kit, Spawn

SOON = 0.4
"""Seconds: an attempt is due every 0.1."""

ABSENCES = 3
"""After one of them it must be back soon: the machine may be busy after the others."""


def wait_served(bridge: FakeBridge, count: int) -> None:
    bridge.wait_for("events.subscribe", count)
    bridge.wait(lambda: bridge._subscriber is not None, "a subscriber")


def back_after(bridge: FakeBridge, before: Callable[[], None] = lambda: None) -> float:
    """Seconds from the bridge's return until the agent says again that it is ready: the least of a few absences, each
    of them after `before`."""
    least = math.inf
    for _ in range(ABSENCES):
        before()
        count = len(bridge.of("agent.ready"))
        bridge.stop()
        time.sleep(0.15)  # the first attempt fails
        bridge.start()
        began = time.monotonic()
        bridge.wait_for("agent.ready", count + 1)
        least = min(least, time.monotonic() - began)
        if least < SOON:
            break
        bridge.wait(lambda: bridge._session is not None, "a session")
    return least


def test_ten_times_a_second_for_ten_seconds() -> None:
    away, attempts = 0.0, 0
    while away < 10.0:
        pause = retry_after(away)
        assert pause <= 0.1
        away += pause
        attempts += 1
    assert attempts >= 100
    assert [retry_after(away) for away in (10.0, 20.0, 1000.0)] == [0.5, 1.0, 2.0]


def test_a_long_quiet_time_before_does_not_count(kit: Kit, bridge: FakeBridge) -> None:
    """What counts is since when the bridge is away, not when it last had something to say."""
    kit.start()

    def long_quiet() -> None:
        wait_served(bridge, 1)
        link: Any = kit.agent._link
        link._served_at -= 1000.0

    assert back_after(bridge, long_quiet) < SOON


def test_handlers_that_are_busy_hold_nothing_up(kit: Kit, bridge: FakeBridge) -> None:
    busy, done = threading.Semaphore(0), threading.Event()

    async def work(message: Any) -> None:
        busy.release()
        if isinstance(kit, AsyncKit):
            while not done.is_set():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        else:
            done.wait(60)

    kit.on_message(work)
    kit.start()
    wait_served(bridge, 1)
    seqs = [bridge.say("x", room=f"!{number}:x") for number in range(8)]  # as many as a blocking agent has workers
    for _ in seqs:
        assert busy.acquire(timeout=30)
    assert back_after(bridge) < SOON
    done.set()
    bridge.wait_acked(*seqs)


def test_handlers_that_compute_hold_nothing_up(bridge: FakeBridge, spawn: Spawn) -> None:
    code = """
import time
from armorclaw.agent import Agent
agent = Agent()
@agent.on_message
def compute(message):
    print("busy", flush=True)
    until = time.monotonic() + 60
    while time.monotonic() < until:
        sum(range(1000))
agent.run()
"""
    process = spawn("-c", code)
    wait_served(bridge, 1)
    bridge.say("x")
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    assert back_after(bridge) < SOON


@pytest.mark.parametrize("mode", [[], ["--per-message"]], ids=["once", "per message"])
def test_the_wrapper_is_back_as_soon(spawn: Spawn, bridge: FakeBridge, mode: list[str]) -> None:
    spawn("-m", "armorclaw.agent", "exec", *mode, "--", "sleep", "60")
    bridge.wait_for("agent.ready")
    bridge.wait(lambda: bridge._session is not None)
    if mode:
        wait_served(bridge, 1)
        bridge.say("x")
    assert back_after(bridge) < SOON


_IDLE = {
    "blocking": "from armorclaw.agent import Agent; Agent().run()",
    "asyncio": "from armorclaw.agent import AsyncAgent; AsyncAgent().run()",
}


@pytest.mark.parametrize("code", _IDLE.values(), ids=_IDLE)
@pytest.mark.parametrize("away", [False, True], ids=["served", "bridge away"])
def test_sigterm_is_obeyed_at_once(spawn: Spawn, bridge: FakeBridge, code: str, away: bool) -> None:
    """Long before those handlers that do not finish would be given up, which is after 4 s."""
    least = math.inf
    for number in range(1, 4):  # one must be quick, as the machine may be busy meanwhile
        process = spawn("-c", code)
        wait_served(bridge, number)
        if away:
            bridge.stop()
            time.sleep(0.15)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        least = min(least, time.monotonic() - began)
        if least < 3.5:
            break
        if away:
            bridge.start()
    assert least < 3.5
