"""A bridge that goes away and comes back, and what its clients notice of it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from armorclaw.client import Client, connect
from armorclaw.client.link import pause
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.unix import bind_unix

from .conftest import Bridge


def test_pauses_are_short_at_first_then_longer_and_scattered() -> None:
    random = Random(1)
    assert {pause(away / 10, random) for away in range(100)} == {0.1}
    later = [pause(away, random) for away in (10, 20, 40, 1000, 100_000) for _ in range(200)]
    assert all(0.25 <= each <= 3.0 for each in later)
    assert len(set(later)) > 900


async def test_calls_wait_for_a_bridge_that_restarts(client: Client, bridge: Bridge, nursery: trio.Nursery) -> None:
    assert await client.call("add", a=1, from_=1) == {"sum": 2}
    await bridge.stop()
    results: list[int] = []

    async def ask() -> None:
        results.append((await client.call("add", a=2, from_=2))["sum"])

    async with trio.open_nursery() as asking:
        asking.start_soon(ask)
        asking.start_soon(ask)
        await trio.sleep(0.15)
        assert not results
        await bridge.start()
    assert results == [4, 4]
    assert bridge.added == [1, 2, 2]


async def test_a_call_waits_no_longer_than_it_may(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armorclaw.client.CALL_TIMEOUT", 0.1)
    await bridge.stop()
    with pytest.raises(ArmorclawError) as away:
        await client.call("add", a=1, from_=1, timeout=0.1)
    assert away.value.name == "unavailable"
    with pytest.raises(ArmorclawError) as away:
        async with client.stream("count", to=1):
            await trio.sleep_forever()
    assert away.value.name == "unavailable"
    assert bridge.added == []


async def test_a_call_that_was_under_way_fails_and_is_not_made_again(client: Client, bridge: Bridge) -> None:
    async with trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(ArmorclawError) as lost:
                await client.call("sleep")
            assert lost.value.name == "unavailable"
            assert lost.value.kind.retryable

        nursery.start_soon(ask)
        await bridge.until(lambda: bridge.added)
        await bridge.stop()
        await bridge.start()
    assert await client.call("add", a=1, from_=1) == {"sum": 2}
    assert bridge.added == [-1, 1]


async def test_a_call_with_a_key_is_made_again(client: Client, bridge: Bridge) -> None:
    bridge.mute.add("add")
    results: list[int] = []

    async def ask() -> None:
        results.append((await client.call("add", a=7, from_=1, idempotency_key="once"))["sum"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await bridge.until(lambda: -1 in bridge.added)
        bridge.mute.clear()
        await bridge.stop()
        await bridge.start()
    assert results == [8]
    assert bridge.added == [7, -1, 7]


async def test_a_call_with_a_key_that_came_too_fast_is_made_again(client: Client, bridge: Bridge) -> None:
    def refusals() -> list[ArmorclawError]:
        return [ArmorclawError("rate_limited", "slower", retry_after=0.05)]

    bridge.refuse["add"] = refusals() * 2
    assert await client.call("add", a=7, from_=1, idempotency_key="once") == {"sum": 8}
    assert bridge.added == [7, 7, 7]
    bridge.refuse["add"] = refusals()
    with pytest.raises(ArmorclawError, match="slower"):
        await client.call("add", a=7, from_=1)
    bridge.refuse["add"] = [ArmorclawError("rate_limited", "slower", retry_after=60.0)]
    with pytest.raises(ArmorclawError, match="slower"):
        await client.call("add", a=7, from_=1, idempotency_key="once", timeout=30)


async def test_what_the_bridge_itself_refuses_is_not_made_again(client: Client, bridge: Bridge) -> None:
    bridge.refuse["events.ack"] = [ArmorclawError("unavailable", "not now")]
    with pytest.raises(ArmorclawError, match="not now"):
        await client.call("events.ack", subscription="s1", seq=1)
    assert bridge.acked == [1]


async def test_streams_fail_when_the_connection_ends(client: Client, bridge: Bridge) -> None:
    async with client.stream("count", to=3, stay=True) as stream:
        assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
        await bridge.stop()
        with pytest.raises(ArmorclawError) as lost:
            await anext(stream)
    assert lost.value.name == "unavailable"
    await bridge.start()
    seen: list[object] = []
    async with client.stream("count", to=3, on_progress=lambda *news: seen.append(news)) as stream:
        assert [piece async for piece in stream] == [0, 1, 2]
        assert await stream.result() == {"counted": 3}
    assert seen[-1] == (2, 3, "counting")


async def test_leaving_a_stream_cancels_it(client: Client, bridge: Bridge) -> None:
    async with client.stream("count", to=1, stay=True) as stream:
        await anext(stream)
    await bridge.until(lambda: bridge.cancelled == ["count"])


async def test_a_bridge_that_drops_its_clients_is_as_good_as_away(
    bridge: Bridge, path: Path, autojump_clock: MockClock
) -> None:
    """One that is full, say: it is not hurried, and given up like one that is not there."""
    dropped = 0
    async with connect(path, reconnect=2.0) as client:
        await bridge.stop()
        listener = bind_unix(path)
        async with trio.open_nursery() as nursery:

            async def drop() -> None:
                nonlocal dropped
                while True:
                    await (await listener.accept()).aclose()
                    dropped += 1

            nursery.start_soon(drop)
            with trio.fail_after(20), pytest.raises(ArmorclawError, match="is gone"):
                await client.call("add", a=1, from_=1, idempotency_key="again and again")
            nursery.cancel_scope.cancel()
        await listener.aclose()
    assert 2 <= dropped <= 21


@pytest.mark.parametrize("reconnect", [False, 0.25])
async def test_a_bridge_is_given_up(bridge: Bridge, path: Path, reconnect: float) -> None:
    async with connect(path, reconnect=reconnect) as client, client.subscribe() as events:
        with trio.fail_after(20):
            await bridge.stop()
            with pytest.raises(ArmorclawError) as ended:
                await anext(events)
            assert ended.value.name == "unavailable"
            with pytest.raises(ArmorclawError) as gone:
                await client.call("add", a=1, from_=1)
            assert gone.value.name == "unavailable"
        await bridge.start()
        with pytest.raises(ArmorclawError):
            await client.call("add", a=1, from_=1)


async def test_a_named_subscription_loses_nothing_and_repeats_nothing_that_was_handled(
    client: Client, bridge: Bridge
) -> None:
    """One is in hand when the bridge goes, one waits, one comes while nobody is there, one afterwards."""
    async with client.subscribe("archive") as events:
        bridge.happen(1)
        bridge.happen(2)
        assert (await anext(events))["seq"] == 1
        await bridge.stop()
        bridge.happen(3)
        await bridge.start()
        await bridge.subscribed(2)
        bridge.happen(4)
        with trio.fail_after(20):
            assert [(await anext(events))["seq"] for _ in range(3)] == [2, 3, 4]
    assert bridge.acked == [1, 2, 3]
    assert {asked.name for asked in bridge.asked} == {"archive"}


async def test_an_acknowledgement_that_was_under_way_is_made_again(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive") as events:
        bridge.happen(1)
        bridge.happen(2)
        await anext(events)
        bridge.mute.add("events.ack")
        seen: list[int] = []

        async def take() -> None:
            seen.append((await anext(events))["seq"])

        async with trio.open_nursery() as nursery:
            nursery.start_soon(take)
            await bridge.until(lambda: bridge.acked)
            await bridge.stop()
            bridge.mute.clear()
            await bridge.start()
    assert seen == [2]
    assert bridge.acked == [1, 1]


@pytest.mark.parametrize(
    "refusal",
    [ArmorclawError("unavailable", "the store restarts"), ArmorclawError("rate_limited", "slower", retry_after=0.1)],
    ids=["unavailable", "rate_limited"],
)
async def test_an_acknowledgement_that_is_put_off(client: Client, bridge: Bridge, refusal: ArmorclawError) -> None:
    async with client.subscribe("archive") as events:
        bridge.happen(1)
        bridge.happen(2)
        await anext(events)
        bridge.refuse["events.ack"] = [refusal]
        assert (await anext(events))["seq"] == 2
    assert bridge.acked == [1, 1]


async def test_a_subscription_without_a_name_goes_on_behind_the_last_event(client: Client, bridge: Bridge) -> None:
    bridge.happen(5)
    async with client.subscribe() as events:
        await bridge.stop()
        bridge.happen(6)  # nobody has seen anything yet: from where it was subscribed
        await bridge.start()
        await bridge.subscribed(2)
        with trio.fail_after(20):
            assert (await anext(events))["seq"] == 6
        bridge.happen(7)
        bridge.happen(8)
        assert (await anext(events))["seq"] == 7
        await bridge.stop()  # the 8th has come, and is kept here
        bridge.happen(9)
        await bridge.start()
        await bridge.subscribed(3)
        with trio.fail_after(20):
            assert [(await anext(events))["seq"] for _ in range(2)] == [8, 9]
    assert [asked.from_ for asked in bridge.asked] == ["now", 5, 8]
    assert bridge.acked == []


@pytest.mark.parametrize("name", ["archive", None])
async def test_one_that_was_cut_for_being_slow_goes_on_where_it_is(
    client: Client, bridge: Bridge, name: str | None
) -> None:
    """On the same connection; what waits here and comes again is given once."""
    async with client.subscribe(name) as events:
        for seq in (1, 2, 3):
            bridge.happen(seq)
        assert (await anext(events))["seq"] == 1
        await client.call("add", a=1, from_=1)
        assert bridge.peer is not None
        params = {"subscription": "s1", "reason": "too slow: nothing was taken for 10 s", "cursor": 3}
        bridge.peer.notify("events.closed", params)
        await bridge.subscribed(2)
        bridge.happen(4)
        with trio.fail_after(20):
            assert [(await anext(events))["seq"] for _ in range(3)] == [2, 3, 4]
    assert [asked.from_ for asked in bridge.asked][1] == 3
    assert bridge.acked == ([] if name is None else [1, 2, 3])


async def test_an_event_that_comes_again_while_it_waits_is_given_once(client: Client, bridge: Bridge) -> None:
    """The bridge gives it again when it took too long, in hand or not."""
    async with client.subscribe("archive") as events:
        for seq in (1, 2, 1, 2):
            bridge.push(seq)
        assert (await anext(events))["seq"] == 1
        bridge.push(1)
        bridge.push(2)
        bridge.push(3)
        assert [(await anext(events))["seq"] for _ in range(2)] == [2, 3]
        bridge.push(1)  # acknowledged, but the bridge did not know yet
        assert (await anext(events))["seq"] == 1


async def test_subscribing_again_is_tried_until_the_bridge_can(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive") as events:
        await bridge.stop()
        bridge.refuse["events.subscribe"] = [ArmorclawError("unavailable", "the store is not up yet")]
        bridge.happen(1)
        await bridge.start()
        with trio.fail_after(20):
            assert (await anext(events))["seq"] == 1
    assert len(bridge.asked) == 3


async def test_a_subscription_that_the_bridge_will_not_have_again(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive") as events:
        await bridge.stop()
        bridge.refuse["events.subscribe"] = [ArmorclawError("denied", "not you")]
        await bridge.start()
        with trio.fail_after(20), pytest.raises(ArmorclawError, match="not you"):
            await anext(events)


async def test_a_first_subscription_is_refused_at_once(client: Client, bridge: Bridge) -> None:
    bridge.refuse["events.subscribe"] = [ArmorclawError("queue_full", "too many")]
    with pytest.raises(ArmorclawError, match="too many"):
        async with client.subscribe():
            pass


async def test_the_same_name_twice_in_one_program(client: Client, bridge: Bridge) -> None:
    async with client.subscribe("archive") as first, client.subscribe("archive") as second:
        with pytest.raises(ArmorclawError) as ended:
            await anext(first)
        assert ended.value.name == "unavailable"
        bridge.happen(1)
        assert (await anext(second))["seq"] == 1
    with trio.fail_after(20):
        await bridge.unsubscribed.wait()


@pytest.mark.parametrize("how", ["closed", "twice", "queue_full"])
async def test_a_subscription_that_has_ended_is_not_made_again(
    client: Client, bridge: Bridge, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """It would take the name from whoever has it now."""
    async with client.subscribe("archive") as ended:
        if how == "twice":
            async with client.subscribe("archive") as second:
                await bridge.stop()
                bridge.happen(1)
                await bridge.start()
                with trio.fail_after(20):
                    assert (await anext(second))["seq"] == 1
                await trio.sleep(0.05)
            assert len(bridge.asked) == 3
            return
        if how == "queue_full":
            monkeypatch.setattr("armorclaw.client.subscription.MAX_WAITING", 0)
            bridge.happen(1)
        else:
            assert bridge.peer is not None
            bridge.peer.notify("events.closed", {"subscription": "s1", "reason": "another connection took over"})
        await client.call("add", a=1, from_=1)
        await bridge.stop()
        await bridge.start()
        await client.call("add", a=1, from_=1)
        await trio.sleep(0.05)
        with pytest.raises(ArmorclawError):
            await anext(ended)
    assert len(bridge.asked) == 1


# cancellation, wherever somebody can wait

Waits = Callable[[Client, Bridge], Awaitable[object]]


async def _call(client: Client, bridge: Bridge) -> None:
    await client.call("sleep")


async def _stream(client: Client, bridge: Bridge) -> None:
    async with client.stream("count", to=0, stay=True) as stream:
        await anext(stream)


async def _result(client: Client, bridge: Bridge) -> None:
    async with client.stream("count", to=0, stay=True) as stream:
        await stream.result()


async def _subscribe(client: Client, bridge: Bridge) -> None:
    bridge.mute.add("events.subscribe")
    async with client.subscribe():
        pass


async def _event(client: Client, bridge: Bridge) -> None:
    async with client.subscribe() as events:
        bridge.added.append(-1)
        bridge._wake()
        await anext(events)


async def _acknowledge(client: Client, bridge: Bridge) -> None:
    bridge.mute.add("events.ack")
    async with client.subscribe("archive") as events:
        bridge.happen(1)
        await anext(events)
        await anext(events)


@pytest.mark.parametrize("waits", [_call, _stream, _result, _subscribe, _event, _acknowledge])
async def test_who_is_cancelled_while_waiting_leaves_a_client_that_works(
    client: Client, bridge: Bridge, waits: Waits
) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits, client, bridge)
        await bridge.until(lambda: bridge.added)
        nursery.cancel_scope.cancel()
    bridge.mute.clear()
    bridge.settled.add(1)
    assert await client.call("add", a=1, from_=1) == {"sum": 2}
    async with client.subscribe("archive") as events:
        bridge.happen(2)
        assert (await anext(events))["seq"] == 2
    assert len((await client._link.peer())._asking) == 0


@pytest.mark.parametrize("waits", [_call, _stream, _subscribe])
async def test_who_is_cancelled_while_the_bridge_is_away(client: Client, bridge: Bridge, waits: Waits) -> None:
    await bridge.stop()
    with trio.move_on_after(0.1) as scope:
        await waits(client, bridge)
    assert scope.cancelled_caught
    bridge.mute.clear()
    await bridge.start()
    assert await client.call("add", a=1, from_=1) == {"sum": 2}
    assert bridge.added == [1]
    assert bridge.asked == []


async def test_the_block_can_be_left_while_the_bridge_is_away(bridge: Bridge, path: Path) -> None:
    with trio.fail_after(20):
        async with connect(path) as client:
            async with client.subscribe("archive"):
                await bridge.stop()


async def test_the_block_can_be_cancelled(bridge: Bridge, path: Path) -> None:
    with trio.move_on_after(0.1) as scope:
        async with connect(path) as client, client.subscribe("archive") as events:
            await anext(events)
    assert scope.cancelled_caught


async def test_connecting_can_be_cancelled(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(0)
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(path))  # the backlog is full now
            with trio.move_on_after(0.1) as scope:
                async with connect(path):
                    pass
    assert scope.cancelled_caught
