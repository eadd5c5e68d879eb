from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.sender import BACKOFF_LAST, BACKOFF_LEAST, PUTS_AT_ONCE, TOLD_LIMIT
from armorclaw.delivery.transport import Delayed, Refused

Out = Callable[..., Outgoing]
World = Any


@pytest.fixture
async def serving(world: World) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


NO_TIME = [0.1, 0.2, 0.4, 0.8, 1.6, 2.0, 2.0]


@pytest.mark.mission("P3.3")
@pytest.mark.parametrize(
    "told, waits", [(3.0, [3.0] * 7), (0.0, NO_TIME), (-5.0, NO_TIME), (10_000.0, [TOLD_LIMIT] * 7)]
)
async def test_a_told_wait_is_kept_to(
    serving: World, out: Out, told: float, waits: list[float], autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(told, "429")] * 7
    delivery = await serving.outbox.enqueue(out("x"))
    settled = await serving.outbox.settled(delivery.delivery_id, 3000)
    assert (settled.state, settled.attempts, settled.reason) == ("sent", 8, None)
    times = serving.server.times("!a:x")
    assert [after - before for before, after in itertools.pairwise(times)] == pytest.approx(waits)
    assert len({txn for _, _, txn, _ in serving.server.attempts}) == 1


async def test_without_a_told_wait_it_doubles_up_to_a_limit(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(None, "502")] * 12
    delivery = await serving.outbox.enqueue(out("x"))
    await serving.outbox.settled(delivery.delivery_id, 1000)
    times = serving.server.times("!a:x")
    waits = [after - before for before, after in pairwise(times)]
    longest = [min(0.25 * 2**n, BACKOFF_LAST) for n in range(12)]
    assert all(BACKOFF_LEAST - 1e-6 <= wait <= most + 1e-6 for wait, most in zip(waits, longest, strict=True))
    assert len(set(waits[3:])) == len(waits[3:])  # jitter, over the whole length
    assert serving.rows() == [("sent", None, 13)]


async def test_while_it_waits_the_reason_can_be_asked(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"].append(Delayed(60, "M_LIMIT_EXCEEDED", sure=True))
    delivery = await serving.outbox.enqueue(out("x"))
    waiting = await serving.outbox.settled(delivery.delivery_id, 5)
    assert (waiting.state, waiting.reason, waiting.attempts) == ("queued", "M_LIMIT_EXCEEDED", 1)
    assert serving.rows() == [("queued", "M_LIMIT_EXCEEDED", 1)]


async def test_a_room_that_waits_keeps_its_order_and_holds_up_no_other(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"].append(Delayed(30, "429"))
    started = trio.current_time()
    for number in range(3):
        await serving.outbox.enqueue(out(str(number), "!a:x"))
        other = await serving.outbox.enqueue(out(str(number), "!b:x"))
    await serving.outbox.settled(other.delivery_id, 100)
    assert trio.current_time() - started < 1
    assert serving.server.bodies("!b:x") == ["0", "1", "2"]
    assert serving.server.bodies("!a:x") == []
    await trio.sleep(31)
    assert serving.server.bodies("!a:x") == ["0", "1", "2"]


async def test_a_permanent_refusal_fails_the_message_and_lets_the_next_pass(serving: World, out: Out) -> None:
    serving.server.trouble["!a:x"].append(Refused("M_FORBIDDEN: not in the room"))
    one = await serving.outbox.enqueue(out("1"))
    two = await serving.outbox.enqueue(out("2"))
    failed = await serving.outbox.settled(one.delivery_id, 1)
    assert (failed.state, failed.reason, failed.event_id) == ("failed", "M_FORBIDDEN: not in the room", None)
    assert (await serving.outbox.settled(two.delivery_id, 1)).state == "sent"


async def test_a_lost_answer_makes_no_second_event(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += ["lose", Delayed(None, "connection reset")] * 3
    delivery = await serving.outbox.enqueue(out("x"))
    assert (await serving.outbox.settled(delivery.delivery_id, 100)).event_id == "$0"
    assert serving.server.visible == [("!a:x", "x")]
    assert len(serving.server.attempts) == 4


async def test_after_a_day_it_has_failed(serving: World, out: Out, autojump_clock: trio.testing.MockClock) -> None:
    serving.server.trouble["!a:x"] += [Delayed(290, "502")] * 1000
    started = trio.current_time()
    delivery = await serving.outbox.enqueue(out("x"))
    failed = await serving.outbox.settled(delivery.delivery_id, 100_000)
    assert failed.state == "failed"
    assert failed.reason == "not sent within 24 hours: 502"
    assert trio.current_time() - started == pytest.approx(24 * 3600, abs=1)


async def test_what_grew_too_old_while_the_bridge_was_down_is_not_sent(world: World, out: Out) -> None:
    delivery = await world.outbox.enqueue(out("x"))
    world.wall_offset += 24 * 3600 + 1
    outbox = world.reopen()
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.serve, "main", world.server)
        assert (await outbox.settled(delivery.delivery_id, 1)).state == "failed"
        nursery.cancel_scope.cancel(reason="done")
    assert world.server.attempts == []


async def test_when_the_homeserver_is_back_a_guessed_wait_ends_and_a_told_one_does_not(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!guess:x"] += [Delayed(None, "no connection", sure=True)] * 1000
    serving.server.trouble["!told:x"].append(Delayed(60, "429", sure=True))
    guessed = await serving.outbox.enqueue(out("x", "!guess:x"))
    told = await serving.outbox.enqueue(out("x", "!told:x"))
    await trio.sleep(20)
    serving.server.trouble["!guess:x"].clear()
    asked = trio.current_time()
    serving.outbox.hurry("main")
    serving.outbox.hurry("nobody")
    await serving.outbox.settled(guessed.delivery_id, 100)
    assert trio.current_time() == asked
    assert (await serving.outbox.status(told.delivery_id)).state == "queued"


async def test_rooms_share_a_limit_of_requests(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.latency = 1
    for number in range(3 * PUTS_AT_ONCE):
        await serving.outbox.enqueue(out("x", f"!{number}:x"))
    await trio.sleep(4)
    assert serving.server.most_in_flight == PUTS_AT_ONCE
    assert len(serving.server.visible) == 3 * PUTS_AT_ONCE


async def test_what_became_of_a_message_waits_for_the_store(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.latency = 1
    delivery = await serving.outbox.enqueue(out("x"))
    serving.db.down = True
    await trio.sleep(60)
    serving.db.down = False
    assert (await serving.outbox.settled(delivery.delivery_id, 10)).state == "sent"
    assert len(serving.server.attempts) == 1


async def test_cut_off_while_the_server_hangs_it_is_sent_by_the_next_session(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append("hang")
    delivery = await world.outbox.enqueue(out("x"))
    for expected in ("queued", "sent"):
        async with trio.open_nursery() as nursery:
            await nursery.start(world.outbox.serve, "main", world.server)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the session ends")
        assert (await world.outbox.status(delivery.delivery_id)).state == expected
    assert len({txn for _, _, txn, _ in world.server.attempts}) == 1


async def test_a_message_that_an_earlier_sender_settled_after_all_is_left_alone(world: World, out: Out) -> None:
    delivery = await world.outbox.enqueue(out("x"))
    world.db.conn.execute("UPDATE outbox SET state = 'sent', content = x''")  # committed, not heard of yet
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")
    assert world.server.attempts == []
    assert delivery.state == "queued"


async def test_a_bug_in_the_transport_ends_the_session_and_loses_nothing(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append(RuntimeError("a bug"))
    await world.outbox.enqueue(out("x"))
    with pytest.RaisesGroup(pytest.RaisesExc(RuntimeError, match="a bug"), flatten_subgroups=True):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.outbox.serve, "main", world.server)
    assert world.rows() == [("queued", None, 0)]
