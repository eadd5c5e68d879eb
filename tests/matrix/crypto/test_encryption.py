"""What a session sees of encryption: messages go from device to device, whatever comes in between."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mautrix.errors import MatrixConnectionError
from structlog.testing import capture_logs
from trio.testing import MockClock, assert_no_checkpoints

from armorclaw.matrix.answer import Answer
from armorclaw.matrix.crypto.encryption import DevicePolicy, KeysLost, Undecryptable
from tests.matrix.crypto.conftest import ANN, BEN, Party, Raw, Time, Town
from tests.matrix.crypto.key_server import ROOM


def key_of(raw: Raw) -> str:
    return str(raw["content"]["session_id"])


@pytest.mark.mission("M.e2ee")
async def test_two_people_talk(town: Town) -> None:
    ann, ben = await town.pair()
    assert await ben.hear(await ann.say("hello")) == "hello"
    assert await ann.hear(await ben.say("hi")) == "hi"
    assert await ben.hear(await ann.say("how are you")) == "how are you"


async def test_what_is_sent_is_not_in_the_clear(town: Town) -> None:
    ann, _ = await town.pair()
    raw = await ann.say("a secret", extra={"deep": "another"})
    assert "secret" not in str(raw)
    assert "another" not in str(raw)
    assert set(raw["content"]) == {"algorithm", "ciphertext", "session_id", "sender_key", "device_id"}


async def test_one_reads_what_one_said(town: Town) -> None:
    ann, _ = await town.pair()
    decrypted = await ann.decrypt(await ann.say("hello"))
    assert (decrypted.type, decrypted.content["body"], decrypted.trust) == ("m.room.message", "hello", "verified")


async def test_a_message_before_its_key_waits_for_it(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    missing = await ben.why_not(raw)
    assert (missing.reason, missing.later, missing.session_id) == ("no_key", True, raw["content"]["session_id"])
    await ben.catch_up()
    assert ben.keys == [(ROOM, missing.session_id)]
    assert await ben.read(raw) == "hello"


async def test_the_same_answer_twice_is_as_once(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    answer = town.server.answer(BEN, "B")
    await ben.encryption.absorb(answer)
    await ben.encryption.absorb(answer)
    assert await ben.read(raw) == "hello"
    assert len(ben.keys) == 1
    assert ben.encryption.counts["messages_refused"] == 0


async def test_the_same_event_twice_says_the_same(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    assert await ben.hear(raw) == await ben.read(raw) == "hello"


async def test_a_message_under_another_id_is_a_replay(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.hear(raw)
    assert (await ben.why_not({**raw, "event_id": "$other"})).reason == "replayed"
    assert await ben.read(raw) == "hello"


async def test_a_message_of_somebody_else_is_no_message(town: Town) -> None:
    """A homeserver that says it was Ben who said what Ann said."""
    ann, ben = await town.pair()
    carl = await town.device("@carl:hs.test", "C")
    town.server.members[ROOM][carl.user] = "join"
    await ann.note("m.room.member", carl.user, {"membership": "join"})
    raw = await ann.say()
    await carl.catch_up()
    refused = await carl.why_not({**raw, "sender": BEN})
    assert (refused.reason, refused.later) == ("mismatch", True)  # Ben might yet say that the key is his
    assert await ben.hear(raw) == "hello"


async def test_a_message_of_another_room_is_no_message(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.catch_up()
    key = ben.encryption._keys.get(ROOM, raw["content"]["session_id"])
    assert key is not None
    ben.encryption.db.run("UPDATE room_keys SET room_id = '!other:hs.test'")
    ben.encryption._keys._open.clear()
    assert (await ben.why_not(raw, "!other:hs.test")).reason == "mismatch"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"algorithm": "m.megolm.v9"}, "unknown_algorithm"),
        ({"algorithm": None}, "unknown_algorithm"),
        ({"ciphertext": {"a": 1}}, "malformed"),
        ({"ciphertext": ""}, "malformed"),
        ({"ciphertext": "AwgAEnACgAkLmt6qF84IK++J7UDH2Za1YVchHyprqTqsg"}, "malformed"),
        ({"session_id": 5}, "malformed"),
        ({"session_id": "nobody's"}, "no_key"),
    ],
)
async def test_what_cannot_be_read_has_a_reason(town: Town, change: Raw, reason: str) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.catch_up()
    raw["content"].update(change)
    assert (await ben.why_not(raw)).reason == reason
    assert ben.encryption.counts[f"failed:{reason}"] == 1


async def test_relations_are_where_the_homeserver_sees_them(town: Town) -> None:
    ann, ben = await town.pair()
    relation = {"m.in_reply_to": {"event_id": "$before"}}
    more: Raw = {"m.relates_to": relation}
    raw = await ann.say(**more)
    assert raw["content"]["m.relates_to"] == relation
    await ben.catch_up()
    assert (await ben.decrypt(raw)).content["m.relates_to"] == relation
    del raw["content"]["m.relates_to"]
    assert "m.relates_to" not in (await ben.decrypt(raw)).content


async def test_of_a_relation_only_what_the_homeserver_needs_is_in_the_clear(town: Town) -> None:
    """The rest is said and read all the same."""
    ann, ben = await town.pair()
    public = {
        "rel_type": "m.thread",
        "event_id": "$root",
        "key": "k",
        "is_falling_back": True,
        "m.in_reply_to": {"event_id": "$before"},
    }
    raw = await ann.say(**{"m.relates_to": {**public, "secret": "canary"}})  # type: ignore[arg-type]
    assert raw["content"]["m.relates_to"] == public
    assert "canary" not in str(raw)
    await ben.catch_up()
    assert (await ben.decrypt(raw)).content["m.relates_to"] == {**public, "secret": "canary"}
    raw["content"]["m.relates_to"] = {"event_id": "$other"}
    relation = (await ben.decrypt(raw)).content["m.relates_to"]
    assert relation == {"event_id": "$other", "secret": "canary"}  # what it can see is what counts


@pytest.mark.parametrize("odd", ["canary", ["canary"], None, {}])
async def test_a_relation_that_is_none_is_not_in_the_clear(town: Town, odd: Any) -> None:
    ann, ben = await town.pair()
    raw = await ann.say(**{"m.relates_to": odd})
    assert "canary" not in str(raw)
    await ben.catch_up()
    assert (await ben.decrypt(raw)).content.get("m.relates_to") == odd


async def test_another_life_of_the_device_reads_on(town: Town) -> None:
    ann, ben = await town.pair()
    before, identity = await ann.say("before"), ben.encryption.identity_key
    await ben.catch_up()
    after = await ann.say("after")
    again = await town.restart(ben, identity_key=identity)
    assert again.encryption.identity_key == identity
    assert await again.read(before) == "before"
    assert await again.read(after) == "after"


async def test_another_life_of_the_device_says_on_with_its_key(town: Town) -> None:
    ann, _ = await town.pair()
    first = await ann.say()
    again = await town.restart(ann)
    town.server.calls.clear()
    second = await again.say()
    assert second["content"]["session_id"] == first["content"]["session_id"]
    assert "sendToDevice" not in town.server.calls


async def test_after_a_power_cut_no_step_of_a_key_is_taken_twice(
    town: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    ann, _ = await town.pair()
    first = await ann.say()
    boot = tmp_path / "boot_id"
    boot.write_text("another")
    monkeypatch.setattr("armorclaw.matrix.crypto.encryption.BOOT_ID", boot)
    again = await town.restart(ann)
    assert (await again.say())["content"]["session_id"] != first["content"]["session_id"]


async def test_where_boots_cannot_be_told_apart_each_life_begins_new_keys(
    town: Town, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr("armorclaw.matrix.crypto.encryption.BOOT_ID", tmp_path / "missing")
    ann, _ = await town.pair()
    first = await ann.say()
    again = await town.restart(ann)
    assert (await again.say())["content"]["session_id"] != first["content"]["session_id"]


async def test_a_sync_that_went_on_alone_is_not_followed_blindly(town: Town) -> None:
    """While encryption was off somebody went, and somebody came: nobody told the keys."""
    eve = await town.device("@eve:hs.test", "E")
    ann, ben = await town.pair()
    del town.server.members[ROOM][BEN]
    town.server.members[ROOM][eve.user] = "join"
    ann.encryption.stands("s0", "s1")
    before = await ann.say("before")
    town.server.members[ROOM] = {ANN: "join", BEN: "join"}
    ann = await town.restart(ann)
    await ann.encryption.resume("s5")
    after = await ann.say("after")
    assert key_of(after) != key_of(before)
    ben = await town.device(BEN, "B", published=False)
    eve = await town.device(eve.user, "E", published=False)
    assert await ben.hear(after) == "after"
    assert await eve.hear(before) == "before"
    assert (await eve.why_not(after)).reason == "no_key"


@pytest.mark.parametrize("since", ["s0", "s1"])
async def test_where_it_left_off_the_sync_is_followed(town: Town, since: str) -> None:
    """The answer was taken in; that it was, the other store may have or not."""
    ann, _ = await town.pair()
    ann.encryption.stands("s?", "s0")
    ann.encryption.stands("s0", "s1")
    before = await ann.say()
    ann = await town.restart(ann)
    await ann.encryption.resume(since)
    town.server.calls.clear()
    assert key_of(await ann.say()) == key_of(before)
    assert town.server.calls == []


@pytest.mark.parametrize("since", ["s?", "s2", "", None])
async def test_a_place_that_is_another_has_all_asked_for_anew(town: Town, since: str | None) -> None:
    """One of the two stores came out of a backup: the steps of a key may have been taken already."""
    ann, _ = await town.pair()
    ann.encryption.stands("s?", "s0")
    ann.encryption.stands("s0", "s1")
    before = await ann.say()
    ann = await town.restart(ann)
    with capture_logs() as logs:
        await ann.encryption.resume(since)
    assert any("not where" in log["event"] for log in logs) is (since is not None)
    town.server.calls.clear()
    assert key_of(await ann.say()) != key_of(before)
    assert {"members", "keys/query"} <= set(town.server.calls)


async def test_an_account_that_begins_has_nothing_to_forget(town: Town) -> None:
    with capture_logs() as logs:
        ann = await town.device(ANN, "A")
        await ann.encryption.resume(None)
    assert logs == []
    ann.encryption.stands(None, "s1")
    ann = await town.restart(ann)
    with capture_logs() as logs:
        await ann.encryption.resume("s1")
    assert logs == []


async def test_that_nothing_moved_is_not_written_down_again(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, _ = await town.pair()
    ann.encryption.stands("s0", "s1")
    ann.encryption.stands("s1", "s1")
    monkeypatch.setattr(ann.encryption.db, "run", None)
    ann.encryption.stands("s1", "s1")


async def test_what_it_knows_to_be_encrypted(town: Town) -> None:
    ann, _ = await town.pair()
    assert not ann.encryption.knows(ROOM)
    await ann.note("m.room.encryption", "", {"algorithm": "m.megolm.v1.aes-sha2"})
    assert ann.encryption.knows(ROOM)
    again = await town.restart(ann)
    assert again.encryption.knows(ROOM)
    assert not again.encryption.knows("!other:hs.test")


async def test_it_knows_since_when_it_is_this_device(town: Town, time: Time) -> None:
    before = int(time() * 1000)
    ann = await town.device(ANN, "A")
    made = ann.encryption.device_made_ms
    assert before <= made <= int(time() * 1000)
    time.ahead += 1000
    assert (await town.restart(ann)).encryption.device_made_ms == made


async def test_keys_that_a_login_had_and_that_are_gone_are_lost(town: Town) -> None:
    with pytest.raises(KeysLost, match="missing"):
        await town.device(ANN, "A", identity_key="abc")


async def test_a_file_with_other_keys_is_lost(town: Town) -> None:
    ann = await town.device(ANN, "A")
    with pytest.raises(KeysLost, match="other keys"):
        await town.restart(ann, identity_key="abc")


async def test_a_file_of_another_device_is_lost(town: Town) -> None:
    await town.device(ANN, "A")
    await town.end()
    town.file(ANN, "A").rename(town.file(ANN, "B"))
    with pytest.raises(KeysLost, match="device A"):
        await town.device(ANN, "B")


async def test_a_device_of_another_program_is_left_alone(town: Town) -> None:
    """Its keys would become those of a stranger for everybody who knows it."""
    await town.device(ANN, "A")
    await town.end()
    town.file(ANN, "A").unlink()
    with pytest.raises(KeysLost, match="other keys of the device A"):
        await town.device(ANN, "A")


async def test_twenty_at_once_share_one_key_once(town: Town) -> None:
    ann, ben = await town.pair()
    town.server.calls.clear()
    raws: list[Raw] = []

    async def send(number: int) -> None:
        raws.append(await ann.say(str(number)))

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(send, number)
    assert town.server.calls.count("sendToDevice") == 1
    assert len({raw["content"]["session_id"] for raw in raws}) == 1
    await ben.catch_up()
    assert {await ben.read(raw) for raw in raws} == {str(number) for number in range(20)}


async def test_rooms_do_not_wait_for_each_other(town: Town) -> None:
    ann, _ = await town.pair()
    town.server.encrypt_room(ANN, room_id="!slow:hs.test")
    stuck, go = trio.Event(), trio.Event()

    async def wait() -> None:
        stuck.set()
        await go.wait()

    town.server.fault = lambda name: wait() if name == "members" and not stuck.is_set() else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ann.say, "late", "!slow:hs.test")
        await stuck.wait()
        assert (await ann.say("early"))["content"]["ciphertext"]
        go.set()


async def test_cancelled_at_any_point_nothing_is_broken(town: Town) -> None:
    """Every wait of a first message is cut once; then the message is said and read."""
    ann, ben = await town.pair()
    point = 0
    while True:
        point += 1
        town.server.calls.clear()
        with trio.CancelScope() as scope:
            left = point

            def cut(name: str) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    scope.cancel()

            town.server.fault = town.server.lost = cut
            await ann.say("cut")
        town.server.fault = town.server.lost = lambda name: None
        raw = await ann.say(f"after {point}")
        assert await ben.hear(raw) == f"after {point}"
        assert await ann.hear(await ben.say("well")) == "well"
        if not scope.cancelled_caught:
            break
        ann.encryption.db.run("DELETE FROM outbound")
        ann.encryption.db.run("DELETE FROM channels")
        ann.encryption.db.run("UPDATE rooms SET complete = 0")
        ann.encryption._sharing._at_hand.clear()
        ann.encryption.devices.changed([BEN])
    assert point > 8


async def test_to_device_messages_are_taken_in_without_a_pause(town: Town) -> None:
    """Nothing can come between a ratchet that moved and the note that its message was seen."""
    ann, ben = await town.pair()
    await ann.say()
    for raw in town.server.answer(BEN, "B").to_device:
        with assert_no_checkpoints():
            await ben.encryption._inbox.take_in_one(raw)


async def test_a_disk_that_fails_takes_back_the_whole_message(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    answer = town.server.answer(BEN, "B")
    with monkeypatch.context() as patch:

        def fail(*args: Any) -> None:
            raise OSError("no disk")

        patch.setattr(ben.encryption._keys, "_keep", fail)
        with pytest.raises(OSError, match="no disk"):
            await ben.encryption.absorb(answer)
    await ben.encryption.absorb(answer)
    assert await ben.read(raw) == "hello"


async def test_without_an_event_the_disk_is_not_bothered(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, _ = await town.pair()
    monkeypatch.setattr(ann.encryption.db, "run", None)
    await ann.encryption.absorb(Answer("s"))


async def in_doubt(town: Town) -> tuple[Party, Raw]:
    """Ben, who believes verified devices alone, and what Ann says from one that he could not ask for yet."""
    ann, ben = await town.pair(ben=DevicePolicy("no"))
    await ann.encryption.devices.refresh([BEN])
    raw = await ann.say()
    town.server.fault = lambda name: _away()
    await ben.encryption.absorb(town.server.answer(BEN, "B"))
    town.server.fault = lambda name: None
    return ben, raw


async def test_unknown_devices_are_asked_for_before_they_are_believed(town: Town, autojump_clock: MockClock) -> None:
    ben, raw = await in_doubt(town)
    doubted = await ben.why_not(raw)
    assert (doubted.reason, doubted.later) == ("unverified_device", True)
    ben.keys.clear()
    with trio.move_on_after(1):
        await ben.encryption.run()
    assert ben.keys == [(ROOM, raw["content"]["session_id"])]
    refused = await ben.why_not(raw)
    assert (refused.reason, refused.later) == ("unverified_device", False)
    ben.encryption.db.run("UPDATE crypto_device SET trust = 300 WHERE user_id = ?", ANN)
    assert (await ben.decrypt(raw)).trust == "verified"


async def test_what_is_doubted_while_devices_come_is_tried_when_they_are_there(town: Town) -> None:
    """Whoever tries at the first word of them finds them on their way still, and must be told again."""
    ben, raw = await in_doubt(town)
    assert (await ben.why_not(raw)).later
    fates: list[bool] = []

    def try_again(keys: Sequence[tuple[str, str]]) -> None:
        with pytest.raises(Undecryptable) as caught:
            ben.encryption._decrypt(ROOM, raw)
        fates.append(caught.value.later)
        if caught.value.later:
            ben.encryption._count_failure(ROOM, raw, caught.value)

    ben.encryption.on_keys = try_again
    await ben.encryption.devices.refresh([ANN])
    assert fates == [True, False]


async def test_one_who_is_doubted_often_pushes_out_nobody(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each try of each event doubts the same again; of more keys than are remembered the oldest go."""
    monkeypatch.setattr("armorclaw.matrix.crypto.encryption._DOUBTED", 2)
    ben, raw = await in_doubt(town)
    doubted = await ben.why_not(raw)

    def doubt(session_id: str) -> None:
        ben.encryption._count_failure(ROOM, raw, Undecryptable("unverified_device", session_id, later=True))

    for _ in range(3):
        doubt("another")
    ben.keys.clear()
    ben.encryption._try_again(ANN)
    assert ben.keys == [(ROOM, doubted.session_id), (ROOM, "another")]
    ben.keys.clear()
    for session_id in ("1", "2", "3"):
        doubt(session_id)
    ben.encryption._try_again(ANN)
    assert ben.keys == [(ROOM, "2"), (ROOM, "3")]


async def test_verification_is_passed_on(town: Town) -> None:
    ann, ben = await town.pair()
    told: list[Any] = []
    ben.encryption.on_verification = lambda *each: told.append(each)
    town.server.tell(BEN, "B", "m.key.verification.request", ANN, {"transaction_id": "t"})
    device = ann.encryption.standing
    await ann.encryption.devices.refresh([BEN])
    to = device.device(BEN, "B")
    assert to is not None
    await ann.encryption.channels.send([to], "m.key.verification.ready", {"transaction_id": "t"})
    await ben.catch_up()
    assert told == [
        ("m.key.verification.request", ANN, {"transaction_id": "t"}, False),
        ("m.key.verification.ready", ANN, {"transaction_id": "t"}, True),
    ]


async def test_secrets_are_passed_on_with_the_channel_they_came_over(town: Town) -> None:
    ann, ben = await town.pair()
    told: list[Any] = []
    ben.encryption.on_secret = lambda *each: told.append(each)
    await ann.encryption.devices.refresh([BEN])
    to = ann.encryption.standing.device(BEN, "B")
    assert to is not None
    await ann.encryption.channels.send([to], "m.secret.send", {"secret": "s"})
    town.server.tell(BEN, "B", "m.secret.send", ANN, {"secret": "forged"})
    await ben.catch_up()
    assert told == [
        ("m.secret.send", ANN, {"secret": "s"}, ann.encryption.identity_key),
        ("m.secret.send", ANN, {"secret": "forged"}, ""),
    ]


async def test_a_key_in_the_clear_is_no_key(town: Town) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    key = ann.encryption._sharing._at_hand[ROOM].session.session_key
    content = {"algorithm": "m.megolm.v1.aes-sha2", "room_id": ROOM, "session_id": raw["content"]["session_id"]}
    town.server.inbox[BEN, "B"].clear()
    town.server.tell(BEN, "B", "m.room_key", ANN, {**content, "session_key": key})
    await ben.catch_up()
    assert (await ben.why_not(raw)).reason == "no_key"


async def test_nobody_passes_off_a_key_as_their_own(town: Town) -> None:
    """Mallory, who reads the room, sends Ann's key on: what Ann says stays Ann's."""
    ann, ben = await town.pair()
    mallory = await town.device("@mallory:hs.test", "M")
    raw = await ann.say()
    await ben.catch_up()
    await mallory.encryption.devices.refresh([BEN])
    to = mallory.encryption.standing.device(BEN, "B")
    assert to is not None
    outbound = ann.encryption._sharing._at_hand[ROOM].session
    await mallory.encryption.channels.send(
        [to],
        "m.room_key",
        {
            "algorithm": "m.megolm.v1.aes-sha2",
            "room_id": ROOM,
            "session_id": outbound.id,
            "session_key": outbound.session_key,
        },
    )
    await ben.catch_up()
    assert await ben.read(raw) == "hello"
    assert await ben.read(await ann.say("more")) == "more"


@pytest.mark.parametrize("read", [True, False])
async def test_nobody_is_silenced_by_who_passes_off_their_key(town: Town, read: bool) -> None:
    """Mallory is faster than Ann, whose homeserver takes its time."""
    ann, ben = await town.pair()
    mallory = await town.device("@mallory:hs.test", "M")
    raw = await ann.say()
    late, town.server.inbox[BEN, "B"] = town.server.inbox[BEN, "B"], []
    await mallory.encryption.devices.refresh([BEN])
    to = mallory.encryption.standing.device(BEN, "B")
    assert to is not None
    outbound = ann.encryption._sharing._at_hand[ROOM].session
    key = {"room_id": ROOM, "session_id": outbound.id, "session_key": outbound.session_key}
    await mallory.encryption.channels.send([to], "m.room_key", {"algorithm": "m.megolm.v1.aes-sha2", **key})
    await ben.catch_up()
    if read:
        assert (await ben.why_not(raw)).later
    town.server.inbox[BEN, "B"] = late
    ben.keys.clear()
    await ben.catch_up()
    assert ben.keys == [(ROOM, outbound.id)]  # who waits for it is tried again
    assert await ben.read(raw) == "hello"
    assert (await ben.why_not({**raw, "event_id": "$other"})).reason == "replayed"
    again = await town.restart(ben)
    assert await again.read(raw) == "hello"


async def test_who_brings_a_key_is_asked_for_at_once(town: Town) -> None:
    """So that what is said in the same answer need not wait."""
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.encryption.absorb(town.server.answer(BEN, "B"))
    assert await ben.read(raw) == "hello"


async def test_a_homeserver_that_hangs_does_not_hold_up_the_sync(town: Town, autojump_clock: MockClock) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    town.server.fault = lambda name: _hang()
    with trio.fail_after(3):
        await ben.encryption.absorb(town.server.answer(BEN, "B"))
    assert (await ben.why_not(raw)).later
    town.server.fault = lambda name: None
    await ben.catch_up()
    assert await ben.read(raw) == "hello"


async def _hang() -> None:
    await trio.sleep_forever()


async def _away() -> None:
    raise MatrixConnectionError("away")


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture
async def reader(town: Town) -> tuple[Party, Raw, list[Raw]]:
    ann, ben = await town.pair()
    raw = await ann.say()
    messages = copy.deepcopy(town.server.inbox[BEN, "B"])
    await ben.catch_up()
    return ben, raw, messages


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in items:
        found += _paths(entry, (*path, name))
    return found


def _changed(raw: Raw, path: tuple[Any, ...], value: Any) -> Raw:
    raw = copy.deepcopy(raw)
    place: Any = raw
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    return raw


async def test_odd_messages_do_no_harm(reader: tuple[Party, Raw, list[Raw]]) -> None:
    """Whatever stands anywhere in an event or a to-device message: a reason at worst."""
    ben, raw, messages = reader
    types = (
        "m.room_key_request",
        "m.room_key.withheld",
        "m.key.verification.start",
        "m.secret.send",
        "m.dummy",
        "m.x",
    )
    bodies = [{"type": type_, "sender": ANN, "content": {}} for type_ in types]
    cases: list[Any] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.data())
    def collect(data: st.DataObject) -> None:
        for message in (raw, data.draw(st.sampled_from([*messages, *bodies]))):
            path = data.draw(st.sampled_from(_paths(message)))
            cases.append(_changed(message, path, data.draw(_VALUES)))

    collect()
    for number, case in enumerate(cases):
        if number % 2:
            await ben.encryption.absorb(Answer("s", to_device=[case]))
        else:
            try:
                await ben.decrypt(case)
            except Undecryptable:
                pass
    assert await ben.read(raw) == "hello"
