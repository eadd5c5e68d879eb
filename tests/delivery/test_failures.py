"""Who hears of a message that was never sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.config import DeliverySection
from armorclaw.delivery.failures import PERIOD
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.transport import Delayed, Refused

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py


@pytest.fixture
async def serving(world: World) -> AsyncIterator[World]:
    world.section = DeliverySection(expire_after_h=0.01)
    outbox = world.reopen()
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.serve, "main", world.server)
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.mark.mission("P3.3")
async def test_one_that_waited_too_long_is_a_failure_that_people_hear_of(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(None, "no connection", sure=True)] * 1000
    started = trio.current_time()
    delivery = await serving.outbox.enqueue(out("x"))
    failed = await serving.outbox.settled(delivery.delivery_id, 100)
    assert trio.current_time() - started == pytest.approx(36, abs=0.1)
    assert (failed.state, failed.reason) == ("failed", "not sent within 0.01 hours: no connection")
    assert not failed.may_be_seen
    await trio.testing.wait_all_tasks_blocked()
    ((name, severity, text, agent, fields),) = serving.alarm.raised
    assert (name, severity, agent) == ("message_failed", "warning", "echo")
    assert text == "a message to !a:x was not sent: not sent within 0.01 hours: no connection"
    assert fields["delivery_id"] == delivery.delivery_id
    assert serving.events[-1].severity == "warning"


async def test_what_its_caller_was_told_at_once_needs_no_alert(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.latency = 3
    serving.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    delivery = await serving.outbox.enqueue(out("x"))
    assert (await serving.outbox.settled(delivery.delivery_id, 100)).state == "failed"
    await trio.sleep(1)
    assert serving.alarm.raised == []


async def test_what_was_refused_long_after_is_told(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(10, "429", sure=True), Refused("M_FORBIDDEN")]
    await serving.outbox.enqueue(out("x"))
    await trio.sleep(20)
    assert len(serving.alarm.raised) == 1


async def test_no_alert_is_about_an_alert(serving: World, out: Out, autojump_clock: trio.testing.MockClock) -> None:
    serving.server.trouble["!a:x"] += [Delayed(None, "502", sure=True)] * 1000
    for key in ("alert:1", "alerts-left-out:1:2"):
        await serving.outbox.enqueue(out("x", agent="", key=key))
    await trio.sleep(100)
    assert [state for state, _, _ in serving.rows()] == ["failed", "failed"]
    assert serving.alarm.raised == []


async def test_many_at_once_are_one_alert_and_the_next_says_how_many(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(None, "502", sure=True)] * 10_000
    for number in range(5):
        await serving.outbox.enqueue(out(str(number)))
    await serving.outbox.enqueue(out("other", agent="other"))
    await trio.sleep(70)
    assert [agent for _, _, _, agent, _ in serving.alarm.raised] == ["echo", "other"]
    await serving.outbox.enqueue(out("5"))
    await trio.sleep(PERIOD)
    *_, (_, _, text, agent, fields) = serving.alarm.raised
    assert (agent, fields["others"]) == ("echo", 4)
    assert text.endswith("; since the last alert 4 others did")
    assert serving.told().count("failed") == 7


async def test_without_anybody_to_tell_it_fails_all_the_same(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    outbox = world.reopen()
    outbox._failures._alarm = None
    delivery = await outbox.enqueue(out("x"))
    await outbox.settle(attrs.evolve(delivery, state="failed", reason="no"))
    assert (await outbox.status(delivery.delivery_id)).state == "failed"
