"""What the sync tells while a key is on its way, or devices are asked for: the message that waits goes by it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from armorclaw.delivery.transport import Refused
from armorclaw.matrix.crypto.sharing import SETTLINGS
from tests.matrix.crypto.conftest import ANN, BEN, Party, Town
from tests.matrix.crypto.key_server import ROOM


def once_after(town: Town, name: str, happen: Callable[[], Awaitable[object]]) -> None:
    """Have it happen while the answer to the next request of this name is on its way."""

    async def lose() -> None:
        town.server.lost = lambda name: None
        await happen()

    town.server.lost = lambda each: lose() if each == name else None


async def test_who_leaves_while_devices_are_asked_for_gets_no_key(town: Town) -> None:
    ann, ben = await town.pair()
    once_after(town, "keys/query", lambda: ann.note("m.room.member", BEN, {"membership": "leave"}))
    raws = [await ann.say(), await ann.say()]
    await ben.catch_up()
    assert ben.keys == []
    assert [(await ben.why_not(raw)).reason for raw in raws] == ["no_key"] * 2


async def test_who_leaves_while_devices_are_asked_for_has_no_key_to_what_is_said(town: Town) -> None:
    ann, ben = await town.pair()
    await ben.hear(await ann.say())
    ann.encryption.devices.changed([BEN])
    once_after(town, "keys/query", lambda: ann.note("m.room.member", BEN, {"membership": "leave"}))
    raws = [await ann.say(), await ann.say()]
    await ben.catch_up()
    assert [(await ben.why_not(raw)).reason for raw in raws] == ["no_key"] * 2


async def test_who_comes_while_devices_are_asked_for_gets_the_key(town: Town) -> None:
    ann, ben = await town.pair()
    town.server.members[ROOM].pop(BEN)
    once_after(town, "keys/query", lambda: ann.note("m.room.member", BEN, {"membership": "join"}))
    assert await ben.hear(await ann.say()) == "hello"


async def test_a_device_that_goes_while_devices_are_asked_for_gets_no_key(town: Town) -> None:
    ann, _ = await town.pair()
    second = await town.device(BEN, "B2")

    async def remove() -> None:
        town.server.remove_device(BEN, "B2")
        await ann.encryption.absorb(town.server.answer(ANN, "A"))

    await ann.encryption.devices.refresh([BEN])
    ann.encryption.devices.changed([BEN])
    once_after(town, "keys/query", remove)
    await ann.say()
    await second.catch_up()
    assert second.keys == []


async def test_an_algorithm_that_changes_while_devices_are_asked_for_is_refused(town: Town) -> None:
    ann, _ = await town.pair()
    once_after(town, "keys/query", lambda: ann.note("m.room.encryption", "", {"algorithm": "m.megolm.v9"}))
    with pytest.raises(Refused, match=r"^room_encrypted, unknown_algorithm: "):
        await ann.say()


async def test_in_a_restless_room_it_is_said_and_looked_at_again_with_the_next_message(town: Town) -> None:
    ann, ben = await town.pair()
    last = await town.device("@9:hs.test", "L")
    town.server.calls.clear()

    async def come() -> None:
        user = f"@{town.server.calls.count('keys/query')}:hs.test"
        await ann.note("m.room.member", user, {"membership": "join"})

    town.server.lost = lambda name: come() if name == "keys/query" else None
    raw = await ann.say()
    assert town.server.calls.count("keys/query") == SETTLINGS**2 == 9
    town.server.lost = lambda name: None
    assert await ben.hear(raw) == "hello"
    assert await last.hear(await ann.say()) == "hello"


async def by_new_channel(ann: Party, ben: Party) -> None:
    await ben.encryption.devices.refresh([ANN])
    await ben.encryption.channels.send(list(ben.encryption.standing.devices(ANN)), "m.dummy", {}, anew=True)
    await ann.encryption.absorb(ann.server.answer(ANN, "A"))


async def by_request(ann: Party, ben: Party) -> None:
    row = ann.encryption.db.one("SELECT session_id FROM outbound")
    assert row is not None
    body = {"room_id": ROOM, "session_id": row[0]}
    content = {"action": "request", "request_id": "r", "requesting_device_id": "B", "body": body}
    ann.server.tell(ANN, "A", "m.room_key_request", BEN, content)
    await ann.encryption.absorb(ann.server.answer(ANN, "A"))
    await ann.encryption._requests.answer()


@pytest.mark.parametrize("ask", [by_new_channel, by_request])
async def test_who_asks_for_the_key_while_it_is_on_its_way_gets_it_once_more(
    town: Town, ask: Callable[[Party, Party], Awaitable[None]]
) -> None:
    ann, ben = await town.pair()

    async def lose() -> None:
        town.server.inbox[BEN, "B"].clear()
        await ask(ann, ben)

    once_after(town, "sendToDevice", lose)
    assert await ben.hear(await ann.say()) == "hello"
    town.server.calls.clear()
    await ann.say()
    assert town.server.calls == []


async def test_who_asks_while_keys_of_two_rooms_are_on_their_way_gets_both_once_more(town: Town) -> None:
    ann, ben = await town.pair()
    other, raws = "!other:hs.test", []
    town.server.encrypt_room(ANN, BEN, room_id=other)

    async def lose() -> None:
        town.server.inbox[BEN, "B"].clear()
        ann.encryption._sharing.share_again(BEN, "B")
        raws.append(await ann.say("there", other))

    once_after(town, "sendToDevice", lose)
    assert await ben.hear(await ann.say()) == "hello"
    assert await ben.read(raws[0], other) == "there"
