"""Messages about messages that have no event id yet, and several that are accepted as one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import attrs
import pytest
import trio
import trio.testing

from armorclaw.delivery import waiting as waiting_module
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError

from .serving import quiet, sending

Out = Callable[..., Outgoing]
World = Any


def about(out: Outgoing, delivery_id: str) -> Outgoing:
    """The fake shows the body of what it was sent; so that is where the id stands here."""
    content = out.content.replace(b'"msgtype":"m.text"', b'"event_id":"%b"' % delivery_id.encode())
    return attrs.evolve(out, content=content, refers=delivery_id)


def sent(world: World) -> list[bytes]:
    return [said.content for said in world.server.timeline]


async def test_it_is_sent_with_the_event_id_of_what_it_is_about(world: World, out: Out) -> None:
    first = await world.outbox.enqueue(out("draft"))
    edit = await world.outbox.enqueue(about(out("text"), first.delivery_id))
    other = await world.outbox.enqueue(out(f'not "{first.delivery_id}"'))
    async with sending(world):
        await quiet()
        now = await world.outbox.enqueue(about(out("while it is served"), first.delivery_id))
        await quiet()
    assert [(await world.outbox.status(each.delivery_id)).state for each in (first, edit, other, now)] == ["sent"] * 4
    assert sent(world)[1] == b'{"event_id":"$0","body":"text"}'
    assert first.delivery_id.encode() in sent(world)[2]  # what people say stays as they said it
    assert sent(world)[3] == b'{"event_id":"$0","body":"while it is served"}'


async def test_it_waits_behind_it_over_restarts(world: World, out: Out) -> None:
    async with sending(world):
        world.server.trouble["!a:x"].append("hang")
        first = await world.outbox.enqueue(out("draft"))
        edit = await world.outbox.enqueue(about(out("text"), first.delivery_id))
        await quiet()
    assert sent(world) == []
    world.reopen()
    async with sending(world):
        await quiet()
    assert sent(world)[1] == b'{"event_id":"$0","body":"text"}'
    assert (await world.outbox.status(edit.delivery_id)).state == "sent"


async def test_in_doubt_it_is_looked_for_as_it_was_sent(
    world: World, out: Out, autojump_clock: trio.testing.MockClock
) -> None:
    async with sending(world):
        first = await world.outbox.enqueue(out("draft"))
        await quiet()
        world.server.trouble["!a:x"] += ["lose", Delayed(None, "reset")]
        edit = await world.outbox.enqueue(about(out("text"), first.delivery_id))
        await quiet()
    world.server.forget()
    world.server.device_id = "OTHER"
    world.reopen()
    async with sending(world):
        await quiet()
    assert len(sent(world)) == 2
    assert (await world.outbox.status(edit.delivery_id)).event_id == "$1"


@pytest.mark.parametrize("retried", [False, True])
async def test_what_is_about_a_message_that_was_not_sent_fails(world: World, out: Out, retried: bool) -> None:
    world.server.trouble["!a:x"].append(Refused("not here"))
    first = await world.outbox.enqueue(out("draft", key="k"))
    edit = await world.outbox.enqueue(about(out("text", key="k2"), first.delivery_id))
    after = await world.outbox.enqueue(out("after"))
    async with sending(world):
        await quiet()
        failed = await world.outbox.status(edit.delivery_id)
        assert (failed.state, failed.reason) == ("failed", "the message that it is about was not sent")
        assert not failed.may_be_seen
        assert (await world.outbox.status(after.delivery_id)).state == "sent"  # it holds up nothing
        assert world.told(edit.delivery_id) == ["failed"]
        if retried:  # as an agent does that handles an event once more
            await world.outbox.enqueue(out("draft", key="k"))
            await world.outbox.enqueue(about(out("text", key="k2"), first.delivery_id))
            await quiet()
            assert sent(world)[1:] == [out("draft").content, b'{"event_id":"$1","body":"text"}']


async def test_it_is_not_sent_when_its_message_is_taken_back(world: World, out: Out) -> None:
    first = await world.outbox.enqueue(out("draft"))
    edit = await world.outbox.enqueue(about(out("text"), first.delivery_id))
    await world.outbox.cancel(first.delivery_id, by="a test")
    async with sending(world):
        await quiet()
    assert sent(world) == []
    assert (await world.outbox.status(edit.delivery_id)).state == "failed"


async def test_whose_message_an_event_is(world: World, out: Out) -> None:
    async with sending(world):
        first = await world.outbox.enqueue(out("draft"))
        await quiet()
    found = await world.outbox.of_event("main", "$0")
    assert found is not None
    assert (found.delivery_id, found.agent) == (first.delivery_id, "echo")
    assert await world.outbox.of_event("other", "$0") is None
    assert await world.outbox.of_event("main", "$1") is None


async def test_several_are_accepted_as_one(world: World, out: Out) -> None:
    parts = [out(str(number), key=f"k{number}") for number in range(3)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.outbox.enqueue_all, parts)
        nursery.start_soon(world.outbox.enqueue, out("another"))
    assert world.db.durable == 2
    deliveries = await world.outbox.enqueue_all(parts)  # known already
    assert [each.idempotency_key for each in deliveries] == ["k0", "k1", "k2"]
    async with sending(world):
        await quiet()
    bodies = "".join(body[:1] for body in world.server.bodies("!a:x"))
    assert bodies in ("012a", "a012")


async def test_of_several_none_is_accepted_if_one_is_not(world: World, out: Out) -> None:
    original = world.outbox._insert

    def insert(conn: Any, delivery: Any, content: bytes) -> Any:
        if b"bad" in content:
            raise ArmorclawError("storage_full", "the disk")
        return original(conn, delivery, content)

    world.outbox._insert = insert
    with pytest.raises(ArmorclawError):
        await world.outbox.enqueue_all([out("good"), out("bad")])
    assert world.rows() == []
    assert world.outbox.lengths().get("main", 0) == 0


async def test_a_full_queue_answers_for_what_it_knows(
    world: World, out: Out, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [out(str(number), key=f"k{number}") for number in range(2)]
    first = await world.outbox.enqueue_all(parts)
    monkeypatch.setattr(waiting_module, "AGENT_LIMIT", 2)
    assert await world.outbox.enqueue_all(parts) == first
    with pytest.raises(ArmorclawError) as caught:
        await world.outbox.enqueue_all([*parts, out("more")])
    assert caught.value.name == "queue_full"
