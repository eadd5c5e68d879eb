from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.client import Client, Subscription, connect
from armorclaw.client import subscription as subscription_module
from armorclaw.errors import ArmorclawError

from .conftest import Bridge, Subscribe


async def test_calls(client: Client) -> None:
    assert await client.call("add", a=1, from_=2) == {"sum": 3}
    with pytest.raises(ArmorclawError) as refused:
        await client.call("add", a="1", from_=2)
    assert (refused.value.name, refused.value.data["fields"]) == ("invalid_params", ["a"])
    with pytest.raises(ArmorclawError) as late:
        await client.call("sleep", timeout=0.02)
    assert late.value.name == "timed_out"


async def test_many_calls_at_once(client: Client) -> None:
    sums: list[int] = []

    async def ask(i: int) -> None:
        sums.append((await client.call("add", a=i, from_=i))["sum"])

    async with trio.open_nursery() as nursery:
        for i in range(200):
            nursery.start_soon(ask, i)
    assert sorted(sums) == [2 * i for i in range(200)]


async def test_nobody_there(path: Path) -> None:
    with pytest.raises(ArmorclawError) as caught:
        async with connect(path):
            pass
    assert caught.value.name == "daemon_unreachable"


async def test_errors_in_the_block_come_out_as_they_are(bridge: Bridge, path: Path) -> None:
    with pytest.raises(KeyError):
        async with connect(path):
            raise KeyError("x")


async def test_a_named_subscription_acknowledges_what_was_taken(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive", types=["m.room.*"], start=5) as events:
        for seq in (6, 7, 8):
            bridge.push(seq)
        async for event in events:
            assert event["content"]["body"] == f"message {event['seq']}"
            assert event["redelivered"] == 0
            if event["seq"] == 8:
                break
    wanted: dict[str, list[str]] = {"types": ["m.room.*"], "rooms": [], "senders": [], "agents": []}
    assert bridge.asked == [Subscribe("archive", wanted, 5)]
    with trio.fail_after(20):
        await bridge.unsubscribed.wait()
    assert bridge.acked == [6, 7]  # the last one was not done with


async def test_without_a_name_nothing_is_acknowledged(client: Client, bridge: Bridge) -> None:
    async with client.subscribe() as events:
        bridge.push(1)
        bridge.push(2)
        assert [(await anext(events))["seq"], (await anext(events))["seq"]] == [1, 2]
    await bridge.unsubscribed.wait()
    assert bridge.acked == []
    assert bridge.asked[0].name is None


async def test_by_severity_and_from_a_time(client: Client, bridge: Bridge) -> None:
    async with client.subscribe(severities=["error"], start="2026-01-01T00:00:00Z"):
        pass
    asked = bridge.asked[0]
    assert asked.filter["severities"] == ["error"]
    assert asked.from_ == "2026-01-01T00:00:00Z"


async def test_events_that_are_faster_than_the_answer(client: Client, bridge: Bridge) -> None:
    bridge.at_once = 3
    async with client.subscribe("x") as events:
        assert [(await anext(events))["seq"] for _ in range(3)] == [1, 2, 3]
    bridge.push(4)
    bridge.push(5, subscription="of nobody")
    await client.call("add", a=1, from_=1)
    assert all(not routes.early for routes in client._routes.values())


async def test_a_subscription_that_the_bridge_ends(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("x") as events:
        bridge.push(1)
        assert bridge.peer is not None
        bridge.peer.notify("events.closed", {"subscription": "s1", "reason": "replaced"})
        assert (await anext(events))["seq"] == 1
        with pytest.raises(ArmorclawError, match="replaced") as ended:
            await anext(events)
    assert ended.value.name == "unavailable"


async def test_a_reader_that_takes_nothing_is_told(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription_module, "MAX_WAITING", 5)
    async with client.subscribe() as events:
        for seq in range(10):
            bridge.push(seq)
        await client.call("add", a=1, from_=1)
        assert [(await anext(events))["seq"] for _ in range(5)] == [0, 1, 2, 3, 4]
        with pytest.raises(ArmorclawError) as told:
            await anext(events)
    assert told.value.name == "queue_full"


@pytest.mark.parametrize("early", [False, True])
async def test_waiting_events_are_bounded_in_bytes(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    monkeypatch.setattr(subscription_module, "MAX_WAITING_BYTES", 1000)
    bridge.at_once = 100 if early else 0
    async with client.subscribe() as events:
        for seq in range(1, 1 if early else 101):
            bridge.push(seq)
        await client.call("add", a=1, from_=1)
        seen: list[int] = []
        with pytest.raises(ArmorclawError) as told, trio.fail_after(20):
            await _take_all(events, seen)
    assert told.value.name == "queue_full"
    assert seen == list(range(1, len(seen) + 1))
    assert 3 < len(seen) < 9


async def test_what_was_taken_waits_no_more(client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscription_module, "MAX_WAITING_BYTES", 1000)
    async with client.subscribe() as events:
        for seq in range(30):
            bridge.push(seq)
            assert (await anext(events))["seq"] == seq


async def test_of_a_method_that_streams_the_result_is_told(client: Client) -> None:
    assert await client.call("count", to=50, timeout=30) == {"counted": 50}


async def test_a_subscription_that_was_given_up_is_ended(
    client: Client, bridge: Bridge, autojump_clock: MockClock
) -> None:
    """Its answer was under way already."""
    bridge.deaf = trio.Event()
    with trio.move_on_after(0.02) as given_up:
        async with client.subscribe():
            pass
    assert given_up.cancelled_caught
    assert bridge.asked
    assert not bridge.left
    bridge.deaf.set()
    await bridge.until(lambda: bridge.left == ["s1"])
    bridge.deaf = None
    async with client.subscribe() as events:
        bridge.push(1)
        assert (await anext(events))["seq"] == 1
        assert bridge.left == ["s1"]


@pytest.mark.parametrize("when", ["before", "meanwhile", "after"])
async def test_a_name_that_was_given_up_and_taken_again(
    client: Client, bridge: Bridge, when: str, autojump_clock: MockClock
) -> None:
    """The second one keeps it, whenever the answer to the first comes."""
    bridge.deaf = first = trio.Event()
    with trio.move_on_after(0.02):
        async with client.subscribe("s1"):
            pass
    assert bridge.asked
    if when == "before":
        first.set()
        await bridge.until(lambda: bridge.left == ["s1"])
        bridge.left.clear()
    bridge.deaf = second = trio.Event()
    if when != "meanwhile":
        second.set()
    async with trio.open_nursery() as nursery:

        async def subscribe() -> None:
            async with client.subscribe("s1"):
                first.set()
                await client.call("add", a=1, from_=1)
                await trio.testing.wait_all_tasks_blocked(0.01)
                assert bridge.left == []

        nursery.start_soon(subscribe)
        await trio.testing.wait_all_tasks_blocked(0.01)
        if when == "meanwhile":
            first.set()
            await trio.testing.wait_all_tasks_blocked(0.01)
            second.set()
    await bridge.until(lambda: bridge.left == ["s1"])


async def _take_all(events: Subscription, into: list[int]) -> None:
    async for event in events:
        into.append(event["seq"])  # noqa: PERF401 - until it fails


async def test_a_subscription_that_is_given_up_as_it_begins(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the same instant in which its answer comes."""
    opened = Subscription.opened
    with trio.CancelScope() as scope:

        def leave(*args: Any) -> None:
            opened(*args)
            scope.cancel()

        monkeypatch.setattr(Subscription, "opened", leave)
        async with client.subscribe():
            await trio.sleep_forever()
    await bridge.until(lambda: bridge.left == ["s1"])


async def test_subscribing_ends_with_its_client(bridge: Bridge, path: Path) -> None:
    bridge.mute.add("events.subscribe")
    async with trio.open_nursery() as nursery:

        async def subscribe(client: Client) -> None:
            with pytest.raises(ArmorclawError) as ended:
                async with client.subscribe():
                    pass
            assert ended.value.name == "unavailable"

        async with connect(path) as client:
            nursery.start_soon(subscribe, client)
            await bridge.until(lambda: bridge.asked)
        with trio.fail_after(20):
            while nursery.child_tasks:
                await trio.testing.wait_all_tasks_blocked(0.001)
