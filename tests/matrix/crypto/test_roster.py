"""Who is in a room: what the sync tells while that is asked for is newer than the answer."""

from __future__ import annotations

import pytest

from armorclaw.delivery.transport import Delayed
from armorclaw.matrix.crypto.roster import QUESTIONS
from tests.matrix.crypto.conftest import ANN, BEN, Town
from tests.matrix.crypto.key_server import ROOM


@pytest.mark.parametrize(("before", "now", "reads"), [("shared", "joined", False), ("joined", "shared", True)])
async def test_history_that_closes_or_opens_while_we_ask_is_as_it_is_now(
    town: Town, before: str, now: str, reads: bool
) -> None:
    ann, ben = await town.pair()
    town.server.members[ROOM][BEN] = "invite"
    town.server.state[ROOM, "m.room.history_visibility"] = {"history_visibility": before}

    async def change() -> None:
        await ann.note("m.room.history_visibility", "", {"history_visibility": now})

    town.server.lost = lambda name: change() if name == "members" else None
    await ann.say()
    await ben.catch_up()
    assert bool(ben.keys) is reads


@pytest.mark.parametrize("everything", [False, True])
async def test_who_goes_unheard_while_we_ask_is_gone(town: Town, everything: bool) -> None:
    """Who went in a gap is in no list but one that was asked for after it."""
    ann, ben = await town.pair()

    async def miss() -> None:
        town.server.lost = lambda name: None
        del town.server.members[ROOM][BEN]
        await (ann.encryption.start_over() if everything else ann.encryption.forget_members(ROOM))

    town.server.lost = lambda name: miss() if name == "members" else None
    await ann.say()
    await ann.say()
    assert town.server.calls.count("members") == 2
    await ben.catch_up()
    assert ben.keys == []


async def test_a_room_that_we_leave_while_we_ask_is_not_known(town: Town) -> None:
    """Of who comes and goes there until we are back we are told nothing."""
    ann, ben = await town.pair()

    async def come_back() -> None:
        town.server.lost = lambda name: None
        await ann.note("m.room.member", ANN, {"membership": "leave"})
        del town.server.members[ROOM][BEN]
        await ann.note("m.room.member", ANN, {"membership": "join"})

    town.server.lost = lambda name: come_back() if name == "members" else None
    await ann.say()
    await ben.catch_up()
    assert ben.keys == []


async def test_when_something_is_missed_each_time_we_ask_nobody_gets_a_key(town: Town) -> None:
    ann, ben = await town.pair()
    town.server.lost = lambda name: ann.encryption.forget_members(ROOM) if name == "members" else None
    with pytest.raises(Delayed):
        await ann.say()
    assert town.server.calls.count("members") == QUESTIONS
    assert "sendToDevice" not in town.server.calls
    town.server.lost = lambda name: None
    assert await ben.hear(await ann.say()) == "hello"


async def test_what_is_known_is_not_asked_for(town: Town) -> None:
    ann, _ = await town.pair()
    await ann.say()
    await ann.note("m.room.member", "@carl:hs.test", {"membership": "join"})
    town.server.calls.clear()
    await ann.say()
    assert "members" not in town.server.calls
