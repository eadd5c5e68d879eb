from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.egress.tunnel import HALF_OPEN, IDLE, Tunnel

Memory = trio.StapledStream[Any, Any]


@attrs.define
class Ends:
    agent: Memory
    host: Memory
    tunnel: Tunnel
    told: list[tuple[int, int]]
    scope: trio.CancelScope
    done: trio.Event


@asynccontextmanager
async def running(early: bytes = b"", *, lockstep: bool = False) -> AsyncIterator[Ends]:
    """With `lockstep` what is sent to the host waits until it reads."""
    agent, inner = trio.testing.memory_stream_pair()
    host, outer = trio.testing.lockstep_stream_pair() if lockstep else trio.testing.memory_stream_pair()
    told: list[tuple[int, int]] = []
    tunnel = Tunnel(inner, outer, lambda up, down: told.append((up, down)))
    scope, done = trio.CancelScope(), trio.Event()

    async def run() -> None:
        with scope:
            await tunnel.run(early)
        done.set()
        await trio.aclose_forcefully(inner)
        await trio.aclose_forcefully(outer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield Ends(agent, host, tunnel, told, scope, done)
        nursery.cancel_scope.cancel()


async def read(stream: Memory, size: int) -> bytes:
    data = b""
    with trio.fail_after(5):
        while len(data) < size:
            data += await stream.receive_some()
    return data


async def test_both_ways_and_counted(autojump_clock: object) -> None:
    async with running(b"early ") as ends:
        await ends.agent.send_all(b"question")
        assert await read(ends.host, 14) == b"early question"
        await ends.host.send_all(b"answer")
        assert await read(ends.agent, 6) == b"answer"
        passed = ends.tunnel.passed
        assert (passed.up, passed.down) == (14, 6)
        assert (sum(up for up, _ in ends.told), sum(down for _, down in ends.told)) == (14, 6)


async def test_one_side_has_said_all(autojump_clock: object) -> None:
    async with running() as ends:
        await ends.agent.send_all(b"all of it")
        await ends.agent.send_eof()
        assert await ends.host.receive_some() == b"all of it"
        assert await ends.host.receive_some() == b""
        await ends.host.send_all(b"so this is the answer")
        assert await ends.agent.receive_some() == b"so this is the answer"
        assert not ends.done.is_set()
        await ends.host.send_eof()
        assert await ends.agent.receive_some() == b""
        await ends.done.wait()
        assert ends.tunnel.passed.why == "closed"


@pytest.mark.parametrize("who", ["agent", "host"])
async def test_one_side_is_gone(who: str, autojump_clock: object) -> None:
    async with running() as ends:
        gone, other = (ends.agent, ends.host) if who == "agent" else (ends.host, ends.agent)
        await gone.aclose()
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        await other.send_all(b"anybody there?")
        await ends.done.wait()
        assert trio.current_time() == began
        assert ends.tunnel.passed.why == "broken off"


async def test_who_takes_no_more_is_still_heard(autojump_clock: object) -> None:
    """A host that refuses a long request closes its ear before it has said why."""
    async with running() as ends:
        await ends.host.receive_stream.aclose()
        await ends.agent.send_all(b"much")
        await trio.testing.wait_all_tasks_blocked()
        await ends.host.send_all(b"too large")
        await ends.host.send_eof()
        assert await read(ends.agent, 9) == b"too large"
        assert await ends.agent.receive_some() == b""
        await ends.done.wait()
        assert (ends.tunnel.passed.why, ends.tunnel.passed.up, ends.tunnel.passed.down) == ("broken off", 0, 9)


async def test_who_takes_no_more_and_says_nothing(autojump_clock: object) -> None:
    async with running() as ends:
        await ends.host.receive_stream.aclose()
        began = trio.current_time()
        await ends.agent.send_all(b"much")
        await ends.done.wait()
        assert trio.current_time() - began == HALF_OPEN


async def test_silence(autojump_clock: object) -> None:
    async with running() as ends:
        await trio.sleep(IDLE - 1)
        await ends.host.send_all(b"still there")
        await trio.sleep(IDLE - 1)
        assert not ends.done.is_set()
        await trio.sleep(2)
        assert ends.done.is_set()
        assert ends.tunnel.passed.why == "no byte for 900 s"


async def test_silence_of_a_half(autojump_clock: object) -> None:
    async with running() as ends:
        await ends.agent.send_eof()
        await trio.sleep(HALF_OPEN - 1)
        await ends.host.send_all(b"late")
        await trio.sleep(HALF_OPEN - 1)
        assert not ends.done.is_set()
        await trio.sleep(2)
        assert ends.done.is_set()
        assert ends.tunnel.passed.why == "no byte for 60 s"


async def test_a_slow_reader_holds_the_writer(autojump_clock: object) -> None:
    """Nothing is read of one side while the other has not taken the last of it."""
    async with running(lockstep=True) as ends:
        for _ in range(10):
            await ends.agent.send_all(b"x" * 100_000)
        await trio.testing.wait_all_tasks_blocked()
        assert ends.tunnel.passed.up == 0
        assert len(await read(ends.host, 1_000_000)) == 1_000_000


@pytest.mark.parametrize("phase", ["idle", "writing", "half open"])
async def test_cancelled(phase: str, autojump_clock: object) -> None:
    async with running(lockstep=phase == "writing") as ends:
        if phase == "writing":
            await ends.agent.send_all(b"x")
        elif phase == "half open":
            await ends.agent.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        ends.scope.cancel()
        await ends.done.wait()
        assert trio.current_time() == began
        assert ends.tunnel.passed.why == "ended by the bridge"
