"""What our tests' own homeserver does, Synapse does too: the same questions to both, the same answers."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Protocol

import attrs
import pytest
import trio
from mautrix.errors import MForbidden, MUnknownToken

from armorclaw.clock import Clock
from armorclaw.delivery.transport import Refused
from armorclaw.matrix.answer import read_answer
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.echo import find_echo
from armorclaw.matrix.transport import open_api
from armorclaw.testing.homeserver import Homeserver
from tests.faults.town import BOT, PASSWORD, PERSON, Town

from .conftest import Person
from .fake_homeserver import fake_homeserver

MakePerson = Callable[[str], Awaitable[Person]]
TYPE = "m.room.message"


class Ann(Protocol):
    """Somebody else in the room."""

    @property
    def user_id(self) -> str: ...

    async def say(self, body: str) -> str: ...

    async def read(self, event_id: str) -> None: ...


@attrs.frozen
class Place:
    """A homeserver, a room on it, somebody in it, and how the bot comes in."""

    url: str
    room: str
    ann: Ann
    user: str
    password: str

    @asynccontextmanager
    async def client(self, device: str) -> AsyncIterator[MatrixClient]:
        """The bot on one device, logged in."""
        async with open_api(self.url, Clock()) as api:
            client = MatrixClient(api)
            await client.log_in(self.user, self.password, device)
            yield client


@attrs.frozen
class TownAnn:
    town: Town
    room: str
    user_id: str = PERSON

    async def say(self, body: str) -> str:
        return self.town.say(self.room, body)

    async def read(self, event_id: str) -> None:
        self.town.read(self.room, event_id)


@attrs.frozen
class SynapseAnn:
    person: Person
    room: str

    @property
    def user_id(self) -> str:
        return self.person.user_id

    async def say(self, body: str) -> str:
        return await self.person.say(self.room, body)

    async def read(self, event_id: str) -> None:
        await self.person.has_read(self.room, event_id)


@pytest.fixture(params=["town", "synapse"])
async def place(request: pytest.FixtureRequest, homeserver: Homeserver, person: MakePerson) -> AsyncIterator[Place]:
    if request.param == "town":
        town = Town()
        town.logins.lasts = 300.0
        room = town.add_room("!room:town")
        async with fake_homeserver(town.answer) as fake:
            yield Place(fake.url, room, TownAnn(town, room), BOT, PASSWORD)
        return
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    await bot.call("POST", f"rooms/{room}/join")
    yield Place(homeserver.url, room, SynapseAnn(ann, room), bot.user_id, bot.password)


@attrs.define
class Follower:
    """A device that syncs, and the raw parts of the room it was given."""

    client: MatrixClient
    room: str
    since: str | None = None
    timeline: list[Any] = attrs.field(factory=list)
    receipts: list[tuple[str, str]] = attrs.field(factory=list)

    async def until(self, wanted: Callable[[], object]) -> None:
        with trio.fail_after(20):
            while not wanted():
                raw = await self.client.poll(self.since, 0.0 if self.since is None else 5.0)
                answer = read_answer(raw)
                for update in answer.rooms:
                    if update.room_id == self.room and self.since is not None:
                        self.timeline += update.timeline
                        self.receipts += [(each.event_id, each.reader) for each in update.receipts]
                self.since = answer.next_batch

    async def begin(self) -> None:
        """What is there already is not for us."""
        await self.until(lambda: self.since is not None)


def text(body: str) -> bytes:
    return json.dumps({"msgtype": "m.text", "body": body}).encode()


async def unclaimed(event_id: str) -> bool:
    await trio.lowlevel.checkpoint()
    return False


async def test_a_transaction_id_is_one_event_for_each_device_and_told_to_that_device(place: Place) -> None:
    async with place.client("ONE") as one, place.client("TWO") as two:
        followers = [Follower(each, place.room) for each in (one, two)]
        for each in followers:
            await each.begin()
        first = await one.put_event(place.room, TYPE, "t/1 ä", text("a"))
        assert await one.put_event(place.room, TYPE, "t/1 ä", text("other words")) == first
        second = await two.put_event(place.room, TYPE, "t/1 ä", text("b"))
        assert second != first
        for each, own, other in zip(followers, (first, second), (second, first), strict=True):
            await each.until(lambda each=each: len(each.timeline) >= 2)  # type: ignore[misc]
            assert [raw["event_id"] for raw in each.timeline] == [first, second]
            txn_ids = {raw["event_id"]: raw.get("unsigned", {}).get("transaction_id") for raw in each.timeline}
            assert txn_ids == {own: "t/1 ä", other: None}


async def test_receipts_come_to_all_and_from_us(place: Place) -> None:
    async with place.client("ONE") as client:
        follower = Follower(client, place.room)
        await follower.begin()
        own = await client.put_event(place.room, TYPE, "t1", text("mine"))
        said = await place.ann.say("hers")
        await place.ann.read(own)
        await follower.until(lambda: (own, place.ann.user_id) in follower.receipts)
        await client.mark_read(place.room, said)
        await follower.until(lambda: (said, str(client.mxid)) in follower.receipts)


async def test_an_echo_is_found_and_another_is_not(place: Place) -> None:
    began = Clock().now_ms()
    async with place.client("ONE") as client:
        for number in range(30):
            await place.ann.say(f"filler {number}")
        await place.ann.say("mine")  # the same words of somebody else
        sent = await client.put_event(place.room, TYPE, "t1", text("mine"))
        for number in range(30):
            await place.ann.say(f"more {number}")

        async def look(body: str, since_ms: int = began) -> str | None:
            return await find_echo(client, place.room, TYPE, text(body), since_ms, unclaimed)

        assert await look("mine") == sent
        assert await look("never said") is None
        assert await look("mine", began + 3_600_000) is None


async def test_an_echo_behind_many_pages(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armorclaw.matrix.echo.PAGE", 3)
    async with place.client("ONE") as client:
        sent = await client.put_event(place.room, TYPE, "first", text("first"))
        for number in range(20):
            await client.put_event(place.room, TYPE, f"t{number}", text(f"{number}"))
        assert await find_echo(client, place.room, TYPE, text("first"), Clock().now_ms(), unclaimed) == sent


async def test_a_removed_message_is_known_as_removed(homeserver: Homeserver, person: MakePerson) -> None:
    """Of Synapse alone: nobody removes anything in the town."""
    bot = await person("bot")
    room = await bot.create_room()
    async with Place(homeserver.url, room, SynapseAnn(bot, room), bot.user_id, bot.password).client("ONE") as client:
        sent = await client.put_event(room, TYPE, "t1", text("mine"))
        await bot.call("PUT", f"rooms/{room}/redact/{sent}/1", {})
        with pytest.raises(Refused, match="removed"):
            await find_echo(client, room, TYPE, text("mine"), Clock().now_ms(), unclaimed)


async def test_members_profiles_and_state(place: Place) -> None:
    async with place.client("ONE") as client:
        members = await client.members(place.room)
        assert set(members) == {place.ann.user_id, client.mxid}
        name = place.ann.user_id[1:].partition(":")[0]
        assert (members[place.ann.user_id]["display_name"] or "").startswith(name)
        profile = await client.profile(place.ann.user_id)
        assert profile is not None
        assert profile["displayname"].startswith(name)
        assert await client.state(place.room, "m.room.topic", "") is None
        assert await client.state(place.room, "m.room.encryption", "") is None


async def test_a_gap_is_paged_from_its_end_to_the_last_token(place: Place) -> None:
    async with place.client("ONE") as client:
        follower = Follower(client, place.room)
        await follower.begin()
        said = [await place.ann.say(str(number)) for number in range(110)]
        raw = await client.poll(follower.since, 5.0)
        (update,) = read_answer(raw).rooms
        assert update.limited
        assert [event["event_id"] for event in update.timeline] == said[-100:]
        assert update.prev_batch is not None
        assert follower.since is not None
        missed, _ = await client.page_back(place.room, update.prev_batch, follower.since, 50)
        assert [event["event_id"] for event in missed] == said[-101::-1]


async def test_refresh_tokens_are_good_until_what_they_brought_is_used(place: Place) -> None:
    async with open_api(place.url, Clock()) as api:
        client = MatrixClient(api)
        first = await client.log_in(place.user, place.password, "ONE")
        assert first.refresh_token is not None
        assert first.lasts == pytest.approx(300, abs=1)
        lost = await client.refresh(first.refresh_token)
        await client.check_login()  # the old one is good as before
        second = await client.refresh(first.refresh_token)
        assert second.refresh_token is not None
        assert await soft_logout(client, lost.access_token) is False
        api.token = second.access_token
        await client.check_login()
        with pytest.raises(MForbidden):
            await client.refresh(first.refresh_token)
        with pytest.raises(MUnknownToken):
            await client.refresh("of-nobody")
        third = await client.refresh(second.refresh_token)
        api.token = third.access_token
        await client.check_login()
        await client.log_out()
        assert await soft_logout(client, third.access_token) is False
        with pytest.raises(MUnknownToken):
            await client.refresh(third.refresh_token or "")


async def test_a_password_that_is_wrong(place: Place) -> None:
    async with open_api(place.url, Clock()) as api:
        with pytest.raises(MForbidden):
            await MatrixClient(api).log_in(place.user, "wrong", "ONE")


async def soft_logout(client: MatrixClient, token: str) -> Any:
    """What the homeserver says of a token that it does not know."""
    client.api.token = token
    with pytest.raises(MUnknownToken) as caught:
        await client.check_login()
    return caught.value.soft_logout  # type: ignore[attr-defined]


async def test_a_token_of_nobody(place: Place) -> None:
    async with open_api(place.url, Clock()) as api:
        client = MatrixClient(api)
        client.use(place.user, "NONE", "of-nobody")
        with pytest.raises(MUnknownToken):
            await client.poll(None, 0)
