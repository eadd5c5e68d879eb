"""Our side of `matrix`: a bridge with one account, whose agent, in this process, notes when it hears a message.

Settings come as a line of JSON on stdin, then orders. mautrix is imported before anything is timed, as it is on the
other side.
"""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import trio

from armorclaw.agent.messages import AsyncMessage
from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Account, Agent, BridgeSection, Config
from armorclaw.matrix import session as _session  # noqa: F401 - it waits for the first session, and is no catching up
from armorclaw.matrix.crypto import encryption as _encryption  # noqa: F401
from armorclaw.matrix.trust import trust as _trust  # noqa: F401
from armorclaw.structure import Secret
from tests.bench._matrix_child import cpu, say, settings


async def main(given: dict[str, Any]) -> None:
    folder = Path(given["folder"])
    account = Account(
        homeserver=given["homeserver"],
        user=given["user"],
        password=Secret(given["password"]),
        read_receipts=False,  # the other side sends none
    )
    ears = Agent(name="ears", runtime="attached", rooms=tuple(given["rooms"]))
    where = BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run")
    say(began=time.monotonic())
    async with open_bridge(Config(bridge=where, accounts={"main": account}, agents={"ears": ears})) as bridge:
        agent = bridge.attach("ears")

        @agent.on_message
        def note(message: AsyncMessage) -> None:
            say(body=message.body, at=time.monotonic())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            await bridge.until_connected()
            await bridge.until_joined(given["rooms"])
            say(ready=True)
            async with trio.lowlevel.FdStream(os.dup(0)) as orders:
                async for data in orders:
                    for line in data.splitlines():
                        say(**await _carry_out(bridge, json.loads(line)))
            nursery.cancel_scope.cancel(reason="there are no more orders")


async def _carry_out(bridge: Bridge, order: dict[str, Any]) -> dict[str, Any]:
    if order["do"] == "cpu":
        return {"cpu": cpu()}
    assert order["do"] == "cancel"
    return {"cancelled": [await _cancelled(bridge, order["longest"]) for _ in range(order["times"])]}


async def _cancelled(bridge: Bridge, longest: float) -> float:
    """Seconds that the session needs to end, from a random moment of its life on; the next one begins at once."""
    await trio.sleep(random.uniform(0, longest))
    began = time.perf_counter()
    await bridge.accounts._supervisor.restart("main")
    return time.perf_counter() - began


if __name__ == "__main__":
    trio.run(main, settings())
