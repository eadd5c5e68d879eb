"""A bridge with so many idle agents in sandboxes: `python -m tests.bench._idle_agents COUNT SECONDS`.

Writes one line of JSON: CPU seconds of this process over that time, and its resident bytes before and after it.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path

import trio

from armorclaw.bridge import open_bridge
from armorclaw.config import Config
from tests.bench._real import folder

AGENT = "from armorclaw.agent import Agent\nAgent().run()\n"
AT_ONCE = 10
"""Agents that are started together: a hundred interpreters at once would be ready in their own time."""


async def main(count: int, seconds: float) -> dict[str, float]:
    with folder() as home:
        code = home / "idle.py"
        code.write_text(AGENT)
        where = {"state_dir": str(home / "state"), "runtime_dir": str(home / "run")}
        async with open_bridge(Config.parse({"bridge": where})) as bridge:
            for start in range(0, count, AT_ONCE):
                async with trio.open_nursery() as nursery:
                    for number in range(start, min(start + AT_ONCE, count)):
                        nursery.start_soon(_start, bridge, f"idle{number}", code)
            await trio.sleep(2.0)  # what a start leaves to be done
            used, began = time.process_time(), time.monotonic()
            await trio.sleep(seconds)
            used, took = time.process_time() - used, time.monotonic() - began
            assert all(standing.ready for standing in bridge.fleet.standings())
            return {"cpu_share": used / took, "resident": float(_resident())}


async def _start(bridge: object, name: str, code: Path) -> None:
    call = bridge.call  # type: ignore[attr-defined]
    await call("start", name=name, runtime="sandbox", code=str(code))
    with trio.fail_after(60):
        while not (await call("containers.inspect", name=name))["ready"]:  # noqa: ASYNC110
            await trio.sleep(0.05)


def _resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    print(json.dumps(trio.run(main, int(sys.argv[1]), float(sys.argv[2]))))
