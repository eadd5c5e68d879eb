"""A real daemon dies by SIGKILL under a client, and comes back: the client has everything, in order, once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.client import Client, connect
from armorclaw.client.subscription import Subscription
from armorclaw.testing.handles import BridgeProcess

KILLS = 3


async def take(events: Subscription, into: list[int]) -> None:
    async for event in events:
        into.append(event["seq"])
        await trio.sleep(0.002)  # so that some are in hand and some are waiting when it is killed


async def cause_events(client: Client, name: str) -> None:
    """An agent that ends at once is started again and again; each start and each end is an event."""
    await client.call("start", name=name, runtime="process", command=["true"], timeout=20)


@pytest.mark.mission("P0.2", "P3.1")
async def test_nothing_is_lost_with_a_bridge_that_is_killed(armorclaw_folder: Path) -> None:
    bridge = BridgeProcess(armorclaw_folder, {})
    await trio.to_thread.run_sync(bridge.start)
    named: list[int] = []
    unnamed: list[int] = []
    try:
        async with connect(bridge.socket) as client, trio.open_nursery() as nursery:
            async with client.subscribe("archive") as archive, client.subscribe() as watched:
                nursery.start_soon(take, archive, named)
                nursery.start_soon(take, watched, unnamed)
                for kill in range(KILLS):
                    async with trio.open_nursery() as starting:
                        for number in range(4):
                            starting.start_soon(cause_events, client, f"agent-{kill}-{number}")
                    await trio.to_thread.run_sync(bridge.kill)
                    await trio.to_thread.run_sync(bridge.start)
                everything = await journal(client)
                with trio.fail_after(20):
                    while not everything[-1] <= min(named[-1], unnamed[-1]):  # noqa: ASYNC110
                        await trio.sleep(0.02)
                nursery.cancel_scope.cancel()
    finally:
        await trio.to_thread.run_sync(partial(bridge.kill))
    assert len(everything) >= 5 * KILLS
    first, end = max(named[0], unnamed[0]), everything[-1]  # the bridge may have had something to tell before
    assert first < everything[5]
    expected = [seq for seq in everything if seq >= first]
    assert [seq for seq in unnamed if first <= seq <= end] == expected
    assert [seq for seq in named if first <= seq <= end] == expected


async def journal(client: Client) -> list[int]:
    """The numbers of all events so far; the last is one of its own, behind which it does not look."""
    last: int = (await client.call("events.publish", type="app.mark", timeout=20))["seq"]
    found: list[int] = []
    async with client.subscribe(start=0) as events:
        while not found or found[-1] < last:
            event: Any = await anext(events)
            found.append(event["seq"])
    return found
