"""delivery.* as clients see it, and that nothing is ever in doubt after a cancel."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.delivery import sender as sender_module
from armorclaw.delivery import waiting as waiting_module
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.methods import register
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role
from tests.delivery.serving import quiet, sending

Out = Callable[..., Outgoing]
World = Any  # the class of conftest.py

SURE = Delayed(None, "cannot connect", sure=True)
UNSURE = Delayed(None, "timed out")


async def call(world: World, method: str, *, agent: str | None = None, **params: Any) -> Any:
    registry = Registry()
    register(registry, world.outbox)
    role = Role.AGENT if agent else Role.OPERATOR
    return await call_local(registry, f"delivery.{method}", params, role=role, agent=agent)


async def refusal(world: World, method: str, **params: Any) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        await call(world, method, **params)
    return caught.value


@pytest.mark.mission("P3.1", "P3.2")
async def test_the_shape(world: World, out: Out) -> None:
    one = await world.outbox.enqueue(out("hello"))
    shown = await call(world, "status", delivery_id=one.delivery_id)
    assert shown == {
        "delivery_id": one.delivery_id,
        "state": "queued",
        "event_id": None,
        "reason": None,
        "account": "main",
        "agent": "echo",
        "room_id": "!a:x",
        "type": "m.room.message",
        "attempts": 0,
        "created_ms": one.created_ms,
        "settled_ms": None,
    }
    async with sending(world):
        await quiet()
    sent = await call(world, "status", delivery_id=one.delivery_id)
    assert sent.pop("settled_ms") >= one.created_ms
    shown.pop("settled_ms")
    assert sent == {**shown, "state": "sent", "event_id": "$0", "attempts": 1}


async def test_listed_newest_first_and_filtered(world: World, out: Out) -> None:
    world.server.trouble["!bad:x"].append(Refused("M_FORBIDDEN"))
    for room, agent in (("!a:x", "echo"), ("!bad:x", "echo"), ("!a:x", ""), ("!b:x", "other")):
        await world.outbox.enqueue(out("x", room, agent=agent))

    async def rooms(**params: Any) -> list[str]:
        return [each["room_id"] for each in await call(world, "list", **params)]

    assert await rooms() == ["!b:x", "!a:x", "!bad:x", "!a:x"]
    async with sending(world):
        await quiet()
    assert await rooms(state="failed") == ["!bad:x"]
    assert await rooms(state="sent", room_id="!a:x") == ["!a:x", "!a:x"]
    assert await rooms(state="queued") == []
    assert await rooms(limit=2) == ["!b:x", "!a:x"]
    assert await rooms(agent="echo") == ["!bad:x", "!a:x"]
    assert [each["agent"] for each in await call(world, "list")] == ["other", None, "echo", "echo"]
    for wrong in ({"limit": 0}, {"limit": 1001}, {"state": "lost"}, {"room_id": 1}):
        assert (await refusal(world, "list", **wrong)).name == "invalid_params"


async def test_agents_see_their_own_and_change_nothing(world: World, out: Out) -> None:
    own, others = await world.outbox.enqueue(out("x")), await world.outbox.enqueue(out("x", agent="other"))
    operators = await world.outbox.enqueue(out("x", agent=""))
    assert (await call(world, "status", agent="echo", delivery_id=own.delivery_id))["state"] == "queued"
    for each in (others.delivery_id, operators.delivery_id, "d_none"):
        assert (await refusal(world, "status", agent="echo", delivery_id=each)).name == "not_found"
    for method in ("retry", "cancel"):
        assert (await refusal(world, method, agent="echo", delivery_id=own.delivery_id)).name == "denied"
        error = await refusal(world, method, delivery_id="d_none")
        assert error.name == "not_found"
        assert "outbox ls" in error.hint


@pytest.mark.mission("P3.3")
async def test_what_was_refused_is_tried_again_under_its_transaction_id(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    async with sending(world):
        one = await world.outbox.enqueue(out("hello"))
        await quiet()
        assert (await call(world, "status", delivery_id=one.delivery_id))["reason"] == "M_FORBIDDEN"
        again = await call(world, "retry", delivery_id=one.delivery_id)
        assert (again["state"], again["attempts"], again["reason"]) == ("queued", 0, None)
        await quiet()
    assert (await call(world, "status", delivery_id=one.delivery_id))["state"] == "sent"
    assert [(txn, body) for _, _, txn, body in world.server.attempts] == [(one.txn_id, "hello")] * 2
    assert any("message.retried" in record and '"uid ' in record for record in world.audit())


async def test_retried_behind_what_waits(world: World, out: Out) -> None:
    """In memory and after a restart alike."""
    world.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    async with sending(world):
        first = await world.outbox.enqueue(out("first"))
        await quiet()
    await world.outbox.enqueue(out("second"))
    await call(world, "retry", delivery_id=first.delivery_id)
    third = await world.outbox.enqueue(out("third"))
    assert third.seq == 4
    world.reopen()
    async with sending(world):
        await quiet()
    assert world.server.bodies("!a:x") == ["second", "first", "third"]


async def test_retried_after_those_behind_it_are_deleted(world: World, out: Out) -> None:
    """Its new place in the order is beyond all there ever were, or its sender would take it for one it has had."""
    world.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    async with sending(world):
        failed = await world.outbox.enqueue(out("failed"))
        for number in range(3):
            await world.outbox.enqueue(out(str(number)))
        await quiet()
        for body in ("failed", "one more"):
            world.db.conn.execute("DELETE FROM outbox WHERE state = 'sent'")
            if body == "failed":
                await call(world, "retry", delivery_id=failed.delivery_id)
            else:
                await world.outbox.enqueue(out(body))
            await quiet()
            assert world.server.bodies("!a:x")[-1] == body


async def test_one_that_waits_is_tried_now(world: World, out: Out, autojump_clock: trio.testing.MockClock) -> None:
    world.server.trouble["!a:x"] += [UNSURE] * 1000
    async with sending(world):
        one = await world.outbox.enqueue(out("x"))
        await trio.sleep(20)
        before = len(world.server.attempts)
        waiting = await call(world, "retry", delivery_id=one.delivery_id)
        assert waiting["state"] == "unknown"
        await trio.sleep(0.001)
        assert len(world.server.attempts) == before + 1


async def test_what_is_not_tried_again(world: World, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sending(world):
        sent = await world.outbox.enqueue(out("x"))
        await quiet()
    cancelled = await world.outbox.enqueue(out("x"))
    await call(world, "cancel", delivery_id=cancelled.delivery_id)
    for each in (sent, cancelled):
        error = await refusal(world, "retry", delivery_id=each.delivery_id)
        assert (error.name, error.kind.retryable) == ("conflict", False)
    refused = await world.outbox.enqueue(out("x", key="k"))
    await world.outbox.settle(attrs.evolve(refused, state="failed", reason="M_FORBIDDEN"))
    monkeypatch.setattr(waiting_module, "AGENT_LIMIT", 0)
    assert (await refusal(world, "retry", delivery_id=refused.delivery_id)).name == "queue_full"
    assert len(world.server.attempts) == 1


@pytest.mark.parametrize("restart", [False, True])
async def test_cancelled_is_never_sent(world: World, out: Out, restart: bool) -> None:
    one, two, three = [await world.outbox.enqueue(out(str(n), key=str(n))) for n in range(3)]
    shown = await call(world, "cancel", delivery_id=two.delivery_id)
    assert (shown["state"], shown["attempts"], shown["event_id"]) == ("cancelled", 0, None)
    if restart:
        world.reopen()
    async with sending(world):
        await quiet()
        assert (await world.outbox.enqueue(out("1", key="1"))).state == "cancelled"
        await quiet()
    assert world.server.bodies("!a:x") == ["0", "2"]
    assert world.rows() == [("sent", None, 1), ("cancelled", None, 0), ("sent", None, 1)]
    assert world.db.conn.execute("SELECT sum(length(content)) FROM outbox").fetchone() == (0,)
    assert sum("message.cancelled" in record for record in world.audit()) == 1
    for each in (one, two, three):
        assert (await refusal(world, "cancel", delivery_id=each.delivery_id)).name == "conflict"


async def test_whoever_waits_for_it_is_told(world: World, out: Out) -> None:
    one = await world.outbox.enqueue(out("x"))
    states: list[str] = []

    async def wait() -> None:
        states.append((await world.outbox.settled(one.delivery_id, 60)).state)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await quiet()
        await call(world, "cancel", delivery_id=one.delivery_id)
    assert states == ["cancelled"]


async def test_not_while_an_attempt_is_under_way_nor_after_one_that_may_have_arrived(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    world.server.latency = 1
    world.server.trouble["!maybe:x"] += [UNSURE] * 1000
    world.server.trouble["!no:x"] += [Delayed(5, "429", sure=True)] * 1000
    world.server.trouble["!both:x"] += [UNSURE, *[SURE] * 1000]
    async with sending(world):
        maybe = await world.outbox.enqueue(out("x", "!maybe:x"))
        no = await world.outbox.enqueue(out("x", "!no:x"))
        both = await world.outbox.enqueue(out("x", "!both:x"))
        behind = await world.outbox.enqueue(out("y", "!maybe:x"))
        await trio.sleep(0.5)
        for each in (maybe, no, both):
            assert (await refusal(world, "cancel", delivery_id=each.delivery_id)).name == "conflict"
        await trio.sleep(0.6)  # each waits for its second attempt
        for each in (maybe, both):
            assert (await refusal(world, "cancel", delivery_id=each.delivery_id)).name == "conflict"
        assert (await call(world, "cancel", delivery_id=no.delivery_id))["state"] == "cancelled"
        await trio.sleep(10.6)
        assert len(world.server.times("!no:x")) == 1
        assert len(world.server.times("!both:x")) > 2
        assert (await refusal(world, "cancel", delivery_id=both.delivery_id)).name == "conflict"
        assert (await call(world, "cancel", delivery_id=behind.delivery_id))["state"] == "cancelled"


async def test_after_a_crash_the_first_of_each_room_is_in_doubt(world: World, out: Out) -> None:
    """The bridge that died may have had a request under way in each room, for the oldest message there."""
    world.server.trouble["!a:x"].append("hang")
    async with sending(world):
        first = await world.outbox.enqueue(out("first"))
        second = await world.outbox.enqueue(out("second"))
        await quiet()
        world.reopen()
        assert (await refusal(world, "cancel", delivery_id=first.delivery_id)).name == "conflict"
        assert (await call(world, "cancel", delivery_id=second.delivery_id))["state"] == "cancelled"


async def test_not_while_its_room_is_searched_for_it(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    """The one before it was in the room, though nobody knew: so may be this one, and an attempt will follow."""
    world.server.trouble["!a:x"] += ["lose", UNSURE]
    async with sending(world):
        await world.outbox.enqueue(out("first"))
        second = await world.outbox.enqueue(out("second"))
        await quiet()
    world.server.device_id = "TABLET"
    world.server.latency = 1
    world.reopen()
    async with sending(world):
        await trio.sleep(1.5)
        assert world.server.looks == 2
        assert (await world.outbox.status(second.delivery_id)).in_doubt
        assert (await refusal(world, "cancel", delivery_id=second.delivery_id)).name == "conflict"
        assert (await world.outbox.settled(second.delivery_id, 10)).state == "sent"
    assert world.server.bodies("!a:x") == ["first", "second"]


async def test_not_while_an_attempt_begins(world: World, out: Out) -> None:
    one = await world.outbox.enqueue(out("x"))
    assert await world.outbox.begin(one)
    assert (await refusal(world, "cancel", delivery_id=one.delivery_id)).name == "conflict"
    world.outbox.end(one)
    assert (await call(world, "cancel", delivery_id=one.delivery_id))["state"] == "cancelled"


async def test_not_what_came_back_in_this_moment(world: World, out: Out) -> None:
    """The store has it, and memory is to follow."""
    one = await world.outbox.enqueue(out("x"))
    world.db.conn.execute("UPDATE outbox SET state = 'delivered', event_id = '$1'")
    refused = await refusal(world, "cancel", delivery_id=one.delivery_id)
    assert (refused.name, refused.why) == ("conflict", "it is delivered")
    assert not any("message.cancelled" in record for record in world.audit())
    assert "cancelled" not in world.told()


async def test_a_session_that_ends_in_the_middle_leaves_the_doubt(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append("hang")
    async with sending(world):
        first = await world.outbox.enqueue(out("first"))
        await quiet()
    assert (await refusal(world, "cancel", delivery_id=first.delivery_id)).name == "conflict"


@pytest.mark.parametrize("store_takes_it", [True, False])
async def test_cancelled_while_its_turn_comes(
    world: World,
    out: Out,
    store_takes_it: bool,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its body is at hand and a connection free, just while the store writes the cancel down: that is waited for."""
    monkeypatch.setattr(sender_module, "PUTS_AT_ONCE", 1)
    world.server.latency = 1
    write = world.db.write

    async def slow_write(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("durable"):
            await trio.sleep(5)
            if not store_takes_it:
                raise ArmorclawError("storage_failed", "the disk is full")
        return await write(*args, **kwargs)

    async with sending(world):
        await world.outbox.enqueue(out("before", "!a:x"))
        one = await world.outbox.enqueue(out("x", "!b:x"))
        await trio.sleep(0.5)
        monkeypatch.setattr(world.db, "write", slow_write)
        if store_takes_it:
            assert (await call(world, "cancel", delivery_id=one.delivery_id))["state"] == "cancelled"
        else:
            assert (await refusal(world, "cancel", delivery_id=one.delivery_id)).name == "storage_failed"
        assert trio.current_time() == 5.5
        assert len(world.server.attempts) == 1
        await trio.sleep(60)
    assert [body for _, body in world.server.visible] == ["before", *([] if store_takes_it else ["x"])]


async def test_a_store_that_is_down_cancels_nothing(world: World, out: Out) -> None:
    one = await world.outbox.enqueue(out("x"))
    world.db.down = True
    assert (await refusal(world, "cancel", delivery_id=one.delivery_id)).name == "unavailable"
    world.db.down = False
    async with sending(world):
        await quiet()
    assert world.server.bodies("!a:x") == ["x"]


@pytest.mark.parametrize("seed", range(40))
async def test_at_any_moment_it_is_either_cancelled_or_sent(
    world: World, out: Out, seed: int, autojump_clock: trio.testing.MockClock
) -> None:
    """Many messages, troubles, and cancels at random moments: none that was cancelled was seen, and none is lost."""
    chance = random.Random(seed)
    world.server.latency = 0.05
    for room in range(3):
        world.server.trouble[f"!{room}:x"] += chance.choices([SURE, UNSURE, Delayed(0.2, "429", sure=True)], k=4)
    cancelled: set[str] = set()

    async def cancel(delivery_id: str, body: str, after: float) -> None:
        await trio.sleep(after)
        try:
            await call(world, "cancel", delivery_id=delivery_id)
        except ArmorclawError as error:
            if error.name != "conflict":
                raise
        else:
            cancelled.add(body)

    async with sending(world), trio.open_nursery() as nursery:
        for number in range(30):
            one = await world.outbox.enqueue(out(str(number), f"!{number % 3}:x"))
            nursery.start_soon(cancel, one.delivery_id, str(number), chance.random() * 3)
        await trio.sleep(60)
    seen = [body for _, body in world.server.visible]
    assert len(set(seen)) == len(seen)
    assert set(seen) | cancelled == {str(number) for number in range(30)}
    assert set(seen) & cancelled == set()
    assert cancelled
