"""Supervised children: memory of an idle one, and a restart beside a bare Trio loop that does the same by hand.

The child of both restart measurements is the same: it waits once and raises. Bare means what one would write without
a supervisor: a cancel scope, the call, the catch, the loop. Memory is counted in a fresh process, as the growth of
its resident set, beside bare Trio tasks that do nothing.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import trio

from armorclaw.clock import Surroundings
from armorclaw.supervision import ChildSpec, Supervisor
from tests.bench import Figure

ROUNDS, RESTARTS = 15, 5_000
QUICK_ROUNDS, QUICK_RESTARTS = 7, 2_000
CHILDREN = 1_000


class Storm:
    """A child that ends at once, `lives` times over."""

    def __init__(self, lives: int) -> None:
        self.left = lives
        self.over = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await trio.lowlevel.checkpoint()
        self.left -= 1
        if self.left <= 0:
            self.over.set()
            await trio.sleep_forever()
        raise ValueError("the end")


async def bare_restarts(lives: int) -> float:
    """CPU seconds of a restart loop written by hand."""
    storm = Storm(lives)

    async def keep() -> None:
        while True:
            try:
                with trio.CancelScope():
                    await storm.run(task_status=trio.TASK_STATUS_IGNORED)
            except ValueError:
                pass

    began = time.process_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keep)
        await storm.over.wait()
        nursery.cancel_scope.cancel(reason="measured")
    return time.process_time() - began


async def supervised_restarts(lives: int) -> float:
    """CPU seconds of the same under a supervisor, without back-off; its intensity lets everything pass."""
    storm = Storm(lives)
    supervisor = Supervisor("bench", intensity=lives, period=1.0, around=Surroundings())
    began = time.process_time()
    async with trio.open_nursery() as nursery:
        await nursery.start(supervisor.run, [ChildSpec("storm", storm.run)])
        await storm.over.wait()
        nursery.cancel_scope.cancel(reason="measured")
    return time.process_time() - began


async def _idle(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    task_status.started()
    await trio.sleep_forever()


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def idle_bytes(count: int, *, supervised: bool) -> float:
    """Growth of this process per idle child (or bare task). Run in a fresh process: memory once freed is reused."""
    async with trio.open_nursery() as nursery:
        supervisor = Supervisor("bench", dynamic=True, around=Surroundings())
        await nursery.start(supervisor.run)
        await supervisor.add(ChildSpec("first", _idle))
        before = _resident()
        for number in range(count):
            if supervised:
                await supervisor.add(ChildSpec(f"child {number}", _idle))
            else:
                await nursery.start(_idle)
        after = _resident()
        nursery.cancel_scope.cancel(reason="measured")
    return (after - before) / count


def _idle_bytes_elsewhere(*, supervised: bool) -> float:
    code = (
        "import json, trio; from functools import partial; from tests.bench.supervisor import idle_bytes; "
        f"print(json.dumps(trio.run(partial(idle_bytes, {CHILDREN}, supervised={supervised}))))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout))


def run(quick: bool) -> list[Figure]:
    """About 3 s when quick, 12 s otherwise."""
    rounds, lives = (QUICK_ROUNDS, QUICK_RESTARTS) if quick else (ROUNDS, RESTARTS)
    bare, ours = [], []
    for _ in range(rounds):
        bare.append(trio.run(bare_restarts, lives) / lives * 1e6)
        ours.append(trio.run(supervised_restarts, lives) / lives * 1e6)
    ratio = statistics.median(mine / base for mine, base in zip(ours, bare, strict=True))
    idle = [_idle_bytes_elsewhere(supervised=supervised) / 1000 for supervised in (False, True)]
    return [
        Figure("bare Trio restart loop, CPU", statistics.median(bare), "us"),
        Figure("supervised restart, CPU", statistics.median(ours), "us"),
        Figure("supervised restart / bare restart", ratio, "x", 3.0),
        Figure("idle bare task", idle[0], "kB"),
        Figure(f"idle child, of {CHILDREN}", idle[1], "kB", 10.0),
    ]
