"""Keys that are asked for: of our other devices, and by them; nobody else gets or brings any."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from mautrix.errors import MatrixConnectionError, MForbidden
from structlog.testing import capture_logs

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.requests import MAX_ASKED, MAX_WANTED, PATIENCE_MS, WANTED_MS
from tests.matrix.crypto.conftest import ANN, BEN, Party, Raw, Time, Town
from tests.matrix.crypto.key_server import ROOM


async def trust(one: Party, other: Party) -> None:
    """As if a person had compared the two."""
    await one.encryption.devices.refresh([other.user])
    sql = "UPDATE crypto_device SET trust = 300 WHERE user_id = ? AND device_id = ?"
    one.encryption.db.run(sql, other.user, other.device)


async def pass_on(asker: Party, giver: Party) -> None:
    """The request goes there, and what it brings comes back."""
    await asker.encryption._requests.ask()
    await giver.catch_up()
    await giver.encryption._requests.answer()
    await asker.catch_up()


async def late_device(town: Town) -> tuple[Party, Party, Raw]:
    """Ben's first device reads what Ann says; his second has come too late for that."""
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.hear(raw)
    return ben, await town.device(BEN, "B2"), raw


async def test_a_key_comes_from_a_verified_device_of_ours(town: Town, time: Time) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    await trust(second, ben)
    assert (await second.why_not(raw)).later
    time.ahead += PATIENCE_MS / 1000
    await pass_on(second, ben)
    assert second.keys == [(ROOM, raw["content"]["session_id"])]
    assert (await second.why_not(raw)).later  # it has not met Ann yet
    await second.catch_up()
    decrypted = await second.decrypt(raw)
    assert (decrypted.content["body"], decrypted.trust) == ("hello", "forwarded")
    await second.encryption._requests.ask()
    actions = [each["content"]["action"] for each in town.server.inbox[BEN, "B"]]
    assert actions == ["request_cancellation"]


async def newcomer(town: Town) -> tuple[Party, Party, Raw, Raw]:
    """Ben's second device, which reads what Ann says from its coming on, and the first one; what she said before, and
    after."""
    ann, ben = await town.pair()
    before = await ann.say("before")
    await ben.hear(before)
    second = await town.device(BEN, "B2")
    await ann.catch_up()
    after = await ann.say("after")
    assert after["content"]["session_id"] == before["content"]["session_id"]
    assert await second.hear(after) == "after"
    return ben, second, before, after


async def test_a_key_from_further_back_comes_from_a_verified_device_of_ours(town: Town, time: Time) -> None:
    """It leads to the key that is known, so that it is the same one's."""
    ben, second, before, after = await newcomer(town)
    await trust(ben, second)
    await trust(second, ben)
    assert (await second.why_not(before)).reason == "no_key"
    second.keys.clear()
    time.ahead += PATIENCE_MS / 1000
    await pass_on(second, ben)
    assert second.keys == [(ROOM, before["content"]["session_id"])]
    early, late = await second.decrypt(before), await second.decrypt(after)
    assert (early.content["body"], early.trust) == ("before", late.trust)
    assert late.trust != "forwarded"
    await second.encryption._requests.ask()
    assert [each["content"]["action"] for each in town.server.inbox[BEN, "B"]] == ["request_cancellation"]
    assert second.encryption._requests.next_due_ms() is None


async def test_a_key_that_comes_from_too_far_on_is_not_all_that_is_wanted(town: Town, time: Time) -> None:
    """Whatever comes first: what was asked is asked on, or again."""
    ann, ben = await town.pair()
    before = await ann.say("before")
    await ben.hear(before)
    second = await town.device(BEN, "B2")
    await trust(ben, second)
    await trust(second, ben)
    await second.why_not(before)
    time.ahead += PATIENCE_MS / 1000
    await second.encryption._requests.ask()
    town.server.inbox[BEN, "B"].clear()  # it was lost
    await ann.catch_up()
    await second.hear(await ann.say("after"))
    await second.encryption._requests.ask()
    await second.why_not(before)
    time.ahead += PATIENCE_MS / 1000
    await pass_on(second, ben)
    assert await second.read(before) == "before"


async def test_a_key_that_is_missed_again_while_it_is_taken_back_is_missed(town: Town, time: Time) -> None:
    ben, second, before, _ = await newcomer(town)
    await second.why_not(before)
    time.ahead += PATIENCE_MS / 1000
    await second.encryption._requests.ask()
    second.encryption.db.run("UPDATE wanted SET since_ms = 0")  # as when a key came

    async def miss() -> None:
        await second.why_not(before)

    town.server.lost = lambda name: miss() if name == "sendToDevice" else None
    await second.encryption._requests.ask()
    town.server.lost = lambda name: None
    time.ahead += PATIENCE_MS / 1000
    await second.encryption._requests.ask()
    actions = [each["content"]["action"] for each in town.server.inbox[BEN, "B"] if "action" in each["content"]]
    assert actions == ["request", "request_cancellation", "request"]
    assert ben.keys


async def test_a_key_from_further_back_that_leads_elsewhere_is_nobodys(town: Town, time: Time) -> None:
    ben, second, before, after = await newcomer(town)
    key = ben.encryption._keys.get(ROOM, before["content"]["session_id"])
    assert key is not None
    exported = bytearray(base64.b64decode(key.session.export_session(0) + "=="))
    exported[20] ^= 1  # of the ratchet
    content = {
        "algorithm": "m.megolm.v1.aes-sha2",
        "room_id": ROOM,
        "session_id": key.session_id,
        "session_key": base64.b64encode(exported).decode(),
        "sender_key": key.sender_key,
        "sender_claimed_ed25519_key": key.signing_key,
    }
    assert second.encryption._keys.receive_forwarded(content) is None
    assert await second.read(after) == "after"
    assert (await second.why_not(before)).reason == "no_key"


async def test_nobody_is_asked_at_once(town: Town) -> None:
    """The key is most likely just behind its message."""
    _, second, raw = await late_device(town)
    await second.why_not(raw)
    town.server.calls.clear()
    await second.encryption._requests.ask()
    assert town.server.calls == []


async def test_nobody_is_asked_where_there_is_nobody(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    await ben.why_not(await ann.say())
    time.ahead += PATIENCE_MS / 1000
    town.server.calls.clear()
    await ben.encryption._requests.ask()
    assert "sendToDevice" not in town.server.calls
    assert ben.encryption._requests.next_due_ms() is None


async def test_whoever_comes_later_is_asked_then(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    town.server.inbox[BEN, "B"].clear()
    await ben.why_not(raw)
    time.ahead += PATIENCE_MS / 1000
    await ben.encryption._requests.ask()
    await town.device(BEN, "B2")
    await ben.catch_up()
    await ben.encryption.devices.refresh([BEN])
    assert ben.encryption._requests.next_due_ms() is not None
    await ben.encryption._requests.ask()
    (asked,) = town.server.inbox[BEN, "B2"]
    assert (asked["type"], asked["content"]["action"]) == ("m.room_key_request", "request")
    assert asked["content"]["body"]["session_id"] == raw["content"]["session_id"]
    assert ben.encryption._requests.next_due_ms() is None


async def test_a_request_that_is_lost_is_made_again(town: Town, time: Time) -> None:
    ben, second, raw = await late_device(town)
    await second.why_not(raw)
    time.ahead += PATIENCE_MS / 1000

    async def fail() -> None:
        raise MatrixConnectionError("away")

    town.server.fault = lambda name: fail() if name == "sendToDevice" else None
    with pytest.raises(MatrixConnectionError):
        await second.encryption._requests.ask()
    town.server.fault = lambda name: None
    await second.encryption._requests.ask()
    assert [each["type"] for each in town.server.inbox[BEN, "B"]] == ["m.room_key_request"]
    assert ben.keys


async def test_a_device_of_ours_that_is_not_verified_is_told_so(town: Town, time: Time) -> None:
    ben, second, raw = await late_device(town)
    await trust(second, ben)
    await second.why_not(raw)
    time.ahead += PATIENCE_MS / 1000
    await ben.encryption.devices.refresh([BEN])
    await pass_on(second, ben)
    assert (await second.why_not(raw)).reason in ("no_key", "withheld:m.unverified")
    assert second.keys == []


async def test_a_device_of_ours_that_is_not_verified_is_not_believed(town: Town, time: Time) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    await second.why_not(raw)
    time.ahead += PATIENCE_MS / 1000
    await pass_on(second, ben)
    assert second.keys == []
    assert second.encryption.counts["messages_refused"] == 1


async def test_a_key_that_nobody_misses_is_not_taken(town: Town) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    await trust(second, ben)
    wanted = {"action": "request", "request_id": "r", "requesting_device_id": "B2"}
    body = {"room_id": ROOM, "session_id": raw["content"]["session_id"]}
    ben.encryption._requests.asked(BEN, {**wanted, "body": body})
    await ben.encryption._requests.answer()
    await second.catch_up()
    assert second.keys == []


async def test_a_key_that_is_not_there_is_said_to_be_unavailable(town: Town) -> None:
    ben, second, _ = await late_device(town)
    await trust(ben, second)
    wanted = {"action": "request", "request_id": "r", "requesting_device_id": "B2"}
    ben.encryption._requests.asked(BEN, {**wanted, "body": {"room_id": ROOM, "session_id": "unknown"}})
    await ben.encryption._requests.answer()
    (told,) = town.server.inbox[BEN, "B2"]
    assert told["content"]["code"] == "m.unavailable"


async def test_strangers_get_neither_a_key_nor_an_answer(town: Town) -> None:
    ann, ben = await town.pair()
    eve = await town.device("@eve:hs.test", "E")
    raw = await ben.say()
    await ben.encryption.devices.refresh([eve.user])
    town.server.tell(BEN, "B", "m.room_key_request", eve.user, _request(raw, "E"))
    await ben.catch_up()
    town.server.calls.clear()
    await ben.encryption._requests.answer()
    assert town.server.calls == []
    assert await ann.hear(raw) == "hello"


async def test_who_has_the_key_and_lost_it_gets_it_from_now_on(town: Town) -> None:
    ann, ben = await town.pair()
    lost = await ann.say("lost")
    town.server.inbox[BEN, "B"].clear()
    town.server.tell(ANN, "A", "m.room_key_request", BEN, _request(lost, "B"))
    await ann.catch_up()
    await ann.encryption._requests.answer()
    found = await ann.say("found")
    assert await ben.hear(found) == "found"
    assert (await ben.why_not(lost)).reason == "no_key"


def _request(raw: Raw, device: str, **more: Any) -> Raw:
    body = {"algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "session_id": raw["content"]["session_id"]}
    return {"action": "request", "request_id": "r", "requesting_device_id": device, "body": body, **more}


async def test_a_request_that_is_taken_back_is_not_answered(town: Town) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    town.server.tell(BEN, "B", "m.room_key_request", BEN, _request(raw, "B2"))
    town.server.tell(BEN, "B", "m.room_key_request", BEN, _request(raw, "B2", action="request_cancellation"))
    await ben.catch_up()
    await ben.encryption._requests.answer()
    assert town.server.inbox[BEN, "B2"] == []


async def test_an_answer_that_cannot_be_sent_waits_and_one_that_is_refused_does_not(town: Town) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    errors: list[Exception] = [MatrixConnectionError("away"), MForbidden(403, "no")]

    async def fail() -> None:
        raise errors.pop(0)

    town.server.tell(BEN, "B", "m.room_key_request", BEN, _request(raw, "B2"))
    await ben.catch_up()
    town.server.fault = lambda name: fail()
    with pytest.raises(MatrixConnectionError):
        await ben.encryption._requests.answer()
    await ben.encryption._requests.answer()
    assert errors == []
    town.server.fault = lambda name: None
    town.server.calls.clear()
    await ben.encryption._requests.answer()
    assert town.server.calls == []


@pytest.mark.parametrize("trouble", [OSError("the disk"), ArmorclawError("storage_full", "the disk")])
async def test_an_answer_that_the_disk_does_not_take_waits(
    town: Town, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    town.server.tell(BEN, "B", "m.room_key_request", BEN, _request(raw, "B2"))
    await ben.catch_up()

    async def fail() -> None:
        raise trouble

    with monkeypatch.context() as patch:
        patch.setattr(ben.encryption.db, "sync", fail)
        with pytest.raises(type(trouble)):
            await ben.encryption._requests.answer()
    assert town.server.inbox[BEN, "B2"] == []
    await ben.encryption._requests.answer()
    assert [each["type"] for each in town.server.inbox[BEN, "B2"]] == ["m.room.encrypted"]


async def test_a_flood_of_requests_is_bounded_and_said(town: Town) -> None:
    ben, _, raw = await late_device(town)
    with capture_logs() as logs:
        for number in range(MAX_ASKED + 1):
            ben.encryption._requests.asked(BEN, _request(raw, "B2", request_id=str(number)))
    assert len(ben.encryption._requests._asked) == MAX_ASKED
    assert [log["event"] for log in logs] == ["too many key requests: one is dropped"]


async def test_what_is_missed_is_bounded_and_given_up(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    await ben.why_not(await ann.say())
    for number in range(MAX_WANTED + 1):
        time.ahead += 0.001
        ben.encryption._requests.want(ROOM, str(number), None)
    assert ben.encryption.db.all("SELECT count(*) FROM wanted")[0][0] == MAX_WANTED
    time.ahead += WANTED_MS / 1000
    while ben.encryption.db.all("SELECT count(*) FROM wanted")[0][0]:
        await ben.encryption._requests.ask()


async def test_the_same_request_may_come_again(town: Town, time: Time) -> None:
    """It is asked, taken back and asked in the same words; what is given for it twice does no harm."""
    ben, second, raw = await late_device(town)
    await trust(ben, second)
    body = {"algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "session_id": raw["content"]["session_id"]}
    ask = {"action": "request", "request_id": "r", "requesting_device_id": "B2", "body": body}
    back = {**ask, "action": "request_cancellation"}
    asked = ben.encryption._requests._asked
    for content, waiting in ((ask, 1), (back, 0), (ask, 1), (back, 0), (ask, 1)):
        town.server.tell(BEN, "B", "m.room_key_request", BEN, content)
        await ben.catch_up()
        assert len(asked) == waiting
    assert ben.encryption.db.all("SELECT count(*) FROM seen")[0][0] == 1  # Ann's key


async def test_another_life_asks_again(town: Town, time: Time) -> None:
    _, second, raw = await late_device(town)
    await second.why_not(raw)
    time.ahead += PATIENCE_MS / 1000
    await second.encryption._requests.ask()
    again = await town.restart(second)
    await again.encryption._requests.ask()
    requests = [each["content"]["request_id"] for each in town.server.inbox[BEN, "B"]]
    assert len(requests) == 2
    assert len(set(requests)) == 1
