"""What becomes of a message after the homeserver has it: it comes back, and somebody reads it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.delivery import receipts as receipts_module
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.events.event import Event

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

ANN, BOB = "@ann:x", "@bob:x"


@pytest.fixture
async def serving(world: World) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


async def send(world: World, out: Out, *bodies: str, room: str = "!a:x") -> list[str]:
    """Delivery ids of messages that the homeserver has."""
    ids = []
    for body in bodies:
        delivery = await world.outbox.enqueue(out(body, room))
        assert (await world.outbox.settled(delivery.delivery_id, 5)).state == "sent"
        ids.append(delivery.delivery_id)
    return ids


async def states(world: World, ids: list[str]) -> list[str]:
    return [(await world.outbox.status(each)).state for each in ids]


@pytest.mark.mission("P3.1", "P3.2")
async def test_each_step_is_told_once_to_whoever_sent_it(serving: World, out: Out) -> None:
    key = await serving.outbox.enqueue(out("hello", key="k"))
    await serving.outbox.settled(key.delivery_id, 5)
    await serving.sync()
    await serving.sync(("!a:x", "$0", ANN))
    await serving.sync(("!a:x", "$0", BOB))
    contents = [json.loads(event.content) for event in serving.events]
    assert [each["state"] for each in contents] == ["sent", "delivered", "read"]
    assert contents[2] == {
        "delivery_id": key.delivery_id,
        "state": "read",
        "room_id": "!a:x",
        "event_id": "$0",
        "idempotency_key": "k",
        "at_ms": contents[2]["at_ms"],
        "by": ANN,
    }
    for event in serving.events:
        assert (event.type, event.agent, event.room_id, event.event_id) == ("delivery", "echo", None, None)
        assert event.severity == "info"
    assert serving.events[1].id == "main/$0/delivered"
    stored = serving.db.conn.execute("SELECT id FROM journal ORDER BY seq").fetchall()
    assert stored == [(event.id,) for event in serving.events], "all of it is in the journal"
    assert (await serving.outbox.enqueue(out("hello", key="k"))).state == "read"
    assert len(serving.server.attempts) == 1


async def test_an_operators_message_names_no_agent(serving: World, out: Out) -> None:
    await serving.outbox.enqueue(out("x", agent=""))
    await trio.testing.wait_all_tasks_blocked()
    assert [event.agent for event in serving.events] == [None]


@pytest.mark.mission("P3.2")
async def test_a_receipt_covers_what_came_before_it_in_the_timeline(serving: World, out: Out) -> None:
    one = await send(serving, out, "1", "2")
    theirs = serving.server.say("!a:x")
    two = await send(serving, out, "3")
    elsewhere = await send(serving, out, "4", room="!b:x")
    await serving.sync()
    await serving.sync(("!a:x", theirs, ANN))
    assert await states(serving, [*one, *two, *elsewhere]) == ["read", "read", "delivered", "delivered"]
    await serving.sync(("!a:x", "$0", BOB))  # far behind: nothing becomes unread, or is told again
    assert serving.told().count("read") == 2
    await serving.sync(("!a:x", "$3", ANN))
    assert await states(serving, [*one, *two, *elsewhere]) == ["read", "read", "read", "delivered"]


async def test_a_receipt_of_another_account_or_room_is_none_of_ours(serving: World, out: Out) -> None:
    ids = await send(serving, out, "1")
    await serving.sync(("!b:x", "$0", ANN))

    def work(conn: Any) -> list[Any]:
        return [*serving.outbox.receipts.read(conn, "other", "!a:x", "$0", ANN)]

    assert await serving.db.write(work) == []
    assert serving.db.conn.execute("SELECT state FROM outbox").fetchall() == [("delivered",)]
    assert await states(serving, ids) == ["delivered"]


async def test_a_receipt_that_is_ahead_of_its_event_counts_when_that_is_there(serving: World, out: Out) -> None:
    ids = await send(serving, out, "1")
    theirs = serving.server.say("!a:x")
    ahead = serving.server.timeline[:]
    serving.server.timeline.clear()
    await serving.sync(("!a:x", theirs, ANN))
    assert await states(serving, ids) == ["sent"]
    serving.server.timeline += ahead
    await serving.sync()
    assert await states(serving, ids) == ["read"]
    assert serving.told(ids[0]) == ["sent", "delivered", "read"]


async def test_a_receipt_that_is_ahead_survives_a_transaction_that_is_taken_back(serving: World, out: Out) -> None:
    ids = await send(serving, out, "1")
    ahead = serving.server.timeline[:]
    serving.server.timeline.clear()
    await serving.sync(("!a:x", "$0", ANN))
    serving.server.timeline += ahead

    class PowerCutError(Exception):
        pass

    def point(name: str) -> None:
        raise PowerCutError

    caught_up = serving.outbox.receipts.caught_up

    def taken_back(*args: Any) -> Any:
        caught_up(*args)
        raise PowerCutError

    serving.outbox.receipts.caught_up = taken_back
    with pytest.raises(PowerCutError):
        await serving.sync()
    assert await states(serving, ids) == ["sent"]
    serving.outbox.receipts.caught_up = caught_up
    await serving.sync()
    assert await states(serving, ids) == ["read"]


async def test_only_so_many_receipts_are_kept_for_later(
    world: World, monkeypatch: pytest.MonkeyPatch, out: Out
) -> None:
    monkeypatch.setattr(receipts_module, "KEPT", 3)
    await world.sync(*[("!a:x", "$none", f"@{number}:x") for number in range(9)])
    await world.sync(*[("!a:x", f"$later{number}", ANN) for number in range(9)])
    assert len(world.outbox.receipts._ahead) == 3


async def test_the_echo_may_be_faster_than_the_answer(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    """It is sent then, whoever waits for it goes on, and nothing is told twice when the answer comes."""
    serving.server.latency = 5
    delivery = await serving.outbox.enqueue(out("x"))
    await trio.sleep(1)
    serving.server._accept("!a:x", delivery.txn_id, out("x").content, "PHONE")
    await serving.sync()
    known = await serving.outbox.settled(delivery.delivery_id, 0.1)
    assert (known.state, known.event_id, known.attempts) == ("delivered", "$0", 1)
    await trio.sleep(10)
    assert serving.told() == ["delivered"]
    assert serving.rows() == [("delivered", None, 1)]
    assert serving.outbox.lengths() == {"main": 0}


async def test_an_echo_that_does_not_say_of_what_is_known_once_the_answer_is_there(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.latency = 5
    delivery = await serving.outbox.enqueue(out("x"))
    await trio.sleep(1)
    serving.server._accept("!a:x", delivery.txn_id, out("x").content, "PHONE")
    await serving.sync(forgetful=True)
    assert (await serving.outbox.status(delivery.delivery_id)).state == "queued"
    await trio.sleep(10)
    assert (await serving.outbox.status(delivery.delivery_id)).state == "delivered"
    theirs = serving.server.say("!a:x")
    await serving.sync(("!a:x", theirs, ANN))
    assert (await serving.outbox.status(delivery.delivery_id)).state == "read"


@pytest.mark.parametrize("told", [None, 60.0])
async def test_an_echo_ends_the_wait_for_the_next_attempt(
    serving: World, out: Out, told: float | None, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += ["lose", Delayed(told, "timed out")]
    serving.server.trouble["!a:x"] += [Delayed(60.0, "never tried")] * 5
    first = await serving.outbox.enqueue(out("1"))
    await trio.sleep(0.01)
    assert (await serving.outbox.status(first.delivery_id)).state == "unknown"
    serving.server.trouble["!a:x"].clear()
    second = await serving.outbox.enqueue(out("2"))
    await serving.sync()
    assert (await serving.outbox.settled(second.delivery_id, 0.01)).state == "sent"
    assert serving.told(first.delivery_id) == ["unknown", "delivered"]
    assert [body for *_, body in serving.server.attempts] == ["1", "2"]


async def test_what_had_failed_for_us_and_is_there_all_the_same_is_delivered(
    serving: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    serving.server.trouble["!a:x"] += [Delayed(290, "502")] * 1000
    serving.server.look_trouble += [Delayed(None, "502")] * 1000
    delivery = await serving.outbox.enqueue(out("x"))
    assert (await serving.outbox.settled(delivery.delivery_id, 100_000)).state == "failed"
    serving.server._accept("!a:x", delivery.txn_id, out("x").content, "PHONE")
    await serving.sync()
    assert (await serving.outbox.status(delivery.delivery_id)).state == "delivered"
    assert serving.db.conn.execute("SELECT length(content) FROM outbox").fetchone() == (0,)


async def test_events_of_ours_that_the_outbox_did_not_send_are_nobodys_news(serving: World, out: Out) -> None:
    serving.server._accept("!a:x", "m123.4", out("x").content, "PHONE")
    serving.server._accept("!a:x", "ac_of_another_bridge", out("x").content, "PHONE")
    await serving.sync()
    await serving.sync(("!a:x", "$1", ANN))
    assert serving.events == []


async def test_a_failure_says_why_and_whether_another_try_can_show_it_twice(serving: World, out: Out) -> None:
    serving.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    await serving.outbox.enqueue(out("x"))
    await trio.testing.wait_all_tasks_blocked()
    (event,) = serving.events
    content = json.loads(event.content)
    assert (event.severity, content["state"], content["reason"]) == ("warning", "failed", "M_FORBIDDEN")
    assert content["retryable"] is True


async def test_taken_back_is_told(world: World, out: Out) -> None:
    delivery = await world.outbox.enqueue(out("x"))
    await world.outbox.cancel(delivery.delivery_id, by="uid 0")
    assert world.told() == ["cancelled"]
    assert world.outbox.told["cancelled"] == 1


async def test_nothing_is_written_between_the_acceptance_and_the_first_request(serving: World, out: Out) -> None:
    writes = []
    serving.server.point = lambda name: writes.append(serving.db.writes)
    before = serving.db.writes
    await send(serving, out, "x")
    assert writes[0] == before + 1
    assert serving.db.durable == 1


async def test_an_echo_that_comes_again_changes_nothing(serving: World, out: Out) -> None:
    """As after a start over: what was read stays read, and none of it is told anew."""
    ids = await send(serving, out, "1")
    await serving.sync()
    await serving.sync(("!a:x", "$0", ANN))
    serving.synced = 0
    await serving.sync()
    assert await states(serving, ids) == ["read"]
    assert serving.told() == ["sent", "delivered", "read"]


@pytest.mark.parametrize("state", ["sent", "made up", None, [], {"x": 1}])
async def test_what_somebody_says_in_a_room_is_no_news_of_a_message(serving: World, out: Out, state: Any) -> None:
    """Whatever its type and content are, it is neither counted nor believed, and raises nothing."""
    serving.server.trouble["!a:x"].append(Delayed(60, "429", sure=True))
    delivery = await serving.outbox.enqueue(out("x"))
    content = {"delivery_id": delivery.delivery_id, "state": state}
    before = dict(serving.outbox.told)
    said = Event.make("delivery", content, at_ms=1, account="main", room_id="!a:x", event_id="$forged")
    serving.outbox.receipts.committed([said, Event.make("delivery", {}, at_ms=1, event_id="$none")])
    assert dict(serving.outbox.told) == before
    assert (await serving.outbox.status(delivery.delivery_id)).state == "queued"
    assert serving.outbox.lengths() == {"main": 1}
    if state != "sent":  # total, even for one of our own
        serving.outbox.receipts.committed([Event.make("delivery", content, at_ms=1)])
        assert dict(serving.outbox.told) == before
