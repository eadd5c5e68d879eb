from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.delivery import rows
from armorclaw.delivery import waiting as waiting_module
from armorclaw.delivery.message import CONTENT_LIMIT, Delivery, Outgoing
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.sender import EXPIRED
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.events.journal import Journal
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Database
from tests.delivery.serving import quiet, sending

Out = Callable[..., Outgoing]
World = Any


@pytest.mark.mission("P3.1")
async def test_an_accepted_message_is_on_disk_before_the_first_attempt(world: World, out: Out) -> None:
    delivery = await world.outbox.enqueue(out("hello"))
    assert world.db.durable == 1
    assert delivery.state == "queued"
    stored = world.db.conn.execute("SELECT delivery_id, txn_id, state FROM outbox").fetchall()
    assert stored == [(delivery.delivery_id, delivery.txn_id, "queued")]
    assert world.server.attempts == []


async def test_it_is_sent_under_its_transaction_id_and_settled(world: World, out: Out) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        delivery = await world.outbox.enqueue(out("hello"))
        settled = await world.outbox.settled(delivery.delivery_id, 1)
        assert (settled.state, settled.event_id, settled.attempts) == ("sent", "$0", 1)
        assert [txn for _, _, txn, _ in world.server.attempts] == [delivery.txn_id]
        assert await world.outbox.status(delivery.delivery_id) == settled
        assert settled.settled_ms is not None
        assert settled.settled_ms >= settled.created_ms
        nursery.cancel_scope.cancel(reason="done")
    assert world.db.durable == 1  # to mark it need not survive a power cut


async def test_what_waited_for_a_session_is_sent_in_order(world: World, out: Out) -> None:
    for number in range(5):
        await world.outbox.enqueue(out(str(number), f"!{number % 2}:x"))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")
    assert world.server.bodies("!0:x") == ["0", "2", "4"]
    assert world.server.bodies("!1:x") == ["1", "3"]


async def test_another_account_waits_for_its_own_session(world: World, out: Out) -> None:
    await world.outbox.enqueue(Outgoing(account="other", agent="", room_id="!a:x", content=b'{"body":"x"}'))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        assert world.server.attempts == []
        nursery.cancel_scope.cancel(reason="done")


async def test_the_same_key_is_the_same_message_whatever_its_body(world: World, out: Out) -> None:
    first = await world.outbox.enqueue(out("one", key="k"))
    again = await world.outbox.enqueue(out("two", key="k"))
    assert again == first
    other = await world.outbox.enqueue(out("three", key="k", agent="other"))
    assert other.delivery_id != first.delivery_id
    await world.outbox.enqueue(out("four"))
    await world.outbox.enqueue(out("four"))  # without a key, twice is twice
    assert len(world.rows()) == 4


async def test_the_same_key_finds_a_message_that_is_sent(world: World, out: Out) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        sent = await world.outbox.enqueue(out("x", key="1"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await world.outbox.enqueue(out("x", key="1"))).event_id == "$0"
        assert (await world.reopen().enqueue(out("x", key="1"))).delivery_id == sent.delivery_id
        nursery.cancel_scope.cancel(reason="done")
    assert len(world.server.attempts) == 1


async def test_the_same_key_tries_again_what_was_refused(world: World, out: Out) -> None:
    """A reply that was refused once is not refused for ever: its event comes again, and with it the same key."""
    world.server.trouble["!bad:x"].append(Refused("M_FORBIDDEN"))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        refused = await world.outbox.enqueue(out("x", "!bad:x", key="2"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await world.outbox.status(refused.delivery_id)).reason == "M_FORBIDDEN"
        again = await world.outbox.enqueue(out("other", "!bad:x", key="2"))
        assert (again.delivery_id, again.txn_id, again.state) == (refused.delivery_id, refused.txn_id, "queued")
        await trio.testing.wait_all_tasks_blocked()
        assert (await world.outbox.status(refused.delivery_id)).state == "sent"
        assert "other" in world.server.attempts[-1][3], "what it says now is what is sent"
        nursery.cancel_scope.cancel(reason="done")
    assert len(world.rows()) == 1


async def test_what_may_have_arrived_is_not_tried_again(world: World, out: Out) -> None:
    """After a day of attempts nobody knows whether one arrived, and the homeserver may have forgotten its id."""
    first = await world.outbox.enqueue(out("x", key="3"))
    await world.outbox.settle(attrs.evolve(first, state="failed", reason=f"{EXPIRED} 24 hours", tried_ms=1))
    assert (await world.outbox.enqueue(out("x", key="3"))).state == "failed"


async def test_one_key_from_many_tasks_at_once_makes_one_row(world: World, out: Out) -> None:
    ids = set()

    async def one() -> None:
        ids.add((await world.outbox.enqueue(out("x", key="k"))).delivery_id)

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(one)
    assert len(ids) == len(world.rows()) == 1


async def test_the_audit_trail_has_ids_and_never_bodies(world: World, out: Out) -> None:
    world.server.trouble["!a:x"].append(Refused("M_FORBIDDEN"))
    delivery = await world.outbox.enqueue(out("sesame", key="open"))
    await world.outbox.enqueue(out("sesame", key="open"))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await world.outbox.settled(delivery.delivery_id, 1)
        nursery.cancel_scope.cancel(reason="done")
    records = world.audit()
    assert ["message.accepted" in records[0], "message.failed" in records[1], len(records)] == [True, True, 2]
    assert all(delivery.delivery_id in record for record in records)
    assert not any("sesame" in record for record in records)


async def test_bodies_do_not_show_in_a_repr_and_go_once_sent(world: World, out: Out) -> None:
    assert "sesame" not in repr(out("sesame"))
    await world.outbox.enqueue(out("sesame"))
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel(reason="done")
    assert world.db.conn.execute("SELECT content FROM outbox").fetchall() == [(b"",)]


async def test_an_agent_and_an_account_have_limits(world: World, out: Out, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting_module, "AGENT_LIMIT", 2)
    monkeypatch.setattr(waiting_module, "ACCOUNT_LIMIT", 5)
    first = await world.outbox.enqueue(out("0", key="0"))
    await world.outbox.enqueue(out("1"))
    for _ in range(2):
        with pytest.raises(ArmorclawError) as caught:
            await world.outbox.enqueue(out("2", key="2"))
        assert caught.value.name == "queue_full"
        assert "agent 'echo'" in caught.value.why
    assert await world.outbox.enqueue(out("again", key="0")) == first  # accepted long ago
    for _ in range(3):
        await world.outbox.enqueue(out("3", agent=""))  # operators have no limit of their own
    with pytest.raises(ArmorclawError) as caught:
        await world.outbox.enqueue(out("4", agent="other"))
    assert "account 'main'" in caught.value.why
    with pytest.raises(ArmorclawError):
        await world.reopen().enqueue(out("4", agent="other"))  # counted anew from the store
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        await trio.testing.wait_all_tasks_blocked()
        await world.outbox.enqueue(out("5"))  # there is room again
        nursery.cancel_scope.cancel(reason="done")


def test_what_matrix_could_not_carry_is_refused_at_once(out: Out) -> None:
    with pytest.raises(ArmorclawError) as caught:
        out("x" * CONTENT_LIMIT)
    assert caught.value.name == "too_large"


@pytest.mark.parametrize("key", ["", "k" * 301])
def test_odd_keys_are_refused(out: Out, key: str) -> None:
    with pytest.raises(ArmorclawError) as caught:
        out("x", key=key)
    assert caught.value.name == "invalid_params"


async def test_waiting_for_the_end_has_a_limit(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    delivery = await world.outbox.enqueue(out("x"))
    started = trio.current_time()
    assert await world.outbox.settled(delivery.delivery_id, 3.5) == delivery
    assert trio.current_time() - started == 3.5
    assert await world.outbox.settled(delivery.delivery_id, 0) == delivery
    world.server.latency = 2
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        assert (await world.outbox.settled(delivery.delivery_id, 3.5)).state == "sent"
        assert trio.current_time() - started == 5.5
        nursery.cancel_scope.cancel(reason="done")


async def test_unknown_deliveries(world: World) -> None:
    for ask in (world.outbox.status("d_x"), world.outbox.settled("d_x", 1)):
        with pytest.raises(ArmorclawError) as caught:
            await ask
        assert caught.value.name == "not_found"


async def test_an_account_has_one_sender(world: World) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        with pytest.raises(ArmorclawError) as caught:
            await nursery.start(world.outbox.serve, "main", world.server)
        assert caught.value.name == "conflict"
        await nursery.start(world.outbox.serve, "other", world.server)
        nursery.cancel_scope.cancel(reason="done")
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        nursery.cancel_scope.cancel(reason="done")


async def test_a_store_that_is_down_accepts_nothing(world: World, out: Out) -> None:
    world.db.down = True
    with pytest.raises(ArmorclawError) as caught:
        await world.outbox.enqueue(out("x"))
    assert caught.value.kind.retryable
    world.db.down = False
    await world.outbox.enqueue(out("x"))


async def test_on_the_real_store_across_two_lives_of_it(tmp_path: Path, out: Out, new_world: Any) -> None:
    server = new_world().server
    around = Surroundings()
    async with Database.open(tmp_path / "a.db", bytes(32)) as db:
        outbox = Outbox(db, AuditLog(around), Journal(db, around.clock), around)
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(outbox.enqueue, out(str(number), f"!{number % 5}:x", key=str(number)))
    async with Database.open(tmp_path / "a.db", bytes(32)) as db:
        outbox = Outbox(db, AuditLog(around), Journal(db, around.clock), around)
        async with trio.open_nursery() as nursery:
            await nursery.start(outbox.serve, "main", server)
            for number in range(50):
                found = await outbox.enqueue(out("again", key=str(number)))
                assert (await outbox.settled(found.delivery_id, 10)).state == "sent"
            nursery.cancel_scope.cancel(reason="done")
        assert sorted(int(body) for _, body in server.visible) == list(range(50))
        assert await db.read(AuditLog(around).verify) == 50


@pytest.mark.mission("P3.1")
@pytest.mark.parametrize("by", ["retry", "its key", "the key of another account", "the key of one that waits"])
async def test_a_failed_message_of_an_account_without_a_session_strands_nothing(
    world: World, out: Out, by: str, autojump_clock: trio.testing.MockClock
) -> None:
    """Its queue was not in memory: what waits there comes first, and nothing that comes later overtakes it."""
    failed = await world.outbox.enqueue(out("failed", "!z:x", key="k"))
    world.db.conn.execute("UPDATE outbox SET state = 'failed', reason = 'M_FORBIDDEN'")
    for number in range(5):
        await world.outbox.enqueue(out(f"a{number}", key=f"a{number}"))
    outbox = world.reopen()
    elsewhere = attrs.evolve(out("failed", "!z:x", key="k"), account="other")
    if by == "retry":
        await outbox.retry(failed.delivery_id, by="op")
    elif by == "its key":
        await outbox.enqueue(out("failed", "!z:x", key="k"))
    elif by == "the key of another account":
        assert (await outbox.enqueue(elsewhere)).account == "main"
    else:
        assert (await outbox.enqueue(attrs.evolve(elsewhere, idempotency_key="a2"))).state == "queued"
    waiting = 5 if by.endswith("waits") else 6
    assert outbox.lengths() == {"main": waiting}
    assert outbox._waiting._per_agent["echo"] == waiting
    async with trio.open_nursery() as nursery:
        await nursery.start(outbox.serve, "main", world.server)
        last = await outbox.enqueue(out("new"))
        assert (await outbox.settled(last.delivery_id, 5)).state == "sent"
        nursery.cancel_scope.cancel(reason="done")
    assert world.server.bodies("!a:x") == [*(f"a{number}" for number in range(5)), "new"]
    assert world.server.bodies("!z:x") == ["failed"] * (waiting - 5)
    assert outbox.lengths()["main"] == outbox._waiting._per_agent["echo"] == 0


def test_what_waits_is_kept_in_order_and_counted_once() -> None:
    one = Delivery("d_1", "t_1", "main", "echo", "!a:x", "m.room.message", "queued", 0, seq=1)
    two = attrs.evolve(one, delivery_id="d_2", seq=2)
    waiting = waiting_module.Waiting()
    for each in (two, one, two):
        waiting.add(each)
    assert waiting.of("main") == [one, two]
    waiting.remove("d_1")
    waiting.remove("d_2")
    assert waiting._per_agent["echo"] == 0


@pytest.mark.parametrize("what", ["asks for its body", "begins", "settles"])
async def test_a_session_that_is_behind_does_not_touch_what_was_queued_anew(
    world: World, out: Out, what: str
) -> None:
    world.server.trouble["!a:x"].append(Refused("no"))
    async with sending(world):
        behind = await world.outbox.enqueue(out("x"))
        await world.outbox.settled(behind.delivery_id, 5)
    again = await world.outbox.retry(behind.delivery_id, by="uid 0")
    assert again.seq > behind.seq
    if what == "asks for its body":
        assert await world.outbox.content(behind) is None
    elif what == "begins":
        assert not await world.outbox.begin(behind)
    else:
        await world.outbox.settle(attrs.evolve(behind, state="failed", reason="no"))
    world.outbox.note(behind)
    assert await world.outbox.status(behind.delivery_id) == again
    assert world.outbox.lengths() == {"main": 1}
    async with sending(world):
        assert (await world.outbox.settled(behind.delivery_id, 5)).state == "sent"


async def test_what_comes_back_while_its_queue_is_read_does_not_wait(
    world: World, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.server.trouble["!a:x"] += ["lose", Delayed(None, "timed out")]
    async with sending(world):
        one = await world.outbox.enqueue(out("x"))
        await quiet()
    world.reopen()
    read = world.db.read

    async def slow_read(work: Callable[..., Any]) -> Any:
        result = await read(work)
        if getattr(work, "func", None) is rows.waiting and result:
            await world.sync()
        return result

    monkeypatch.setattr(world.db, "read", slow_read)
    await world.outbox.enqueue(out("y", "!b:x"))
    assert (await world.outbox.status(one.delivery_id)).state == "delivered"
    assert world.outbox.lengths() == {"main": 1}
