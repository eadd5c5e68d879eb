"""Room keys that are old or too many go, and with them the marks of what they opened; nothing is ever heard twice."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from time import time as wall
from typing import Any

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, assert_no_checkpoints

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto import pruning, room_keys
from armorclaw.matrix.crypto.channels import Letter
from armorclaw.matrix.crypto.encryption import DevicePolicy
from armorclaw.matrix.crypto.olm import OlmError
from armorclaw.matrix.crypto.pruning import Pruning
from armorclaw.matrix.crypto.requests import PATIENCE_MS
from armorclaw.matrix.crypto.room_keys import CLAIMS, USE_GRAIN_MS
from armorclaw.matrix.crypto.tables import MIGRATIONS
from armorclaw.matrix.crypto.upkeep import TIDY_PAUSE
from armorclaw.matrix.undecrypted import MAX_AGE_MS
from armorclaw.store.migrate import migrate
from tests.matrix.crypto.conftest import ANN, BEN, Party, Raw, Time, Town
from tests.matrix.crypto.key_server import ROOM
from tests.matrix.crypto.test_requests import pass_on, trust

YEAR = 365 * 24 * 3600.0
PAST = YEAR + USE_GRAIN_MS / 1000 + 1
"""Seconds after which a key is old."""


GIVEN: dict[str, list[str]] = {}
"""By user: keys as others were given them, with the first message."""


@pytest.fixture(autouse=True)
def given(monkeypatch: pytest.MonkeyPatch) -> None:
    """Note each key while it is new."""
    GIVEN.clear()
    real = room_keys.RoomKeys.add_own

    def add_own(self: Any, room_id: str, session_key: str, sender_key: str, signing_key: str, owner: str) -> None:
        GIVEN.setdefault(owner, []).append(session_key)
        real(self, room_id, session_key, sender_key, signing_key, owner)

    monkeypatch.setattr(room_keys.RoomKeys, "add_own", add_own)


def key_of(raw: Raw) -> str:
    return str(raw["content"]["session_id"])


def of(party: Party) -> Pruning:
    return party.encryption._upkeep._pruning


def keys(party: Party) -> list[str]:
    return [row[0] for row in party.encryption.db.all("SELECT session_id FROM room_keys ORDER BY number")]


def count(party: Party, table: str) -> int:
    return int(party.encryption.db.all(f"SELECT count(*) FROM {table}")[0][0])


async def prune(party: Party) -> None:
    while await of(party).prune(now=True):
        pass


async def hear_all(ben: Party, raws: Iterable[Raw]) -> None:
    """Their keys, then what they say."""
    await ben.catch_up()
    for raw in raws:
        await ben.read(raw)


async def sessions(ann: Party, number: int) -> list[Raw]:
    """As many messages, each with a key of its own."""
    raws = []
    for each in range(number):
        ann.encryption.db.run("DELETE FROM outbound")
        ann.encryption._sharing._at_hand.clear()
        raws.append(await ann.say(str(each)))
    return raws


async def give(to: Party, giver: Party, content: Raw) -> None:
    """A key over a channel."""
    await giver.encryption.devices.refresh([to.user])
    device = giver.encryption.standing.device(to.user, to.device)
    assert device is not None
    await giver.encryption.channels.send([device], "m.room_key", {"algorithm": room_keys.ALGORITHM, **content})
    await to.catch_up()


def outbound(party: Party) -> Raw:
    session = party.encryption._sharing._at_hand[ROOM].session
    return {"room_id": ROOM, "session_id": session.id, "session_key": session.session_key}


async def test_a_key_that_is_not_used_goes_with_its_marks(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.hear(raw)
    time.ahead += YEAR - 1
    await prune(ben)
    assert await ben.read(raw) == "hello"  # which is a use
    time.ahead += PAST
    with capture_logs() as logs:
        await prune(ben)
    assert (keys(ben), count(ben, "heard"), count(ben, "closed")) == ([], 0, 1)
    assert ben.encryption.counts["keys_pruned"] == 1
    assert [(log["event"], log["number"]) for log in logs] == [("room keys were deleted that are old or too many", 1)]
    refused = await ben.why_not(raw)
    assert (refused.reason, refused.later) == ("key_deleted", False)
    assert count(ben, "wanted") == 0, "nobody is asked for it"


async def test_a_key_that_is_used_stays(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    ann.encryption._sharing._is_used_up = lambda *each: False  # type: ignore[method-assign]
    first = await ann.say()
    await ben.hear(first)
    for _ in range(5):
        time.ahead += YEAR / 2
        await ben.read(await ann.say())
        await prune(ben)
    assert await ben.read(first) == "hello"
    assert (await ben.why_not({**first, "event_id": "$other"})).reason == "replayed"


async def test_with_no_bound_keys_stay_for_ever(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.hear(raw)
    of(ben)._days = 0
    time.ahead += 50 * YEAR
    await prune(ben)
    assert await ben.read(raw) == "hello"


async def test_a_key_that_was_never_used_may_come_again(town: Town, time: Time) -> None:
    """It has opened nothing, so nothing can be said again with it; and no mark is left of it, whoever sends many."""
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.catch_up()
    time.ahead += PAST
    await prune(ben)
    assert (keys(ben), count(ben, "closed")) == ([], 0)
    await give(ben, ann, outbound(ann))
    assert (await ben.why_not(raw)).reason == "no_key"  # it is the key from now on
    assert await ben.hear(await ann.say("more")) == "more"


async def test_a_deleted_key_that_comes_again_is_refused(town: Town, time: Time) -> None:
    """Its sender gives it again, or the homeserver what its sender once gave."""
    ann, ben = await town.pair()
    raw = await ann.say()
    content = outbound(ann) | {"session_key": GIVEN[ANN][-1]}
    await ben.hear(raw)
    time.ahead += PAST
    await prune(ben)
    before = ben.encryption.counts["messages_refused"]
    await give(ben, ann, content)
    assert ben.encryption.counts["messages_refused"] == before + 1
    assert (await ben.why_not({**raw, "event_id": "$other"})).reason == "key_deleted"


async def test_no_device_of_ours_brings_a_deleted_key_back(town: Town, time: Time) -> None:
    """The homeserver says again what was said, so that we miss its key and ask those who have it still."""
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.hear(raw)
    second = await town.device(BEN, "B2")
    await trust(ben, second)
    await trust(second, ben)
    key = ben.encryption._keys.get(ROOM, key_of(raw))
    assert key is not None
    await ben.encryption.devices.refresh([ANN])
    time.ahead += PAST
    of(second)._days = 0
    forwarded = {
        "algorithm": room_keys.ALGORITHM,
        "room_id": ROOM,
        "session_id": key_of(raw),
        "session_key": key.session.export_session(0),
        "sender_key": key.sender_key,
        "sender_claimed_ed25519_key": key.signing_key,
    }
    await prune(ben)
    again = {**raw, "event_id": "$other"}
    assert (await ben.why_not(again)).reason == "key_deleted"
    time.ahead += PATIENCE_MS / 1000
    await pass_on(ben, second)
    assert (await ben.why_not(again)).reason == "key_deleted"
    with pytest.raises(OlmError, match="deleted"):
        ben.encryption._keys.receive_forwarded(forwarded)
    assert second.encryption._keys.receive_forwarded(forwarded) is not None  # to whom it is news


async def test_the_key_we_speak_with_stays(town: Town, time: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    ann, _ = await town.pair()
    raw = await ann.say()
    monkeypatch.setattr(pruning, "MAX_UNUSED", -1)
    for used in (False, True):
        if used:
            await ann.read(raw)
            monkeypatch.setattr(pruning, "MAX_USED", -1)
        time.ahead += PAST
        await prune(ann)
        assert keys(ann) == [key_of(raw)]
    ann.encryption.db.run("DELETE FROM outbound")
    await prune(ann)
    assert keys(ann) == []


@pytest.mark.parametrize("days", [1, 365])
async def test_a_key_that_a_message_waits_with_stays(town: Town, time: Time, days: int) -> None:
    """Its sender's devices are being asked for, for as long as it may wait."""
    ann, ben = await town.pair(ben=DevicePolicy("no"))
    of(ben)._days = days
    first = await ann.say()
    await ben.encryption.absorb(town.server.answer(BEN, "B"))
    time.ahead += days * 24 * 3600.0
    ben.encryption.devices.follow([ANN])
    ben.encryption.devices.changed([ANN])
    assert (await ben.why_not(first)).later
    time.ahead += USE_GRAIN_MS / 1000 - 1
    assert (await ben.why_not(await ann.say("second"))).later
    time.ahead += MAX_AGE_MS / 1000 - 1
    await prune(ben)
    assert keys(ben) == [key_of(first)]
    time.ahead += days * 24 * 3600.0
    await prune(ben)
    assert keys(ben) == []


async def test_a_key_at_hand_goes_too(town: Town, time: Time) -> None:
    """It opened a message whose sender was not believed, so that it counts as not used; then they are."""
    ann, ben = await town.pair(ben=DevicePolicy("no"))
    raw = await ann.say()
    await ben.catch_up()
    assert (await ben.why_not(raw)).reason == "unverified_device"
    time.ahead += PAST
    await prune(ben)
    await trust(ben, ann)
    assert (await ben.why_not(raw)).reason == "no_key"


@pytest.mark.parametrize("fails", ["UPDATE", "INSERT"])
async def test_a_key_with_marks_is_never_taken_for_one_without(
    town: Town, time: Time, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    """Whatever was the last that the disk took."""
    ann, ben = await town.pair()
    raw = await ann.say()
    await ben.catch_up()
    run = ben.encryption.db.run

    def fail(sql: str, *args: Any) -> Any:
        if sql.startswith(fails):
            raise ArmorclawError("storage_failed", "the disk")
        return run(sql, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ben.encryption.db, "run", fail)
        with pytest.raises(ArmorclawError):
            await ben.read(raw)
    assert count(ben, "heard WHERE key IN (SELECT number FROM room_keys WHERE used_ms IS NULL)") == 0
    assert await ben.read(raw) == "hello"


async def test_a_flood_of_keys_pushes_out_none_that_is_used(
    town: Town, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    monkeypatch.setattr(pruning, "MAX_UNUSED", 5)
    raws = await sessions(ann, 3)
    await hear_all(ben, raws)
    flood = await sessions(ann, 30)
    time.ahead += 1
    fresh = await sessions(ann, 1)
    await ben.catch_up()
    await prune(ben)
    assert len(keys(ben)) == 8
    assert await ben.read(fresh[0]) == "0"
    assert [await ben.read(raw) for raw in raws] == ["0", "1", "2"]
    assert (await ben.why_not(flood[0])).reason == "no_key"
    assert count(ben, "closed") == 0


async def test_of_too_many_used_ones_those_go_that_were_not_used_for_longest(
    town: Town, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    monkeypatch.setattr(pruning, "MAX_USED", 2)
    raws = await sessions(ann, 4)
    await ben.catch_up()
    for raw in (raws[1], raws[0], raws[3], raws[2]):
        time.ahead += USE_GRAIN_MS / 1000 + 1
        await ben.read(raw)
    await prune(ben)
    assert keys(ben) == [key_of(raws[2]), key_of(raws[3])]
    (late,) = await sessions(ann, 1)
    await ben.catch_up()
    await prune(ben)
    assert await ben.read(late) == "0", "one that is new has its chance"


async def test_of_too_many_marks_those_go_whose_key_was_not_used_for_longest(
    town: Town, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    monkeypatch.setattr(pruning, "MAX_MARKS", 5)
    monkeypatch.setattr(pruning, "_MARKS_A_TURN", 3)
    old = [await ann.say() for _ in range(8)]
    await ben.catch_up()
    for raw in old:
        await ben.read(raw)
    time.ahead += 7200
    new = await sessions(ann, 1)
    await ben.hear(new[0])
    await prune(ben)
    assert count(ben, "heard") <= 5
    assert {(await ben.why_not({**raw, "event_id": "$other"})).reason for raw in old} == {"key_deleted"}
    assert await ben.read(new[0]) == "0"


async def test_who_passes_off_a_key_does_not_have_it_deleted(town: Town, time: Time) -> None:
    """Mallory called it theirs and said something with it long ago; it is Ann's, who uses it."""
    ann, ben = await town.pair()
    mallory = await town.device("@mallory:hs.test", "M")
    ann.encryption._sharing._is_used_up = lambda *each: False  # type: ignore[method-assign]
    raw = await ann.say()
    await give(ben, mallory, outbound(ann) | {"session_key": GIVEN[ANN][-1]})
    stolen = {**raw, "sender": mallory.user, "event_id": "$stolen"}
    await ben.read(stolen)
    time.ahead += PAST
    await ben.read(raw)
    await prune(ben)
    assert await ben.read(await ann.say("more")) == "more"
    assert (await ben.why_not({**stolen, "event_id": "$again"})).reason == "replayed"
    time.ahead += PAST
    await prune(ben)
    assert keys(ben) == []
    assert {(await ben.why_not(each)).reason for each in (raw, stolen)} == {"key_deleted"}


async def test_a_key_is_called_theirs_by_a_few_devices_of_a_user_at_most(town: Town) -> None:
    ann, ben = await town.pair()
    await ben.hear(raw := await ann.say())
    own = ben.encryption._keys
    letter = {"room_id": ROOM, "session_id": key_of(raw), "algorithm": room_keys.ALGORITHM}
    letter["session_key"] = GIVEN[ANN][-1]
    for number in range(CLAIMS):
        own.receive(Letter("m.room_key", letter, "@m:hs.test", f"key {number}", "s"))
    with pytest.raises(OlmError, match="too many"):
        own.receive(Letter("m.room_key", letter, "@m:hs.test", "another", "s"))
    assert own.receive(Letter("m.room_key", letter, "@n:hs.test", "key", "s")) is not None
    assert await ben.read(raw) == "hello"


async def test_where_not_all_deleted_keys_are_known_none_is_forwarded(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room_keys, "MAX_CLOSED", 2)
    monkeypatch.setattr(pruning, "MAX_USED", 0)
    ann, ben = await town.pair()
    raws = await sessions(ann, 4)
    await ben.catch_up()
    key = ben.encryption._keys.get(ROOM, key_of(raws[0]))
    assert key is not None
    exported = key.session.export_session(0)
    facts = {"sender_key": key.sender_key, "sender_claimed_ed25519_key": key.signing_key}
    forwarded: Raw = {"room_id": ROOM, "session_id": key_of(raws[0]), "algorithm": room_keys.ALGORITHM, **facts}
    for number, raw in enumerate(raws):
        await ben.read(raw)
        with pytest.raises(OlmError, match="deleted") if number else assert_no_checkpoints():
            ben.encryption._keys.receive_forwarded({**forwarded, "session_key": exported})
        await prune(ben)
    with pytest.raises(OlmError, match="one of the many"):
        ben.encryption._keys.receive_forwarded({**forwarded, "session_key": exported})
    assert count(ben, "closed") == 2


async def test_a_clock_that_was_ahead_keeps_nothing_for_ever(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    raw = await ann.say()
    time.ahead += 10 * YEAR
    await ben.hear(raw)
    time.ahead -= 10 * YEAR
    await ben.read(raw)
    time.ahead += PAST
    await prune(ben)
    assert keys(ben) == []


async def test_it_is_done_by_itself(
    town: Town, time: Time, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is time, and when much has come, whatever the hour."""
    ann, ben = await town.pair()
    await ben.hear(await ann.say())
    time.ahead += PAST
    monkeypatch.setattr(pruning, "LOOK_AFTER", 40)
    monkeypatch.setattr("armorclaw.matrix.crypto.database.CROWDED", 20)
    monkeypatch.setattr(pruning, "MAX_UNUSED", 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ben.encryption.run)
        await trio.sleep(3 * TIDY_PAUSE)
        assert len(keys(ben)) == 1  # nobody listened meanwhile: more may have been said with it
        for _ in range(200):
            await ben.encryption.absorb(town.server.answer(BEN, "B"))
            await trio.sleep(60)
        assert keys(ben) == []
        await sessions(ann, 30)
        await ben.encryption.absorb(town.server.answer(BEN, "B"))
        await trio.sleep(1)
        assert len(keys(ben)) <= 3 + 20
        nursery.cancel_scope.cancel()


async def test_a_round_has_an_end_and_others_their_turn(
    town: Town, time: Time, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    await sessions(ann, 25)
    await ben.catch_up()
    time.ahead += PAST
    turn, checks = of(ben)._turn, 0

    def slow(*each: Any) -> bool:
        nonlocal checks
        checks += 1
        autojump_clock.jump(pruning.SECONDS * 0.6)
        return turn(*each)

    monkeypatch.setattr(of(ben), "_turn", slow)
    assert await of(ben).prune(now=True)
    assert (checks, len(keys(ben))) == (2, 5)
    monkeypatch.setattr(of(ben), "_turn", turn)
    assert not await of(ben).prune(now=True)
    assert keys(ben) == []


async def test_the_next_round_follows_at_once(
    town: Town, time: Time, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    await sessions(ann, 25)
    await ben.catch_up()
    time.ahead += PAST
    turn = of(ben)._turn

    def slow(*each: Any) -> bool:
        autojump_clock.jump(pruning.SECONDS + 1)
        return turn(*each)

    monkeypatch.setattr(of(ben), "_turn", slow)
    monkeypatch.setattr(ben.encryption._upkeep, "_is_settled", lambda: True)
    with trio.move_on_after(60):
        await ben.encryption.run()
    assert keys(ben) == []


async def test_a_disk_that_fails_takes_back_the_whole_turn(
    town: Town, time: Time, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair()
    raws = await sessions(ann, 3)
    await hear_all(ben, raws)
    time.ahead += PAST
    run = ben.encryption.db.run

    def fail(sql: str, *args: Any) -> Any:
        if sql.startswith("DELETE FROM room_keys") and count(ben, "room_keys") == 1:
            raise ArmorclawError("storage_failed", "the disk")
        return run(sql, *args)

    with monkeypatch.context() as patch:
        patch.setattr(ben.encryption.db, "run", fail)
        with pytest.raises(ArmorclawError):
            await of(ben).prune(now=True)
    assert (count(ben, "heard"), count(ben, "closed"), ben.encryption.counts["keys_pruned"]) == (3, 0, 0)
    assert [await ben.read(raw) for raw in raws] == ["0", "1", "2"]


async def test_cut_and_killed_anywhere_nothing_is_heard_twice(
    town: Town, time: Time, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the end of each turn: cancelled, and the files as they are then taken up by another life."""
    ann, ben = await town.pair()
    monkeypatch.setattr(pruning, "_KEYS_A_TURN", 1)
    monkeypatch.setattr(pruning, "_MARKS_A_TURN", 2)
    raws = [raw for _ in range(2) for raw in [*await sessions(ann, 1), *[await ann.say() for _ in range(3)]]]
    await hear_all(ben, raws)
    time.ahead += PAST
    folder, identity = town.file(BEN, "B").parent, ben.encryption.identity_key
    turn, lives = of(ben)._turn, 0
    copies: list[Path] = []

    while True:
        with trio.CancelScope() as scope:

            def cut(*each: Any) -> bool:
                more = turn(*each)
                scope.cancel()
                return more

            monkeypatch.setattr(of(ben), "_turn", cut)
            assert not await of(ben).prune(now=True)
        lives += 1
        for raw in raws:
            assert (await ben.why_not({**raw, "event_id": "$other"})).reason in ("replayed", "key_deleted")
        copies.append(tmp_path / f"copy{lives}")
        shutil.copytree(folder, copies[-1], ignore=shutil.ignore_patterns("*-shm"))
        if not scope.cancelled_caught:
            break
    assert lives > 6
    for copied in copies:
        await town.end()
        shutil.rmtree(folder)
        shutil.copytree(copied, folder)
        ben = await town.device(BEN, "B", identity_key=identity, published=False)
        for raw in raws:
            assert (await ben.why_not({**raw, "event_id": "$other"})).reason in ("replayed", "key_deleted")
        await prune(ben)
        assert (keys(ben), count(ben, "heard"), count(ben, "closed")) == ([], 0, 2)


async def test_a_file_of_before_knows_which_keys_were_used(town: Town, time: Time) -> None:
    ann, ben = await town.pair()
    raws = await sessions(ann, 2)
    await ben.catch_up()
    await ben.read(raws[0])
    db = ben.encryption.db
    for statement in (
        "DROP INDEX room_keys_idle",
        "ALTER TABLE room_keys DROP COLUMN used_ms",
        "DROP TABLE closed",
        "PRAGMA user_version = 1",
    ):
        db.run(statement)
    db.run("UPDATE room_keys SET received_ms = received_ms - 5")
    assert migrate(db.connection, MIGRATIONS, db.path) == len(MIGRATIONS) - 1
    rows = [tuple(row) for row in db.all("SELECT session_id, used_ms > received_ms FROM room_keys ORDER BY number")]
    assert rows == [(key_of(raws[0]), 1), (key_of(raws[1]), None)]
    time.ahead = (
        wall() - trio.current_time() + YEAR - 3600
    )  # they age from the migration on, by the clock of the machine
    await prune(ben)
    assert count(ben, "closed") == 0
    time.ahead += PAST
    await prune(ben)
    assert count(ben, "closed") == 1
