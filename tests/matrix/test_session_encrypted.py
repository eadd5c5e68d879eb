"""Two accounts of ours in encrypted rooms of a real Synapse: over restarts, gaps, and changes of the room."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.clock import Clock
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.delivery.sender import BLIND_MS
from armorclaw.events.event import ascii_json
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, open_bench, running, until

KEY = bytes(32)
MakePerson = Callable[[str], Awaitable[Person]]
ALGORITHM = {"algorithm": "m.megolm.v1.aes-sha2"}


@attrs.define
class Side:
    """One user with a bridge; `folder` is what is left of it between two lives."""

    who: Person
    folder: Path
    homeserver: Homeserver

    @asynccontextmanager
    async def live(self, *rooms: str, **more: Any) -> AsyncIterator[Living]:
        self.folder.mkdir(exist_ok=True)
        async with open_bench(self.folder) as bench:
            bench.grants.set("echo", "main", rooms)
            account = account_of(self.who, self.homeserver, **more)
            accounts = bench.accounts(account, vault=Vault(self.folder / "matrix", lambda: KEY))
            async with running(accounts):
                yield Living(bench, accounts)


@attrs.frozen
class Living:
    bench: Bench
    accounts: Accounts

    async def say(self, room: str, body: str, **more: Any) -> Delivery:
        """What became of a message in a few seconds."""
        accepted = await self.bench.outbox.enqueue(Outgoing("main", "echo", room, text(body, **more)))
        return await self.bench.outbox.settled(accepted.delivery_id, 10)

    @property
    def device(self) -> str | None:
        return self.accounts.reports()[0].device_id

    async def hears(self, *bodies: str) -> None:
        """These, and in the end nothing else."""
        await until(lambda: set(self.bench.messages()) >= set(bodies))
        assert self.bench.messages() == list(bodies)


def text(body: str, **more: Any) -> bytes:
    return ascii_json({"msgtype": "m.text", "body": body, **more})


@pytest.fixture
async def sides(homeserver: Homeserver, person: MakePerson, tmp_path: Path) -> tuple[Side, Side]:
    ann, bob = await person("ann"), await person("bob")
    return Side(ann, tmp_path / "ann", homeserver), Side(bob, tmp_path / "bob", homeserver)


async def raw(person: Person, room: str) -> list[dict[str, Any]]:
    """What the homeserver has of a room, without state, oldest first."""
    answer = await person.call("GET", f"rooms/{room}/messages?dir=b&limit=500")
    return [each for each in answer["chunk"][::-1] if "state_key" not in each]


async def types(person: Person, room: str) -> set[str]:
    return {each["type"] for each in await raw(person, room)}


async def test_a_conversation_of_which_the_homeserver_learns_nothing(sides: tuple[Side, Side]) -> None:
    ann, bob = sides
    room = await ann.who.create_room(bob.who.user_id, encrypted=True)
    async with ann.live(room) as at_anns, bob.live(room) as at_bobs:
        await until(lambda: ann.who.member_of(room, bob.who.user_id))
        said = await at_anns.say(room, "hello")
        await at_bobs.hears("hello")
        answer = await at_bobs.say(room, "hi", **{"m.mentions": {}})
        await at_anns.hears("hi")
        assert {said.state, answer.state} <= {"sent", "delivered"}
        heard = next(event for event in at_bobs.bench.events if event.event_id == said.event_id)
        assert (heard.type, heard.sender, heard.room_id) == ("m.room.message", ann.who.user_id, room)
        await until(lambda: _delivered(at_anns, said.delivery_id))
    assert [each["event_id"] for each in await raw(ann.who, room)] == [said.event_id, answer.event_id]
    assert await types(ann.who, room) == {"m.room.encrypted"}


async def _delivered(side: Living, delivery_id: str) -> bool:
    return (await side.bench.outbox.status(delivery_id)).state == "delivered"


async def test_room_keys_are_kept_as_long_as_the_account_is_told(
    sides: tuple[Side, Side], monkeypatch: pytest.MonkeyPatch
) -> None:
    from armorclaw.matrix.crypto.pruning import Pruning

    found: list[int] = []

    def make(*each: Any, days: int, **more: Any) -> Pruning:
        found.append(days)
        return Pruning(*each, days=days, **more)

    monkeypatch.setattr("armorclaw.matrix.crypto.encryption.Pruning", make)
    async with sides[0].live(keep_room_keys_days=70):
        pass
    assert found == [70]


async def test_what_was_said_while_we_were_away_is_read_in_order(sides: tuple[Side, Side]) -> None:
    """More than one answer holds, so that there is a gap to be filled; and our keys are those from before."""
    ann, bob = sides
    room = await ann.who.create_room(bob.who.user_id, encrypted=True)
    sent = [f"{number}" for number in range(120)]
    async with ann.live(room) as at_anns:
        async with bob.live(room) as at_bobs:
            await until(lambda: ann.who.member_of(room, bob.who.user_id))
            await at_anns.say(room, "first")
            await at_bobs.hears("first")
            device = at_bobs.device
        for body in sent:
            await at_anns.say(room, body)
        async with bob.live(room) as at_bobs:
            await at_bobs.hears(*sent)
            assert at_bobs.device == device
            assert (await at_bobs.say(room, "thanks")).state in ("sent", "delivered")
            await at_anns.hears("thanks")
    sessions = {each["content"]["session_id"] for each in await raw(ann.who, room)}
    assert len(sessions) == 3  # 100 messages for one key, 21 for the next, and Bob's


async def test_a_room_that_turns_encrypted_gets_not_a_word_more_in_the_clear(sides: tuple[Side, Side]) -> None:
    """Seen as it happens, and not seen: what was accepted before goes out when the bridge is back."""
    ann, bob = sides
    rooms = [await ann.who.create_room(bob.who.user_id) for _ in range(2)]
    async with bob.live(*rooms) as at_bobs, ann.live(*rooms) as at_anns:
        for room in rooms:
            await until(lambda room=room: ann.who.member_of(room, bob.who.user_id))
            assert (await at_bobs.say(room, "clear")).event_id is not None
        await ann.who.call("PUT", f"rooms/{rooms[0]}/state/m.room.encryption", ALGORITHM)
        await until(lambda: at_bobs.accounts.encrypted("main", rooms[0]) is True)
        await at_bobs.say(rooms[0], "secret")
        await until(lambda: "secret" in at_anns.bench.messages())
    async with open_bench(bob.folder) as bench:
        await bench.outbox.enqueue(Outgoing("main", "echo", rooms[1], text("secret, too")))
    await ann.who.call("PUT", f"rooms/{rooms[1]}/state/m.room.encryption", ALGORITHM)
    async with ann.live(*rooms) as at_anns, bob.live(*rooms):
        await until(lambda: "secret, too" in at_anns.bench.messages())
    for room in rooms:
        assert [each["type"] for each in await raw(ann.who, room)] == ["m.room.message", "m.room.encrypted"]


async def test_what_may_have_been_sent_is_found_though_it_is_encrypted(sides: tuple[Side, Side]) -> None:
    """With a relation, which stands in the clear part of the event alone."""
    ann, bob = sides
    room = await ann.who.create_room(bob.who.user_id, encrypted=True)
    async with bob.live(room) as at_bobs:
        await until(lambda: ann.who.member_of(room, bob.who.user_id))
        relation = {"m.in_reply_to": {"event_id": "$something"}}
        await at_bobs.say(room, "another")
        sent = await at_bobs.say(room, "once", **{"m.relates_to": relation})
    async with open_bench(bob.folder) as bench:
        # as if nobody knew what became of it, and the homeserver had forgotten the transaction
        tried, content = Clock().now_ms() - BLIND_MS - 1000, text("once", **{"m.relates_to": relation})
        query = (
            "UPDATE outbox SET state = 'unknown', event_id = NULL, settled_ms = NULL, place = NULL, tried_ms = ?,"
            " content = ? WHERE delivery_id = ?"
        )
        await bench.db.write(lambda conn: conn.execute(query, [tried, content, sent.delivery_id]))
    async with bob.live(room) as at_bobs:
        found = await at_bobs.bench.outbox.settled(sent.delivery_id, 10)
        assert found.state in ("sent", "delivered")
        assert found.event_id == sent.event_id
    assert len(await raw(ann.who, room)) == 2


async def test_with_encryption_switched_off_such_rooms_are_left_alone(sides: tuple[Side, Side]) -> None:
    ann, bob = sides
    room = await ann.who.create_room(bob.who.user_id, encrypted=True)
    async with ann.live(room) as at_anns, bob.live(room, encryption=False) as at_bobs:
        await until(lambda: ann.who.member_of(room, bob.who.user_id))
        refused = await at_bobs.say(room, "in the clear")
        assert (refused.state, (refused.reason or "").split(":")[0]) == ("failed", "room_encrypted")
        await at_anns.say(room, "anybody there?")
        await until(lambda: any(event.type == "matrix.undecryptable" for event in at_bobs.bench.events))
        assert at_bobs.bench.messages() == []
    assert await types(ann.who, room) == {"m.room.encrypted"}


async def test_a_time_without_encryption_is_noticed_before_a_word_is_said(sides: tuple[Side, Side]) -> None:
    """Nobody told the keys who came and went meanwhile: there is another one. After a mere restart there is not."""
    ann, bob = sides
    room = await ann.who.create_room(bob.who.user_id, encrypted=True)
    async with bob.live(room) as at_bobs:
        await until(lambda: ann.who.member_of(room, bob.who.user_id))
        await at_bobs.say(room, "one")
    async with bob.live(room) as at_bobs:
        await at_bobs.say(room, "two")
        place = await _place(at_bobs)
        await ann.who.call("PUT", f"rooms/{room}/state/m.room.name", {"name": "moves the sync on"})
        await until(lambda: _moved(at_bobs, place))
    async with bob.live(room, encryption=False) as at_bobs:
        place = await _place(at_bobs)
        await ann.who.call("PUT", f"rooms/{room}/state/m.room.name", {"name": "again"})
        await until(lambda: _moved(at_bobs, place))
    async with bob.live(room) as at_bobs:
        await at_bobs.say(room, "three")
    keys = [each["content"]["session_id"] for each in await raw(ann.who, room)]
    assert [keys.index(key) for key in keys] == [0, 0, 2]


async def _place(side: Living) -> str:
    query = "SELECT next_batch FROM accounts"
    place: str = await side.bench.db.read(lambda conn: conn.execute(query).fetchone()[0])
    return place


async def _moved(side: Living, place: str) -> bool:
    return await _place(side) != place
