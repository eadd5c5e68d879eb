"""Who has the key to what we say, and when there is another one."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError
from structlog.testing import capture_logs

from armorclaw.delivery.transport import Refused
from armorclaw.matrix.crypto.channels import BATCH
from armorclaw.matrix.crypto.encryption import DevicePolicy
from armorclaw.matrix.crypto.sharing import AGAIN_MS
from tests.matrix.crypto.conftest import ANN, BEN, EVE, Raw, Time, Town
from tests.matrix.crypto.identities import identify
from tests.matrix.crypto.key_server import ROOM, KeyServer


def key_of(raw: Raw) -> str:
    return str(raw["content"]["session_id"])


def told(server: KeyServer, user: str, device: str) -> list[Raw]:
    """What a device was told of keys that it does not get."""
    return [raw["content"] for raw in server.inbox[user, device] if raw["type"] == "m.room_key.withheld"]


async def test_a_new_device_gets_the_key_from_then_on(town: Town) -> None:
    ann, ben = await town.pair()
    before = await ann.say("before")
    await ben.hear(before)
    second = await town.device(BEN, "B2")
    await ann.catch_up()
    after = await ann.say("after")
    assert key_of(after) == key_of(before)
    assert await second.hear(after) == "after"
    assert (await second.why_not(before)).reason == "no_key"
    assert await ben.hear(after) == "after"


async def test_a_device_that_is_removed_gets_no_further_key(town: Town) -> None:
    ann, ben = await town.pair()
    second = await town.device(BEN, "B2")
    before = await ann.say("before")
    await second.hear(before)
    town.server.remove_device(BEN, "B2")
    await ann.catch_up()
    after = await ann.say("after")
    assert key_of(after) != key_of(before)
    assert (await second.why_not(after)).reason == "no_key"
    assert await ben.hear(after) == "after"


@pytest.mark.parametrize("membership", ["leave", "ban", "knock"])
async def test_who_goes_gets_no_further_key(town: Town, membership: str) -> None:
    ann, ben = await town.pair()
    before = await ann.say("before")
    await ben.hear(before)
    town.server.members[ROOM][BEN] = membership
    await ann.note("m.room.member", BEN, {"membership": membership})
    after = await ann.say("after")
    assert key_of(after) != key_of(before)
    await ben.catch_up()
    assert (await ben.why_not(after)).reason == "no_key"


async def test_who_comes_gets_the_key(town: Town) -> None:
    ann, ben = await town.pair()
    town.server.members[ROOM].pop(BEN)
    before = await ann.say("before")
    await ann.note("m.room.member", BEN, {"membership": "join"})
    after = await ann.say("after")
    assert key_of(after) == key_of(before)
    assert await ben.hear(after) == "after"
    assert (await ben.why_not(before)).later


@pytest.mark.parametrize(("visibility", "reads"), [("shared", True), ("invited", True), ("joined", False)])
async def test_who_is_invited_reads_what_the_history_shows_them(town: Town, visibility: str, reads: bool) -> None:
    ann, ben = await town.pair()
    town.server.members[ROOM][BEN] = "invite"
    town.server.state[ROOM, "m.room.history_visibility"] = {"history_visibility": visibility}
    raw = await ann.say()
    await ben.catch_up()
    assert bool(ben.keys) is reads
    if reads:
        assert await ben.read(raw) == "hello"


async def test_history_that_closes_takes_the_key_from_the_invited(town: Town) -> None:
    ann, _ = await town.pair()
    town.server.members[ROOM][BEN] = "invite"
    before = await ann.say()
    await ann.note("m.room.history_visibility", "", {"history_visibility": "joined"})
    assert key_of(await ann.say()) != key_of(before)


async def test_members_that_may_have_changed_are_asked_for(town: Town) -> None:
    ann, ben = await town.pair()
    before = await ann.say("before")
    del town.server.members[ROOM][BEN]
    await ann.encryption.forget_members(ROOM)
    after = await ann.say("after")
    assert key_of(after) != key_of(before)
    await ben.catch_up()
    assert (await ben.why_not(after)).reason == "no_key"


async def test_who_leaves_while_we_ask_is_gone(town: Town) -> None:
    """The list of members is older than what the sync tells meanwhile."""
    ann, ben = await town.pair()

    async def leave() -> None:
        town.server.lost = lambda name: None
        await ann.note("m.room.member", BEN, {"membership": "leave"})

    town.server.lost = lambda name: leave() if name == "members" else None
    raw = await ann.say()
    await ben.catch_up()
    assert (await ben.why_not(raw)).reason == "no_key"


async def test_who_leaves_while_the_key_is_shared_has_no_key_to_what_is_said(town: Town) -> None:
    ann, ben = await town.pair()

    async def leave() -> None:
        town.server.lost = lambda name: None
        await ann.note("m.room.member", BEN, {"membership": "leave"})

    town.server.lost = lambda name: leave() if name == "sendToDevice" else None
    raw = await ann.say()
    await ben.catch_up()
    assert len(ben.keys) == 1
    assert (await ben.why_not(raw)).reason == "no_key"


async def test_who_asks_for_the_key_once_more_and_goes_gets_no_further_key(town: Town) -> None:
    """What a device may have counts as what it has."""
    ann, ben = await town.pair()
    before = await ann.say()
    await ben.hear(before)
    ann.encryption._sharing.share_again(BEN, "B")
    await ann.note("m.room.member", BEN, {"membership": "leave"})
    assert key_of(await ann.say()) != key_of(before)


async def test_who_goes_while_nobody_knows_whether_they_have_the_key_gets_no_further_one(town: Town) -> None:
    ann, ben = await town.pair()

    async def fail() -> None:
        raise MatrixConnectionError("the answer is lost")

    town.server.lost = lambda name: fail() if name == "sendToDevice" else None
    with pytest.raises(MatrixConnectionError):
        await ann.say()
    town.server.lost = lambda name: None
    await ben.catch_up()
    assert len(ben.keys) == 1
    await ann.note("m.room.member", BEN, {"membership": "leave"})
    raw = await ann.say()
    assert (ROOM, key_of(raw)) not in ben.keys


async def test_after_a_hundred_messages_there_is_another_key(town: Town) -> None:
    ann, ben = await town.pair()
    raws = [await ann.say(str(number)) for number in range(101)]
    assert len({key_of(raw) for raw in raws[:100]}) == 1
    assert key_of(raws[100]) != key_of(raws[99])
    await ben.catch_up()
    assert [await ben.read(raw) for raw in raws] == [str(number) for number in range(101)]


async def test_a_room_says_how_many_messages(town: Town) -> None:
    town.server.encrypt_room(ANN, BEN, rotation_period_msgs=2)
    ann = await town.device(ANN, "A")
    keys = [key_of(await ann.say()) for _ in range(5)]
    assert [keys.count(key) for key in dict.fromkeys(keys)] == [2, 2, 1]


@pytest.mark.parametrize(("asked", "hours"), [(None, 7 * 24), (2 * 3600 * 1000, 2), (1, 1)])
async def test_a_key_has_its_time(town: Town, time: Time, asked: int | None, hours: int) -> None:
    """By default a week, or as the room says, but never less than an hour."""
    more: dict[str, Any] = {} if asked is None else {"rotation_period_ms": asked}
    town.server.encrypt_room(ANN, BEN, **more)
    ann = await town.device(ANN, "A")
    first = await ann.say()
    time.ahead += hours * 3600 - 1
    assert key_of(await ann.say()) == key_of(first)
    time.ahead += 2
    assert key_of(await ann.say()) != key_of(first)


async def test_a_clock_that_is_set_back_does_not_keep_a_key_for_ever(town: Town, time: Time) -> None:
    ann, _ = await town.pair()
    first = await ann.say()
    time.ahead -= 3600
    assert key_of(await ann.say()) != key_of(first)


@pytest.mark.parametrize("odd", [-1, "100", 1.5, True, None, 2**60, 0])
async def test_a_room_that_asks_for_nonsense_is_still_written_to(town: Town, odd: Any) -> None:
    town.server.encrypt_room(ANN, BEN, rotation_period_ms=odd, rotation_period_msgs=odd)
    ann, ben = await town.device(ANN, "A"), await town.device(BEN, "B")
    assert await ben.hear(await ann.say()) == "hello"


async def test_an_algorithm_that_is_not_known_is_refused(town: Town) -> None:
    ann, _ = await town.pair()
    await ann.note("m.room.encryption", "", {"algorithm": "m.megolm.v9"})
    with pytest.raises(Refused, match=r"^room_encrypted, unknown_algorithm: "):
        await ann.say()


async def test_a_room_that_nobody_calls_encrypted_is_encrypted_nevertheless(town: Town) -> None:
    """Whoever asks us to encrypt knows that it was encrypted once."""
    ann, ben = await town.pair()
    del town.server.state[ROOM, "m.room.encryption"]
    assert await ben.hear(await ann.say()) == "hello"


# -- whom the policy leaves out --


async def test_a_device_that_its_owner_has_not_signed_gets_no_key(town: Town) -> None:
    ann, ben = await town.pair()
    second = await town.device(BEN, "B2")
    identify(ben)
    await ann.catch_up()
    raw = await ann.say()
    assert told(town.server, BEN, "B2") == [
        {
            "algorithm": "m.megolm.v1.aes-sha2",
            "code": "m.unverified",
            "reason": "the device is not verified",
            "room_id": ROOM,
            "session_id": key_of(raw),
            "sender_key": ann.encryption.identity_key,
        }
    ]
    await second.catch_up()
    refused = await second.why_not(raw)
    assert (refused.reason, refused.later) == ("withheld:m.unverified", True)
    assert await ben.hear(raw) == "hello"
    assert ann.encryption.counts["withheld"] == 1
    assert second.encryption.counts["failed:withheld"] == 1, "the code is anybody's word, of which there is no end"


async def test_it_is_told_once_for_each_key(town: Town) -> None:
    ann, ben = await town.pair()
    identify(ben, signed=False)
    await ann.say()
    await ann.encryption.forget_members(ROOM)
    await ann.say()
    assert len(told(town.server, BEN, "B")) == 1


async def test_what_an_unsigned_device_says_is_not_believed(town: Town) -> None:
    ann, ben = await town.pair()
    identify(ben, signed=False)
    raw = await ben.say()
    await ann.catch_up()
    refused = await ann.why_not(raw)
    assert (refused.reason, refused.later) == ("unverified_device", False)


async def test_a_device_that_has_just_been_signed_is_believed_when_that_is_heard(town: Town) -> None:
    ann, ben = await town.pair()
    made = identify(ben, signed=False)
    await ann.catch_up()
    raw = await ben.say()
    await ann.catch_up()
    assert not (await ann.why_not(raw)).later
    identify(ben, made)
    ann.encryption.devices.changed([BEN])
    ann.keys.clear()
    assert (await ann.why_not(raw)).later
    await ann.catch_up()
    assert ann.keys == [(ROOM, key_of(raw))]
    assert await ann.read(raw) == "hello"


@pytest.mark.parametrize(("policy", "reads"), [("yes", True), ("tofu", False), ("no", False)])
async def test_an_identity_that_is_not_the_first(town: Town, policy: str, reads: bool) -> None:
    ann, ben = await town.pair(ann=DevicePolicy(policy))
    identify(ben)
    await ann.catch_up()
    await ann.say()
    await ben.catch_up()
    identify(ben)
    await ann.catch_up()
    raw = await ann.say()
    await ben.catch_up()
    if reads:
        assert await ben.read(raw) == "hello"
    else:
        assert (await ben.why_not(raw)).reason == "withheld:m.unverified"
    said = await ben.say()
    await ann.catch_up()
    if reads:
        assert (await ann.decrypt(said)).trust == "changed"
    else:
        assert (await ann.why_not(said)).reason == "unverified_device"


@pytest.mark.parametrize(("trust", "policy", "reads"), [(300, "no", True), (0, "no", False), (-100, "yes", False)])
async def test_devices_verified_and_blacklisted_by_hand(town: Town, trust: int, policy: str, reads: bool) -> None:
    ann, ben = await town.pair(ann=DevicePolicy("yes", {ROOM: policy}))
    await ann.encryption.devices.refresh([BEN])
    ann.encryption.db.run("UPDATE crypto_device SET trust = ? WHERE user_id = ?", trust, BEN)
    ann.encryption.trust_changed(BEN)
    raw = await ann.say()
    code = "m.blacklisted" if trust < 0 else "m.unverified"
    assert [each["code"] for each in told(town.server, BEN, "B")] == ([] if reads else [code])
    await ben.catch_up()
    assert bool(ben.keys) is reads
    if reads:
        assert await ben.read(raw) == "hello"


async def test_what_was_said_by_hand_outlasts_the_next_list(town: Town) -> None:
    ann, _ben = await town.pair()
    await ann.encryption.devices.refresh([BEN])
    ann.encryption.db.run("UPDATE crypto_device SET trust = -100 WHERE user_id = ?", BEN)
    town.server.touch(BEN)
    await ann.catch_up()
    device = ann.encryption.standing.device(BEN, "B")
    assert device is not None
    assert device.trust == "blacklisted"


async def test_who_is_blacklisted_has_no_further_key(town: Town) -> None:
    ann, ben = await town.pair()
    before = await ann.say()
    ann.encryption.db.run("UPDATE crypto_device SET trust = -100 WHERE user_id = ?", BEN)
    ann.encryption.trust_changed(BEN)
    after = await ann.say()
    assert key_of(after) != key_of(before)
    await ben.catch_up()
    assert (await ben.why_not(after)).reason == "withheld:m.blacklisted"


# -- devices that cannot be reached --


async def test_a_device_without_one_time_keys_does_not_keep_others_from_the_key(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    bare = await town.device(BEN, "A-first")
    town.server.one_time_keys[BEN, "A-first"].clear()
    town.server.fallback_keys.pop((BEN, "A-first"), None)
    with capture_logs() as logs:
        raw = await ann.say()
    assert await ben.hear(raw) == "hello"
    assert [each["code"] for each in told(town.server, BEN, "A-first")] == ["m.no_olm"]
    assert any(log["event"].startswith("devices get no key") and log["number"] == 1 for log in logs)
    town.server.calls.clear()
    await ann.say()
    assert town.server.calls == []
    await bare.encryption.absorb(town.server.answer(BEN, "A-first"))
    bare.encryption._publisher._short = True
    await bare.encryption._publisher.publish()
    time.ahead += AGAIN_MS / 1000
    assert await bare.hear(await ann.say("at last")) == "at last"


@pytest.mark.parametrize("odd", [None, [], 5, {}, {"key": 5}, {"key": "A" * 43}, {"key": "x", "signatures": []}])
async def test_odd_one_time_keys_are_none(town: Town, odd: Any) -> None:
    ann, ben = await town.pair()
    await town.device(BEN, "A-first")
    town.server.one_time_keys[BEN, "A-first"] = {"signed_curve25519:AAAA": odd}
    assert await ben.hear(await ann.say()) == "hello"
    assert [each["code"] for each in told(town.server, BEN, "A-first")] == ["m.no_olm"]


async def test_a_one_time_key_that_another_device_signed_is_none(town: Town) -> None:
    ann, ben = await town.pair()
    second = await town.device(BEN, "B2")
    town.server.one_time_keys[BEN, "B2"] = dict(town.server.one_time_keys[ANN, "A"])
    assert await ben.hear(await ann.say()) == "hello"
    assert [each["code"] for each in told(town.server, BEN, "B2")] == ["m.no_olm"]
    assert second.keys == []


async def test_a_server_that_is_away_keeps_nobody_from_talking(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    eve = await town.device(EVE, "E")
    town.server.members[ROOM][EVE] = "join"
    town.server.away.add("away.test")
    with capture_logs() as logs:
        raw = await ann.say()
    assert [log["event"] for log in logs if log["log_level"] == "warning"] == [
        "homeservers did not answer for devices"
    ]
    assert await ben.hear(raw) == "hello"
    town.server.away.clear()
    time.ahead += 61
    await ann.catch_up()
    assert await eve.hear(await ann.say("back")) == "back"


async def test_a_share_that_breaks_off_is_taken_up_again(town: Town) -> None:
    """Who has the key already does not get it again."""
    ann, _ = await town.pair()
    parties = [await town.device(BEN, f"B{number}") for number in range(BATCH + 5)]
    sent = 0

    async def fail() -> None:
        raise MatrixConnectionError("away")

    def second(name: str) -> Any:
        nonlocal sent
        sent += name == "sendToDevice"
        return fail() if name == "sendToDevice" and sent == 2 else None

    town.server.fault = second
    with pytest.raises(MatrixConnectionError):
        await ann.say()
    town.server.fault = lambda name: None
    raw = await ann.say("well")
    for party in parties:
        assert await party.hear(raw) == "well"
        assert len(party.keys) == 1


async def test_a_large_room_is_served_in_parts(town: Town) -> None:
    ann, ben = await town.pair()
    for number in range(2 * BATCH):
        await town.device(BEN, f"B{number}")
    town.server.calls.clear()
    raw = await ann.say()
    assert town.server.calls.count("sendToDevice") == town.server.calls.count("keys/claim") == 3
    assert await ben.hear(raw) == "hello"


async def test_a_key_that_got_lost_is_shared_once_more(town: Town) -> None:
    """Ben's device lost its channels: what Ann sent is nothing to it, and it says so with a new channel."""
    ann, ben = await town.pair()
    await ann.hear(await ben.say())
    ben.encryption.db.run("DELETE FROM channels")
    lost = await ann.say("lost")
    await ben.catch_up()
    assert (await ben.why_not(lost)).reason == "no_key"
    await ben.encryption._upkeep._mend()
    assert ben.encryption.counts["unwedged"] == 1
    await ann.catch_up()
    assert await ben.hear(await ann.say("found")) == "found"


async def test_a_broken_channel_is_replaced_once_an_hour(town: Town, time: Time, autojump_clock: Any) -> None:
    ann, ben = await town.pair()
    await ann.hear(await ben.say())
    for _ in range(3):
        ben.encryption.db.run("DELETE FROM channels")
        await ann.encryption._sharing._channels.send(list(ann.encryption.standing.devices(BEN)), "m.dummy", {})
        await ben.catch_up()
        await ben.encryption._upkeep._mend()
    assert ben.encryption.counts["unwedged"] == 1
    await trio.sleep(3601)
    ben.encryption.db.run("DELETE FROM channels")
    await ann.encryption._sharing._channels.send(list(ann.encryption.standing.devices(BEN)), "m.dummy", {})
    await ben.catch_up()
    await ben.encryption._upkeep._mend()
    assert ben.encryption.counts["unwedged"] == 2
