"""The life of our own messages, and our receipts for those of others, through a session."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from armorclaw.config import Account
from armorclaw.delivery.message import Outgoing
from armorclaw.events.event import ascii_json
from armorclaw.matrix import markers
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver
from tests.faults.town import BOT, PASSWORD, Town

from .conftest import Bench, Person, Watch, account_of, open_bench, running, until
from .fake_homeserver import Asked, Raw, Reply, fake_homeserver

MakePerson = Callable[[str], Awaitable[Person]]
ROOM = "!room:town"


async def enqueue(bench: Bench, room: str, text: str) -> str:
    content = ascii_json({"msgtype": "m.text", "body": text})
    return (await bench.outbox.enqueue(Outgoing("main", "echo", room, content))).delivery_id


def told(bench: Bench) -> list[tuple[str, str]]:
    """What the sender heard of its messages."""
    contents = [event.plain()["content"] for event in bench.events if event.type == "delivery"]
    return [(content["delivery_id"], content["state"]) for content in contents]


async def state_of(bench: Bench, delivery_id: str) -> str:
    return (await bench.outbox.status(delivery_id)).state


@pytest.mark.mission("P1.6")
@pytest.mark.parametrize("granted", [True, False])
async def test_sent_delivered_and_read(
    granted: bool, bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    """Also in a room that no agent hears: an operator may send there."""
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    if granted:
        bench.grants.set("echo", "main", [room])
    else:
        await bot.call("POST", f"rooms/{room}/join")
    async with running(bench.accounts(account_of(bot, homeserver))):
        await until(lambda: ann.member_of(room, bot.user_id))
        first = await enqueue(bench, room, "one")
        await until(lambda: _is(bench, first, "delivered"))
        second = await enqueue(bench, room, "two")
        await until(lambda: _is(bench, second, "delivered"))
        last = (await bench.outbox.status(second)).event_id
        assert last is not None
        await ann.has_read(room, last)
        await until(lambda: _is(bench, second, "read"))
        assert await state_of(bench, first) == "read"
        third = await enqueue(bench, room, "three")
        await until(lambda: _is(bench, third, "delivered"))
    for delivery, states in ((first, ["delivered", "read"]), (second, ["delivered", "read"]), (third, ["delivered"])):
        heard = [state for told_of, state in told(bench) if told_of == delivery]
        # a message can be back before the homeserver has answered for it; then `sent` goes unsaid
        assert heard in (["sent", *states], states)
    by = [event.plain()["content"].get("by") for event in bench.events if event.type == "delivery"]
    assert set(by) == {None, ann.user_id}


async def _is(bench: Bench, delivery_id: str, state: str) -> bool:
    return await state_of(bench, delivery_id) == state


async def test_a_receipt_that_comes_while_we_are_away(
    tmp_path: Path, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        async with running(bench.accounts(account_of(bot, homeserver))):
            await until(lambda: ann.member_of(room, bot.user_id))
            delivery = await enqueue(bench, room, "one")
            await until(lambda: _is(bench, delivery, "delivered"))
            event_id = (await bench.outbox.status(delivery)).event_id
    assert event_id is not None
    await ann.has_read(room, event_id)
    async with open_bench(tmp_path) as bench:
        bench.grants.set("echo", "main", [room])
        async with running(bench.accounts(account_of(bot, homeserver))):
            await until(lambda: _is(bench, delivery, "read"))
            assert told(bench) == [(delivery, "read")]


@pytest.mark.parametrize("lost", ["the answer", "the answer and the device"])
async def test_a_message_whose_answer_was_lost_is_in_the_room_once(lost: str, tmp_path: Path) -> None:
    """With the device the homeserver forgets the transaction id: only the timeline can tell."""
    town = Town()
    town.add_room(ROOM)
    town.hold_longest = 0.1

    async def deaf(asked: Asked) -> Reply | Raw | None:
        """It hears, and says nothing any more."""
        if "sync" in asked.path or town.said(ROOM):
            return Reply(b"", status=502)
        return None

    async with fake_homeserver(town.answer) as fake:

        def account(device: str) -> Account:
            return Account(fake.url, BOT, password=Secret(PASSWORD), device_id=device)

        async with open_bench(tmp_path) as bench:
            bench.grants.set("echo", "main", [ROOM])
            async with running(bench.accounts(account("ONE"))) as accounts:
                town.meddle = deaf
                await until(lambda: not (accounts.reports()[0]).connected)
                town.lose_next("PUT send")
                delivery = await enqueue(bench, ROOM, "once")
                await until(lambda: _is(bench, delivery, "unknown"))
        town.meddle = None
        if lost != "the answer":
            town.forget_logins(transactions=True)
        asked = town.asked["GET messages"]
        async with open_bench(tmp_path) as bench:
            bench.grants.set("echo", "main", [ROOM])
            async with running(bench.accounts(account("ONE" if lost == "the answer" else "TWO"))):
                await until(lambda: _is(bench, delivery, "delivered"))
                final = await bench.outbox.status(delivery)
        assert (town.asked["GET messages"] > asked) == (lost != "the answer")
    assert town.said(ROOM) == ["once"]
    assert final.event_id == town.event_of(ROOM, "once")


async def test_people_see_what_an_agent_is_done_with(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        await until(lambda: ann.member_of(room, bot.user_id))
        said = [await ann.say(room, str(number)) for number in range(3)]
        await until(lambda: len(bench.messages()) == 3)
        watch = Watch(ann, room)
        assert await watch.look() == []
        for event_id in said[:2]:
            accounts.read("main", room, event_id)
        await until(lambda: _saw(watch, bot, said[1]))
        await trio.to_thread.run_sync(homeserver.kill)
        accounts.read("main", room, said[2])
        await trio.to_thread.run_sync(homeserver.start)
        await until(lambda: _saw(watch, bot, said[2]))
        accounts.read("no such account", room, said[0])  # harmless: the account may be gone since


async def _saw(watch: Watch, reader: Person, event_id: str) -> bool:
    return (reader.user_id, event_id) in await watch.look()


async def test_where_nobody_wants_that_nothing_is_shown(
    bench: Bench, homeserver: Homeserver, person: MakePerson, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(markers, "GATHER", 0.0)  # it would be there by the end
    town = Town()
    town.add_room(ROOM)
    bench.grants.set("echo", "main", [ROOM])
    async with fake_homeserver(town.answer) as fake:
        account = Account(fake.url, BOT, password=Secret(PASSWORD), read_receipts=False)
        async with running(bench.accounts(account)) as accounts:
            town.say(ROOM, "hello")
            await until(lambda: bench.messages() == ["hello"])
            accounts.read("main", ROOM, str(bench.events[0].event_id))
            town.say(ROOM, "and more")
            await until(lambda: len(bench.messages()) == 2)
        assert town.receipts() == []
        assert not fake.to("receipt")
