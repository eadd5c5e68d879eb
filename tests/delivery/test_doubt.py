"""Messages of which an attempt may have arrived: sent again while the homeserver knows the id, else looked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.sender import BLIND_MS
from armorclaw.delivery.transport import Delayed, Refused
from tests.delivery.serving import quiet, sending

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

LOST = ["lose", Delayed(None, "timed out")]
HOUR = 3600.0


async def one_in_doubt(world: World, out: Out, *, arrived: bool) -> str:
    """A message whose only attempt went unanswered; the bridge then ended."""
    world.server.trouble["!a:x"] += LOST if arrived else [Delayed(None, "timed out")]
    async with sending(world):
        delivery = await world.outbox.enqueue(out("x"))
        await quiet()
    world.server.trouble["!a:x"].clear()
    return str(delivery.delivery_id)


@pytest.mark.mission("P3.3")
async def test_unknown_is_a_state_with_time_and_device(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=True)
    row = world.db.conn.execute("SELECT state, device_id, tried_ms FROM outbox").fetchone()
    assert row == ("unknown", "PHONE", int(world.wall() * 1000))
    assert world.told() == ["unknown"]
    world.reopen()
    assert (await world.outbox.status(delivery_id)).in_doubt
    async with sending(world):
        assert (await world.outbox.settled(delivery_id, 5)).state == "sent"
    assert world.server.looks == 0, "the same transaction id is all that is needed"
    assert world.server.visible == [("!a:x", "x")]
    assert world.told() == ["unknown", "sent"]


async def test_it_becomes_unknown_once(world: World, out: Out, autojump_clock: trio.testing.MockClock) -> None:
    world.server.trouble["!a:x"] += [Delayed(None, "timed out"), Delayed(1, "429", sure=True)] * 3
    async with sending(world):
        delivery = await world.outbox.enqueue(out("x"))
        assert (await world.outbox.settled(delivery.delivery_id, 100)).state == "sent"
    assert world.told() == ["unknown", "sent"]
    assert world.rows() == [("sent", None, 7)]


@pytest.mark.mission("P3.3")
@pytest.mark.parametrize("arrived", [True, False])
@pytest.mark.parametrize("change", ["a day", "another device"])
async def test_where_the_homeserver_has_forgotten_the_id_the_room_is_asked(
    world: World, out: Out, arrived: bool, change: str
) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=arrived)
    if change == "a day":
        world.wall_offset += BLIND_MS / 1000 + 60
        world.server.forget()
    else:
        world.server.device_id = "TABLET"
    world.reopen()
    async with sending(world):
        known = await world.outbox.settled(delivery_id, 5)
    assert world.server.looks == 1
    assert world.server.visible == [("!a:x", "x")]
    assert known.state == "sent"
    assert len(world.server.attempts) == (1 if arrived else 2)
    await world.sync()
    assert (await world.outbox.status(delivery_id)).state == "delivered"


async def test_two_of_the_same_words_are_two_messages(world: World, out: Out) -> None:
    """What is found is not taken for the one that is known to be another message."""
    async with sending(world):
        first = await world.outbox.enqueue(out("ok"))
        await quiet()
    second_id = await one_in_doubt_again(world, out)
    world.server.device_id = "TABLET"
    world.reopen()
    async with sending(world):
        second = await world.outbox.settled(second_id, 5)
    assert (await world.outbox.status(first.delivery_id)).event_id != second.event_id
    assert world.server.bodies("!a:x") == ["ok", "ok"]


async def one_in_doubt_again(world: World, out: Out) -> str:
    world.server.trouble["!a:x"].append(Delayed(None, "timed out"))
    async with sending(world):
        delivery = await world.outbox.enqueue(out("ok"))
        await quiet()
    return str(delivery.delivery_id)


async def test_while_the_room_cannot_be_asked_nothing_is_sent(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=True)
    world.server.device_id = "TABLET"
    world.server.look_trouble += [Delayed(None, "502"), Delayed(30, "429"), Delayed(None, "502")]
    world.reopen()
    async with sending(world):
        waiting = await world.outbox.settled(delivery_id, 5)
        assert (waiting.state, waiting.reason) == ("unknown", "429")
        assert (await world.outbox.settled(delivery_id, 100)).state == "sent"
    assert len(world.server.attempts) == 1
    assert world.server.looks == 4


async def test_where_nobody_can_ever_tell_it_has_failed_and_is_not_sent(world: World, out: Out) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=False)
    world.server.device_id = "TABLET"
    world.server.look_trouble.append(Refused("M_FORBIDDEN: not in the room"))
    world.reopen()
    async with sending(world):
        failed = await world.outbox.settled(delivery_id, 5)
    assert failed.state == "failed"
    assert failed.reason == "it may have arrived, and nobody can tell: M_FORBIDDEN: not in the room"
    assert failed.may_be_seen
    assert json.loads(world.events[-1].content)["retryable"] is False
    assert len(world.server.attempts) == 1


@pytest.mark.parametrize("arrived", [True, False])
async def test_retried_by_hand_it_is_looked_for_first(world: World, out: Out, arrived: bool) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=arrived)
    world.server.device_id = "TABLET"
    world.server.look_trouble.append(Refused("not in the room"))
    world.reopen()
    async with sending(world):
        await world.outbox.settled(delivery_id, 5)
        again = await world.outbox.retry(delivery_id, by="uid 0")
        assert (again.state, again.in_doubt) == ("unknown", True)
        assert (await world.outbox.settled(delivery_id, 5)).state == "sent"
    assert world.server.visible == [("!a:x", "x")]


async def test_the_same_key_does_not_replace_what_may_have_been_seen(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append(Delayed(None, "timed out"))
    async with sending(world):
        await world.outbox.enqueue(out("x", key="k"))
        await quiet()
    world.server.device_id = "TABLET"
    world.server.look_trouble.append(Refused("not in the room"))
    world.reopen()
    async with sending(world):
        await quiet()
        assert (await world.outbox.enqueue(out("y", key="k"))).state == "failed"


@pytest.mark.parametrize("sure", [True, False])
async def test_a_refusal_of_the_homeserver_ends_the_doubt_and_one_of_ours_does_not(
    world: World, out: Out, sure: bool, autojump_clock: trio.testing.MockClock
) -> None:
    world.server.trouble["!a:x"] += [Delayed(None, "timed out"), Refused("room_encrypted", sure=sure)]
    async with sending(world):
        delivery = await world.outbox.enqueue(out("x"))
        failed = await world.outbox.settled(delivery.delivery_id, 100)
    assert (failed.state, failed.may_be_seen) == ("failed", not sure)


@pytest.mark.parametrize("arrived", [True, False])
async def test_too_old_and_in_doubt_it_is_looked_for_once(world: World, out: Out, arrived: bool) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=arrived)
    world.wall_offset += 25 * HOUR
    world.reopen()
    async with sending(world):
        known = await world.outbox.settled(delivery_id, 5)
    assert known.state == ("sent" if arrived else "failed")
    assert not known.may_be_seen or arrived
    assert len(world.server.attempts) == 1
    assert world.server.looks == 1


async def test_too_old_and_nobody_can_tell_it_has_failed(world: World, out: Out) -> None:
    delivery_id = await one_in_doubt(world, out, arrived=True)
    world.wall_offset += 25 * HOUR
    world.server.look_trouble.append(Delayed(None, "502"))
    world.reopen()
    async with sending(world):
        known = await world.outbox.settled(delivery_id, 5)
    assert (known.state, known.may_be_seen) == ("failed", True)
    assert known.reason == "not sent within 24 hours: timed out"


async def test_after_a_crash_what_was_never_tried_is_simply_sent(world: World, out: Out) -> None:
    """Accepted while there was no session: no device is written down, so there was no attempt."""
    delivery = await world.outbox.enqueue(out("x"))
    world.reopen()
    world.wall_offset += 21 * HOUR
    async with sending(world):
        assert (await world.outbox.settled(delivery.delivery_id, 5)).state == "sent"
    assert world.server.looks == 0


async def test_after_a_crash_in_the_middle_of_an_attempt_the_room_is_asked_if_need_be(world: World, out: Out) -> None:
    """The row says queued, for nothing is written between acceptance and attempt. That it has a device is enough."""
    world.server.trouble["!a:x"].append("hang")
    async with sending(world):
        delivery = await world.outbox.enqueue(out("x"))
        await quiet()
        world.server._accept("!a:x", delivery.txn_id, out("x").content, "PHONE")
        assert world.rows() == [("queued", None, 0)]
        world.reopen()
    world.server.device_id = "TABLET"
    async with sending(world):
        assert (await world.outbox.settled(delivery.delivery_id, 5)).state == "sent"
    assert world.server.visible == [("!a:x", "x")]


async def test_accepted_without_a_session_it_belongs_to_the_device_that_sends_it(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append("hang")
    delivery = await world.outbox.enqueue(out("x"))
    async with sending(world):
        await quiet()
        world.server._accept("!a:x", delivery.txn_id, out("x").content, "PHONE")
        world.reopen()
    world.server.device_id = "TABLET"
    async with sending(world):
        assert (await world.outbox.settled(delivery.delivery_id, 5)).state == "sent"
    assert world.server.visible == [("!a:x", "x")]


async def test_after_a_power_cut_more_than_the_first_may_have_been_sent(world: World, out: Out) -> None:
    """That they were sent need not have reached the disk: once one is found, so may be those behind it."""
    async with sending(world):
        ids = [(await world.outbox.enqueue(out(str(number)))).delivery_id for number in range(3)]
        await quiet()
        contents = [out(str(number)).content for number in range(3)]
    for content, each in zip(contents, ids, strict=True):
        world.db.conn.execute(
            "UPDATE outbox SET state = 'queued', event_id = NULL, attempts = 0, content = ? WHERE delivery_id = ?",
            (content, each),
        )
    world.server.device_id = "TABLET"
    world.reopen()
    fourth = await world.outbox.enqueue(out("3"))
    async with sending(world):
        assert (await world.outbox.settled(fourth.delivery_id, 5)).state == "sent"
    assert world.server.bodies("!a:x") == ["0", "1", "2", "3"]
    assert world.server.looks == 3


async def test_a_day_of_attempts_in_one_session_looks_before_it_goes_on(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    world.server.trouble["!a:x"] += [*LOST, *[Delayed(299, "502")] * 1000]
    async with sending(world):
        delivery = await world.outbox.enqueue(out("x"))
        await trio.sleep(19 * HOUR)
        assert world.server.looks == 0
        world.server.forget()
        await trio.sleep(1.5 * HOUR)
        assert (await world.outbox.status(delivery.delivery_id)).state == "sent"
    assert world.server.looks == 1
    assert world.server.visible == [("!a:x", "x")]


async def test_what_certainly_did_not_arrive_has_no_doubt_left(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    """After a look that found nothing it may be taken back again, as long as nothing else was tried."""
    delivery_id = await one_in_doubt(world, out, arrived=False)
    world.server.device_id = "TABLET"
    world.server.trouble["!a:x"] += [Delayed(None, "no connection", sure=True)] * 1000
    world.reopen()
    async with sending(world):
        await trio.sleep(5)
        waiting = await world.outbox.status(delivery_id)
        assert (waiting.state, waiting.in_doubt, waiting.tried_ms) == ("queued", False, None)
        row = world.db.conn.execute("SELECT state, device_id, tried_ms FROM outbox").fetchone()
        assert row == ("queued", "TABLET", None)
        assert (await world.outbox.cancel(delivery_id, by="uid 0")).state == "cancelled"
        await trio.sleep(60)
    assert world.server.visible == []
    assert world.server.looks == 1


async def test_found_after_its_echo_went_by_it_is_delivered(world: World, out: Out) -> None:
    """The new device hears of the event without its transaction, before the outbox looks."""
    delivery_id = await one_in_doubt(world, out, arrived=True)
    world.server.device_id = "TABLET"
    world.reopen()
    await world.sync()
    assert (await world.outbox.status(delivery_id)).state == "unknown"
    async with sending(world):
        assert (await world.outbox.settled(delivery_id, 5)).state == "delivered"
    assert world.told() == ["unknown", "delivered"]
